//! The programs on a real kernel: a pod, a node and an outside in network namespaces, with rows written by hand.
//!
//! Needs root, and fails without.
#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod attachment;
mod bench;
mod frames;
mod icmp_errors;
mod lifecycle;
mod node;
mod redirect;
mod shares;
mod verdicts;
