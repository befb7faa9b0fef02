//! What each map must look like: the contract of `namegate-abi` with the sizes that the settings ask for.

use std::mem::size_of;

use aya::maps::MapType;
use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, CidrValue, Counter, EndpointValue, FlowKey, FlowLosses, FlowSlot,
    FlowValue, FragmentKey, FragmentValue, NamedFlow, PolicyKey, PolicyValue, RateValue, Settings, counter_slot,
    limits, map_names,
};

/// Rows that each map holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLimits {
    /// Exact addresses.
    pub addresses: u32,
    /// Policy rows.
    pub policy_rows: u32,
    /// Prefixes.
    pub cidrs: u32,
    /// Flows of all endpoints.
    pub flows: u32,
    /// Flows of one endpoint, where there is room for as many of each.
    pub flows_per_endpoint: u32,
    /// Interfaces with an endpoint.
    pub endpoints: u32,
}

impl Default for MapLimits {
    fn default() -> Self {
        Self {
            addresses: limits::ADDRESSES_MAX,
            policy_rows: limits::POLICY_MAX,
            cidrs: limits::CIDRS_MAX,
            flows: limits::FLOWS_MAX,
            flows_per_endpoint: limits::FLOWS_PER_ENDPOINT,
            endpoints: limits::ENDPOINTS_MAX,
        }
    }
}

/// The form of one map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapSpec {
    /// Its name, in the object and as pinned.
    pub(crate) name: &'static str,
    /// The setting that makes it larger.
    pub(crate) setting: &'static str,
    pub(crate) kind: MapType,
    pub(crate) key_octets: usize,
    pub(crate) value_octets: usize,
    pub(crate) rows_max: u32,
}

impl MapSpec {
    const fn new<K, V>(name: &'static str, kind: MapType, rows_max: u32, setting: &'static str) -> Self {
        Self { name, setting, kind, key_octets: size_of::<K>(), value_octets: size_of::<V>(), rows_max }
    }
}

/// A key of a trie: the prefix length stands before it.
#[repr(C, packed)]
struct Prefixed<K>(u32, K);

/// Every pinned map.
pub(crate) fn maps(limits: &MapLimits) -> [MapSpec; 16] {
    let own = "none: its size is fixed";
    [
        MapSpec::new::<u32, EndpointValue>(
            map_names::ENDPOINTS,
            MapType::Hash,
            limits.endpoints,
            setting_of(map_names::ENDPOINTS),
        ),
        MapSpec::new::<AddressKey, AddressValue>(
            map_names::ADDRESSES,
            MapType::Hash,
            limits.addresses,
            setting_of(map_names::ADDRESSES),
        ),
        MapSpec::new::<Prefixed<CidrKey>, CidrValue>(
            map_names::CIDRS,
            MapType::LpmTrie,
            limits.cidrs,
            setting_of(map_names::CIDRS),
        ),
        MapSpec::new::<Prefixed<PolicyKey>, PolicyValue>(
            map_names::POLICY,
            MapType::LpmTrie,
            limits.policy_rows,
            setting_of(map_names::POLICY),
        ),
        MapSpec::new::<Address, u8>(
            map_names::RESOLVERS,
            MapType::Hash,
            limits::RESOLVERS_MAX,
            setting_of(map_names::RESOLVERS),
        ),
        MapSpec::new::<FlowKey, FlowValue>(map_names::FLOWS, MapType::Hash, limits.flows, "limits.flows"),
        MapSpec::new::<FlowSlot, FlowKey>(map_names::FLOW_SLOTS, MapType::Hash, limits.flows, "limits.flows"),
        MapSpec::new::<u32, FlowLosses>(
            map_names::FLOW_LOSSES,
            MapType::PerCpuHash,
            limits.endpoints,
            setting_of(map_names::ENDPOINTS),
        ),
        MapSpec::new::<FlowSlot, FragmentKey>(
            map_names::FRAGMENT_SLOTS,
            MapType::Hash,
            limits.endpoints.saturating_mul(limits::FRAGMENTS_PER_ENDPOINT),
            setting_of(map_names::ENDPOINTS),
        ),
        MapSpec::new::<FragmentKey, FragmentValue>(
            map_names::FRAGMENTS,
            MapType::Hash,
            limits.endpoints.saturating_mul(limits::FRAGMENTS_PER_ENDPOINT),
            setting_of(map_names::ENDPOINTS),
        ),
        MapSpec::new::<u32, Settings>(map_names::SETTINGS, MapType::Array, 1, own),
        MapSpec::new::<u32, Counter>(map_names::COUNTERS, MapType::PerCpuArray, counter_slot::MAX, own),
        MapSpec::new::<(), ()>(map_names::EVENTS, MapType::RingBuf, limits::EVENTS_OCTETS, own),
        MapSpec::new::<(), ()>(map_names::OPENINGS, MapType::RingBuf, limits::OPENINGS_OCTETS, own),
        MapSpec::new::<u32, RateValue>(map_names::RATES, MapType::LruHash, limits::RATES_MAX, own),
        MapSpec::new::<FlowKey, NamedFlow>(map_names::NAMED_FLOWS, MapType::Hash, limits::NAMED_FLOWS_MAX, own),
    ]
}

/// The setting that makes room in a map that the engine writes.
pub(crate) fn setting_of(map: &str) -> &'static str {
    match map {
        map_names::ENDPOINTS => "limits.endpoints",
        map_names::CIDRS => "limits.cidrs",
        map_names::POLICY => "limits.policyRows",
        map_names::RESOLVERS => "dns.resolvers",
        _ => "limits.addresses",
    }
}
