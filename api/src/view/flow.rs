//! New and denied flows.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A new or denied flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Flow {
    /// When the packet was judged (RFC 3339).
    #[schema(format = DateTime)]
    pub time: String,
    /// What became of it.
    pub verdict: Verdict,
    /// As the endpoint sees it.
    pub direction: Direction,
    /// The endpoint that was guarded.
    pub endpoint: FlowEndpoint,
    /// The other side.
    pub peer: FlowPeer,
    /// Sender.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// Its port; the type for ICMP.
    pub source_port: u16,
    /// Receiver.
    #[schema(value_type = String)]
    pub destination: IpAddr,
    /// Its port; type and code for ICMP.
    pub destination_port: u16,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or the number.
    pub protocol: String,
    /// The rule that decided; absent for a default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Word for the reason, as in the metrics.
    pub reason: String,
    /// The reason in words.
    pub reason_text: String,
    /// Flags of the TCP header, else 0.
    pub tcp_flags: u8,
    /// Octets of the first packet, link header included.
    pub length: u32,
    /// The HTTP request, where a proxy read one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,
    /// The name that a connection asked for, where it was read and is not part of `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// The HTTP request of a [`Flow`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct HttpRequest {
    /// Method.
    pub method: String,
    /// Path as rules see it, and query.
    pub path: String,
    /// Host, with the port where one was sent.
    pub host: String,
    /// Status that the client got; 0 where it did not wait for the answer.
    pub code: u16,
    /// Milliseconds from the request's head to that of the response.
    pub latency_ms: f64,
}

/// The latency is a finite number.
impl Eq for HttpRequest {}

/// The endpoint of a [`Flow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FlowEndpoint {
    /// Id in the kernel.
    pub id: u32,
    /// Its namespace; empty where the endpoint is gone.
    pub namespace: String,
    /// Its name; empty where the endpoint is gone.
    pub name: String,
}

impl FlowEndpoint {
    /// Whether the text is its id, `namespace/name` or name.
    pub fn is_called(&self, text: &str) -> bool {
        super::endpoint::called(text, self.id, &self.namespace, &self.name)
    }
}

/// The other side of a [`Flow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FlowPeer {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// `namespace/name` of an endpoint, the name of a node, or `host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Names by which the endpoint learned the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fqdns: Vec<String>,
    /// Identity in the kernel; 0 where none was looked up.
    pub identity: u32,
}

/// What became of the first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Passed.
    Allowed,
    /// Dropped.
    Denied,
    /// Passed in audit mode; would have been dropped.
    Audited,
    /// Handed to a proxy.
    Redirected,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Allowed, Self::Denied, Self::Audited, Self::Redirected];

    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Audited => "audited",
            Self::Redirected => "redirected",
        }
    }
}

/// The side of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

impl Direction {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A line of the flow stream in place of flows that came faster than they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Lost {
    /// How many.
    pub lost: u64,
}
