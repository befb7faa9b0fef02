//! The agent on a real API server: what is applied there is enforced on the node's interfaces.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod churn;
mod common;
mod server;
