//! Learned names, with the field names of Cilium's `DNSLookup`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One name that one endpoint learned, with addresses that end together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FqdnLookup {
    /// The name, lower case, without a trailing dot.
    #[schema(example = "cilium.io")]
    pub fqdn: String,
    /// Its addresses.
    #[schema(value_type = Vec<String>, example = json!(["104.198.14.52"]))]
    pub ips: Vec<IpAddr>,
    /// Seconds between look-up and expiry.
    pub ttl: u64,
    /// When the answer came (RFC 3339).
    #[schema(format = DateTime)]
    pub lookup_time: String,
    /// When the addresses close (RFC 3339).
    #[schema(format = DateTime)]
    pub expiration_time: String,
    /// Endpoint that learned it.
    pub endpoint_id: u32,
    /// How it was learned.
    pub source: LookupSource,
}

/// How a name was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LookupSource {
    /// An answer whose TTL has not ended.
    Lookup,
    /// A connection that outlived its TTL. Namegate closes addresses exactly, so there is none; the word is Cilium's.
    Connection,
}

impl LookupSource {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Connection => "connection",
        }
    }
}

/// What a cleaning took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Forgotten {
    /// Names of endpoints; a name that two endpoints learned counts twice.
    pub names: usize,
    /// Addresses of these names.
    pub addresses: usize,
}

/// Name selectors of the policies in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FqdnNames {
    /// Every `matchName` and `matchPattern`, once.
    pub selectors: Vec<FqdnSelector>,
}

/// One `matchName` or `matchPattern`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FqdnSelector {
    /// The pattern, lower case, without a trailing dot.
    pub selector: String,
    /// Rules that hold it.
    pub rules: Vec<String>,
    /// Learned names that it selects now.
    pub names: Vec<SelectedName>,
}

/// A learned name that a selector selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct SelectedName {
    /// The name.
    pub fqdn: String,
    /// Endpoint that learned it.
    pub endpoint_id: u32,
    /// Addresses that are open by it.
    #[schema(value_type = Vec<String>)]
    pub ips: Vec<IpAddr>,
}
