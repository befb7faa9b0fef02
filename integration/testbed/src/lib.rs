//! Worlds of network namespaces with embedded DNS and HTTP hosts, and the real agent between them.
//!
//! ```no_run
//! use namegate_testbed::{Spec, World};
//!
//! let world = World::build(Spec::empire()?)?;
//! let visit = world.pod("empire/tiefighter").http_get("http://cilium.io/");
//! assert_eq!(visit.status(), Some(200));
//! # anyhow::Ok(())
//! ```
#![forbid(unsafe_code)]

pub mod agent;
pub mod client;
pub mod dns;
mod host;
pub mod http2;
mod icmp;
mod ip;
mod link;
mod netns;
mod network;
mod pod;
pub mod quic;
mod sctp;
pub mod seed;
mod socket;
mod spec;
mod tls;
mod world;

pub use agent::{Agent, Applied, Options};
pub use client::{Client, Failure, Page, Visit};
pub use hickory_proto as proto;
pub use host::{Accepted, Host, Log};
pub use link::Link;
pub use netns::{Netns, Task};
pub use pod::{Conversation, Pod};
pub use spec::*;
pub use tls::{Certificate, tls_server};
pub use world::{ECHO_PORT, OTHER_ECHO_PORT, World};
