//! The plugin as container runtimes and people call it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod common;
mod install;
mod verbs;
