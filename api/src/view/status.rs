//! The state of the gate in figures.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Diagnostic, Direction, Flow, Revision};

/// Counters, recent denials, how full the maps are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// What is wrong right now; empty where all is well.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Version of the agent.
    pub version: String,
    /// When the agent started (RFC 3339).
    #[schema(format = DateTime)]
    pub started: String,
    /// Whether denials are recorded only.
    pub audit: bool,
    /// Directions that are guarded.
    pub directions: Vec<Direction>,
    /// How far the kernel is.
    pub revision: Revision,
    /// Endpoints.
    pub endpoints: EndpointCounts,
    /// Learned names.
    pub names: NameCounts,
    /// Packets by direction and reason; reasons that never occurred are left out.
    pub counters: Vec<PacketCounter>,
    /// How full the maps are.
    pub maps: Vec<Fill>,
    /// What was refused at a bound.
    pub refused: Vec<Refused>,
    /// DNS messages by outcome.
    pub dns: Vec<Counter>,
    /// DNS answers that are kept to be given again.
    #[serde(default)]
    pub dns_answers_kept: usize,
    /// Connections and requests of the layer 7 proxy by outcome.
    #[serde(default)]
    pub requests: Vec<Counter>,
    /// Connections by how the name that they asked for was judged, where the kernel's copies show it.
    #[serde(default)]
    pub name_checks: Vec<Counter>,
    /// Connections whose name could not be looked at, and copies of them that were lost, by endpoint.
    #[serde(default)]
    pub names_unread: Vec<EndpointCounter>,
    /// Connections that passed and would not where names were enforced, the most recent first.
    #[serde(default)]
    pub mismatches: Vec<NameMismatch>,
    /// Last denials, newest first.
    pub denials: Vec<Flow>,
    /// Flows told by verdict.
    pub flows: Vec<Counter>,
    /// Records of flows that were lost since the ring was full.
    pub flows_lost: u64,
    /// Programs and pins that were put back after another tool took them away.
    #[serde(default)]
    pub attachments_healed: u64,
    /// Kubernetes as a source, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// Mistakes in policies and endpoints; the last good state is in force.
    pub diagnostics: Vec<Diagnostic>,
}

/// Something that is wrong right now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Problem {
    /// What it is about: `attachment`, `map-row`, `bound`, `lookup`, `state`, `interference` or `source`.
    pub kind: String,
    /// The endpoint, map, file or setting.
    pub subject: String,
    /// What happened, and what to do next.
    pub message: String,
    /// Since when (RFC 3339).
    #[schema(format = DateTime)]
    pub since: String,
}

/// Connections to an address that a name opened, which asked for another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NameMismatch {
    /// `namespace/name` of the endpoint.
    pub endpoint: String,
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The name asked for; absent where there was none, or none that a rule could name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// Names by which the endpoint learned the address.
    pub names: Vec<String>,
    /// Connections.
    pub count: u64,
    /// When the last of them was seen (RFC 3339).
    #[schema(format = DateTime)]
    pub last: String,
}

/// Kubernetes as a source of policies and endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Kubernetes {
    /// Name of this node.
    pub node: String,
    /// What is in force.
    pub facts: Facts,
    /// Kinds of objects, and how each is followed.
    pub sources: Vec<Source>,
}

/// Where the facts in force come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Facts {
    /// From the API server.
    Server,
    /// From the file of the last run: the server has not answered yet.
    Saved,
    /// There are none: the kernel goes on with what it holds.
    None,
}

/// A kind of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Source {
    /// As written in manifests.
    pub kind: String,
    /// How it is followed.
    pub state: SourceState,
    /// Why it is not followed, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How a kind of objects is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// Not heard of yet.
    Listing,
    /// Followed.
    Watching,
    /// The server does not have the kind.
    Absent,
    /// Not followed for now; what was known last stays in force.
    Failing,
}

impl SourceState {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Listing => "listing",
            Self::Watching => "watching",
            Self::Absent => "absent",
            Self::Failing => "failing",
        }
    }
}

/// How many endpoints are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct EndpointCounts {
    /// Guarded.
    pub guarded: usize,
    /// Their interface is not there yet.
    pub waiting: usize,
    /// The programs could not be attached.
    pub failed: usize,
}

/// Learned names whose TTL has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct NameCounts {
    /// Names of endpoints.
    pub names: usize,
    /// Addresses of these names.
    pub addresses: usize,
}

/// Packets of one direction with one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PacketCounter {
    /// Direction, as the endpoint sees it.
    pub direction: Direction,
    /// Word for the reason.
    pub reason: String,
    /// The reason in words.
    pub text: String,
    /// Whether the reason is one for denial.
    pub denied: bool,
    /// Packets.
    pub packets: u64,
    /// Octets, link header included.
    pub octets: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Fill {
    /// Name of the map.
    pub map: String,
    /// Rows in it.
    pub rows: u64,
    /// Rows that fit.
    pub rows_max: u64,
    /// Setting that makes it larger.
    pub setting: String,
}

/// Something that was refused at a bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Refused {
    /// The bound.
    pub bound: String,
    /// `namespace/name` of the endpoint, or a namespace, whose share it is; empty where the bound is that of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// How often.
    pub count: u64,
    /// Setting that makes it larger.
    pub setting: String,
}

/// How often something happened to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct EndpointCounter {
    /// `namespace/name`; empty for all beyond a few thousand endpoints.
    pub endpoint: String,
    /// How often.
    pub count: u64,
}

/// How often something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Counter {
    /// What.
    pub what: String,
    /// How often.
    pub count: u64,
}

/// Whether the gate does its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Health {
    /// Whether all is well.
    pub healthy: bool,
    /// Whether it takes endpoints and enforces their policies: nothing is wrong but with single endpoints, which are refused
    /// more than their share of a bound, wait for their interface, or are closed.
    pub ready: bool,
    /// What is not well.
    pub problems: Vec<String>,
}
