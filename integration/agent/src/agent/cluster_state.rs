//! What Kubernetes and the machine know of the endpoints of this node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// Label of an endpoint whose own labels are not known, as in Cilium: `reserved:init`.
pub(crate) const UNKNOWN: &str = "init";

/// Indices of the host-side interfaces by `namespace/name`, the first one first; an endpoint without one is left out.
pub(crate) type Interfaces = HashMap<String, Vec<u32>>;

/// Interfaces of a pod that nothing has registered, as the namespaces of the machine show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Adopted {
    /// Uids of the pod.
    pub(crate) uids: Vec<String>,
    /// Indices of its interfaces, or why that could not be found out.
    pub(crate) interfaces: Result<Vec<u32>, String>,
}

/// What Kubernetes and the machine know of the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterState {
    /// `namespace/name` of the pods of this node, guarded or not yet.
    pub(crate) local: BTreeSet<String>,
    /// Registered networks whose pod is not known.
    pub(crate) unknown: BTreeSet<String>,
    /// Interfaces of pods of this node that nothing has registered.
    pub(crate) adopted: BTreeMap<String, Adopted>,
    /// Endpoint of each registered container.
    pub(crate) containers: BTreeMap<String, String>,
    /// Addresses of services in front of trusted resolvers.
    pub(crate) resolver_services: Vec<IpAddr>,
    /// Addresses of the API server.
    pub(crate) api_servers: Vec<IpAddr>,
    /// Broadcast and anycast addresses of this machine's networks.
    pub(crate) shared: Vec<IpAddr>,
}
