//! Namegate on a real Kubernetes: called by `cargo xtask e2e`, which has brought the cluster up and installed it.

mod article;
mod cluster;
mod outside;
mod report;
mod seed;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use cluster::{Cluster, wait};
use outside::Outside;
use report::Report;

/// Tries Namegate on a running cluster.
#[derive(Parser)]
struct Arguments {
    /// The program `kubectl`.
    #[arg(long)]
    kubectl: PathBuf,
    /// Its configuration.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Process number of the node's first process.
    #[arg(long)]
    keeper: u32,
    /// What to try.
    #[arg(long, value_enum, value_delimiter = ',')]
    suites: Vec<Suite>,
}

/// Parts of the run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// The article's commands.
    Seed,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cluster = Cluster::new(arguments.kubectl, arguments.kubeconfig, arguments.keeper);
    let mut report = Report::new();
    match run(&cluster, &arguments.suites, &mut report) {
        Ok(()) => report.finish(),
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cluster: &Cluster, suites: &[Suite], report: &mut Report) -> Result<()> {
    let _outside = Outside::start(cluster)?;
    wait("the agent to be well", || Ok(cluster.agent("/v1/healthz")))?;
    for suite in suites {
        let (name, outcome) = match suite {
            Suite::Seed => ("seed", seed::run(cluster, report)),
        };
        if let Err(error) = outcome {
            report.broken(name, &error);
        }
    }
    Ok(())
}
