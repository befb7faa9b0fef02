//! Endpoints of this node.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An endpoint that the agent knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Endpoint {
    /// Id in the kernel.
    pub id: u32,
    /// Name of the endpoint.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// `source:key=value`.
    pub labels: Vec<String>,
    /// Its addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Interface or network namespace, as the endpoints file names it.
    pub interface: Option<String>,
    /// Index of the host-side interface, where it is there.
    pub interface_index: Option<u32>,
    /// Whether it is judged.
    pub state: EndpointState,
    /// Towards the endpoint.
    pub ingress: Enforcement,
    /// From the endpoint.
    pub egress: Enforcement,
    /// Rules that select it.
    pub rules: Vec<String>,
    /// Names that it learned and whose TTL has not ended.
    pub names: usize,
}

impl Endpoint {
    /// Whether the text is its id, `namespace/name` or name.
    pub fn is_called(&self, text: &str) -> bool {
        called(text, self.id, &self.namespace, &self.name)
    }
}

/// Whether the text is the id, `namespace/name` or name of an endpoint.
pub(super) fn called(text: &str, id: u32, namespace: &str, name: &str) -> bool {
    match text.split_once('/') {
        Some((in_namespace, text)) => in_namespace == namespace && text == name,
        None => text == name || text.parse() == Ok(id),
    }
}

/// Whether an endpoint is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Its interface is guarded.
    Guarded,
    /// Its interface is not there yet.
    Waiting,
    /// The programs could not be attached, or its policy is not in force and it is denied everything; the problems of the
    /// status say why.
    Failed,
}

impl EndpointState {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Guarded => "guarded",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// What happens to flows of one direction that no rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// They are dropped.
    Enabled,
    /// They pass and are recorded.
    Audit,
    /// No policy selects the endpoint: everything passes.
    Disabled,
    /// The agent does not guard this direction (setting `directions`).
    NotAttached,
}

impl Enforcement {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Audit => "audit",
            Self::Disabled => "disabled",
            Self::NotAttached => "not-attached",
        }
    }
}
