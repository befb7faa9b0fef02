//! The legs: who passes requests on, from which address, and how each is started.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use namegate_testbed::{Agent, Netns, Options, World};

use super::settings::{self, WORKERS};
use super::{CLIENT, Work, loopback};
use crate::daemon::{Daemon, find};
use crate::leg::version_in;

/// nginx's part for server names, where Debian's package puts it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// The first port of the legs on the node; each has two of its own.
const FIRST_PORT: u16 = 8_300;

/// Who stands between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Leg {
    /// Nobody.
    #[value(skip)]
    Direct,
    /// A web server as a proxy.
    Nginx,
    /// The proxy that Cilium uses.
    Envoy,
    /// The proxy of the agent, by itself.
    Namegate,
    /// The whole of it: the agent, redirection by the kernel, records.
    Agent,
}

impl Leg {
    /// The name in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Namegate => "Namegate",
            Self::Agent => "agent",
        }
    }

    /// How it is set up, for the report.
    pub(crate) fn setting(self) -> String {
        match self {
            Self::Direct => "the origin (nginx) itself, without anything between".to_owned(),
            Self::Nginx => format!("{WORKERS} processes; a location for each path, ssl_preread, connections kept"),
            Self::Envoy => format!("{WORKERS} threads; an RBAC filter, tls_inspector, connections kept"),
            Self::Namegate => format!("{WORKERS} threads; the proxy alone, called as the others are"),
            Self::Agent => "the whole agent: redirected in the kernel, each request recorded".to_owned(),
        }
    }

    /// The ports of the node that it listens on, for HTTP and TLS.
    const fn ports(self) -> (u16, u16) {
        let first = FIRST_PORT + 2 * self as u16;
        (first, first + 1)
    }
}

/// Where the legs run.
pub(crate) struct Site<'a> {
    /// The world with the asking pod and the origin's.
    pub(crate) world: &'a World,
    /// Files of all programs.
    pub(crate) folder: &'a Path,
    /// The origin.
    pub(crate) origin: IpAddr,
    /// Envoy's program, where it was given.
    pub(crate) envoy: Option<PathBuf>,
    /// The proxy's program, where it was given.
    pub(crate) proxy: Option<PathBuf>,
}

/// A leg that passes requests on.
pub(crate) enum Running<'a> {
    Direct,
    Program(Daemon),
    Agent(Box<Agent<'a>>),
}

impl<'a> Site<'a> {
    /// The namespace that asks: the node's, but a pod's where the agent guards.
    pub(crate) fn asker(&self, leg: Leg) -> &'a Netns {
        if leg == Leg::Agent { &self.world.pod(CLIENT).netns } else { self.world.node() }
    }

    /// The address to ask.
    pub(crate) fn target(&self, leg: Leg, work: Work) -> SocketAddr {
        let (http, tls) = leg.ports();
        match (leg, work) {
            (Leg::Direct | Leg::Agent, _) => SocketAddr::new(self.origin, work.port()),
            (_, Work::Http) => loopback(http),
            (_, Work::Tls | Work::Connect) => loopback(tls),
        }
    }

    /// Why a leg can't be measured here, if so.
    pub(crate) fn missing(&self, leg: Leg) -> Option<String> {
        match leg {
            Leg::Direct | Leg::Agent => None,
            Leg::Nginx if !Path::new(STREAM_MODULE).is_file() => Some(format!("there is no {STREAM_MODULE}")),
            _ => self.program(leg).is_none().then(|| "there is no program of it on this machine".to_owned()),
        }
    }

    fn program(&self, leg: Leg) -> Option<PathBuf> {
        match leg {
            Leg::Direct | Leg::Nginx => find("nginx"),
            Leg::Envoy => self.envoy.clone().or_else(|| find("envoy")),
            Leg::Namegate => self.proxy.clone(),
            Leg::Agent => None,
        }
    }

    /// Starts what the leg needs besides the origin.
    pub(crate) fn start(&self, leg: Leg, work: Work) -> Result<Running<'a>> {
        let (http, tls) = leg.ports();
        let folder = self.subfolder(leg.name())?;
        let arguments = match leg {
            Leg::Direct => return Ok(Running::Direct),
            Leg::Agent => {
                let agent = Agent::start(self.world, &Options::default())?;
                let mistakes = agent.apply(&settings::policy())?.mistakes();
                ensure!(mistakes.is_empty(), "the agent refused the policy: {}", mistakes.join("; "));
                return Ok(Running::Agent(Box::new(agent)));
            }
            Leg::Nginx => settings::nginx_proxy(&folder, http, tls, self.origin, Path::new(STREAM_MODULE))?,
            Leg::Envoy => settings::envoy(&folder, http, tls, self.origin)?,
            Leg::Namegate => {
                let (kind, rules) = match work {
                    Work::Http => ("http", settings::path_rules()),
                    Work::Tls | Work::Connect => ("tls", settings::name_rules()),
                };
                let origin = SocketAddr::new(self.origin, work.port()).to_string();
                let first = [self.target(leg, work).port().to_string(), origin, WORKERS.to_string(), kind.to_owned()];
                first.into_iter().chain(rules).map(Into::into).collect()
            }
        };
        let program = self.program(leg).context("its program is not there")?;
        Ok(Running::Program(Daemon::start(self.world.node(), &program, arguments, &folder)?))
    }

    /// What the program calls its version.
    pub(crate) fn version(&self, leg: Leg) -> Option<String> {
        let argument = match leg {
            Leg::Direct | Leg::Nginx => "-v",
            Leg::Envoy => "--version",
            Leg::Namegate | Leg::Agent => return None,
        };
        let output = Command::new(self.program(leg)?).arg(argument).stdin(Stdio::null()).output().ok()?;
        version_in(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
    }

    /// A folder for the files of one program.
    pub(crate) fn subfolder(&self, name: &str) -> Result<PathBuf> {
        settings::made(self.folder.join(name))
    }
}

impl Running<'_> {
    /// An error if the leg has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self {
            Self::Program(daemon) => daemon.check(),
            Self::Direct | Self::Agent(_) => Ok(()),
        }
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> String {
        match self {
            Self::Direct => String::new(),
            Self::Program(daemon) => daemon.said(),
            Self::Agent(agent) => agent.log(),
        }
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Direct => None,
            Self::Program(daemon) => Some(daemon.pid()),
            Self::Agent(agent) => agent.pid(),
        }
    }
}
