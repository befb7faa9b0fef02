//! The seed article on this machine: its application, its four policies, each of its tests, through the real agent.

mod report;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use namegate_testbed::seed::{self, CHAPTERS, Chapter, Verdict};
use namegate_testbed::{Agent, Applied, Options, World};

use report::Report;

/// Shows Namegate at work: the article "Kubernetes Network Policies Using Cilium" in network namespaces.
///
/// Builds the article's application out of network namespaces, starts the agent, applies the four policies one after
/// another, and runs each `kubectl exec` of the article. Needs root.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  sudo -E cargo xtask demo\n  sudo -E cargo xtask demo -o json | jq '.rows[] | select(.verdict != \"as-said\")'\n\nExit status: 0 if every row is as the article says, 1 if one is not, 2 if the demo could not run."
)]
struct Arguments {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
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
    let mut report = Report::new(arguments.output == Output::Json);
    match run(&mut report) {
        Ok(()) => report.finish(),
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(report: &mut Report) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and eBPF need root; next step: `sudo -E cargo xtask demo`"
    );
    let started = Instant::now();
    let world = seed::world()?;
    report.world(world.pods().len(), started.elapsed());
    let started = Instant::now();
    let agent = Agent::start(&world, &Options::default())?;
    report.agent(started.elapsed());
    report.open(everything_passes(&world)?);
    for (number, chapter) in CHAPTERS.iter().enumerate() {
        play(report, &world, &agent, number + 1, chapter)?;
    }
    Ok(())
}

/// Without a policy each command of the article gets through: what is denied later is denied by the policy.
fn everything_passes(world: &World) -> Result<usize> {
    let tests = CHAPTERS.iter().flat_map(|chapter| chapter.tests);
    let mut count = 0;
    for test in tests {
        let visit = seed::act(world, test);
        ensure!(visit.status() == Some(200), "without a policy `{}` ended with {:?}", test.command, visit.outcome);
        count += 1;
    }
    Ok(count)
}

fn play(report: &mut Report, world: &World, agent: &Agent<'_>, number: usize, chapter: &Chapter) -> Result<()> {
    let applied: Applied = seed::apply(agent, chapter)?;
    let mistakes = applied.mistakes();
    ensure!(mistakes.is_empty(), "policy {number} is refused: {}", mistakes.join("; "));
    report.policy(number, chapter, &applied);
    for test in chapter.tests {
        report.begin(test.command);
        let row = seed::run(world, agent, test)?;
        report.row(number, &row);
        if row.verdict == Verdict::Differs {
            report.failed();
        }
    }
    Ok(())
}
