//! The plugin as container runtimes and people call it.

mod bad_input;
mod common;
mod install;
mod verbs;
