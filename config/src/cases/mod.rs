//! Cases: a cluster, policies, and which flows they should let pass.
//!
//! The form of the files is described in `conformance/README.md`. A [`Case`] knows no world: [`run`] brings both together
//! and asks a [`Judge`], so that the same cases try the reference, compiled tables and the kernel.

mod case_file;
mod from_endpoints;
mod lookup;
mod run;
mod world;

use std::{fmt, net::IpAddr, str::FromStr};

pub use run::{Failure, Judge, NotJudged, Outcome, Question, Reference, Report, Seen, run, run_each};
pub use world::{
    Changes, External, Namespace, NewLabels, Node, Pod, Port, Protocol, Records, Resolved, Service, ServicePort, Side,
    SideKind, TargetPort, World,
};

use crate::{diagnostic::Diagnostic, l7::Request, name::Fqdn, policy::Document, reference::Flow};

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// `suite/name`.
    pub name: String,
    /// What it is about; may be empty.
    pub title: String,
    /// Name of its [`World`].
    pub world: String,
    /// Why implementations may differ; such a case is advisory.
    pub doubtful: Option<String>,
    /// States, one after another.
    pub steps: Vec<Step>,
}

/// One state of policies and cluster, and what holds in it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is about; may be empty.
    pub title: String,
    /// What changed since the step before, in words.
    pub events: Vec<String>,
    /// How the cluster differs from its file.
    pub changes: Changes,
    /// All policies in force.
    pub documents: Vec<Document>,
    /// Mistakes and warnings of the policies.
    pub diagnostics: Vec<Diagnostic>,
    /// Answers of DNS that were seen before.
    pub answers: Vec<Answer>,
    /// What holds; in order, since look-ups are remembered.
    pub checks: Vec<Check>,
}

/// An answer of DNS that the proxy saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When, in seconds since the step began.
    pub at_s: u64,
    /// Who asked.
    pub by: Place,
    /// The name and its aliases.
    pub names: Vec<Fqdn>,
    /// Addresses answered.
    pub addresses: Vec<IpAddr>,
    /// In seconds.
    pub ttl_s: u64,
}

/// One flow and what should become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Where it starts.
    pub from: Place,
    /// Where it goes. For [`Place::Name`] the client looks the name up first.
    pub to: Place,
    /// Which of the addresses.
    pub family: Family,
    /// Protocol and port.
    pub flow: Flow,
    /// What is asked inside the flow.
    pub request: Option<Request>,
    /// When, in seconds since the step began; `None` is right after the one before.
    pub at_s: Option<u64>,
    /// Whether it should pass.
    pub allowed: bool,
    /// How a denial should show: `drop`, `http-403`, `http-400`, `dns-refused`, `tls-reset`.
    pub how: Option<String>,
}

/// One end of a flow, as a case names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// `namespace/name` of a pod.
    Pod(String),
    /// `host:NODE`.
    Host(String),
    /// `ext:NAME`, a host outside.
    External(String),
    /// `svc:namespace/name`.
    Service(String),
    /// `ip:ADDRESS`.
    Address(IpAddr),
    /// `fqdn:NAME`.
    Name(Fqdn),
}

/// Families of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The first address of the family.
    pub fn first(self, addresses: &[IpAddr]) -> Option<IpAddr> {
        addresses.iter().copied().find(|address| Self::of(*address) == self)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = |error: &dyn fmt::Display| format!("`{text}`: {error}");
        Ok(match text.split_once(':') {
            None if text.contains('/') => Self::Pod(text.to_owned()),
            Some(("host", name)) => Self::Host(name.to_owned()),
            Some(("ext", name)) => Self::External(name.to_owned()),
            Some(("svc", key)) => Self::Service(key.to_owned()),
            Some(("ip", address)) => Self::Address(address.parse().map_err(|error| problem(&error))?),
            Some(("fqdn", name)) => Self::Name(name.parse().map_err(|error| problem(&error))?),
            _ => return Err(problem(&"write namespace/pod, or host:, ext:, svc:, ip: or fqdn: and what is meant")),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => f.write_str(key),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::External(name) => write!(f, "ext:{name}"),
            Self::Service(key) => write!(f, "svc:{key}"),
            Self::Address(address) => write!(f, "ip:{address}"),
            Self::Name(name) => write!(f, "fqdn:{name}"),
        }
    }
}

impl Case {
    /// Everything that the case asks, with the number of its step.
    pub fn checks(&self) -> impl Iterator<Item = (usize, &Check)> {
        self.steps.iter().enumerate().flat_map(|(at, step)| step.checks.iter().map(move |check| (at, check)))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}", self.from, self.to, self.flow)?;
        if self.family == Family::V6 {
            f.write_str(" IPv6")?;
        }
        match &self.request {
            Some(Request::Http { method, path, host, .. }) => write!(f, " {method} {host}{path}"),
            Some(Request::Dns { name, kind }) => write!(f, " DNS {name} {kind}"),
            Some(Request::Tls { server_name: Some(name) }) => write!(f, " TLS {name}"),
            Some(Request::Tls { server_name: None }) => f.write_str(" TLS"),
            None => Ok(()),
        }
    }
}
