//! The chained CNI plugin `namegate-cni`: called by the container runtime after the plugins that make a pod's interface,
//! and by people to install it.
#![forbid(unsafe_code)]

mod agent;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod install;
mod link;
mod request;
mod result;
mod verbs;

use std::io::{Read, Write};
use std::process::ExitCode;

use clap::Parser;
use error::{Code, Error};
use request::{Environment, NEWEST};

/// The longest configuration that is read, in octets.
const INPUT_OCTETS_MAX: u64 = 16 << 20;

/// The program.
pub fn run() -> ExitCode {
    if std::env::args_os().len() > 1 {
        return install::run(&install::Arguments::parse());
    }
    if std::env::var_os("CNI_COMMAND").is_none() {
        eprintln!("namegate-cni is called by container runtimes; `namegate-cni --help` tells how it is installed");
    }
    let mut input = Vec::new();
    let read = std::io::stdin().take(INPUT_OCTETS_MAX).read_to_end(&mut input);
    let get = |name: &str| std::env::var(name).ok();
    let outcome = match read {
        Ok(_) => verbs::run(&Environment(&get), &input),
        Err(error) => Err(Error::new(Code::Io, "reading the network configuration").with(error)),
    };
    let (said, code) = match outcome {
        Ok(Some(result)) => (result, ExitCode::SUCCESS),
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("namegate-cni: {error}");
            (error.to_json(version_of(&input)), ExitCode::FAILURE)
        }
    };
    match writeln!(std::io::stdout(), "{said}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE, // Nobody reads: nobody can be told.
    }
}

/// The version to answer in: the asked one if it is spoken.
fn version_of(input: &[u8]) -> &'static str {
    let asked: Option<serde_json::Value> = serde_json::from_slice(input).ok();
    let asked = asked.as_ref().and_then(|asked| asked["cniVersion"].as_str());
    request::VERSIONS.into_iter().find(|known| asked == Some(known)).unwrap_or(NEWEST)
}
