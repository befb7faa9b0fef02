//! A policy object as its reports name it.

use std::sync::Arc;

use serde_json::Value;

use crate::row::Kind;

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    /// `apiVersion`.
    pub(crate) version: String,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) status: Arc<Value>,
}
