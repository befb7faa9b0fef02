//! Rows that each map holds at most, as built into the object; the loader may set others.

/// Interfaces with an endpoint.
pub const ENDPOINTS_MAX: u32 = 4_096;
/// Exact addresses: of pods and nodes, and learned ones.
pub const ADDRESSES_MAX: u32 = 262_144;
/// Prefixes.
pub const CIDRS_MAX: u32 = 65_536;
/// Policy rows.
pub const POLICY_MAX: u32 = 262_144;
/// Resolvers.
pub const RESOLVERS_MAX: u32 = 1_024;
/// Flows of all endpoints.
pub const FLOWS_MAX: u32 = 1_048_576;
/// Flows of one endpoint, where there is room for as many of each.
pub const FLOWS_PER_ENDPOINT: u32 = 65_536;
/// Fragmented packets under way of one endpoint, half of them in each direction.
pub const FRAGMENTS_PER_ENDPOINT: u32 = 64;
/// Octets of the event ring.
pub const EVENTS_OCTETS: u32 = 4 * 1024 * 1024;
/// Octets of the ring of openings.
pub const OPENINGS_OCTETS: u32 = 4 * 1024 * 1024;
/// Endpoints whose copies and records are counted; the least recently used give way.
pub const RATES_MAX: u32 = 16_384;
/// Flows of UDP with connections that were let pass by their names.
pub const NAMED_FLOWS_MAX: u32 = 32_768;
