//! The article's commands, word for word, against real pods.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::article::{ARTICLE, Step, steps};
use crate::cluster::{Cluster, wait};
use crate::report::Report;

/// When the reader presses ^C.
const WITHIN: Duration = Duration::from_secs(4);
/// How long a command may go on after ^C.
const UNHEARD: Duration = Duration::from_secs(2);
/// The article's policy: each of its forms is created under the same name.
const POLICY: &str = "allow-within-namespace";
/// The same in the agent's words.
const DOCUMENT: &str = "CiliumNetworkPolicy empire/allow-within-namespace";
const APP: &str = include_str!("../../../data/cluster/http-sw-app.yaml");
const PROMETHEUS: &str = include_str!("../../../data/cluster/prometheus.yaml");
const DASHBOARD: &str = include_str!("../../../data/cluster/dashboard.yaml");

/// Runs it.
pub(crate) fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = [("http-sw-app.yaml", APP), ("prometheus.yaml", PROMETHEUS)];
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text)?;
    }
    for namespace in ["empire", "monitoring"] {
        cluster.kubectl(&["delete", "namespace", namespace, "--ignore-not-found"])?;
    }
    cluster.feed(&["apply", "-f", "-"], DASHBOARD)?;
    let steps = steps(ARTICLE)?;
    let local = |command: &str| local(command, &folder.path().to_string_lossy());
    prepare(cluster, report, &steps, &local)?;
    for step in &steps {
        match step {
            Step::Create { chapter, command } if command.contains("<<EOF") => {
                Report::chapter(chapter);
                let took = policy(cluster, command)?;
                Report::note(&format!("enforced {} ms after it was created", took.as_millis()));
            }
            Step::Create { .. } => {} // Done before.
            Step::Test { command, allowed } => test(cluster, report, &named(cluster, command)?, *allowed)?,
        }
    }
    cluster.change(DOCUMENT, false, || delete(cluster))?;
    Ok(())
}

/// Creates everything but policies, and sees that without any every command gets an answer.
fn prepare(cluster: &Cluster, report: &mut Report, steps: &[Step], local: &dyn Fn(&str) -> String) -> Result<()> {
    Report::chapter("Setup to test the policies");
    for step in steps {
        match step {
            Step::Create { command, .. } if !command.contains("<<EOF") => {
                let output = cluster.shell(&local(command)).output().context("running sh")?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(output.status.success(), "`{command}`: {said}");
                report.row(command, "created", "created", true);
            }
            _ => {}
        }
    }
    for namespace in ["kube-system", "empire", "monitoring"] {
        cluster.wait_pods(namespace)?;
    }
    for step in steps {
        if let Step::Test { command, .. } = step {
            let seen = wait(&format!("an answer to `{command}` without a policy"), || {
                let seen = act(cluster, &named(cluster, command)?)?;
                Ok(seen.answered().then_some(seen))
            })?;
            ensure!(seen.answered(), "without a policy `{command}` gets no answer: {}", seen.text);
        }
    }
    Report::note("without a policy every command of the article gets an answer");
    Ok(())
}

/// Creates a policy as the article does. `create` refuses a name that is there, so the form before goes first.
fn policy(cluster: &Cluster, command: &str) -> Result<Duration> {
    if cluster.kubectl(&["get", "ciliumnetworkpolicy", POLICY, "-n", "empire"]).is_ok() {
        cluster.change(DOCUMENT, false, || delete(cluster))?;
    }
    cluster.change(DOCUMENT, true, || {
        let output = cluster.shell(command).output().context("running sh")?;
        ensure!(output.status.success(), "the article's policy: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })
}

fn delete(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "ciliumnetworkpolicy", POLICY, "-n", "empire"]).map(drop)
}

fn test(cluster: &Cluster, report: &mut Report, command: &str, allowed: bool) -> Result<()> {
    let seen = act(cluster, command)?;
    let expected = if allowed { "an answer" } else { "^C" };
    let good = if allowed { seen.answered() } else { seen.interrupted };
    report.row(command, expected, &seen.text, good);
    Ok(())
}

/// What a command came to.
struct Seen {
    /// It gave no answer until ^C.
    interrupted: bool,
    success: bool,
    text: String,
}

impl Seen {
    fn answered(&self) -> bool {
        self.success && !self.interrupted
    }
}

/// Runs a command as a reader does who loses patience.
fn act(cluster: &Cluster, command: &str) -> Result<Seen> {
    use std::os::unix::process::CommandExt;
    let mut shell = cluster.shell(command);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = shell.spawn().context("running sh")?;
    let (started, mut interrupted) = (Instant::now(), None);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        match interrupted {
            None if started.elapsed() > WITHIN => {
                interrupted = Some(Instant::now());
                signal(&child, Signal::SIGINT)?;
            }
            // A shell that started this run in the background has its commands ignore ^C.
            Some(at) if at.elapsed() > UNHEARD => signal(&child, Signal::SIGKILL)?,
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let interrupted = interrupted.is_some();
    let mut output = String::new();
    for pipe in [
        child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read>),
        child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read>),
    ] {
        pipe.context("a pipe")?.read_to_string(&mut output)?;
    }
    let noise = ["Unable to use a TTY", "Defaulted container"];
    let said: Vec<&str> = output.lines().filter(|line| noise.iter().all(|noise| !line.starts_with(noise))).collect();
    let said = said.join(" ").chars().take(60).collect::<String>();
    let text = if interrupted { "^C".to_owned() } else { said };
    Ok(Seen { interrupted, success: status.success(), text })
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let group = i32::try_from(child.id()).context("a process number")?;
    kill(Pid::from_raw(-group), signal).with_context(|| format!("sending {signal}"))
}

/// The article's command with this cluster's addresses and generated names in the place of its own.
fn named(cluster: &Cluster, command: &str) -> Result<String> {
    let mut command = command.to_owned();
    for (theirs, namespace, prefix) in [
        ("kube-dns-6c7dfbf97d-cm4tt", "kube-system", "kube-dns-"),
        ("prometheus-core-84677d797f-wrhm7", "monitoring", "prometheus-core-"),
    ] {
        if command.contains(theirs) {
            command = command.replace(theirs, &cluster.pod(namespace, prefix)?);
        }
    }
    if command.contains("100.96.7.169") {
        let deathstar = cluster.pod("empire", "deathstar-")?;
        let address = cluster.addresses("empire", &deathstar)?.into_iter().find(std::net::IpAddr::is_ipv4);
        command = command.replace("100.96.7.169", &address.context("an IPv4 address")?.to_string());
    }
    Ok(command)
}

/// The same command with a file of `folder` in the place of an address on the web.
fn local(command: &str, folder: &str) -> String {
    let words =
        command.split(' ').map(|word| match word.strip_prefix("https://").and_then(|rest| rest.rsplit('/').next()) {
            Some(file) => format!("{folder}/{file}"),
            None => word.to_owned(),
        });
    words.collect::<Vec<_>>().join(" ")
}
