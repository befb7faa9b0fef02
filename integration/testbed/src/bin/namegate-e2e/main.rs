//! Namegate on a real Kubernetes: called by `cargo xtask e2e`, which has brought the cluster up and installed it.

mod article;
mod callers;
mod cluster;
mod conformance;
mod faults;
mod labels;
mod mesh;
mod mistakes;
mod nodes;
mod outside;
mod race;
mod reboot;
mod report;
mod rollout;
mod seed;
mod services;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use cluster::{Cluster, wait};
use outside::Outside;
use report::Report;

/// Denials that are shown where something is not as expected.
const DENIALS: usize = 8;
/// Suites that come last: the end of the many pods of the race takes the node minutes.
const LAST: [Suite; 2] = [Suite::Reboot, Suite::Race];

/// Tries Namegate on a running cluster.
#[derive(Parser)]
struct Arguments {
    /// The program `kubectl`.
    #[arg(long)]
    kubectl: PathBuf,
    /// Its configuration.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The file that ends with the process number of the node's first process.
    #[arg(long)]
    keeper: PathBuf,
    /// The same of the second node.
    #[arg(long)]
    second: Option<PathBuf>,
    /// What to try.
    #[arg(long, value_enum, value_delimiter = ',')]
    suites: Vec<Suite>,
    /// Folder of conformance data.
    #[arg(long, default_value = "conformance")]
    conformance: PathBuf,
    /// The program `xtask`, which ends and starts daemons of the cluster.
    #[arg(long)]
    xtask: PathBuf,
    /// Pods of the race.
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Only cases whose name has this text.
    #[arg(long)]
    only: Option<String>,
}

/// Parts of the run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// The article's commands.
    Seed,
    /// Kubernetes' own cases for network policies.
    Conformance,
    /// The cases of cyclonus.
    Cyclonus,
    /// Pods that start under a policy and call at once.
    Race,
    /// Policies with mistakes.
    Mistakes,
    /// Labels that pods write under keys of the system.
    Labels,
    /// Services, with each mode of kube-proxy.
    Services,
    /// Two nodes.
    Nodes,
    /// The API server, its store or the agent is away.
    Faults,
    /// The node loses its power.
    Reboot,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::new();
    match run(&arguments, &mut report) {
        Ok(()) => report.finish(),
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What the agent says of itself after a row that is not as expected: its last denials, and the networks it waits for.
fn say_why(cluster: &Cluster) {
    let status = cluster.agent("/v1/status").unwrap_or_default();
    let networks = cluster.agent("/v1/cni").unwrap_or_default();
    let denials = status["denials"].as_array().into_iter().flatten().take(DENIALS);
    let waiting = networks.as_array().into_iter().flatten().filter(|network| network["state"] != "guarded");
    for found in denials.chain(waiting).chain([&status["kubernetes"], &status["refused"]]) {
        Report::note(&found.to_string());
    }
}

fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let cluster = Cluster::new(&arguments.kubectl, &arguments.kubeconfig, &arguments.keeper)?;
    let cluster = match &arguments.second {
        Some(keeper) => cluster.with_second(keeper)?,
        None => cluster,
    };
    let (cluster, only) = (&cluster, arguments.only.as_deref());
    let outside = Outside::start(cluster)?;
    for node in cluster.nodes() {
        wait("the agent to be well", || Ok(node.agent("/v1/healthz")))?;
    }
    let (race, reboot) = (arguments.suites.contains(&Suite::Race), arguments.suites.contains(&Suite::Reboot));
    for suite in arguments.suites.iter().filter(|suite| !LAST.contains(suite)) {
        attempt(cluster, report, *suite, |report| match suite {
            Suite::Seed => seed::run(cluster, report),
            Suite::Conformance => {
                conformance::run(cluster, report, &conformance::KUBERNETES, &arguments.conformance, only)
            }
            Suite::Cyclonus => conformance::run(cluster, report, &conformance::CYCLONUS, &arguments.conformance, only),
            Suite::Mistakes => mistakes::run(cluster, report),
            Suite::Labels => labels::run(cluster, report),
            Suite::Services => services::run(cluster, report, &arguments.xtask),
            Suite::Faults => faults::run(cluster, report, &outside, &arguments.xtask),
            Suite::Nodes => nodes::run(cluster, report),
            Suite::Reboot | Suite::Race => Ok(()),
        });
    }
    let (mut cluster, mut outside) = (cluster.clone(), outside);
    if reboot {
        attempt(&cluster, report, Suite::Reboot, |report| reboot::run(&cluster, report, outside, &arguments.xtask));
        // The servers of the outside do not outlast the node.
        cluster = cluster.after_reboot()?;
        outside = Outside::start(&cluster)?;
    }
    if race {
        attempt(&cluster, report, Suite::Race, |report| race::run(&cluster, report, &outside, arguments.pods));
    }
    Ok(())
}

/// Runs a suite, and says how long it took; what the agent says of itself too, where something is not as expected.
fn attempt(cluster: &Cluster, report: &mut Report, suite: Suite, run: impl FnOnce(&mut Report) -> Result<()>) {
    let (failed, started) = (report.failed(), Instant::now());
    let name = suite.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    if let Err(error) = run(report) {
        report.broken(&name, &error);
    }
    if report.failed() > failed {
        cluster.nodes().for_each(say_why);
    }
    Report::took(&name, started.elapsed());
}
