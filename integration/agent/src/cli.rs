//! The command line: what can be asked for, and the exit codes.

mod args;
mod cache;
mod client;
mod cluster;
mod monitor;
mod name_match;
mod output;
mod policy_test;
mod policy_trace;
mod schema;
mod sources;
mod status;
mod style;
mod validate;

use std::{io, process::ExitCode};

use namegate_config::printable::printable_lines;

pub(crate) use crate::outcome::Outcome;
pub(crate) use args::Cli;
use args::{CacheVerb, FqdnVerb, PolicyVerb, Verb};

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> ExitCode {
    match verb(cli) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(1),
        Ok(Outcome::Failed) => ExitCode::from(2),
        // The reader of a pipe has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{error:#}");
            anstream::eprintln!("{}error:{} {}", style::ERROR, style::RESET, printable_lines(&text));
            ExitCode::from(2)
        }
    }
}

fn verb(cli: Cli) -> anyhow::Result<Outcome> {
    let client = || client::Client::new(cli.socket.clone());
    match cli.verb {
        Verb::Agent { config } => crate::agent::run(&config),
        Verb::Policy { verb: PolicyVerb::Validate(args) } => validate::run(&args),
        Verb::Policy { verb: PolicyVerb::Test(args) } => policy_test::run(&args),
        Verb::Policy { verb: PolicyVerb::Trace(args) } => policy_trace::run(&args),
        Verb::Policy { verb: PolicyVerb::Schema { kind } } => schema::run(kind.as_deref()),
        Verb::Policy { verb: PolicyVerb::Crds { directory } } => schema::crds(directory.as_deref()),
        Verb::Fqdn { verb: FqdnVerb::Match { pattern, name } } => name_match::run(&pattern, &name),
        Verb::Fqdn { verb: FqdnVerb::Cache { verb } } => block_on(async {
            match verb {
                CacheVerb::List(args) => cache::list(&client(), &args).await,
                CacheVerb::Clean(args) => cache::clean(&client(), &args).await,
                CacheVerb::Names(args) => cache::names(&client(), args.output).await,
            }
        }),
        Verb::Status(args) => block_on(status::run(&client(), args.output)),
        Verb::Monitor(args) => block_on(monitor::run(&client(), &args)),
    }
}

/// Verbs that ask the agent need one thread.
fn block_on(work: impl Future<Output = anyhow::Result<Outcome>>) -> anyhow::Result<Outcome> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
