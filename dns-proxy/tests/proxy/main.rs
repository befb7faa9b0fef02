//! The proxy through its sockets, before a resolver on the loopback address.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod behaviour;
mod caching;
mod cases;
mod shares;
mod support;
mod wire;
