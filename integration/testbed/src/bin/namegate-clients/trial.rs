//! One request of one client, and whether it ended as it must.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use namegate_testbed::{Agent, Pod, World};
use serde_json::Value;

use crate::program::{Outcome, Program, Surroundings};
use crate::protocol::Protocol;
use crate::server::Server;
use crate::{BAD, GOOD, PODS};

/// Seconds after which a client is ended.
const PATIENCE_S: &str = "20";
/// How long the agent may take to tell of a flow.
const TOLD_WITHIN: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);
/// Runs the rest of its words with another `resolv.conf`: the resolver that the system's library asks.
const WITH_RESOLVER: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
/// Prints the hash of a certificate's key as Chromium takes it (RFC 7469 §2.4).
const KEY_HASH: &str = "openssl x509 -in \"$0\" -noout -pubkey | openssl pkey -pubin -outform der | \
                        openssl dgst -sha256 -binary | openssl enc -base64";

/// The setting `dns.nameBinding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    Enforce,
    Observe,
}

impl Binding {
    /// As the setting has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }

    /// The verdict on flows that ask for another name.
    fn verdict(self) -> &'static str {
        match self {
            Self::Enforce => "denied",
            Self::Observe => "audited",
        }
    }
}

/// What came of a request: a few words, with an objection where it did not end as it must.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) words: String,
    pub(crate) objection: Option<String>,
    /// What the server saw of it.
    pub(crate) saw: Option<String>,
}

/// The world that requests are made in.
pub(crate) struct Trial<'w> {
    pod: &'w Pod,
    server: &'w Server,
    around: Surroundings,
    resolver: PathBuf,
}

impl<'w> Trial<'w> {
    /// Writes what the clients need.
    pub(crate) fn new(world: &'w World, server: &'w Server) -> Result<Self> {
        let pod = world.pod(PODS[0]);
        let resolver = server.path("resolv.conf");
        let address = pod.client().resolver.ip();
        std::fs::write(&resolver, format!("nameserver {address}\noptions timeout:2 attempts:2\n"))?;
        let mut hash = Command::new("sh");
        let output = hash.args(["-c", KEY_HASH]).arg(server.path("certificate.pem")).output()?;
        let key_hash = String::from_utf8(output.stdout)?.trim().to_owned();
        ensure!(!key_hash.is_empty(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        let around = Surroundings { authority: server.path("authority.pem"), key_hash, folder: server.path("browser") };
        Ok(Self { pod, server, around, resolver })
    }

    /// Has a client ask for a name, and looks at all that must follow.
    pub(crate) fn run(
        &self,
        agent: &Agent<'_>,
        binding: Binding,
        program: &Program,
        protocol: Protocol,
        name: &str,
    ) -> Result<Cell> {
        let heard = self.server.count(name)?;
        let told = told(agent, binding, protocol, name)?;
        let outcome = self.ask(program, protocol, name)?;
        let (words, mut objection) = judge(binding, protocol, name, &outcome);
        let mut cell = Cell { words, objection: None, saw: None };
        if name == BAD {
            let is_told = wait_above(agent, binding, protocol, told)?;
            cell.words.push_str(if is_told { ", told" } else { ", not told" });
            objection = objection.or_else(|| (!is_told).then(|| "no flow tells of it".to_owned()));
        }
        if name == BAD && binding == Binding::Enforce && self.server.count(name)? > heard {
            objection = objection.or_else(|| Some("the server heard the name".to_owned()));
        }
        if name == GOOD && self::told(agent, binding, protocol, name)? > told {
            objection = objection.or_else(|| Some("the flow counts as a mismatch".to_owned()));
        }
        cell.objection = objection;
        if let Outcome::Answer { seen: Some(seen), .. } = outcome {
            cell.saw = Some(seen.words());
        }
        Ok(cell)
    }

    fn ask(&self, program: &Program, protocol: Protocol, name: &str) -> Result<Outcome> {
        let resolver = self.resolver.to_string_lossy();
        let command = program.command(protocol, name, &self.around);
        let mut words = vec!["-k", "1", PATIENCE_S, "unshare", "--mount", "--", "sh", "-c", WITH_RESOLVER, &*resolver];
        words.extend(command.iter().map(String::as_str));
        let output = self.pod.exec("timeout", &words).context("starting a client by `timeout` and `unshare`")?;
        if self.around.folder.exists() {
            std::fs::remove_dir_all(&self.around.folder).context("removing what a client left")?;
        }
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        Ok(program.read(&text(&output.stdout), &text(&output.stderr)))
    }
}

/// A few words on the outcome, and what is wrong with it.
fn judge(binding: Binding, protocol: Protocol, name: &str, outcome: &Outcome) -> (String, Option<String>) {
    let passes = name == GOOD || binding == Binding::Observe;
    match outcome {
        Outcome::Answer { code, seen: Some(seen) } => {
            let mut objection = protocol.objection(name, seen);
            // Where nothing stands between, the server sees the wish for HTTP/2: the client has it.
            let wish = [&*seen.upgrade, &*seen.settings].map(|field| !field.is_empty());
            let wanted = [protocol == Protocol::Upgrade && binding == Binding::Observe; 2];
            if wish != wanted {
                objection = Some(format!("the server saw {seen:?}"));
            }
            if *code != 200 || !passes {
                objection = Some(format!("{name} was answered by the server"));
            }
            (code.to_string(), objection)
        }
        Outcome::Answer { code, seen: None } => {
            let fits = !passes && protocol.is_clear() && *code == 403;
            (code.to_string(), (!fits).then(|| format!("answered {code}, and not by the server")))
        }
        Outcome::Nothing(why) => {
            let fits = !passes && !protocol.is_clear();
            (why.clone(), (!fits).then(|| format!("no answer: {why}")))
        }
    }
}

/// How many flows to the protocol's port asked for a name that did not open the address.
fn told(agent: &Agent<'_>, binding: Binding, protocol: Protocol, name: &str) -> Result<usize> {
    let transport = if protocol == Protocol::Http3 { "UDP" } else { "TCP" };
    let wanted = |flow: &&Value| {
        let asked = flow["server-name"].as_str().or(flow["http"]["host"].as_str()).unwrap_or_default();
        flow["reason"] == "name-mismatch"
            && flow["verdict"] == binding.verdict()
            && flow["protocol"] == transport
            && flow["destination-port"] == protocol.port()
            && asked.split(':').next() == Some(name)
    };
    Ok(agent.flows("")?.iter().filter(wanted).count())
}

fn wait_above(agent: &Agent<'_>, binding: Binding, protocol: Protocol, before: usize) -> Result<bool> {
    let started = Instant::now();
    while told(agent, binding, protocol, BAD)? <= before {
        if started.elapsed() > TOLD_WITHIN {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}
