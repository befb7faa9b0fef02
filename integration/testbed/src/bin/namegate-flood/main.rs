//! One endpoint floods the layer 7 proxy of a real agent in all known ways, one after the other, while another endpoint
//! makes steady requests: called by `cargo xtask flood`.

mod generate;
mod ground;
mod honest;
mod report;

use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use namegate_testbed::{Agent, World};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use generate::{Generate, Kind};
use honest::Honest;
use report::{Memory, Row, resident};

/// Between two looks at the agent's memory.
const EVERY: Duration = Duration::from_millis(200);
/// Memory is back this long after a flood.
const RECOVERY: Duration = Duration::from_secs(10);
/// Honest requests before the first flood: what the agent keeps for good is there then.
const WARM: Duration = Duration::from_secs(5);
/// The flood's priority (`nice(1)`). A real pod has other cores than the agent's, or a share of them that others keep
/// theirs beside; here both have the same.
const NICE: &str = "10";

/// Floods a node from one endpoint while another goes on.
#[derive(Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  sudo -E cargo xtask flood\n  sudo -E cargo xtask flood --seconds 10 --only ping --only hpack\n  sudo -E cargo xtask flood -o json | jq '.floods[] | select(.wrong != [])'\n\nThe flood runs on the same machine as the agent, with a lower priority; latencies are shown and decide nothing.\n\nExit status: 0 if no honest request is refused, the agent stays below 300 MB, and 10 s after each flood it has no more than 120 % of the memory before; 1 if not, 2 if it could not run."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// How long each flood lasts.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Only these floods.
    #[arg(long)]
    only: Vec<Kind>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Subcommand)]
enum Verb {
    /// Sends a flood in the network namespace of this process until it is ended.
    Generate(Generate),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object.
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.verb {
        Some(Verb::Generate(generate)) => generate::run(generate).map(|()| true),
        None => run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the floods; gives whether every bar holds.
fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and eBPF need root; next step: `sudo -E cargo xtask flood`"
    );
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of descriptors")?;
    let world = ground::world()?;
    let mut agent = Agent::start(&world, &ground::options())?;
    let targets = ground::targets(&world)?;
    let warm = Honest::start(&world)?;
    std::thread::sleep(WARM);
    let warm = warm.finish();
    ensure!(warm.refused == 0, "before the floods: {}", warm.words.join("; "));
    let kinds = if arguments.only.is_empty() { Kind::value_variants() } else { &arguments.only };
    let mut rows = Vec::new();
    for kind in kinds {
        anstream::eprintln!("{kind:?}: {} s, then {} s of rest", arguments.seconds, RECOVERY.as_secs());
        let row = flood(&world, &agent, *kind, targets, Duration::from_secs(arguments.seconds))?;
        if arguments.output == Output::Text {
            row.print();
        }
        rows.push(row);
    }
    let is_good = rows.iter().all(Row::is_good);
    if arguments.output == Output::Json {
        let floods: Vec<_> = rows.iter().map(Row::json).collect();
        anstream::println!("{:#}", json!({"floods": floods, "good": is_good, "seconds": arguments.seconds}));
    }
    let log = agent.log();
    ensure!(!log.contains("panicked"), "the agent panicked:\n{log}");
    if std::env::var_os("NAMEGATE_FLOOD_LOG").is_some() {
        eprintln!("{log}\n{}", agent.json("/v1/status")?);
    }
    agent.terminate()?;
    Ok(is_good)
}

/// One flood with the honest requests during it, and the memory after it.
fn flood(world: &World, agent: &Agent<'_>, kind: Kind, targets: [SocketAddr; 3], length: Duration) -> Result<Row> {
    let pid = agent.pid().context("the agent does not run")?;
    let mut memory = Memory { before: resident(pid)?, ..Memory::default() };
    let honest = Honest::start(world)?;
    let generator = Generator::start(world, kind, targets)?;
    let began = Instant::now();
    while began.elapsed() < length {
        memory.peak = memory.peak.max(resident(pid)?);
        std::thread::sleep(EVERY);
    }
    let honest = honest.finish();
    drop(generator);
    std::thread::sleep(RECOVERY);
    memory.after = resident(pid)?;
    Ok(Row { kind, honest, memory })
}

/// The process that floods, ended on drop.
struct Generator(Child);

impl Generator {
    fn start(world: &World, kind: Kind, targets: [SocketAddr; 3]) -> Result<Self> {
        let mut command = Command::new("nice");
        command.args(["-n", NICE, "setpriv", "--pdeathsig", "KILL", "--"]).arg(std::env::current_exe()?);
        let name = kind.to_possible_value().context("a kind without a name")?;
        command.args(["generate", name.get_name()]).args(targets.map(|target| target.to_string()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let spawned = world.pod(ground::HOSTILE).netns.call(move || command.spawn());
        Ok(Self(spawned.context("starting the flood by `nice` and `setpriv` (util-linux)")?))
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        let _ = self.0.kill(); // It may have ended by itself.
        let _ = self.0.wait();
    }
}
