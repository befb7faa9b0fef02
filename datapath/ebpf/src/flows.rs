//! Flows, each within the share of its endpoint: a new one takes a free slot, or that of the flow of the same endpoint which
//! is worth least. Flows of other endpoints never give way.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST},
    helpers::bpf_get_prandom_u32,
};
use namegate_abi::{
    FlowKey, FlowLosses, FlowSlot, FlowValue, FragmentKey, FragmentValue, PROBES, Tables, probe, worth,
};

use crate::maps::{FLOW_LOSSES, FLOW_SLOTS, FLOWS, FRAGMENT_SLOTS, FRAGMENTS, Kernel, SETTINGS};

/// Slots that a new flow tries to take: another CPU may be faster.
const TRIES: u32 = 2;
/// Where [`choose`] says that the flow in the slot is alive.
const ALIVE: u64 = 1 << 32;

/// Writes the row of a flow. A new flow without room is forgotten, and counted.
#[inline(always)]
pub(crate) fn store(key: &FlowKey, flow: &FlowValue) {
    store_flow(key, flow);
}

/// [`store`], as the verifier knows it: the symbol is global, so that it is looked at once and not for each way that leads to
/// it, and nothing is known about its arguments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn store_flow(key: *const FlowKey, flow: *const FlowValue) -> u32 {
    // SAFETY: The verifier sees to it that what is not null has the size of its type.
    let (Some(key), Some(flow)) = (unsafe { key.as_ref() }, unsafe { flow.as_ref() }) else { return 0 };
    write(key, flow);
    1
}

#[inline(always)]
fn write(key: &FlowKey, flow: &FlowValue) {
    if FLOWS.insert(key, flow, u64::from(BPF_EXIST)).is_ok() {
        return;
    }
    let mut tries = 0;
    while tries < TRIES {
        if let Some(slot) = take(key) {
            if FLOWS.insert(key, flow, u64::from(BPF_ANY)).is_ok() {
                return;
            }
            let _ = FLOW_SLOTS.remove(slot);
            break;
        }
        tries += 1;
    }
    count(key.endpoint, false);
}

/// Takes a slot for a flow. Of two CPUs that want one, the second finds it taken.
#[inline(always)]
fn take(key: &FlowKey) -> Option<FlowSlot> {
    let share = SETTINGS.get(0)?.flow_share;
    if share == 0 {
        return None;
    }
    let chosen = choose(key.endpoint, share);
    let slot = FlowSlot { endpoint: key.endpoint, slot: chosen as u32 };
    // SAFETY: The row is read at once. One that another CPU replaces meanwhile names a flow that is not there.
    if let Some(holder) = unsafe { FLOW_SLOTS.get(slot) }.copied() {
        FLOW_SLOTS.remove(slot).ok()?;
        if FLOWS.remove(holder).is_ok() && chosen & ALIVE != 0 {
            count(key.endpoint, true);
        }
    }
    FLOW_SLOTS.insert(slot, key, u64::from(BPF_NOEXIST)).ok()?;
    Some(slot)
}

/// The slot that a new flow of the endpoint should take, with [`ALIVE`] where its flow is not over.
///
/// Global as [`store_flow`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose(endpoint: u32, share: u32) -> u64 {
    // SAFETY: The helper takes nothing and returns a number.
    let random = unsafe { bpf_get_prandom_u32() };
    let mut least = u64::MAX;
    let mut chosen = 0;
    let mut at = 0;
    while at < PROBES && least != 0 {
        let slot = probe(random, at, share);
        let worth = worth_of(endpoint, slot);
        if worth < least {
            least = worth;
            chosen = slot;
        }
        at += 1;
    }
    u64::from(chosen) | if least == 0 { 0 } else { ALIVE }
}

/// What the flow in a slot is worth; nothing where there is none.
#[inline(never)]
fn worth_of(endpoint: u32, slot: u32) -> u64 {
    // SAFETY: Rows are read at once. One that another CPU replaces meanwhile is of another flow of the same endpoint.
    let Some(holder) = (unsafe { FLOW_SLOTS.get(FlowSlot { endpoint, slot }) }) else { return 0 };
    // SAFETY: As above.
    let Some(flow) = (unsafe { FLOWS.get(holder) }) else { return 0 };
    worth(flow, holder.protocol, Kernel::now().now_ns())
}

/// Remembers that the first fragment of a packet was allowed. It takes the place of an earlier packet of the same endpoint.
#[inline(always)]
pub(crate) fn store_fragments(key: &FragmentKey) {
    store_fragment(key);
}

/// Global as [`store_flow`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn store_fragment(key: *const FragmentKey) -> u32 {
    // SAFETY: The verifier sees to it that what is not null has the size of its type.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    let slot = key.slot();
    // SAFETY: The row is read at once. One that another CPU replaces meanwhile names a packet that is not there.
    if let Some(holder) = unsafe { FRAGMENT_SLOTS.get(slot) }.copied() {
        if FRAGMENT_SLOTS.remove(slot).is_err() {
            return 0; // Another CPU was faster.
        }
        let _ = FRAGMENTS.remove(holder);
    }
    if FRAGMENT_SLOTS.insert(slot, key, u64::from(BPF_NOEXIST)).is_err() {
        return 0;
    }
    let row = FragmentValue::allowed_at(Kernel::now().now_ns());
    u32::from(FRAGMENTS.insert(key, row, u64::from(BPF_ANY)).is_ok())
}

/// Counts a flow that gave way or, where not `evicted`, one that found no room.
#[inline(never)]
fn count(endpoint: u32, evicted: bool) {
    let mut losses = FLOW_LOSSES.get_ptr_mut(endpoint);
    if losses.is_none() {
        let _ = FLOW_LOSSES.insert(endpoint, FlowLosses { evicted: 0, refused: 0 }, u64::from(BPF_NOEXIST));
        losses = FLOW_LOSSES.get_ptr_mut(endpoint);
    }
    let Some(losses) = losses else { return };
    // SAFETY: The row is this CPU's own. Another program can come between on behalf of a socket alone: then a count is lost.
    unsafe {
        if evicted {
            (*losses).evicted += 1;
        } else {
            (*losses).refused += 1;
        }
    }
}
