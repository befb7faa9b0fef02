//! What the API server knows, as the agent needs it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use namegate_config::{
    endpoints::{Endpoint, EndpointsFile},
    services::Service,
};
use serde_json::Value;

/// Policies, who is where, and services: at one moment, of every kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Policy objects, by kind, namespace and name.
    pub policies: Arc<[PolicyObject]>,
    /// Grows when `policies` change.
    pub policies_revision: u64,
    /// Everybody. A pod that has not changed is the same endpoint as in the snapshot before.
    pub who: Arc<Who>,
    /// Grows when `who` changes.
    pub who_revision: u64,
    /// Whether it was read from a file, since the API server has not answered yet.
    pub saved: bool,
}

/// Who is where, and services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Nodes, namespaces and pods. Nobody is attached: interfaces are the agent's to find.
    pub topology: EndpointsFile,
    /// The pods of this node that have a network of their own, by `namespace/name`.
    pub local: BTreeMap<String, LocalPod>,
    /// Every service.
    pub services: Vec<Service>,
    /// The services in front of the trusted resolvers as peers: labels that all pods behind share, and own addresses.
    pub resolvers: Vec<Endpoint>,
    /// Addresses of the API server: of its service, and of the servers behind it.
    pub api_servers: Vec<IpAddr>,
}

/// One policy object.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObject {
    /// `CiliumNetworkPolicy shop/web`; stands in place of a file in diagnostics.
    pub origin: Arc<str>,
    /// The object, less what the server adds.
    pub document: Arc<Value>,
    /// Its uid and generation: what a report is about.
    pub version: (String, i64),
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPod {
    /// The uids by which a CNI plugin may call it.
    pub uids: Vec<String>,
}

impl LocalPod {
    /// Whether a plugin that gives this uid means this pod; one that gives none goes by the name alone.
    pub fn is_called(&self, uid: &str) -> bool {
        uid.is_empty() || self.uids.iter().any(|known| known == uid)
    }
}
