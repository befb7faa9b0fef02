//! An embedded resolver and a client that asks it.

mod client;
mod server;
mod zone;

pub use client::{DnsFailure, Lookup, Question, Reply as ClientReply, ask, ask_octets, resolve};
pub use server::serve;
pub use zone::{Asked, Query, Reply, Transport, Zone};
