//! What each endpoint may have of the rings.

use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, maps::RingBuf};
use namegate_abi::{EventRecord, RateValue, limits};

use crate::maps::{EVENTS, OPENINGS, RATES};

/// What the kernel puts before each record of a ring.
const RECORD_HEADER_OCTETS: u32 = 8;
/// Asks for the bytes that are not read yet (`BPF_RB_AVAIL_DATA`).
const UNREAD: u64 = 0;

/// Whether an endpoint may have a copy of so many bytes.
#[inline(never)]
pub(crate) fn admits_copy(endpoint: u32, now_ns: u64, octets: u32) -> bool {
    let free = free(&OPENINGS, limits::OPENINGS_OCTETS);
    match row(endpoint) {
        Some(rate) => rate.admit_copy(now_ns, octets + RECORD_HEADER_OCTETS, free),
        None => false,
    }
}

/// Whether an endpoint may have a record of a flow.
#[inline(never)]
pub(crate) fn admits_record(endpoint: u32) -> bool {
    // SAFETY: The helper takes nothing and returns a number.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    let free = free(&EVENTS, limits::EVENTS_OCTETS);
    match row(endpoint) {
        Some(rate) => rate.admit_record(now_ns, size_of::<EventRecord>() as u32 + RECORD_HEADER_OCTETS, free),
        None => false,
    }
}

#[inline(always)]
fn free(ring: &RingBuf, octets: u32) -> u32 {
    octets.saturating_sub(ring.query(UNREAD) as u32)
}

/// The row of an endpoint, which is made where there is none.
#[inline(always)]
fn row(endpoint: u32) -> Option<&'static mut RateValue> {
    if RATES.get_ptr_mut(endpoint).is_none() {
        // Where another CPU was faster, its row is as good.
        let _ = RATES.insert(endpoint, RateValue::default(), 1);
    }
    // SAFETY: The row lives until the program ends (RCU); its parts are plain numbers, of which CPUs may lose a count.
    RATES.get_ptr_mut(endpoint).map(|row| unsafe { &mut *row })
}
