//! `CLOCK_BOOTTIME`, by which the kernel's rows end, beside the calendar.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine started, time asleep included (`clock_gettime(2)`).
pub(crate) fn boot_ns() -> u64 {
    // The clock is there on every kernel that has the programs.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let (seconds, nanoseconds) = (time.tv_sec(), time.tv_nsec());
        u64::try_from(seconds).unwrap_or(0) * 1_000_000_000 + u64::try_from(nanoseconds).unwrap_or(0)
    })
}

/// The calendar's moment of a boot-time moment.
pub(crate) fn calendar(boot_at_ns: u64) -> SystemTime {
    let (now, boot_now) = (SystemTime::now(), boot_ns());
    if boot_at_ns >= boot_now {
        now + Duration::from_nanos(boot_at_ns - boot_now)
    } else {
        now.checked_sub(Duration::from_nanos(boot_now - boot_at_ns)).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_keep_their_distance() {
        let now = boot_ns();
        assert!(now > 0);
        let (soon, ago) = (calendar(now + 10_000_000_000), calendar(now.saturating_sub(5_000_000_000)));
        let distance = soon.duration_since(ago).unwrap();
        assert!(distance >= Duration::from_secs(5) && distance < Duration::from_secs(16), "{distance:?}");
    }
}
