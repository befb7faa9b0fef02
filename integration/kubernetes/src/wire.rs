//! What of each Kubernetes kind is read from the wire. Fields that are not named here are dropped while they are parsed,
//! so that ten thousand pods need no more memory than their labels, addresses and ports.

use std::{borrow::Cow, collections::BTreeMap};

use kube::{
    Resource,
    core::{ClusterResourceScope, NamespaceResourceScope, ObjectMeta},
};
use serde::Deserialize;

/// An object with its metadata, and the rest as far as it is read.
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $group:literal, $version:literal, $plural:literal, $scope:ident,
     { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(crate) struct $name {
            pub(crate) metadata: ObjectMeta,
            $(#[serde(default)] pub(crate) $field: $type,)*
        }

        impl Resource for $name {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                stringify!($name).into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kind! {
    /// A pod.
    Pod, "", "v1", "pods", NamespaceResourceScope, { spec: PodSpec, status: PodStatus }
}
kind! {
    /// A namespace: its labels are all that matters.
    Namespace, "", "v1", "namespaces", ClusterResourceScope, {}
}
kind! {
    /// A node.
    Node, "", "v1", "nodes", ClusterResourceScope, { status: NodeStatus }
}
kind! {
    /// A service.
    Service, "", "v1", "services", NamespaceResourceScope, { spec: ServiceSpec, status: ServiceStatus }
}
kind! {
    /// Backends of a service.
    EndpointSlice, "discovery.k8s.io", "v1", "endpointslices", NamespaceResourceScope,
    { endpoints: Option<Vec<SliceEndpoint>>, ports: Option<Vec<SlicePort>> }
}

/// `spec` of a [`Pod`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    pub(crate) host_network: Option<bool>,
    pub(crate) service_account_name: Option<String>,
    pub(crate) containers: Option<Vec<Container>>,
    pub(crate) init_containers: Option<Vec<Container>>,
}

/// A container: its ports.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    pub(crate) ports: Option<Vec<ContainerPort>>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerPort {
    pub(crate) name: Option<String>,
    #[serde(rename = "containerPort")]
    pub(crate) number: i64,
    pub(crate) protocol: Option<String>,
}

/// `status` of a [`Pod`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodStatus {
    pub(crate) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(crate) pod_ips: Option<Vec<PodIp>>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodIp {
    pub(crate) ip: Option<String>,
}

/// `status` of a [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    pub(crate) addresses: Option<Vec<NodeAddress>>,
}

/// One address of a node; host names are among them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress {
    pub(crate) address: String,
}

/// `spec` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) selector: Option<BTreeMap<String, String>>,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(crate) cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    pub(crate) external_ips: Option<Vec<String>>,
    #[serde(rename = "internalTrafficPolicy")]
    pub(crate) internal_policy: Option<String>,
    #[serde(rename = "externalTrafficPolicy")]
    pub(crate) external_policy: Option<String>,
    pub(crate) ports: Option<Vec<ServicePort>>,
}

/// `status` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceStatus {
    pub(crate) load_balancer: LoadBalancer,
}

/// Load balancers in front of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancer {
    pub(crate) ingress: Option<Vec<LoadBalancerIp>>,
}

/// Where a load balancer is reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancerIp {
    pub(crate) ip: Option<String>,
    #[serde(rename = "ipMode")]
    pub(crate) mode: Option<String>,
}

/// A port of a service; its backends' ports stand in the slices under the same name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: i64,
    pub(crate) protocol: Option<String>,
    pub(crate) node_port: Option<i64>,
}

/// Backends of a slice that are reached alike.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Option<Vec<String>>,
    pub(crate) conditions: SliceConditions,
}

/// Whether the backends take connections. Absent is yes for the first two, no for the last.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SliceConditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

/// A port of the backends.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SlicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: Option<i64>,
    pub(crate) protocol: Option<String>,
}
