//! A picture of rules and endpoints at one moment, for threads that must not wait for the engine.
//!
//! It never changes. Another moment is another picture, which shares with this one whatever has stayed the same.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use namegate_abi::{Address, endpoint_flags};
use namegate_config::{
    l7::L7,
    reference::{Flow, Limits},
    rule::{Direction, Origin, Rule},
    services::Target,
};

use crate::{
    EndpointId, EndpointView, Engine, LearnedNames, Requests, TopologyEndpoint,
    compile::Policy,
    engine::Local,
    fronts::Port,
    peers::{Behind, Peer},
    requests::{Judged, Judging, Owner},
    shards::Shards,
    topology::NODE_KEY,
    views::{name_selectors, origins_of},
};

/// Rules and endpoints of one moment.
#[derive(Clone, Debug, Default)]
pub struct PolicyView {
    /// Counts of the engine: see there.
    moves: u64,
    rulings: u64,
    peers: Shards<Address, PeerView>,
    fronts: Shards<Address, Arc<BTreeMap<Port, Behind>>>,
    endpoints: Arc<BTreeMap<EndpointId, LocalView>>,
    policies: HashMap<u32, Arc<Ruling>>,
    rules: Arc<[Arc<Rule>]>,
    origins: Arc<HashMap<u32, Arc<Origin>>>,
    resolvers: Arc<HashSet<IpAddr>>,
}

/// A pod or node that has an address.
#[derive(Clone, Debug)]
struct PeerView {
    source: Arc<TopologyEndpoint>,
    id: Option<EndpointId>,
}

/// An endpoint of this node, or the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LocalView {
    key: Arc<str>,
    source: Arc<TopologyEndpoint>,
    interface: u32,
    policy: u32,
    is_shut: bool,
    revision: u32,
    flags: u32,
}

/// The rules of a policy.
#[derive(Debug)]
struct Ruling {
    rules: Box<[Arc<Rule>]>,
    /// A rule limits the DNS names that may be asked for.
    limits_dns: bool,
}

impl Ruling {
    fn new(policy: &Policy) -> Self {
        let rules: Box<[Arc<Rule>]> = policy.rules().map(|numbered| Arc::clone(&numbered.rule)).collect();
        let limits_dns = rules.iter().any(|rule| matches!(rule.l7.as_deref(), Some(L7::Dns(_))));
        Self { rules, limits_dns }
    }
}

impl Engine {
    /// The picture as it is now. It shares with `last` what has not changed since.
    pub fn policy_view(&self, last: &PolicyView) -> PolicyView {
        let mut view = last.clone();
        // A number stands for the same rules for ever.
        let ruling = |(id, policy): (&u32, &Policy)| {
            let held = last.policies.get(id).map(Arc::clone);
            (*id, held.unwrap_or_else(|| Arc::new(Ruling::new(policy))))
        };
        view.policies = self.policies.iter().map(ruling).collect();
        if view.rulings != self.rulings {
            view.rulings = self.rulings;
            view.rules = self.rules.iter().map(Arc::clone).collect();
            view.origins = Arc::new(self.rules.origins().clone());
        }
        if view.moves != self.moves {
            self.show_peers(&mut view);
        }
        view.endpoints = Arc::new(self.show_locals());
        let is_trusted = |resolver: &IpAddr| view.resolvers.contains(resolver);
        if view.resolvers.len() != self.resolvers.len() || !self.resolvers.iter().all(is_trusted) {
            view.resolvers = Arc::new(self.resolvers.iter().copied().collect());
        }
        view
    }

    /// What follows from here on needs to differ from this picture alone.
    pub fn has_shown(&mut self, view: &PolicyView) {
        if view.moves == self.moves {
            self.shown = self.moves;
            self.unshown.clear();
        }
    }

    fn show_peers(&self, view: &mut PolicyView) {
        if view.moves == self.shown {
            self.unshown.iter().for_each(|address| self.show_peer(*address, view));
        } else {
            (view.peers, view.fronts) = Default::default();
            self.peers.addresses().for_each(|address| self.show_peer(address, view));
        }
        view.moves = self.moves;
    }

    fn show_peer(&self, address: Address, view: &mut PolicyView) {
        let owner = self.peers.owner(address);
        view.peers.set(address, owner.map(|peer| PeerView { source: Arc::clone(peer.source()), id: peer.id }));
        view.fronts.set(address, self.peers.front(address).map(|ports| Arc::new(ports.clone())));
    }

    fn show_locals(&self) -> BTreeMap<EndpointId, LocalView> {
        let pods = self.peers.local().map(|(id, _, who)| (id, Arc::clone(&who.key), who));
        let node = self.peers.node().and_then(|who| Some((self.node_id()?, NODE_KEY.into(), who)));
        let shown = |(id, key, peer): (EndpointId, Arc<str>, &Peer)| {
            Some((id, LocalView::new(key, peer.source(), self.local.get(&id)?)))
        };
        pods.chain(node).filter_map(shown).collect()
    }
}

impl LocalView {
    fn new(key: Arc<str>, source: &Arc<TopologyEndpoint>, local: &Local) -> Self {
        Self {
            key,
            source: Arc::clone(source),
            interface: local.interface,
            policy: local.policy,
            is_shut: local.is_shut(),
            revision: local.value.revision,
            flags: local.value.flags,
        }
    }
}

impl Judging for PolicyView {
    fn owner(&self, address: Address) -> Option<Owner<'_>> {
        self.peers.get(&address).map(|peer| Owner { source: &peer.source, id: peer.id })
    }

    fn is_virtual(&self, address: Address) -> bool {
        self.fronts.get(&address).is_some()
    }

    fn targets(&self, address: Address, port: Port) -> Option<&[Target]> {
        self.fronts.get(&address)?.get(&port).map(|behind| &*behind.targets)
    }

    fn judged(&self, endpoint: EndpointId) -> Option<Judged<'_>> {
        let local = self.endpoints.get(&endpoint)?;
        Some(Judged { is_shut: local.is_shut, rules: self.rules_of(local).into() })
    }
}

impl PolicyView {
    /// Whether another picture of the same engine says the same.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.moves, self.rulings) == (other.moves, other.rulings)
            && Arc::ptr_eq(&self.resolvers, &other.resolvers)
            && self.endpoints == other.endpoints
            && self.policies.len() == other.policies.len()
            && self.policies.keys().all(|id| other.policies.contains_key(id))
    }

    fn rules_of(&self, local: &LocalView) -> &[Arc<Rule>] {
        self.policies.get(&local.policy).map_or(&[], |ruling| &ruling.rules)
    }

    /// The limits on requests inside flows, with the names that are learned.
    pub fn requests<'a>(&'a self, names: &'a dyn LearnedNames) -> Requests<'a> {
        Requests::new(self, names)
    }

    /// Whether a rule limits the DNS names that the endpoint with this address may ask for.
    pub fn limits_dns(&self, own: IpAddr) -> bool {
        let local = self.endpoint_by_address(own).and_then(|id| self.endpoints.get(&id));
        local.and_then(|local| self.policies.get(&local.policy)).is_some_and(|ruling| ruling.limits_dns)
    }

    /// The limits on what an endpoint with the address `own` asks of `resolver`; [`Limits::Free`] where no rule for it
    /// limits DNS names. Names of the resolver itself do not count.
    pub fn dns_limits(&self, own: IpAddr, resolver: IpAddr, flow: Flow) -> Limits {
        if !self.limits_dns(own) {
            return Limits::Free;
        }
        Requests::without_names(self).limits(own, resolver, Direction::Egress, flow, 0)
    }

    /// Endpoints of this node, by number; with the node itself, as `host`, where a rule selects it.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        self.endpoints.iter().map(|(id, local)| self.view_of(*id, local)).collect()
    }

    fn view_of(&self, id: EndpointId, local: &LocalView) -> EndpointView {
        EndpointView {
            id,
            key: Arc::clone(&local.key),
            labels: Arc::clone(&local.source.labels),
            addresses: local.source.addresses.clone(),
            named_ports: local.source.named_ports.clone(),
            interface: local.interface,
            policy: local.policy,
            is_closed: local.is_shut,
            revision: local.revision,
            rules: origins_of(self.rules_of(local)),
            enforced_ingress: local.flags & endpoint_flags::ENFORCE_INGRESS != 0,
            enforced_egress: local.flags & endpoint_flags::ENFORCE_EGRESS != 0,
        }
    }

    /// The endpoint of this node that has the address.
    pub fn endpoint_by_address(&self, address: IpAddr) -> Option<EndpointId> {
        self.peers.get(&Address::from(address.to_canonical())).and_then(|peer| peer.id)
    }

    /// `namespace/name` of an endpoint of this node.
    pub fn endpoint_key(&self, endpoint: EndpointId) -> Option<&str> {
        self.endpoints.get(&endpoint).map(|local| &*local.key)
    }

    /// `namespace/name` of the pod, or the name of the node, that has the address; or of the service with this one.
    pub fn peer_key(&self, address: IpAddr) -> Option<&str> {
        let address = Address::from(address.to_canonical());
        let service = || Some(&*self.fronts.get(&address)?.values().next()?.service);
        self.peers.get(&address).map(|peer| &*peer.source.key).or_else(service)
    }

    /// Whether answers of a resolver may open addresses.
    pub fn trusts(&self, resolver: IpAddr) -> bool {
        self.resolvers.contains(&resolver)
    }

    /// Resolvers whose answers open addresses and did not in another picture, each with `namespace/name` of whoever has the
    /// address, where that is known.
    pub fn newly_trusted<'a>(&'a self, last: &'a Self) -> impl Iterator<Item = (IpAddr, Option<&'a str>)> {
        let new = self.resolvers.difference(&last.resolvers);
        new.map(|resolver| (*resolver, self.peer_key(*resolver)))
    }

    /// Where the rule stands that rows and flows name by this number, also some time after it is gone.
    pub fn origin(&self, rule_cookie: u32) -> Option<&Arc<Origin>> {
        self.origins.get(&rule_cookie)
    }

    /// Name patterns of rules, with the rules that have them.
    pub fn name_selectors(&self) -> BTreeMap<String, Vec<Arc<Origin>>> {
        name_selectors(&self.rules)
    }
}
