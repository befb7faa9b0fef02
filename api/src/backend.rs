//! What the API asks of the agent.

use std::{future::Future, pin::Pin, sync::Arc};

use ipnet::IpNet;
use namegate_config::name::NamePattern;

use crate::{
    flow_hub::FlowReader,
    instruments::Instruments,
    view::{
        CniEndpoint, CniRegistration, Endpoint, Flow, Forgotten, FqdnLookup, FqdnNames, Health, LookupSource, Policy,
        Status,
    },
};

/// An answer under way.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

/// Answers what the API asks; the agent implements it, tests have a stand-in.
pub trait Backend: Send + Sync + 'static {
    /// Learned names that pass the filter, by endpoint and name.
    fn fqdn_cache(&self, filter: CacheFilter) -> Reply<'_, Vec<FqdnLookup>>;

    /// Forgets what [`Self::fqdn_cache`] lists for the same filter; the kernel has closed the addresses on return.
    fn forget(&self, filter: CacheFilter) -> Reply<'_, Forgotten>;

    /// Name selectors of the policies in force, and what they hold now.
    fn fqdn_names(&self) -> Reply<'_, FqdnNames>;

    /// Endpoints of this node, by id.
    fn endpoints(&self) -> Reply<'_, Vec<Endpoint>>;

    /// One endpoint, by id, `namespace/name` or a name that only one has.
    fn endpoint(&self, name: String) -> Reply<'_, Endpoint>;

    /// Networks of pods that a CNI plugin has registered, by container.
    fn cni(&self) -> Reply<'_, Vec<CniEndpoint>>;

    /// Registers a network; on return the kernel judges its packets, by default with denial.
    fn register(&self, container: String, registration: CniRegistration) -> Reply<'_, CniEndpoint>;

    /// Forgets a registered network, where it is one.
    fn unregister(&self, container: String) -> Reply<'_, ()>;

    /// Documents, revisions and mistakes.
    fn policy(&self) -> Reply<'_, Policy>;

    /// Counters, recent denials, how full the maps are.
    fn status(&self) -> Reply<'_, Status>;

    /// Whether the gate does its work. It answers even if the gate does not.
    fn health(&self) -> Reply<'_, Health>;

    /// New and denied flows: the last ones if `past` says so, and those to come.
    fn flows(&self, past: bool) -> Reply<'_, FlowFeed>;

    /// What is measured as it happens.
    fn instruments(&self) -> &Instruments;
}

/// Which learned names are meant; every part that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheFilter {
    /// Endpoint that learned the name: id, `namespace/name` or a name that only one has.
    pub endpoint: Option<String>,
    /// Pattern of the name.
    pub pattern: Option<NamePattern>,
    /// A prefix with one address of the entry.
    pub cidr: Option<IpNet>,
    /// How the name was learned.
    pub source: Option<LookupSource>,
}

/// The flows that a stream begins with, and those that follow.
#[derive(Debug)]
pub struct FlowFeed {
    /// Last flows, oldest first.
    pub recent: Vec<Arc<Flow>>,
    /// Flows from now on.
    pub live: FlowReader,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No endpoint has this id or name.
    #[error("no endpoint is called `{0}`; `GET /v1/endpoint` lists them")]
    NoSuchEndpoint(String),
    /// More than one endpoint has this name.
    #[error("`{0}` is the name of several endpoints; write `namespace/name` or the id")]
    Ambiguous(String),
    /// A registered network is not guarded.
    #[error("the network is not guarded: {0}")]
    NotGuarded(String),
    /// The gate stops or does not answer.
    #[error("the gate does not answer ({0}); its log says why")]
    Unavailable(String),
}
