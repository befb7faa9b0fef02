//! The kernel half of the gate: loads, pins and attaches the programs, writes and reads their maps, reads their events,
//! and sets up the routes by which packets reach the proxies.
//!
//! ```no_run
//! use namegate_loader::{Datapath, Directions, MapLimits, Options};
//!
//! let mut datapath = Datapath::open(&Options {
//!     pins: "/sys/fs/bpf/namegate".into(),
//!     limits: MapLimits::default(),
//!     settings: namegate_abi::Settings::default(),
//! })?;
//! datapath.attach(7, Directions::Both)?;
//! # Ok::<(), namegate_loader::LoadError>(())
//! ```

mod attach;
mod bpf;
mod bpffs;
mod datapath;
mod error;
mod events;
mod flow_maps;
mod flows;
mod inspect;
pub mod links;
mod lock;
mod meters;
mod named_flows;
mod netlink;
pub mod netns;
mod node;
mod object;
mod pins;
mod programs;
mod raw_maps;
pub mod routes;
mod spec;
mod sweep;
mod tables;
pub mod trial;
pub mod untracked;
pub mod upkeep;

pub use datapath::{Datapath, Directions, Options};
pub use error::LoadError;
pub use events::{Events, Opening, Openings};
pub use inspect::{Fault, Inspector};
pub use lock::PinsLock;
pub use meters::Meters;
pub use named_flows::NamedFlows;
pub use spec::MapLimits;
