//! Flows and fragments, each endpoint's within its share: how large that is, what it cost, and what is left of endpoints
//! that are gone.

use std::collections::{HashMap as Map, HashSet};
use std::path::Path;

use aya::maps::{HashMap, MapData, PerCpuHashMap};
use namegate_abi::{
    EndpointValue, FlowKey, FlowLosses, FlowSlot, FlowValue, FragmentKey, FragmentValue, flow_share, limits, map_names,
};
use namegate_engine::GateError;

use crate::flow_maps::{FlowMaps, removed};
use crate::raw_maps::{Raw, access, pinned};
use crate::spec::MapLimits;
use crate::sweep::Sweeper;

type Losses = PerCpuHashMap<MapData, u32, Raw<FlowLosses>>;
type FragmentSlots = HashMap<MapData, Raw<FlowSlot>, Raw<FragmentKey>>;
type Fragments = HashMap<MapData, Raw<FragmentKey>, Raw<FragmentValue>>;

/// The maps of flows and fragments.
pub(crate) struct FlowTables {
    maps: FlowMaps,
    sweeper: Sweeper,
    losses: Losses,
    fragments: Fragments,
    fragment_slots: FragmentSlots,
    /// Endpoints by the interfaces of their rows.
    endpoints: Map<u32, u32>,
    flows_max: u32,
    share_max: u32,
}

impl FlowTables {
    pub(crate) fn open(pins: &Path, limits: MapLimits) -> Result<Self, GateError> {
        Ok(Self {
            maps: FlowMaps::open(pins, limits.flows)?,
            sweeper: Sweeper::start(pins, limits.flows)?,
            losses: pinned(pins, map_names::FLOW_LOSSES)?,
            fragments: pinned(pins, map_names::FRAGMENTS)?,
            fragment_slots: pinned(pins, map_names::FRAGMENT_SLOTS)?,
            endpoints: Map::new(),
            flows_max: limits.flows,
            share_max: limits.flows_per_endpoint,
        })
    }

    /// Flows that each endpoint has room for.
    pub(crate) fn share(&self) -> u32 {
        flow_share(self.flows_max, self.share_max, u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX))
    }

    /// Notes the row of an endpoint.
    pub(crate) fn arrive(&mut self, interface: u32, value: &EndpointValue) {
        self.endpoints.insert(interface, value.endpoint);
        self.sweeper.keep(value.endpoint);
    }

    /// Notes that the row of an interface is gone, and has the flows of an endpoint that has no other forgotten.
    pub(crate) fn leave(&mut self, interface: u32) -> Result<(), GateError> {
        let Some(endpoint) = self.endpoints.remove(&interface) else { return Ok(()) };
        if self.endpoints.values().any(|other| *other == endpoint) {
            return Ok(());
        }
        self.sweeper.forget(endpoint, self.share());
        for slot in 0..limits::FRAGMENTS_PER_ENDPOINT {
            let slot = Raw(FlowSlot { endpoint, slot });
            if let Ok(key) = self.fragment_slots.get(&slot, 0) {
                removed(map_names::FRAGMENT_SLOTS, self.fragment_slots.remove(&slot))?;
                removed(map_names::FRAGMENTS, self.fragments.remove(&key))?;
            }
        }
        removed(map_names::FLOW_LOSSES, self.losses.remove(&endpoint))
    }

    /// Has flows in slots past the share forgotten.
    pub(crate) fn shrink(&self) {
        self.sweeper.shrink(self.share());
    }

    /// Forgets flows of endpoints that are gone, those in slots past the share, and those that hold no slot.
    pub(crate) fn prune(&mut self) -> Result<(), GateError> {
        let share = self.share();
        let here: HashSet<u32> = self.endpoints.values().copied().collect();
        let slots: Vec<Raw<FlowSlot>> = self.maps.slots.keys().filter_map(Result::ok).collect();
        for slot in slots {
            if slot.0.slot >= share || !here.contains(&slot.0.endpoint) {
                self.maps.free(slot)?;
            }
        }
        // Flows first: the programs take a slot before they write a flow, so each of these has had its slot.
        let flows: Vec<Raw<FlowKey>> = self.maps.flows.keys().filter_map(Result::ok).collect();
        let held: HashSet<FlowKey> = self.maps.slots.iter().filter_map(Result::ok).map(|(_, key)| key.0).collect();
        for key in flows.into_iter().filter(|key| !held.contains(&key.0)) {
            removed(map_names::FLOWS, self.maps.flows.remove(&key))?;
        }
        Ok(())
    }

    /// Writes flows that maps of another size held, each endpoint's up to its share.
    pub(crate) fn restore(&mut self, saved: &[(FlowKey, FlowValue)]) -> Result<(), GateError> {
        let share = self.share();
        let mut used: Map<u32, u32> = Map::new();
        // What was seen last first.
        let mut saved: Vec<&(FlowKey, FlowValue)> = saved.iter().collect();
        saved.sort_unstable_by_key(|(_, value)| std::cmp::Reverse(value.last_seen_ns));
        for (key, value) in saved {
            let slot = used.entry(key.endpoint).or_default();
            if *slot >= share {
                continue;
            }
            let at = FlowSlot { endpoint: key.endpoint, slot: *slot };
            *slot += 1;
            self.maps.slots.insert(Raw(at), Raw(*key), 0).map_err(|error| access(map_names::FLOW_SLOTS, error))?;
            self.maps.flows.insert(Raw(*key), Raw(*value), 0).map_err(|error| access(map_names::FLOWS, error))?;
        }
        Ok(())
    }

    /// Removes every flow. Slots whose flow is gone are free.
    pub(crate) fn forget(&mut self) -> Result<(), GateError> {
        let keys: Vec<Raw<FlowKey>> = self.maps.flows.keys().filter_map(Result::ok).collect();
        keys.iter().try_for_each(|key| removed(map_names::FLOWS, self.maps.flows.remove(key)))
    }

    /// Rows, counted: about 0.3 us a row.
    pub(crate) fn rows(&self) -> u64 {
        // The walk starts anew where its row vanishes: bounded by the size of the table.
        self.maps.flows.keys().take(self.flows_max as usize).flatten().count() as u64
    }
}
