//! Answers questions: a REST API on a unix socket, its OpenAPI document, metrics and the stream of flows; by setting metrics
//! alone over TCP.
//!
//! The crate knows the wire and nothing of kernels or policies: the agent implements [`Backend`].
//!
//! ```
//! let document = namegate_api::openapi();
//! assert!(document.paths.paths.contains_key("/v1/fqdn/cache"));
//! ```
#![forbid(unsafe_code)]

mod accept;
mod backend;
mod clock;
mod flow_hub;
#[doc(hidden)]
pub mod fuzzing;
mod instruments;
mod limits;
mod metrics;
mod metrics_port;
mod problem;
mod query;
mod routes;
mod scrape;
mod segment;
mod server;
pub mod view;

pub use backend::{Backend, CacheFilter, FlowFeed, Refusal, Reply};
pub use clock::rfc3339;
pub use flow_hub::{FlowHub, FlowReader, Read};
pub use instruments::Instruments;
pub use metrics_port::{MetricsPort, PortError};
pub use problem::{PROBLEM_JSON, Problem};
pub use routes::openapi;
pub use server::{Server, SocketError};
