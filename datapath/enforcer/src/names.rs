//! Learned names, as readers find them: by endpoint and name, and by endpoint and address.
//!
//! The writer's thread alone writes here, after the kernel holds what the names opened. Each endpoint has a lock of its
//! own, which is held for a few changes or one look at a time.

mod ends;

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use foldhash::HashMap;
use namegate_config::name::Fqdn;
use namegate_engine::{EndpointId, KnownName, LearnedAddress, LearnedNames, Lookup, NameChange, NameId};

use slab::Slab;
use smallvec::SmallVec;

use ends::Ends;

/// Changes that are made under one lock.
const CHANGES_AT_ONCE: usize = 32;

/// Every learned name.
#[derive(Debug, Default)]
pub struct Names {
    endpoints: RwLock<HashMap<EndpointId, Shard>>,
    /// What one endpoint learned opens addresses for all.
    is_shared: bool,
}

type Shard = Arc<RwLock<OfEndpoint>>;

/// What one endpoint learned: its names and its addresses, each with the numbers of the pairs that it is in.
#[derive(Debug)]
struct OfEndpoint {
    key: Arc<str>,
    pairs: Slab<Pair>,
    names: HashMap<NameId, Name>,
    /// In the order of the names.
    by_address: HashMap<IpAddr, Vec<usize>>,
    name_ends: Ends,
    address_ends: Ends,
}

/// A name with one of its addresses.
#[derive(Debug)]
struct Pair {
    name: Fqdn,
    address: IpAddr,
    /// When the TTL ends.
    ends_ns: u64,
}

/// A name.
#[derive(Debug)]
struct Name {
    /// Most often there is one; the engine bounds how many there are.
    pairs: SmallVec<[usize; 2]>,
    /// The last of their ends.
    ends_ns: u64,
    ttl_s: u32,
    learned_ns: u64,
}

/// Names and addresses whose TTL has not ended, counted to the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameCount {
    /// Names of endpoints.
    pub names: usize,
    /// Addresses of these names.
    pub addresses: usize,
}

impl Names {
    /// No names. With `is_shared` every endpoint may use what one of them learned.
    pub(crate) fn new(is_shared: bool) -> Self {
        Self { endpoints: RwLock::default(), is_shared }
    }

    /// Follows the engine.
    pub(crate) fn apply(&self, changes: Vec<NameChange>, now: u64) {
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            match change {
                NameChange::Arrived { endpoint, key } => self.arrive(endpoint, key),
                NameChange::Left { endpoint } => {
                    self.endpoints.write().unwrap_or_else(PoisonError::into_inner).remove(&endpoint);
                }
                NameChange::Learned { endpoint, .. } | NameChange::Closed { endpoint, .. } => {
                    let Some(shard) = self.shard(endpoint) else { continue };
                    let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
                    shard.advance(now);
                    shard.change(change);
                    for _ in 1..CHANGES_AT_ONCE {
                        match changes.next_if(|next| is_of(next, endpoint)) {
                            Some(change) => shard.change(change),
                            None => break,
                        }
                    }
                }
            }
        }
    }

    fn arrive(&self, endpoint: EndpointId, key: Arc<str>) {
        let shard = OfEndpoint {
            key,
            pairs: Slab::new(),
            names: HashMap::default(),
            by_address: HashMap::default(),
            name_ends: Ends::default(),
            address_ends: Ends::default(),
        };
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        endpoints.insert(endpoint, Arc::new(RwLock::new(shard)));
    }

    /// How many names and addresses of an endpoint live.
    pub fn count(&self, endpoint: EndpointId, now: u64) -> NameCount {
        self.shard(endpoint).map_or(NameCount::default(), |shard| read(&shard).count(now))
    }

    /// How many names and addresses of all endpoints live.
    pub fn count_all(&self, now: u64) -> NameCount {
        let mut all = NameCount::default();
        for (_, shard) in self.shards() {
            let count = read(&shard).count(now);
            all.names += count.names;
            all.addresses += count.addresses;
        }
        all
    }

    /// Shows each name whose TTL has not ended, with the addresses that live: those of one endpoint, or of all.
    pub fn for_each(&self, endpoint: Option<EndpointId>, now: u64, mut show: impl FnMut(&Lookup<'_>)) {
        let wanted = |(id, _): &(EndpointId, Shard)| endpoint.is_none_or(|wanted| wanted == *id);
        for (id, shard) in self.shards().into_iter().filter(wanted) {
            let shard = read(&shard);
            for known in shard.names.values().filter(|known| known.ends_ns > now) {
                let Some(name) = known.pairs.first().map(|at| &shard.pairs[*at].name) else { continue };
                let living = shard.pairs_of(&known.pairs).filter(|pair| pair.ends_ns > now);
                let addresses = living.map(|pair| LearnedAddress { address: pair.address, expires_ns: pair.ends_ns });
                show(&Lookup {
                    endpoint: id,
                    endpoint_key: &shard.key,
                    name,
                    addresses: addresses.collect(),
                    ttl_s: known.ttl_s,
                    learned_ns: known.learned_ns,
                });
            }
        }
    }

    /// Names under which the endpoint learned the address, and no more than so many: those that live go before those that
    /// ended lately.
    pub fn some_names_of(&self, endpoint: EndpointId, address: IpAddr, now: u64, max: usize) -> Vec<Fqdn> {
        let address = address.to_canonical();
        let mut found = Vec::new();
        let shards = if self.is_shared {
            self.shards()
        } else {
            self.shard(endpoint).map(|one| (endpoint, one)).into_iter().collect()
        };
        for lives in [true, false] {
            for (_, shard) in &shards {
                let left = max - found.len();
                found
                    .extend(read(shard).some_names_at(address, |ends_ns| (ends_ns > now) == lives).take(left).cloned());
            }
        }
        found
    }

    fn shard(&self, endpoint: EndpointId) -> Option<Shard> {
        read(&self.endpoints).get(&endpoint).map(Arc::clone)
    }

    fn shards(&self) -> Vec<(EndpointId, Shard)> {
        let mut all: Vec<(EndpointId, Shard)> =
            read(&self.endpoints).iter().map(|(id, shard)| (*id, Arc::clone(shard))).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

impl LearnedNames for Names {
    fn names_of(&self, endpoint: EndpointId, address: IpAddr, now: u64) -> Vec<KnownName> {
        let address = address.to_canonical();
        let mut found = Vec::new();
        if self.is_shared {
            self.shards().iter().for_each(|(_, shard)| read(shard).names_at(address, now, &mut found));
        } else if let Some(shard) = self.shard(endpoint) {
            read(&shard).names_at(address, now, &mut found);
        }
        found
    }
}

/// Whether it changes what is known of an endpoint that stays.
fn is_of(change: &NameChange, wanted: EndpointId) -> bool {
    match change {
        NameChange::Learned { endpoint, .. } | NameChange::Closed { endpoint, .. } => *endpoint == wanted,
        NameChange::Arrived { .. } | NameChange::Left { .. } => false,
    }
}

impl OfEndpoint {
    fn advance(&mut self, now: u64) {
        self.name_ends.advance(now);
        self.address_ends.advance(now);
    }

    fn change(&mut self, change: NameChange) {
        match change {
            NameChange::Learned { id, name, address, ttl_s, learned_ns, .. } => {
                self.learn((id, name), address, ttl_s, learned_ns);
            }
            NameChange::Closed { id, address, .. } => self.close(id, address),
            NameChange::Arrived { .. } | NameChange::Left { .. } => {}
        }
    }

    fn learn(&mut self, (id, name): (NameId, Fqdn), address: LearnedAddress, ttl_s: u32, learned_ns: u64) {
        let LearnedAddress { address, expires_ns } = address;
        let known =
            self.names.entry(id).or_insert_with(|| Name { pairs: SmallVec::new(), ends_ns: 0, ttl_s, learned_ns });
        known.ttl_s = ttl_s;
        known.learned_ns = learned_ns;
        if expires_ns > known.ends_ns {
            self.name_ends.replace(known.ends_ns, expires_ns);
            known.ends_ns = expires_ns;
        }
        if let Some(at) = known.pairs.iter().find(|at| self.pairs[**at].address == address) {
            let pair = &mut self.pairs[*at];
            self.address_ends.replace(pair.ends_ns, expires_ns);
            pair.ends_ns = expires_ns;
            return;
        }
        self.address_ends.add(expires_ns);
        let of_address = self.by_address.entry(address).or_default();
        let place = of_address.partition_point(|at| self.pairs[*at].name < name);
        let at = self.pairs.insert(Pair { name, address, ends_ns: expires_ns });
        of_address.insert(place, at);
        known.pairs.push(at);
    }

    fn close(&mut self, id: NameId, address: IpAddr) {
        let Some(known) = self.names.get_mut(&id) else { return };
        let Some(place) = known.pairs.iter().position(|at| self.pairs[*at].address == address) else { return };
        let at = known.pairs.remove(place);
        let ended_ns = self.pairs.remove(at).ends_ns;
        self.address_ends.remove(ended_ns);
        if let Some(of_address) = self.by_address.get_mut(&address) {
            of_address.retain(|one| *one != at);
            if of_address.is_empty() {
                self.by_address.remove(&address);
            }
        }
        if known.pairs.is_empty() {
            self.name_ends.remove(known.ends_ns);
            self.names.remove(&id);
        } else if ended_ns == known.ends_ns {
            let last = known.pairs.iter().map(|at| self.pairs[*at].ends_ns).max();
            known.ends_ns = last.unwrap_or(0);
            self.name_ends.replace(ended_ns, known.ends_ns);
        }
    }

    fn count(&self, now: u64) -> NameCount {
        NameCount { names: self.name_ends.after(now), addresses: self.address_ends.after(now) }
    }

    fn pairs_of(&self, numbers: &[usize]) -> impl Iterator<Item = &Pair> {
        numbers.iter().map(|at| &self.pairs[*at])
    }

    fn pairs_at(&self, address: IpAddr) -> impl Iterator<Item = &Pair> {
        self.pairs_of(self.by_address.get(&address).map_or(&[], |numbers| numbers))
    }

    fn some_names_at(&self, address: IpAddr, wanted: impl Fn(u64) -> bool) -> impl Iterator<Item = &Fqdn> {
        self.pairs_at(address).filter(move |pair| wanted(pair.ends_ns)).map(|pair| &pair.name)
    }

    fn names_at(&self, address: IpAddr, now: u64, found: &mut Vec<KnownName>) {
        found.extend(self.pairs_at(address).map(|pair| KnownName {
            name: pair.name.clone(),
            expires_ns: pair.ends_ns,
            ended: pair.ends_ns <= now,
        }));
    }
}
