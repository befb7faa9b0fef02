//! Policy documents and what came of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Documents, revisions, mistakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Policy {
    /// How far the kernel is.
    pub revision: Revision,
    /// Directory that is watched; empty where there is none.
    pub directory: String,
    /// Documents whose rules are in force, and refused ones.
    pub documents: Vec<Document>,
    /// Mistakes and warnings of the last reading.
    pub diagnostics: Vec<Diagnostic>,
    /// Rules that hold no flow back.
    pub not_enforced: Vec<Unenforced>,
}

/// Counts changes of rules and endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Revision {
    /// Read from files.
    pub wanted: u64,
    /// Written to the kernel.
    pub enforced: u64,
}

/// One policy object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Document {
    /// File it stands in.
    pub file: String,
    /// Kind, as written; absent where the document cannot be read so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Namespace; absent for cluster-wide kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name; absent where the document cannot be read so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether its rules hold.
    pub state: DocumentState,
    /// Rules in force from it.
    pub rules: usize,
}

/// Whether the rules of a document hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DocumentState {
    /// As written.
    Accepted,
    /// Refused; the rules of its last good form hold.
    KeptFormer,
    /// Refused; it never had a good form, so none of its rules hold.
    Refused,
}

impl DocumentState {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::KeptFormer => "kept-former",
            Self::Refused => "refused",
        }
    }
}

/// A mistake or a warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Diagnostic {
    /// File.
    pub file: String,
    /// Line, from 1; 0 is the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0 is the file as a whole.
    pub column: usize,
    /// How bad.
    pub severity: Severity,
    /// Kind of mistake, as in `namegate::unknown-field`.
    pub code: String,
    /// Path of the field; empty where the document could not be read.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document holds.
    Warning,
}

impl Severity {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A rule that holds no flow back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Unenforced {
    /// The rule.
    pub rule: String,
    /// Why.
    pub reason: String,
}
