//! What is allowed: policies and settings, parsed into one rule model with diagnostics. Pure: no files, no clock.
//!
//! ```
//! use namegate_config::name::{Fqdn, NamePattern};
//! let pattern = NamePattern::pattern("*.cilium.io").unwrap();
//! assert!(pattern.matches(&"docs.cilium.io".parse::<Fqdn>().unwrap()));
//! ```

#![forbid(unsafe_code)]

pub mod diagnostic;
mod document;
pub mod endpoints;
mod label_syntax;
pub mod labels;
pub mod name;
pub mod peer;
mod reader;
pub mod reference;
pub mod rule;
pub mod settings;
