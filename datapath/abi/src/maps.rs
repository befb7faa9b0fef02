//! Keys and values of the maps, with layouts asserted. No `bool`, `Option` or `usize`; spare octets are zero.
//!
//! Maps are described in the kernel's `Documentation/bpf/map_hash.rst`, `map_lpm_trie.rst` and `ringbuf.rst`.

use core::mem::{offset_of, size_of};

use crate::{Address, Direction, NameRow, Reason, STEPS_MAX, Step, address};

/// Identities with a fixed meaning.
pub mod identity {
    /// No peer in particular: the policy row that holds for every peer.
    pub const ANY: u32 = 0;
    /// An address that no row names.
    pub const WORLD: u32 = 2;
    /// The first identity that the engine hands out.
    pub const FIRST: u32 = 256;
}

/// Bits of [`EndpointValue::flags`].
pub mod endpoint_flags {
    /// Denials are recorded, nothing is dropped.
    pub const AUDIT: u32 = 1;
    /// Questions to a resolver go through the proxy.
    pub const OBSERVE_DNS: u32 = 2;
    /// A policy selects the endpoint for ingress.
    pub const ENFORCE_INGRESS: u32 = 4;
    /// A policy selects the endpoint for egress.
    pub const ENFORCE_EGRESS: u32 = 8;
    /// The node itself: every source is its own.
    pub const NODE: u32 = 16;
}

/// Bits of [`AddressValue::flags`].
pub mod address_flags {
    /// An address of this node.
    pub const LOCAL_HOST: u32 = 1;
}

/// Bits of [`FlowValue::flags`].
pub mod flow_flags {
    /// The identity came from a learned address: it stays with the flow when the TTL ends, and as long as no pod, node or
    /// service has the address.
    pub const LEARNED: u8 = 1;
    /// A packet went the other way.
    pub const REPLIED: u8 = 2;
    /// FIN or RST was seen.
    pub const CLOSING: u8 = 4;
    /// A proxy of this node opened it in its client's name: replies are for the proxy's socket.
    pub const PROXIED: u8 = 8;
    /// What the endpoint sends is copied: the name in it was not seen yet.
    pub const NAME_WANTED: u8 = 16;
    /// Datagrams that may begin a connection wait with the agent until the name in them is looked at.
    pub const NAME_HELD: u8 = 32;
    /// With [`NAME_HELD`]: only what belongs to a connection that was let pass by its name goes on.
    pub const NAME_REQUIRED: u8 = 64;
    /// With [`NAME_WANTED`]: where the number of copies stands.
    pub const COPIES_SHIFT: u32 = 6;
    /// The distance of the bits about names here from those of a row.
    pub const NAMES_SHIFT: u32 = 4;
    const _: () = {
        use super::policy_flags::{HOLD_NAME, OBSERVE_NAME, REQUIRE_NAME};
        assert!(NAME_WANTED == OBSERVE_NAME << NAMES_SHIFT && NAME_HELD == HOLD_NAME << NAMES_SHIFT);
        assert!(NAME_REQUIRED == REQUIRE_NAME << NAMES_SHIFT);
    };
    /// All that says what becomes of the names in a flow.
    pub const NAMES: u8 = NAME_WANTED | NAME_HELD | 3 << COPIES_SHIFT;
}

/// Values of [`PolicyValue::verdict`].
pub mod policy_verdict {
    /// Denied: by a deny rule where `rule` is not zero, else by default.
    pub const DENY: u8 = 0;
    /// Allowed by `rule`, or by default where `rule` is zero.
    pub const ALLOW: u8 = 1;
    /// Allowed through the proxy on `proxy_port`.
    pub const REDIRECT: u8 = 2;
}

/// Bits of [`PolicyValue::flags`].
pub mod policy_flags {
    /// The first octets that an endpoint sends are copied out: the name in them is looked at.
    pub const OBSERVE_NAME: u8 = 1;
    /// Datagrams of a new flow wait with the agent until the name in them is looked at.
    pub const HOLD_NAME: u8 = 2;
    /// With [`HOLD_NAME`]: protocols without names do not pass.
    pub const REQUIRE_NAME: u8 = 4;
    /// All of them.
    pub const NAMES: u8 = OBSERVE_NAME | HOLD_NAME | REQUIRE_NAME;
}

/// Key in `ENDPOINTS` of the node itself, where a policy selects it: no interface has this index.
pub const NODE_INTERFACE: u32 = 0;

/// Value of `ENDPOINTS`; the key is the index of the host-side interface, or [`NODE_INTERFACE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointValue {
    /// Endpoint; never zero.
    pub endpoint: u32,
    /// Policy that judges it: the set of rules that select it. 0 is no policy.
    pub policy: u32,
    /// Scope of the addresses it learned.
    pub scope: u32,
    /// Counts changes of rules: flows that were judged under an earlier one are judged again.
    pub revision: u32,
    /// [`endpoint_flags`].
    pub flags: u32,
    /// Where the count of revisions stood when an address of scope 0 was given to another or taken back: flows that were
    /// judged before are judged again if their peer is concerned.
    pub moved: u32,
}
const _: () = assert!(size_of::<EndpointValue>() == 24);

impl EndpointValue {
    /// The revision that flows are judged under now.
    #[inline(always)]
    pub const fn current(&self) -> u32 {
        if self.moved > self.revision { self.moved } else { self.revision }
    }

    /// Whether a policy holds in this direction.
    #[inline(always)]
    pub const fn enforces(&self, direction: Direction) -> bool {
        let bit = match direction {
            Direction::Ingress => endpoint_flags::ENFORCE_INGRESS,
            Direction::Egress => endpoint_flags::ENFORCE_EGRESS,
        };
        self.flags & bit != 0
    }
}

/// Key of `ADDRESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey {
    /// 0 is the node: pods, hosts. Another scope holds what one endpoint learned.
    pub scope: u32,
    /// The address.
    pub address: Address,
}
const _: () = assert!(size_of::<AddressKey>() == 20 && offset_of!(AddressKey, address) == 4);

/// Value of `ADDRESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressValue {
    /// Identities in the order in which they end.
    pub steps: [Step; STEPS_MAX],
    /// Endpoint on this node that has the address; 0 is none.
    pub endpoint: u32,
    /// [`address_flags`].
    pub flags: u32,
}
const _: () = assert!(size_of::<AddressValue>() == 72 && offset_of!(AddressValue, endpoint) == 64);

impl AddressValue {
    /// What the row says at `now_ns` of `CLOCK_BOOTTIME`.
    #[inline(always)]
    pub fn at(&self, now_ns: u64) -> NameRow {
        address::step_at(&self.steps, now_ns)
    }
}

/// Key of `CIDRS`: prefix length 0 to 128, IPv4 from 96.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrKey {
    /// The address; bits past the prefix are zero.
    pub address: Address,
}
const _: () = assert!(size_of::<CidrKey>() == 16);

/// Value of `CIDRS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrValue {
    /// Identity of the addresses of the prefix.
    pub identity: u32,
}
const _: () = assert!(size_of::<CidrValue>() == 4);

/// Key of `POLICY`, from wide to narrow so that a prefix can end after the direction, the protocol or any port bit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// [`EndpointValue::policy`].
    pub policy: u32,
    /// Identity of the peer; 0 is any.
    pub identity: u32,
    /// [`Direction`].
    pub direction: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port of the flow, network order. ICMP: the type, then the code.
    pub port_be: [u8; 2],
}
const _: () = assert!(size_of::<PolicyKey>() == 12 && offset_of!(PolicyKey, port_be) == 10);

impl PolicyKey {
    /// Prefix that covers every protocol.
    pub const PEER_BITS: u32 = 72;
    /// Prefix that covers every port of a protocol.
    pub const PROTOCOL_BITS: u32 = 80;
    /// Port bits of one port.
    pub const PORT_BITS: u32 = 16;

    /// A key for one port.
    #[inline(always)]
    pub const fn new(policy: u32, direction: Direction, identity: u32, protocol: u8, port: u16) -> Self {
        Self { policy, identity, direction: direction as u8, protocol, port_be: port.to_be_bytes() }
    }

    /// The trie's prefix length for a row that fixes `port_bits` (0 to 16) bits of the port.
    pub const fn prefix_len(&self, port_bits: u32) -> u32 {
        Self::PROTOCOL_BITS + port_bits
    }
}

/// Value of `POLICY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyValue {
    /// [`policy_verdict`].
    pub verdict: u8,
    /// [`policy_flags`].
    pub flags: u8,
    /// Where the proxy listens, host order; 0 without redirect. A redirect to 0 is a denial: the proxy is absent.
    pub proxy_port: u16,
    /// Cookie of the rule that decided; 0 is the default.
    pub rule: u32,
}
const _: () = assert!(size_of::<PolicyValue>() == 8);

/// Key of `FLOWS`, the same for both directions of a flow: seen from the endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Endpoint that the flow was judged for.
    pub endpoint: u32,
    /// Its address.
    pub local: Address,
    /// The peer's address.
    pub remote: Address,
    /// Host order; the identifier of ICMP requests and replies that have one.
    pub local_port: u16,
    /// Host order; the identifier of ICMP requests and replies that have one.
    pub remote_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// ICMP: the type of the message, or of the request where the message is a reply; else 0.
    pub icmp_type: u8,
    /// ICMP: the code of a message that has no reply; else 0.
    pub icmp_code: u8,
    /// [`crate::icmp_way`].
    pub icmp_way: u8,
}
const _: () = assert!(size_of::<FlowKey>() == 44 && offset_of!(FlowKey, protocol) == 40);

/// Value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowValue {
    /// `CLOCK_BOOTTIME`, nanoseconds, to the second.
    pub last_seen_ns: u64,
    /// Identity that the peer had when the flow was judged.
    pub identity: u32,
    /// Rule that allowed it.
    pub rule: u32,
    /// [`EndpointValue::current`] when it was judged last.
    pub revision: u32,
    /// [`Direction`] of the first packet.
    pub direction: u8,
    /// [`flow_flags`].
    pub flags: u8,
    /// Port of the proxy that its forward packets go to, host order; 0 is none.
    pub proxy_port: u16,
}
const _: () = assert!(size_of::<FlowValue>() == 24 && offset_of!(FlowValue, proxy_port) == 22);

/// Key of `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Endpoint that the packet was judged for.
    pub endpoint: u32,
    /// Identification field (RFC 791 §3.1, RFC 8200 §4.5).
    pub id: u32,
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`Direction`].
    pub direction: u8,
    /// Zero.
    pub spare: [u8; 2],
}
const _: () = assert!(size_of::<FragmentKey>() == 44);

/// Value of `FRAGMENTS`: the first fragment was allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentValue {
    /// `CLOCK_BOOTTIME` nanoseconds until which later fragments pass.
    pub expires_ns: u64,
}
const _: () = assert!(size_of::<FragmentValue>() == 8);

impl FragmentValue {
    /// How long later fragments may follow the first: as long as Linux waits for them (`ipfrag_time`, 30 s).
    pub const LIFE_NS: u64 = 30_000_000_000;

    /// The row of a first fragment that was allowed at `now_ns`.
    #[inline(always)]
    pub const fn allowed_at(now_ns: u64) -> Self {
        Self { expires_ns: now_ns + Self::LIFE_NS }
    }
}

/// Key of `FLOW_SLOTS` and `FRAGMENT_SLOTS`: one of the places that each endpoint has for flows, and for fragmented packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowSlot {
    /// The endpoint.
    pub endpoint: u32,
    /// Below [`Settings::flow_share`] or [`crate::limits::FRAGMENTS_PER_ENDPOINT`].
    pub slot: u32,
}
const _: () = assert!(size_of::<FlowSlot>() == 8);

/// Value of `FLOW_LOSSES`: what an endpoint's share of flows cost it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowLosses {
    /// Flows that are missed ([`crate::is_loss`]) and gave way to a new one of the same endpoint.
    pub evicted: u64,
    /// New flows that found no room.
    pub refused: u64,
}
const _: () = assert!(size_of::<FlowLosses>() == 16);

/// Value of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Settings {
    /// Mark that sends a packet to the local proxy by policy routing.
    pub redirect_mark: u32,
    /// Mark that the proxy sets on its answers.
    pub proxy_mark: u32,
    /// Mask of both marks.
    pub mark_mask: u32,
    /// Port of the DNS proxy on 127.0.0.1 and `::1`, host order; 0 is no proxy.
    pub dns_port: u16,
    /// UDP port on 127.0.0.1 and `::1` that is open as long as somebody looks at the names of held datagrams, host order;
    /// 0 is nobody.
    pub names_port: u16,
    /// Flows that each endpoint has room for. The loader sets it, whatever is given to it.
    pub flow_share: u32,
}
const _: () = assert!(size_of::<Settings>() == 20);

/// Value of `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Octets, link header included.
    pub octets: u64,
}
const _: () = assert!(size_of::<Counter>() == 16);

/// Slots of [`counter_slot`] in `COUNTERS`.
pub mod counter_slot {
    use super::{Direction, Reason};

    /// Records that found the event ring full; only `packets` counts.
    pub const EVENTS_LOST: u32 = 2 * Reason::SPACE;
    /// Copies of what a connection begins with that found the ring full, or came too fast; only `packets` counts.
    pub const OPENINGS_LOST: u32 = EVENTS_LOST + 1;
    /// Slots in the map.
    pub const MAX: u32 = OPENINGS_LOST + 1;

    /// The slot of packets that one reason decided on in one direction.
    #[inline(always)]
    pub const fn of(direction: Direction, reason: Reason) -> u32 {
        direction as u32 * Reason::SPACE + reason as u32
    }
}
