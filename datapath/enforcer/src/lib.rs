//! The one writer of the kernel's maps, and what everybody else reads.
//!
//! One thread owns the [`Engine`](namegate_engine::Engine) and the maps: the [`Enforcer`]. Others hand it answers to
//! install and changes to carry out, by an [`EnforcerHandle`]. After each piece of work, and never before its writes are
//! done, the thread publishes what holds now. A [`Reader`] gives that to DNS and layer 7 proxies, the API and the records
//! of flows: they never wait for the writer, and the writer never waits for them.

mod attachments;
mod error;
mod fair_queue;
mod handle;
mod inbox;
mod journal;
mod kernel;
mod names;
mod observer;
pub mod private_file;
mod publish;
mod shortages;
mod view;
mod writer;

pub use error::{NotDone, NotInstalled};
pub use handle::{EnforcerHandle, Repair, Reply};
pub use journal::{Journal, Opened};
pub use kernel::{ProgramError, Programs};
pub use names::{NameCount, Names};
pub use observer::{FaultKind, Observer};
pub use view::{Enforcement, Figures, Reader, Stall, View};
pub use writer::{Enforcer, Parts, Running};

/// Why programs are not attached to an interface that went meanwhile.
pub const GONE: &str = "the interface is gone, and its endpoint is still listed";
