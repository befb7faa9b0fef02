//! Learned names, as readers find them: by endpoint and name, and by endpoint and address.
//!
//! The writer's thread alone writes here, after the kernel holds what the names opened. Each endpoint has a lock of its
//! own, which is held for one change or one look at a time.

mod ends;

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use foldhash::HashMap;
use namegate_config::name::Fqdn;
use namegate_engine::{EndpointId, KnownName, LearnedAddress, LearnedNames, Lookup, NameChange};

use ends::Ends;

/// Every learned name.
#[derive(Debug, Default)]
pub struct Names {
    endpoints: RwLock<HashMap<EndpointId, Shard>>,
    /// What one endpoint learned opens addresses for all.
    is_shared: bool,
}

type Shard = Arc<RwLock<OfEndpoint>>;

/// What one endpoint learned.
#[derive(Debug)]
struct OfEndpoint {
    key: Arc<str>,
    names: HashMap<Fqdn, Name>,
    /// With the end of the TTL under each name.
    by_address: HashMap<IpAddr, Few<Fqdn>>,
    name_ends: Ends,
    address_ends: Ends,
}

/// A name with its addresses, and when the TTL of each ends.
#[derive(Debug)]
struct Name {
    addresses: Few<IpAddr>,
    /// The last of these ends.
    ends_ns: u64,
    ttl_s: u32,
    learned_ns: u64,
}

/// Keys and the end of each one's TTL, sorted. Most often there is one; the engine bounds how many there are.
#[derive(Debug)]
struct Few<K>(Vec<(K, u64)>);

impl<K: Ord> Few<K> {
    /// Sets an end; gives the one before.
    fn insert(&mut self, key: K, ends_ns: u64) -> Option<u64> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, ends_ns)),
            Err(at) => {
                self.0.insert(at, (key, ends_ns));
                None
            }
        }
    }

    fn remove(&mut self, key: &K) -> Option<u64> {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }

    fn last_end(&self) -> u64 {
        self.0.iter().map(|(_, ends_ns)| *ends_ns).max().unwrap_or(0)
    }
}

impl<K> Default for Few<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Names and addresses whose TTL has not ended.
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
        let mut last = None;
        for change in changes {
            match change {
                NameChange::Arrived { endpoint, key } => {
                    self.arrive(endpoint, key);
                    last = None;
                }
                NameChange::Left { endpoint } => {
                    self.endpoints.write().unwrap_or_else(PoisonError::into_inner).remove(&endpoint);
                    last = None;
                }
                NameChange::Learned { endpoint, name, address, ttl_s, learned_ns } => {
                    self.change(endpoint, &mut last, now, |shard| shard.learn(name, address, ttl_s, learned_ns));
                }
                NameChange::Closed { endpoint, name, address } => {
                    self.change(endpoint, &mut last, now, |shard| shard.close(&name, address));
                }
            }
        }
    }

    fn arrive(&self, endpoint: EndpointId, key: Arc<str>) {
        let shard = OfEndpoint {
            key,
            names: HashMap::default(),
            by_address: HashMap::default(),
            name_ends: Ends::default(),
            address_ends: Ends::default(),
        };
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        endpoints.insert(endpoint, Arc::new(RwLock::new(shard)));
    }

    /// Changes what is known of an endpoint. Changes of one endpoint come in a row: `last` is the one before.
    fn change(
        &self,
        endpoint: EndpointId,
        last: &mut Option<(EndpointId, Shard)>,
        now: u64,
        change: impl FnOnce(&mut OfEndpoint),
    ) {
        if last.as_ref().is_none_or(|(id, _)| *id != endpoint) {
            *last = self.shard(endpoint).map(|shard| (endpoint, shard));
        }
        let Some((_, shard)) = last else { return };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        shard.name_ends.advance(now);
        shard.address_ends.advance(now);
        change(&mut shard);
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
            for (name, known) in shard.names.iter().filter(|(_, known)| known.ends_ns > now) {
                let living = known.addresses.0.iter().filter(|(_, ends_ns)| *ends_ns > now);
                let addresses = living.map(|&(address, expires_ns)| LearnedAddress { address, expires_ns });
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

impl OfEndpoint {
    fn learn(&mut self, name: Fqdn, address: LearnedAddress, ttl_s: u32, learned_ns: u64) {
        let LearnedAddress { address, expires_ns } = address;
        self.by_address.entry(address).or_default().insert(name.clone(), expires_ns);
        let known =
            self.names.entry(name).or_insert_with(|| Name { addresses: Few::default(), ends_ns: 0, ttl_s, learned_ns });
        known.ttl_s = ttl_s;
        known.learned_ns = learned_ns;
        if let Some(before) = known.addresses.insert(address, expires_ns) {
            self.address_ends.remove(before);
        }
        self.address_ends.add(expires_ns);
        if expires_ns > known.ends_ns {
            self.name_ends.remove(known.ends_ns);
            self.name_ends.add(expires_ns);
            known.ends_ns = expires_ns;
        }
    }

    fn close(&mut self, name: &Fqdn, address: IpAddr) {
        let Some(known) = self.names.get_mut(name) else { return };
        let Some(ended_ns) = known.addresses.remove(&address) else { return };
        self.address_ends.remove(ended_ns);
        if let Some(names) = self.by_address.get_mut(&address) {
            names.remove(name);
            if names.0.is_empty() {
                self.by_address.remove(&address);
            }
        }
        if ended_ns == known.ends_ns {
            self.name_ends.remove(ended_ns);
            known.ends_ns = known.addresses.last_end();
            self.name_ends.add(known.ends_ns);
        }
        if known.addresses.0.is_empty() {
            self.names.remove(name);
        }
    }

    fn count(&self, now: u64) -> NameCount {
        NameCount { names: self.name_ends.after(now), addresses: self.address_ends.after(now) }
    }

    fn some_names_at(&self, address: IpAddr, wanted: impl Fn(u64) -> bool) -> impl Iterator<Item = &Fqdn> {
        let names = self.by_address.get(&address).into_iter().flat_map(|names| &names.0);
        names.filter(move |(_, ends_ns)| wanted(*ends_ns)).map(|(name, _)| name)
    }

    fn names_at(&self, address: IpAddr, now: u64, found: &mut Vec<KnownName>) {
        let names = self.by_address.get(&address).into_iter().flat_map(|names| &names.0);
        let known = |&(ref name, expires_ns): &(Fqdn, u64)| KnownName {
            name: name.clone(),
            expires_ns,
            ended: expires_ns <= now,
        };
        found.extend(names.map(known));
    }
}
