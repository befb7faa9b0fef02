//! Errors in the form of the CNI specification 1.1.0, section 5: a code, what happened, and what to do.

use std::fmt;

use serde_json::{Value, json};

/// Codes of the specification, and our own from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Code {
    /// The version of the configuration is none of ours.
    IncompatibleVersion = 1,
    /// A variable is missing or has a form that it cannot have.
    BadEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Text is not what it should be.
    Undecodable = 6,
    /// The configuration asks for something that does not exist.
    BadConfig = 7,
    /// The runtime should try again later.
    TryAgainLater = 11,
    /// `STATUS`: `ADD` would fail now.
    NotAvailable = 50,
    /// `CHECK`: the container is not as `ADD` left it.
    NotGuarded = 100,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) details: String,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    #[must_use]
    pub(crate) fn with(mut self, details: impl fmt::Display) -> Self {
        self.details = details.to_string();
        self
    }

    /// What goes to standard output.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        let mut said = json!({"cniVersion": version, "code": self.code as u32, "msg": self.message});
        if !self.details.is_empty() {
            said["details"] = self.details.clone().into();
        }
        said
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.details.as_str() {
            "" => formatter.write_str(&self.message),
            details => write!(formatter, "{}: {details}", self.message),
        }
    }
}
