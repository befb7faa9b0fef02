//! Reads requests: a transparent proxy for rules that limit HTTP requests and TLS server names.
//!
//! Connections under such rules are redirected to its sockets. It reads each request, asks a [`Backend`] for the limits, and
//! passes the request on to the server that the client called, or answers 403. Of TLS it reads the first message alone.
//!
//! ```
//! use namegate_l7_proxy::path::normalise;
//! assert_eq!(normalise("/public/%2e%2e//secret?a=1").unwrap(), "/secret?a=1");
//! assert!(normalise("/public%2fsecret").is_err());
//! ```
#![forbid(unsafe_code)]

mod accept;
mod account;
mod backend;
mod body;
mod bound;
mod client;
mod connection;
mod counted;
mod counters;
mod delegate;
mod framing;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod handshake;
pub mod hello;
mod holder;
mod http;
mod kept;
mod pace;
mod proxy;
pub mod quic;
mod record;
mod reply;
mod server;
pub mod sniff;
mod socket;
mod splice;
mod standing;
mod tunnel;
mod turn;
mod upstream;
mod wakers;
mod websocket;

use namegate_config::l7::head;
pub use namegate_config::l7::path;

pub use backend::{Access, AccessVerdict, Backend, ConnectionPolicy, Match, Named, Question, What};
pub use proxy::{Config, Proxy, ProxyError};
pub use socket::send_as;
