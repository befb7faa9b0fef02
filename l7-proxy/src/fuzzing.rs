//! Private readers within reach of fuzzing. No part of the API of this crate.

use hyper::http::request::Parts;

use crate::head;

/// The head of a request as rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Method.
    pub method: String,
    /// Host that is asked for; empty where HTTP/1.0 names none.
    pub host: String,
    /// Path and query.
    pub path: String,
}

/// Reads a head; `Err` has the status that the client gets.
pub fn head(parts: &Parts, normalise: bool) -> Result<Head, u16> {
    let facts = head::host(parts).and_then(|host| head::read(parts, host, normalise));
    facts
        .map(|facts| Head { method: facts.method, host: facts.host, path: facts.path })
        .map_err(|refused| refused.status.as_u16())
}
