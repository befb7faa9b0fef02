//! The agent and its command line.
#![forbid(unsafe_code)]

mod agent;
mod cli;
mod trial;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
