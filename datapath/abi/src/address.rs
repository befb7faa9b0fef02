//! An address of either family in sixteen octets, and how long it stands for which identity.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96` (RFC 4291 §2.5.5.2).
///
/// Aligned so that the kernel's programs copy and compare it by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// Bits that stand before an IPv4 address.
    pub const V4_PREFIX_BITS: u32 = 96;

    /// The IPv4 address mapped.
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])
    }

    /// Whether an IPv4 address is mapped.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..])
    }

    /// Whether packets to the address are for many: IPv4 and IPv6 multicast, and the limited broadcast.
    #[inline(always)]
    pub const fn is_of_many(&self) -> bool {
        if self.is_v4() {
            self.0[12] >> 4 == 0xe || matches!(self.0, [.., 0xff, 0xff, 0xff, 0xff])
        } else {
            self.0[0] == 0xff
        }
    }

    /// Whether the address is an IPv6 address of one interface on the link (`fe80::/10`).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    /// Whether the address is an IPv6 group of the link (`ff02::/16`).
    #[inline(always)]
    pub const fn is_link_group(&self) -> bool {
        self.0[0] == 0xff && self.0[1] == 0x02
    }

    /// The sixteen octets, network order.
    #[inline(always)]
    pub const fn octets(&self) -> &[u8; 16] {
        &self.0
    }

    /// The address as people write it: mapped IPv4 becomes IPv4.
    pub fn to_ip(self) -> IpAddr {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            octets => IpAddr::V6(Ipv6Addr::from(octets)),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

/// How many ends of TTL one address can hold apart.
pub const STEPS_MAX: usize = 4;

/// The identity that an address has until a moment.
///
/// Two names with different TTLs may share an address: while both live the address has the identity of both, then the
/// identity of the longer one. The kernel picks the first step that has not ended, so this is exact without the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// `CLOCK_BOOTTIME` nanoseconds after which the step is over; 0 is never.
    pub expires_ns: u64,
    /// Identity until then; 0 ends the list.
    pub identity: u32,
    /// Zero.
    pub spare: u32,
}

/// What a row of steps says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRow {
    /// The identity in force.
    Live(u32),
    /// All steps are over; the identity of the last one, 0 where there was none.
    Expired(u32),
}

/// The step in force at `now_ns`; steps stand in the order of their end.
#[inline(always)]
pub(crate) fn step_at(steps: &[Step; STEPS_MAX], now_ns: u64) -> NameRow {
    let mut at = 0;
    let mut last = 0;
    while at < STEPS_MAX {
        let step = steps[at];
        if step.identity == 0 {
            break;
        }
        if step.expires_ns == 0 || step.expires_ns > now_ns {
            return NameRow::Live(step.identity);
        }
        last = step.identity;
        at += 1;
    }
    NameRow::Expired(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(expires_ns: u64, identity: u32) -> Step {
        Step { expires_ns, identity, spare: 0 }
    }

    #[test]
    fn both_families_come_back() {
        for text in ["0.0.0.0", "10.1.2.3", "255.255.255.255", "::", "::1", "2001:db8::7", "fe80::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).to_ip(), ip, "{text}");
        }
    }

    #[test]
    fn the_first_step_that_has_not_ended_counts() {
        let steps = [step(10, 300), step(60, 301), Step::default(), Step::default()];
        for (now, want) in [
            (0, NameRow::Live(300)),
            (9, NameRow::Live(300)),
            (10, NameRow::Live(301)),
            (59, NameRow::Live(301)),
            (60, NameRow::Expired(301)),
        ] {
            assert_eq!(step_at(&steps, now), want, "at {now}");
        }
        let forever = [step(0, 7), Step::default(), Step::default(), Step::default()];
        assert_eq!(step_at(&forever, u64::MAX), NameRow::Live(7));
    }
}
