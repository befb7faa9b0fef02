//! Hears names: an intercepting DNS proxy.
//!
//! Questions to trusted resolvers are redirected to its sockets. It asks in the client's stead, checks the answer, hands
//! the addresses that the asked name leads to over to a [`Backend`], and lets the client have the answer when the kernel holds
//! them.
//!
//! ```
//! use std::{future::{Future, ready}, net::IpAddr};
//! use namegate_dns_proxy::{Config, Backend, NotInstalled, Proxy};
//! use namegate_engine::{Answer, EndpointId};
//!
//! #[derive(Clone)]
//! struct TakesAll;
//!
//! impl Backend for TakesAll {
//!     fn endpoint(&self, _: IpAddr) -> Option<EndpointId> { Some(EndpointId(1)) }
//!     fn is_trusted(&self, _: IpAddr) -> bool { true }
//!     fn install(&self, answers: Vec<Answer>) -> impl Future<Output = Vec<Result<(), NotInstalled>>> + Send {
//!         ready(vec![Ok(()); answers.len()])
//!     }
//! }
//!
//! // Without a redirection it is a plain forwarder to one resolver.
//! let config = Config { workers: 1, fixed_resolver: Some(([192, 0, 2, 53], 53).into()), ..Config::default() };
//! let proxy = Proxy::start(&config, TakesAll)?;
//! assert!(proxy.counters().contains(&("asked", 0)));
//! proxy.stop();
//! # Ok::<(), namegate_dns_proxy::ProxyError>(())
//! ```

mod answer;
mod backend;
mod batch;
mod bounds;
mod cache;
mod config;
mod counters;
mod exchange;
mod limits;
mod pending;
mod poller;
mod proxy;
mod query;
mod raw;
mod replier;
mod reply;
mod settings;
mod slots;
mod socket;
mod special;
mod tcp;
mod traffic;
mod transaction;
mod tunnel;
mod upstream;
mod wire;
mod worker;

pub use answer::{Reading, read_answer};
pub use backend::{Asked, Backend, Forbidden, NotInstalled, Share, Suspicion};
pub use bounds::{WORKER_DESCRIPTORS_FIXED, WORKER_DESCRIPTORS_MAX};
pub use config::Config;
pub use limits::forbidden;
pub use proxy::{Proxy, ProxyError};
pub use wire::WireError;
