//! What is known of the flows of several endpoints, with a share for each: an endpoint with very many forgets its own.

use std::collections::HashMap;

use lru::LruCache;
use namegate_abi::FlowKey;
use namegate_config::shares::Shares;

/// Values by flow. The least recently used of an endpoint gives way to its new ones.
#[derive(Debug)]
pub(crate) struct FairCache<V> {
    by_endpoint: HashMap<u32, LruCache<FlowKey, V>>,
    shares: Shares<u32>,
}

impl<V> FairCache<V> {
    /// A cache of at most `all_max` flows.
    pub(crate) fn new(all_max: usize) -> Self {
        Self { by_endpoint: HashMap::new(), shares: Shares::new(all_max, all_max) }
    }

    /// Whether something is known of a flow.
    pub(crate) fn contains(&self, flow: &FlowKey) -> bool {
        self.by_endpoint.get(&flow.endpoint).is_some_and(|flows| flows.contains(flow))
    }

    /// What is known of a flow, which is used with that.
    pub(crate) fn get_mut(&mut self, flow: &FlowKey) -> Option<&mut V> {
        self.by_endpoint.get_mut(&flow.endpoint)?.get_mut(flow)
    }

    /// What is known of a flow, which is not used with that.
    pub(crate) fn peek(&self, flow: &FlowKey) -> Option<&V> {
        self.by_endpoint.get(&flow.endpoint)?.peek(flow)
    }

    /// What is known of all flows.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&FlowKey, &mut V)> {
        self.by_endpoint.values_mut().flat_map(LruCache::iter_mut)
    }

    /// Adds a flow that was not known; gives what had to make room.
    pub(crate) fn push(&mut self, flow: FlowKey, value: V) -> Option<(FlowKey, V)> {
        let endpoint = flow.endpoint;
        let mut gone = None;
        if self.shares.take(endpoint, 1).is_err() {
            let victim = if self.shares.of(&endpoint) > 0 { Some(endpoint) } else { self.shares.greediest() };
            gone = victim.and_then(|victim| self.pop_of(victim));
            self.shares.take_unchecked(endpoint, 1);
        }
        self.by_endpoint.entry(endpoint).or_insert_with(LruCache::unbounded).push(flow, value);
        gone
    }

    /// Forgets a flow.
    pub(crate) fn remove(&mut self, flow: &FlowKey) -> Option<V> {
        let flows = self.by_endpoint.get_mut(&flow.endpoint)?;
        let value = flows.pop(flow)?;
        self.forget_one(flow.endpoint);
        Some(value)
    }

    /// Takes out the flows that `is_wanted` says.
    pub(crate) fn extract(&mut self, is_wanted: impl Fn(&V) -> bool) -> Vec<(FlowKey, V)> {
        let flows = self.by_endpoint.values().flat_map(LruCache::iter);
        let wanted: Vec<FlowKey> = flows.filter(|(_, value)| is_wanted(value)).map(|(flow, _)| *flow).collect();
        wanted.into_iter().filter_map(|flow| Some((flow, self.remove(&flow)?))).collect()
    }

    fn pop_of(&mut self, endpoint: u32) -> Option<(FlowKey, V)> {
        let gone = self.by_endpoint.get_mut(&endpoint)?.pop_lru()?;
        self.forget_one(endpoint);
        Some(gone)
    }

    fn forget_one(&mut self, endpoint: u32) {
        self.shares.give(endpoint, 1);
        if self.by_endpoint.get(&endpoint).is_some_and(LruCache::is_empty) {
            self.by_endpoint.remove(&endpoint);
        }
    }

    /// How many flows are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shares.all()
    }

    /// What is known of all flows.
    #[cfg(test)]
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.by_endpoint.values().flat_map(|flows| flows.iter().map(|(_, value)| value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(endpoint: u32, port: u16) -> FlowKey {
        FlowKey { endpoint, local_port: port, ..FlowKey::default() }
    }

    #[test]
    fn a_flood_of_one_endpoint_forgets_its_own_flows() {
        let mut cache = FairCache::new(100);
        assert!(cache.push(flow(2, 1), "honest").is_none());
        let gone: Vec<u32> =
            (0..1_000).filter_map(|port| cache.push(flow(1, port), "hostile")).map(|(flow, _)| flow.endpoint).collect();
        assert!(gone.len() > 900 && gone.iter().all(|endpoint| *endpoint == 1));
        assert_eq!(cache.get_mut(&flow(2, 1)).copied(), Some("honest"));
        assert!(cache.contains(&flow(1, 999)) && !cache.contains(&flow(1, 0)));
        for port in 0..1_000 {
            cache.remove(&flow(1, port));
        }
        assert_eq!(cache.len(), 1);
    }
}
