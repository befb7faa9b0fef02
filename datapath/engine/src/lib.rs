//! What the kernel should hold. Pure: facts and a time in, ordered map writes out.
//!
//! ```
//! use namegate_config::settings;
//! use namegate_engine::{Change, Engine, Topology};
//! let settings = settings::parse("namegate.yaml", "policies: p\nendpoints: e.yaml\n").unwrap();
//! let mut engine = Engine::new(&settings);
//! let change = Change { rules: Some(vec![]), topology: Some(Topology::default()) };
//! assert_eq!(engine.update(change, 0), [], "nobody is here: nothing to write");
//! ```

mod acquire;
mod answer;
mod askers;
mod cache;
mod compile;
mod diff;
mod engine;
mod frames;
mod fronts;
mod gate;
mod identities;
mod learn;
mod ledger;
mod place;
mod plan;
mod ports;
mod requests;
mod retry;
mod selectors;
mod shares;
mod shortage;
mod sound;
mod switch;
mod topology;
mod update;
mod views;

pub use answer::{Answer, EndpointId};
pub use askers::Askers;
pub use cache::LearnedAddress;
pub use engine::{Change, Engine, Proxies};
pub use frames::{FrameError, Frames, push_frame};
pub use gate::{Gate, GateError, Key, MapOp, Row};
pub use learn::{Forgotten, Lookup, NotOpen};
pub use ledger::LedgerEntry;
pub use requests::NamesAt;
pub use retry::{carry_out, tick_out};
pub use shortage::{Shortage, ShortageKind};
pub use topology::{Topology, TopologyEndpoint, TopologyNode};
pub use views::{DividedPort, EndpointView, KnownName, RowCount};
