//! Odd requests and handshakes against real servers behind the real agent. Called by `cargo xtask gauntlet`.
//!
//! Each form carries a mark of its own. What servers write down is found by it, and must be what the policy allows as
//! the server read it, and what a record of the agent says; what a client is answered must be its own.

mod embedded;
mod form;
mod hello;
mod http2;
mod judge;
mod play;
mod quic;
mod records;
mod report;
mod schedule;
mod seen;
mod servers;
mod tls;
mod wire;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options, Spec, World};
use serde_json::json;

use form::{BAD, Case, GOOD, Kind, Protocol};
use play::{Said, Turn};
use records::{Follower, Record};
use report::{Outcome, Report};
use seen::Seen;
use servers::{Identity, Places, Server};

/// The pod that asks, and the resolver.
const PODS: [&str; 2] = ["empire/tiefighter", "kube-system/coredns-1"];
/// Seconds that answers of the resolver hold.
const TTL: u32 = 3_600;
/// How long servers and the agent may take to write the last lines.
const SETTLING: Duration = Duration::from_secs(3);
const POLICY: &str = include_str!("../../../data/gauntlet/policy.yaml");

/// Plays odd forms against real servers. Needs root.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    places: Places,
    /// Only servers that are quick to have.
    #[arg(long)]
    short: bool,
    /// Only this server.
    #[arg(long)]
    server: Option<String>,
    /// Only groups whose name has this text.
    #[arg(long)]
    only: Option<String>,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json", "table"])]
    output: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(report) => report.finish(&arguments.output),
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Report> {
    let mut cases = form::all()?;
    let only = arguments.only.as_deref().unwrap_or_default().to_lowercase();
    cases.retain(|case| case.group.to_lowercase().contains(&only));
    ensure!(!cases.is_empty(), "no group's name has `{only}`");
    let folder = tempfile::Builder::new().prefix("namegate-gauntlet-").tempdir()?;
    // Servers give their privileges up.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let world = World::build(Spec { bare_outside: true, ..Spec::empire()?.only(&PODS) })?;
    let own = world.certificate(&[GOOD, BAD, "*.good.test", "*.bad.test"])?;
    let identity = Identity { certificate: folder.path().join("certificate.pem"), key: folder.path().join("key.pem") };
    std::fs::write(&identity.certificate, own.certificate)?;
    std::fs::write(&identity.key, own.key)?;

    let mut servers = Vec::new();
    for (at, kind) in servers::ALL.iter().enumerate() {
        let is_wanted = arguments.server.as_deref().is_none_or(|name| name == kind.name);
        if is_wanted && (kind.is_quick || !arguments.short) {
            eprintln!("starting {}", kind.name);
            servers.push(Server::start(&world, &arguments.places, at, folder.path(), &identity)?);
        }
    }
    ensure!(!servers.is_empty(), "there is no such server");
    let agent =
        Agent::start(&world, &Options::default().policies(POLICY).with(json!({"dns": {"nameBinding": "enforce"}})))?;
    let diagnostics = agent.policy()?["diagnostics"].clone();
    ensure!(diagnostics.as_array().is_some_and(Vec::is_empty), "the policy has mistakes: {diagnostics:#}");
    let turns = play::turns(&servers, &cases);
    resolve(&world, &servers, &cases, &turns)?;
    let follower = Follower::start(&agent)?;
    eprintln!("{} forms, {} servers: {} exchanges", cases.len(), servers.len(), turns.len());
    let said = play::all(world.pod(PODS[0]), &servers, &cases, &turns, &arguments.places);
    std::thread::sleep(SETTLING);
    let judged = Judged { servers: &servers, cases: &cases, turns: &turns, said: &said, records: follower.allowed()? };
    judged.report()
}

/// Has the pod resolve each name that a form asks for under a name binding.
fn resolve(world: &World, servers: &[Server], cases: &[Case], turns: &[Turn]) -> Result<()> {
    let all: Vec<_> = servers.iter().map(|server| server.address).collect();
    let mut names = Vec::new();
    for name in [GOOD, BAD] {
        world.zone().set_addresses(name, TTL, &all);
        names.push(name.to_owned());
    }
    for turn in turns.iter().filter(|turn| play::has_names(&cases[turn.case])) {
        for name in ["{good}", "{bad}"].map(|name| play::named(name, &turn.mark)) {
            world.zone().set_addresses(&name, TTL, &[servers[turn.server].address]);
            names.push(name);
        }
    }
    let pod = world.pod(PODS[0]);
    pod.run(pod.client(), move |client| async move {
        for name in names {
            client.lookup_type(&name, RecordType::A).await?;
        }
        Ok(())
    })
}

/// Everything that is known at the end.
struct Judged<'a> {
    servers: &'a [Server],
    cases: &'a [Case],
    turns: &'a [Turn],
    said: &'a [Said],
    records: HashMap<String, Vec<Record>>,
}

impl Judged<'_> {
    fn report(&self) -> Result<Report> {
        let mut seen: HashMap<String, Vec<(usize, Seen)>> = HashMap::new();
        let mut stray = Vec::new();
        for (at, server) in self.servers.iter().enumerate() {
            for log in &server.logs {
                for one in seen::read(log)? {
                    let marks = judge::marks_of(&one);
                    if marks.is_empty() {
                        stray.extend(
                            judge::forbidden(&one).map(|why| format!("{}, port {}: {why}", server.kind.name, one.port)),
                        );
                    }
                    for mark in marks {
                        seen.entry(mark).or_default().push((at, one.clone()));
                    }
                }
            }
        }
        let none = Vec::new();
        let outcomes = self.turns.iter().zip(self.said);
        let outcomes = outcomes.map(|(turn, said)| self.outcome(turn, said, seen.get(&turn.mark).unwrap_or(&none)));
        Ok(Report {
            servers: self.servers.iter().map(|server| server.kind.name).collect(),
            forms: self.cases.len(),
            outcomes: outcomes.collect(),
            stray,
        })
    }

    fn outcome(&self, turn: &Turn, said: &Said, seen: &[(usize, Seen)]) -> Outcome {
        let (server, case) = (&self.servers[turn.server], &self.cases[turn.case]);
        let none = Vec::new();
        let records = self.records.get(&turn.mark).unwrap_or(&none);
        let address = server.address.to_string();
        let mut wrong = Vec::new();
        for (at, one) in seen {
            if *at != turn.server {
                wrong.push(format!("another server saw it: {}", self.servers[*at].kind.name));
            }
            // The agent records no QUIC that passes.
            let is_recorded = case.protocol() != Protocol::Quic;
            let unrecorded = || judge::unrecorded(one, &address, records).filter(|_| is_recorded);
            wrong.extend(judge::forbidden(one).or_else(unrecorded));
        }
        match said {
            Ok(said) => wrong.extend(mixed(case, turn, said)),
            Err(error) if error.contains("panic") => wrong.push(error.clone()),
            Err(_) => {}
        }
        if case.honest {
            wrong.extend(unserved(case, turn, said, seen));
        }
        wrong.dedup();
        Outcome {
            server: server.kind.name,
            group: case.group.clone(),
            name: case.name.clone(),
            port: case.port(),
            served: !seen.is_empty(),
            wrong,
            sent: play::shown(case, &turn.mark),
        }
    }
}

/// What is wrong with the answers: over HTTP/1 they come in order, over HTTP/2 each in its own stream.
fn mixed(case: &Case, turn: &Turn, said: &str) -> Option<String> {
    let Kind::Http2(streams) = &case.kind else { return judge::mixed(said, &turn.mark) };
    let bodies = http2::bodies(said);
    bodies.iter().find_map(|(place, body)| {
        let asked = streams.get(*place).map(|stream| play::letters_of(stream, &turn.mark)).unwrap_or_default();
        let foreign = judge::answered(body).into_iter().find(|letter| !asked.contains(letter));
        let foreign = foreign.map(|letter| format!("the answer to {letter} in stream {place}: {body}"));
        judge::mixed(body, &turn.mark).or(foreign)
    })
}

/// Why an honest form was not served as it must be.
fn unserved(case: &Case, turn: &Turn, said: &Said, seen: &[(usize, Seen)]) -> Option<String> {
    let text = match said {
        Ok(text) => text,
        Err(error) => return Some(format!("an honest form failed: {error}")),
    };
    let is_http = matches!(case.kind, Kind::Http1(_) | Kind::Http2(_));
    let is_answered = match case.protocol() {
        Protocol::Http1 => judge::answered(text) == turn.letters,
        // Streams are answered in any order.
        Protocol::Http2 => {
            let mut letters = judge::answered(text);
            letters.sort_unstable();
            letters == turn.letters
        }
        Protocol::Tls | Protocol::Program => !text.is_empty(),
        Protocol::Quic => true,
    };
    let is_logged = if is_http { seen.len() >= turn.letters.len() } else { !seen.is_empty() };
    (!is_answered || !is_logged)
        .then(|| format!("an honest form was not served: {} entries in the log; the client got {:?}", seen.len(), text))
}
