//! Pods' networks that a CNI plugin has registered.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a plugin tells when it has made the network of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CniRegistration {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod as the kubelet gives it; empty where the runtime gives none.
    #[serde(default)]
    pub uid: String,
    /// The node's side of its link.
    pub interface: String,
    /// Its addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Path of its network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub netns: Option<PathBuf>,
}

/// A registered network and how it is guarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct CniEndpoint {
    /// The container that stands for the pod's network.
    pub container_id: String,
    /// What the plugin told.
    pub registration: CniRegistration,
    /// How it is guarded.
    pub state: CniState,
    /// Why it is not guarded, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How a registered network is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CniState {
    /// By the policies that select its pod.
    Guarded,
    /// Its pod is not known: everything is denied until it is.
    UnknownPod,
    /// Not yet.
    Waiting,
}

impl CniState {
    /// The word in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Guarded => "guarded",
            Self::UnknownPod => "unknown-pod",
            Self::Waiting => "waiting",
        }
    }
}
