//! What is allowed: policies and settings, parsed into one rule model with diagnostics. Pure: no files, no clock.
//!
//! ```
//! use namegate_config::name::{Fqdn, NamePattern};
//! let pattern = NamePattern::pattern("*.cilium.io").unwrap();
//! assert!(pattern.matches(&"docs.cilium.io".parse::<Fqdn>().unwrap()));
//! ```

#![forbid(unsafe_code)]

pub mod cases;
pub mod diagnostic;
mod document;
pub mod endpoints;
pub mod fair_ring;
pub mod intern;
pub mod l7;
mod label_syntax;
pub mod labels;
mod language;
pub mod name;
pub mod peer;
pub mod policy;
pub mod printable;
pub mod question;
mod reader;
pub mod reference;
pub mod rule;
pub mod schema;
pub mod services;
pub mod settings;
pub mod shares;

pub use reader::nearest_first;
