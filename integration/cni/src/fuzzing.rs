//! The readers of what the runtime hands over, within reach of fuzzing. No part of the API of this crate.

use std::net::IpAddr;

use serde_json::Value;

use crate::error::Error;
use crate::request::{Config, Environment, OnAgentDown};
use crate::result::Made;
use crate::version_of;

/// What an `ADD` goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// Version of the specification.
    pub version: String,
    /// Whether a pod starts while the agent is away.
    pub allows: bool,
    /// How long an agent that is starting is waited for, seconds.
    pub wait: u64,
    /// Identifier of the container.
    pub container: String,
    /// Interface inside the container.
    pub inside: String,
    /// Namespace and name of the pod.
    pub pod: (String, String),
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
    /// Interfaces on the node, in the order in which they are tried.
    pub outside: Vec<String>,
}

/// Reads variables and standard input as `ADD` does, and asks neither the kernel nor the agent. The error is what goes to
/// standard output.
pub fn read(variable: &dyn Fn(&str) -> Option<String>, input: &[u8]) -> Result<Add, Value> {
    add(&Environment(variable), input).map_err(|error| error.to_json(version_of(input)))
}

fn add(environment: &Environment<'_>, input: &[u8]) -> Result<Add, Error> {
    let config = Config::read(input)?;
    let (container, inside, pod) = (environment.container()?, environment.interface()?, environment.pod()?);
    let made = Made::read(config.prev_result.as_ref().unwrap_or(&Value::Null))?;
    Ok(Add {
        wait: config.wait().as_secs(),
        allows: config.on_agent_down == OnAgentDown::Allow,
        version: config.cni_version,
        container,
        inside,
        pod: (pod.namespace, pod.name),
        addresses: made.addresses()?,
        outside: made.outside().map(str::to_owned).collect(),
    })
}
