//! Hears names: an intercepting DNS proxy.

mod answer;
mod batch;

mod desk;
mod exchange;
mod pending;
mod poller;
mod proxy;
mod replier;
mod reply;
mod slots;
mod socket;
mod special;
mod tally;
mod tcp;
mod traffic;
mod transaction;
mod upstream;
mod wire;
mod worker;

pub use desk::{Desk, NotInstalled};
pub use proxy::{Config, Proxy, ProxyError};
