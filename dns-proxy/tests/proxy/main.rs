//! The proxy through its sockets, before a resolver on the loopback address.

mod behaviour;
mod cases;
mod support;
mod wire;
