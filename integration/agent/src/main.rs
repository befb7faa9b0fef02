//! The agent and its command line.
#![deny(unsafe_code)]

mod agent;
mod cli;
mod outcome;

use std::process::ExitCode;

use clap::Parser;

/// Gives memory back to the system soon after it is freed, also where connections of all ages share pages: glibc's keeps
/// what a flood has taken.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
