//! What the programs may copy and record for one endpoint, so that the two rings have room for all endpoints.

use core::mem::{offset_of, size_of};

/// Packets of one endpoint that are copied in a second at most.
pub const OPENINGS_PER_SECOND: u32 = 1_024;
/// Records of flows of one endpoint in a second at most.
pub const RECORDS_PER_SECOND: u32 = 4_096;
/// A second, in nanoseconds.
const SECOND_NS: u64 = 1_000_000_000;

/// Value of `RATES`: what one endpoint had of both rings in the second that began last. 40 bytes, no holes.
///
/// CPUs that judge packets of one endpoint at the same time may lose a count: the bounds are as exact as that.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateValue {
    /// When the second began (`CLOCK_BOOTTIME`, nanoseconds).
    pub began_ns: u64,
    /// Copies in this second.
    pub copies: u32,
    /// Bytes of these copies in the ring.
    pub copy_octets: u32,
    /// Records of flows in this second.
    pub records: u32,
    /// Zero.
    pub spare: u32,
    /// Copies that were not made, ever.
    pub copies_lost: u64,
    /// Records that were not made, ever.
    pub records_lost: u64,
}
const _: () = assert!(size_of::<RateValue>() == 40 && offset_of!(RateValue, copies_lost) == 24);

impl RateValue {
    /// Whether the endpoint may have a copy of so many bytes, where so many bytes of the ring are free. It gets no more in a
    /// second than it leaves free.
    #[inline(always)]
    pub const fn admit_copy(&mut self, now_ns: u64, octets: u32, free: u32) -> bool {
        self.begin(now_ns);
        let own = self.copy_octets.saturating_add(octets);
        if self.copies >= OPENINGS_PER_SECOND || own > free {
            self.copies_lost += 1;
            return false;
        }
        self.copies += 1;
        self.copy_octets = own;
        true
    }

    /// The same for a record of a flow, of which each has so many bytes.
    #[inline(always)]
    pub const fn admit_record(&mut self, now_ns: u64, octets: u32, free: u32) -> bool {
        self.begin(now_ns);
        if self.records >= RECORDS_PER_SECOND || (self.records + 1) * octets > free {
            self.records_lost += 1;
            return false;
        }
        self.records += 1;
        true
    }

    #[inline(always)]
    const fn begin(&mut self, now_ns: u64) {
        if now_ns.wrapping_sub(self.began_ns) > SECOND_NS {
            self.began_ns = now_ns;
            self.copies = 0;
            self.copy_octets = 0;
            self.records = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_gets_so_many_in_a_second() {
        let mut rate = RateValue::default();
        let now = 5 * SECOND_NS;
        let copies = (0..10_000).filter(|_| rate.admit_copy(now, 100, u32::MAX)).count();
        let records = (0..10_000).filter(|_| rate.admit_record(now, 80, u32::MAX)).count();
        assert_eq!((copies, records), (OPENINGS_PER_SECOND as usize, RECORDS_PER_SECOND as usize));
        assert_eq!((rate.copies_lost, rate.records_lost), (10_000 - copies as u64, 10_000 - records as u64));
        assert!(rate.admit_copy(now + SECOND_NS + 1, 100, u32::MAX) && rate.admit_record(now, 80, u32::MAX));
    }

    #[test]
    fn a_ring_that_is_not_read_keeps_room_for_others() {
        const RING: u32 = 1 << 20;
        let mut hostile = RateValue::default();
        let mut used = 0;
        // The reader is away for as long as datagrams are of use to it.
        for second in 2..5_u64 {
            for _ in 0..1_000 {
                if hostile.admit_copy(second * (SECOND_NS + 1), 16_384, RING - used) {
                    used += 16_384;
                }
            }
        }
        let mut honest = RateValue::default();
        assert!(honest.admit_copy(6 * SECOND_NS, 16_384, RING - used), "{used}");
    }
}
