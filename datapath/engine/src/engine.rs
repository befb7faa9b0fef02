//! The engine: rules, topology and answers in, ordered writes out. It owns all state and no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use foldhash::{HashMap, HashSet};
use namegate_abi::{Address, AddressKey, AddressValue, CidrKey, EndpointValue, identity};
use namegate_config::{name::Fqdn, rule::Rule, settings::Settings};

use crate::{
    EndpointId, LedgerEntry, Row, Topology,
    cache::Cache,
    compile::Policy,
    diff::Mirror,
    identities::Identities,
    learn::heard_of,
    ledger::{InUse, Ledger},
    peers::Peers,
    plan::Plan,
    retry::{Doubt, Retry},
    rules::Rules,
    selectors::{Set, TermId, Terms},
    shares::PrefixClaims,
    shortage::Shut,
    update::scope_of,
    work::Work,
};

/// Scope of learned addresses under `dns.scope: node`.
pub(crate) const NODE_SCOPE: u32 = u32::MAX;

/// Knows what the kernel should hold.
///
/// The caller of a verb carries out the writes in their order, stops at the first that the kernel refuses and calls
/// [`Engine::refused_write`] ([`crate::carry_out`] does all of it), and keeps the entries of [`Engine::take_ledger`].
#[derive(Debug)]
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) ledger: Ledger,
    pub(crate) rules: Rules,
    pub(crate) terms: Terms,
    pub(crate) identities: Identities,
    pub(crate) policies: BTreeMap<u32, Policy>,
    /// Policies by the selectors, and the names of peers' ports, that they use.
    pub(crate) users: HashMap<TermId, BTreeSet<u32>>,
    pub(crate) port_users: HashMap<String, BTreeSet<u32>>,
    pub(crate) peers: Peers,
    /// Changes of the peers, and of the rules, so far: a picture of the same count has the same ones.
    pub(crate) moves: u64,
    pub(crate) rulings: u64,
    /// Addresses that are others' than in the picture of this count of `moves`.
    pub(crate) unshown: BTreeSet<Address>,
    pub(crate) shown: u64,
    /// Rows of scope 0, with what matches each address.
    pub(crate) placed: HashMap<Address, (AddressValue, Set)>,
    /// The number of who is behind the ports of an address.
    pub(crate) front_at: HashMap<Address, TermId>,
    /// Addresses of the cluster whose row is not as it should be, with what matches them.
    pub(crate) unplaced: HashMap<Address, Set>,
    pub(crate) cidrs: HashMap<(u32, CidrKey), u32>,
    /// Every prefix that should have a row, with what matches its addresses.
    pub(crate) nets: BTreeMap<(u32, CidrKey), Set>,
    /// Those of them whose row is not as it should be.
    pub(crate) unprefixed: BTreeSet<(u32, CidrKey)>,
    /// Learned addresses whose row is not as it should be.
    pub(crate) unopened: BTreeSet<AddressKey>,
    /// Those of them that no answer has let a client know: the answers with them were refused.
    pub(crate) withheld: BTreeSet<AddressKey>,
    /// Addresses whose learned rows are taken away: the row of the cluster that should stand above them is not there.
    pub(crate) hidden: HashSet<Address>,
    /// Policies that found no room, and the setting that makes more.
    pub(crate) uninstalled: BTreeMap<u32, &'static str>,
    /// The last learned address that was tried again, where more are to be.
    pub(crate) reopened: Option<AddressKey>,
    pub(crate) prefix_claims: PrefixClaims,
    /// Prefixes above the share of the namespace whose policies ask for them.
    pub(crate) above_share: BTreeMap<(u32, CidrKey), Arc<str>>,
    /// Trusted resolvers that found no room.
    pub(crate) unresolved: BTreeSet<IpAddr>,
    /// Which policy should judge whom.
    pub(crate) plan: Plan,
    /// What a change still has to do.
    pub(crate) work: Work,
    pub(crate) retry: Retry,
    pub(crate) cache: Cache,
    pub(crate) local: BTreeMap<EndpointId, Local>,
    pub(crate) resolvers: Vec<IpAddr>,
    pub(crate) proxies: Proxies,
    pub(crate) mirror: Mirror,
    /// The first update is done: before it, what the kernel holds is left alone.
    pub(crate) ready: bool,
    /// The gate may hold something else than this engine wrote.
    pub(crate) unsure: bool,
    /// The kernel refused a write, and what it holds differs from what it should hold.
    pub(crate) doubt: Option<Doubt>,
    pub(crate) refused: BTreeMap<&'static str, u64>,
    /// The same by endpoint, where one of them reached its bound.
    pub(crate) refused_of: BTreeMap<(EndpointId, &'static str), u64>,
    /// The same by namespace.
    pub(crate) refused_in: BTreeMap<(Arc<str>, &'static str), u64>,
}

/// Ports on which proxies of this node listen, host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// The proxy for rules that limit DNS names; 0 leaves them to the observation of DNS.
    pub dns: u16,
    /// The proxy for rules that limit HTTP requests or TLS server names; 0 denies what these allow.
    pub l7: u16,
}

/// An endpoint of this node, or the node itself.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) interface: u32,
    /// Further interfaces, with the same row.
    pub(crate) more: Vec<u32>,
    pub(crate) value: EndpointValue,
    /// The policy that should judge it; 0 where no rule selects it.
    pub(crate) policy: u32,
    /// Why it is closed in place of that.
    pub(crate) closed: Option<Shut>,
    /// Interfaces without their row: they are denied everything.
    pub(crate) unwritten: Vec<u32>,
}

impl Local {
    /// Every interface.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(self.interface).chain(self.more.iter().copied())
    }

    /// Those whose row is written.
    pub(crate) fn written(&self) -> impl Iterator<Item = u32> + '_ {
        self.interfaces().filter(|interface| !self.unwritten.contains(interface))
    }
}

/// New rules, and/or who is where. What is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Every rule in force, in order. One that is the same as before is found sooner where it is the same `Arc`.
    pub rules: Option<Vec<Arc<Rule>>>,
    /// Everybody who is known.
    pub topology: Option<Topology>,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            ledger: Ledger::default(),
            rules: Rules::default(),
            terms: Terms::default(),
            identities: Identities::default(),
            policies: BTreeMap::new(),
            users: HashMap::default(),
            port_users: HashMap::default(),
            peers: Peers::default(),
            moves: 0,
            rulings: 0,
            unshown: BTreeSet::new(),
            shown: 0,
            placed: HashMap::default(),
            front_at: HashMap::default(),
            unplaced: HashMap::default(),
            cidrs: HashMap::default(),
            nets: BTreeMap::new(),
            unprefixed: BTreeSet::new(),
            unopened: BTreeSet::new(),
            withheld: BTreeSet::new(),
            hidden: HashSet::default(),
            uninstalled: BTreeMap::new(),
            reopened: None,
            prefix_claims: PrefixClaims::default(),
            above_share: BTreeMap::new(),
            unresolved: BTreeSet::new(),
            plan: Plan::default(),
            work: Work::default(),
            retry: Retry::default(),
            cache: Cache::default(),
            local: BTreeMap::new(),
            resolvers: Vec::new(),
            proxies: Proxies::default(),
            mirror: Mirror::new(&settings.limits),
            ready: false,
            unsure: false,
            doubt: None,
            refused: BTreeMap::new(),
            refused_of: BTreeMap::new(),
            refused_in: BTreeMap::new(),
        }
    }

    /// Numbers handed out and names learned before a restart. Call it before the first [`Engine::update`].
    pub fn restore(&mut self, entries: impl IntoIterator<Item = LedgerEntry>) {
        for entry in entries {
            match self.ledger.note(entry) {
                Some(LedgerEntry::Learned { endpoint, names, addresses, learned_ns }) => {
                    self.restore_learned(&endpoint, &names, &addresses, learned_ns);
                }
                Some(LedgerEntry::Forgotten { endpoint, name }) => {
                    let name = name.parse().ok().and_then(|name| self.cache.names.get(&name));
                    if let (Some(id), Some(name)) = (self.ledger.endpoints.get(&endpoint), name) {
                        let scope = self.scope(EndpointId(id));
                        self.cache.forget(EndpointId(id), name, scope, &mut Vec::new());
                    }
                }
                Some(LedgerEntry::Left { key }) => {
                    let gone = self.cache.endpoints.iter().find(|(_, known)| known.key == key);
                    if let Some(id) = gone.map(|(id, _)| *id) {
                        self.cache.leave(id, self.scope(id), &mut Vec::new());
                    }
                }
                _ => {}
            }
        }
    }

    fn restore_learned(&mut self, key: &Arc<str>, names: &[Arc<str>], all: &[(IpAddr, u32, u64)], learned_ns: u64) {
        let Some(endpoint) = self.ledger.endpoints.get(key).map(EndpointId) else { return };
        self.cache.open(endpoint, key);
        let max = usize::try_from(self.settings.dns.addresses_per_name_max).unwrap_or(usize::MAX);
        let ttl_s = all.last().map_or(0, |(_, ttl_s, _)| *ttl_s);
        let mut heard = heard_of(all);
        heard.truncate(max);
        for name in names.iter().filter_map(|name| name.parse::<Fqdn>().ok()) {
            self.note(endpoint, &name, (&heard, ttl_s, learned_ns), &mut Vec::new());
        }
        self.trim(endpoint, 0, &mut Vec::new());
    }

    /// What the kernel holds: the next call brings it to what it should hold. Call it before the first
    /// [`Engine::update`] of a restarted agent.
    pub fn adopt(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.mirror.replace(rows);
        self.unsure = true;
        for row in self.mirror.rows().values() {
            match row {
                Row::Endpoint(_, value) => {
                    self.ledger.endpoints.pass(value.endpoint);
                    self.ledger.policies.pass(value.policy);
                    self.ledger.revision = self.ledger.revision.max(value.current());
                }
                Row::Address(_, value) => {
                    for step in value.steps.iter().filter(|step| step.identity >= identity::FIRST) {
                        self.ledger.identities.pass(step.identity);
                    }
                }
                Row::Cidr(_, _, value) if value.identity >= identity::FIRST => {
                    self.ledger.identities.pass(value.identity);
                }
                Row::Policy(_, key, value) => {
                    self.ledger.policies.pass(key.policy);
                    self.ledger.rules.pass(value.rule);
                    if key.identity >= identity::FIRST {
                        self.ledger.identities.pass(key.identity);
                    }
                }
                Row::Cidr(..) | Row::Resolver(_) => {}
            }
        }
    }

    /// Entries since the last call.
    pub fn take_ledger(&mut self) -> Vec<LedgerEntry> {
        self.ledger.take()
    }

    /// The scope of what an endpoint learns.
    pub(crate) const fn scope(&self, endpoint: EndpointId) -> u32 {
        scope_of(self.settings.dns.scope, endpoint)
    }

    pub(crate) fn refuse(&mut self, what: &'static str) {
        if self.mirror.is_retry {
            return;
        }
        *self.refused.entry(what).or_default() += 1;
    }

    /// Counts a refusal of one endpoint too.
    pub(crate) fn refuse_of(&mut self, what: &'static str, endpoint: EndpointId) {
        if self.mirror.is_retry {
            return;
        }
        self.refuse(what);
        *self.refused_of.entry((endpoint, what)).or_default() += 1;
    }

    /// Counts a refusal of one namespace too.
    pub(crate) fn refuse_in(&mut self, what: &'static str, namespace: &Arc<str>) {
        if self.mirror.is_retry {
            return;
        }
        self.refuse(what);
        *self.refused_in.entry((Arc::clone(namespace), what)).or_default() += 1;
    }

    /// Forgets numbers from before a restart that stand for nothing in force.
    pub(crate) fn forget_restored(&mut self) {
        let rules = self.rules.numbers();
        self.ledger.retain(&InUse {
            endpoint: &|id| self.cache.endpoints.contains_key(&EndpointId(id)),
            selector: &|id| self.terms.get(id).is_some() || self.terms.fronts.has(id),
            identity: &|id| self.identities.set_of(id).is_some(),
            rule: &|cookie| rules.contains(&cookie),
            policy: &|id| self.plan.policies.contains_key(&id),
        });
    }
}
