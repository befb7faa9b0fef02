//! The maps, by the names and layouts of `namegate-abi`, and the view of them that the decision has.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie::Key},
};
use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, CidrValue, Counter, Decision, EndpointValue, FlowKey, FlowLosses, FlowSlot, FlowValue, FragmentKey, FragmentValue, LinkAddress, LinkFrame, NamedFlow, Packet, PolicyKey, PolicyValue, RateValue, Settings, Tables, counter_slot, limits,
};

use crate::opening::Copy;

#[map]
pub(crate) static ENDPOINTS: HashMap<u32, EndpointValue> = HashMap::pinned(limits::ENDPOINTS_MAX, 0);
#[map]
pub(crate) static ADDRESSES: HashMap<AddressKey, AddressValue> =
    HashMap::pinned(limits::ADDRESSES_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static CIDRS: LpmTrie<CidrKey, CidrValue> = LpmTrie::pinned(limits::CIDRS_MAX, 0);
#[map]
pub(crate) static POLICY: LpmTrie<PolicyKey, PolicyValue> = LpmTrie::pinned(limits::POLICY_MAX, 0);
#[map]
pub(crate) static RESOLVERS: HashMap<Address, u8> = HashMap::pinned(limits::RESOLVERS_MAX, 0);
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowValue> = HashMap::pinned(limits::FLOWS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOW_SLOTS: HashMap<FlowSlot, FlowKey> = HashMap::pinned(limits::FLOWS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOW_LOSSES: PerCpuHashMap<u32, FlowLosses> =
    PerCpuHashMap::pinned(limits::ENDPOINTS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FRAGMENT_SLOTS: HashMap<FlowSlot, FragmentKey> =
    HashMap::pinned(limits::ENDPOINTS_MAX * limits::FRAGMENTS_PER_ENDPOINT, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FRAGMENTS: HashMap<FragmentKey, FragmentValue> =
    HashMap::pinned(limits::ENDPOINTS_MAX * limits::FRAGMENTS_PER_ENDPOINT, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::pinned(1, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counter> = PerCpuArray::pinned(counter_slot::MAX, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(limits::EVENTS_OCTETS, 0);

#[map]
pub(crate) static OPENINGS: RingBuf = RingBuf::pinned(limits::OPENINGS_OCTETS, 0);

/// Endpoint -> the link address that it resolves addresses with.
#[map]
pub(crate) static LINK_ADDRESSES: LruHashMap<u32, LinkAddress> = LruHashMap::with_max_entries(limits::ENDPOINTS_MAX, 0);

/// Where a copy is put together.
#[map]
pub(crate) static COPY: PerCpuArray<Copy> = PerCpuArray::with_max_entries(1, 0);
/// What each endpoint had of both rings lately.
#[map]
pub(crate) static RATES: LruHashMap<u32, RateValue> = LruHashMap::pinned(limits::RATES_MAX, 0);

/// Flows with connections that were let pass by their names.
#[map]
pub(crate) static NAMED_FLOWS: HashMap<FlowKey, NamedFlow> =
    HashMap::pinned(limits::NAMED_FLOWS_MAX, BPF_F_NO_PREALLOC);

/// What the stages of one packet hand on: the stack has 512 octets for all of them together.
pub(crate) struct Scratch {
    /// Its headers.
    pub(crate) packet: Packet,
    /// Those of the packet that it quotes.
    pub(crate) quoted: Packet,
    /// What was decided.
    pub(crate) outcome: Decision,
    /// Its frame, where addresses are resolved.
    pub(crate) link: LinkFrame,
}

/// One for each CPU, where packets are judged one after the other.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Bits of a full key of `CIDRS`.
const CIDR_BITS: u32 = 128;
/// Bits of a full key of `POLICY`.
const POLICY_BITS: u32 = PolicyKey::PROTOCOL_BITS + PolicyKey::PORT_BITS;

/// The kernel's maps at one moment of its clock.
pub(crate) struct Kernel {
    now_ns: u64,
}

impl Kernel {
    /// The maps, now.
    #[inline(always)]
    pub(crate) fn now() -> Self {
        // SAFETY: The helper takes nothing and returns a number.
        Self { now_ns: unsafe { bpf_ktime_get_boot_ns() } }
    }
}

impl Tables for Kernel {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<&AddressValue> {
        // SAFETY: Rows are replaced, not changed in place, and live until the program ends (RCU).
        unsafe { ADDRESSES.get(key) }
    }

    #[inline(always)]
    fn cidr(&self, key: &CidrKey) -> Option<u32> {
        match cidr(key) {
            0 => None,
            identity => Some(identity),
        }
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
        policy(key).copied()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
        // SAFETY: As for `address`.
        unsafe { FLOWS.get(key) }.copied()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        // SAFETY: As for `address`.
        unsafe { FRAGMENTS.get(key) }.copied()
    }
}

/// The identity of the longest prefix; 0 is none.
#[inline(never)]
fn cidr(key: &CidrKey) -> u32 {
    CIDRS.get(Key::new(CIDR_BITS, *key)).map_or(0, |row| row.identity)
}

/// The narrowest row of a policy.
#[inline(never)]
fn policy(key: &PolicyKey) -> Option<&'static PolicyValue> {
    POLICY.get(Key::new(POLICY_BITS, *key))
}
