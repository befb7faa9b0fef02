//! Names of the maps, as pinned.

/// Interface index -> [`crate::EndpointValue`].
pub const ENDPOINTS: &str = "ENDPOINTS";
/// [`crate::AddressKey`] -> [`crate::AddressValue`].
pub const ADDRESSES: &str = "ADDRESSES";
/// Prefix of [`crate::CidrKey`] -> [`crate::CidrValue`].
pub const CIDRS: &str = "CIDRS";
/// Prefix of [`crate::PolicyKey`] -> [`crate::PolicyValue`].
pub const POLICY: &str = "POLICY";
/// [`crate::Address`] -> 1: resolvers whose answers are heard.
pub const RESOLVERS: &str = "RESOLVERS";
/// [`crate::FlowKey`] -> [`crate::FlowValue`].
pub const FLOWS: &str = "FLOWS";
/// [`crate::FlowSlot`] -> [`crate::FlowKey`]: which flows take up the share of an endpoint.
pub const FLOW_SLOTS: &str = "FLOW_SLOTS";
/// Endpoint -> [`crate::FlowLosses`].
pub const FLOW_LOSSES: &str = "FLOW_LOSSES";
/// [`crate::FlowSlot`] -> [`crate::FragmentKey`]: which fragmented packets take up the share of an endpoint.
pub const FRAGMENT_SLOTS: &str = "FRAGMENT_SLOTS";
/// [`crate::FragmentKey`] -> [`crate::FragmentValue`].
pub const FRAGMENTS: &str = "FRAGMENTS";
/// 0 -> [`crate::Settings`].
pub const SETTINGS: &str = "SETTINGS";
/// [`crate::counter_slot`] -> [`crate::Counter`] of each CPU.
pub const COUNTERS: &str = "COUNTERS";
/// Ring buffer of [`crate::EventRecord`].
pub const EVENTS: &str = "EVENTS";
/// Ring buffer of [`crate::OpeningRecord`], each with the octets it is about.
pub const OPENINGS: &str = "OPENINGS";
/// Endpoint -> [`crate::RateValue`].
pub const RATES: &str = "RATES";
/// [`crate::FlowKey`] -> [`crate::NamedFlow`]: flows with connections that were let pass by their names.
pub const NAMED_FLOWS: &str = "NAMED_FLOWS";
