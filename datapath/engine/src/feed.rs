//! Learned names as readers beside the engine follow them: what has changed since they asked last.

use std::{net::IpAddr, sync::Arc};

use namegate_config::name::Fqdn;

use crate::{EndpointId, Engine, KnownName, LearnedAddress, cache::Cache, names::NameId};

/// Knows which names opened an address.
pub trait LearnedNames {
    /// Names under which the endpoint learned the address; ended ones too, for an hour.
    fn names_of(&self, endpoint: EndpointId, address: IpAddr, now: u64) -> Vec<KnownName>;
}

/// One step from what was learned before to what is learned by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange {
    /// An endpoint begins to learn.
    Arrived {
        /// The endpoint.
        endpoint: EndpointId,
        /// Its `namespace/name`.
        key: Arc<str>,
    },
    /// An address of a name, or another end of it.
    Learned {
        /// Who learned it.
        endpoint: EndpointId,
        /// The number of the name, for as long as anybody knows it.
        id: NameId,
        /// The name.
        name: Fqdn,
        /// The address, and when its TTL ends.
        address: LearnedAddress,
        /// TTL of the answer in seconds.
        ttl_s: u32,
        /// When the answer came, in nanoseconds of `CLOCK_BOOTTIME`.
        learned_ns: u64,
    },
    /// The name no longer has the address. A name without addresses is forgotten.
    Closed {
        /// Who learned it.
        endpoint: EndpointId,
        /// The number of the name.
        id: NameId,
        /// The address.
        address: IpAddr,
    },
    /// The endpoint is gone, with everything that it learned.
    Left {
        /// The endpoint.
        endpoint: EndpointId,
    },
}

/// Changes since they were taken last; nothing is noted before somebody follows them.
#[derive(Debug, Default)]
pub(crate) struct NameFeed(Option<Vec<NameChange>>);

impl NameFeed {
    pub(crate) fn note(&mut self, change: impl FnOnce() -> NameChange) {
        if let Some(changes) = &mut self.0 {
            changes.push(change());
        }
    }
}

impl Engine {
    /// Notes changes of learned names from now on, beginning with all that are known. The caller takes them after each
    /// verb, by [`Engine::take_name_changes`].
    pub fn follow_names(&mut self) {
        self.cache.feed.0 = Some(self.cache.as_changes().collect());
    }

    /// Changes of learned names since the last call, in their order.
    pub fn take_name_changes(&mut self) -> Vec<NameChange> {
        let Some(changes) = &mut self.cache.feed.0 else { return Vec::new() };
        let room = Vec::with_capacity(changes.len());
        std::mem::replace(changes, room)
    }
}

impl Cache {
    /// Everything that is known, as if it came now.
    fn as_changes(&self) -> impl Iterator<Item = NameChange> {
        self.endpoints.iter().flat_map(move |(id, known)| {
            let arrived = NameChange::Arrived { endpoint: *id, key: Arc::clone(&known.key) };
            let learned = known.names().flat_map(move |(name, entry)| {
                entry.addresses.iter().map(move |(address, expires_ns)| NameChange::Learned {
                    endpoint: *id,
                    id: name,
                    name: self.names.name(name).clone(),
                    address: LearnedAddress { address: address.to_ip(), expires_ns: *expires_ns },
                    ttl_s: entry.ttl_s,
                    learned_ns: entry.learned_ns,
                })
            });
            std::iter::once(arrived).chain(learned)
        })
    }
}

impl LearnedNames for Engine {
    fn names_of(&self, endpoint: EndpointId, address: IpAddr, now: u64) -> Vec<KnownName> {
        Self::names_of(self, endpoint, address, now)
    }
}
