//! What the API shows: the only types that become JSON. Field names are kebab-case, as Cilium's are.

mod cni;
mod endpoint;
mod flow;
mod fqdn;
mod policy;
mod status;

pub use cni::{CniEndpoint, CniRegistration, CniState};
pub use endpoint::{Endpoint, EndpointState, Enforcement};
pub use flow::{Direction, Flow, FlowEndpoint, FlowPeer, HttpRequest, Lost, Verdict};
pub use fqdn::{Forgotten, FqdnLookup, FqdnNames, FqdnSelector, LookupSource, SelectedName};
pub use policy::{Diagnostic, Document, DocumentState, Policy, Revision, Severity, Unenforced};
pub use status::{
    Counter, EndpointCounter, EndpointCounts, Facts, Fill, Health, Kubernetes, NameCounts, NameMismatch, PacketCounter,
    Problem, Refused, Source, SourceState, Status,
};
