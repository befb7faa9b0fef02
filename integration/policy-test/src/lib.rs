//! Trials: flows of a cluster on paper, judged by what judges packets: the compiled rows, and the decision over them.
//!
//! A [`Trial`] is a [`namegate_config::cases::Judge`]. Where the rows lie is up to its [`Fixture`]: tables in memory
//! under the decision of `namegate-abi`, or the kernel's maps under the loaded programs.

#![deny(unsafe_code)]

mod explain;
mod frame;
mod judge;
mod kernel;
mod memory;
mod requests;
mod topology;

pub use explain::{Explained, Matching, Standing, Tracer};
pub use judge::{Decided, Fixture, Table, Trial};
pub use kernel::Kernel;
pub use memory::Model;
pub use requests::Requests;
