//! Answers questions: a REST API on a unix socket, its OpenAPI document, metrics and the stream of flows; by setting metrics
//! alone over TCP.
//!
//! The crate knows the wire and nothing of kernels or policies: whoever runs the gate implements [`Gatekeeper`].
//!
//! ```
//! let document = namegate_api::openapi();
//! assert!(document.paths.paths.contains_key("/v1/fqdn/cache"));
//! ```
#![forbid(unsafe_code)]

mod accept;
mod clock;
#[doc(hidden)]
pub mod fuzzing;
mod gatekeeper;
mod instruments;
mod limits;
mod metrics;
mod metrics_port;
mod problem;
mod query;
mod routes;
mod segment;
mod server;
pub mod view;

pub use clock::rfc3339;
pub use gatekeeper::{CacheFilter, FlowFeed, Gatekeeper, Refusal, Reply};
pub use instruments::Instruments;
pub use metrics_port::{MetricsPort, PortError};
pub use problem::{PROBLEM_JSON, Problem};
pub use routes::openapi;
pub use server::{Server, SocketError};
