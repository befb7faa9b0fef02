//! Selectors by their numbers.

use std::sync::Arc;

/// Number of a selector.
pub(crate) type TermId = u32;

/// The selectors that match a peer, sorted, each once.
pub(crate) type Set = Arc<[TermId]>;
