//! Moments as text (RFC 3339), in UTC.

use std::time::SystemTime;

use jiff::Timestamp;

/// The moment as `2026-07-01T12:00:00.123Z`. Moments before 1970 are written as 1970, and those after the year 9999 as its
/// end.
pub fn rfc3339(moment: SystemTime) -> String {
    let moment = match moment.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => Timestamp::try_from(moment).unwrap_or(Timestamp::MAX),
        Err(_) => Timestamp::UNIX_EPOCH,
    };
    format!("{moment:.3}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn moments_read_as_the_calendar_says() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), want);
        }
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(1_234)), "1970-01-01T00:00:01.234Z");
    }

    #[test]
    fn parts_of_a_millisecond_are_cut_off() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_nanos(1_999_999_999)), "1970-01-01T00:00:01.999Z");
    }

    #[test]
    fn moments_outside_the_calendar_read_as_its_ends() {
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_millis(1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(253_402_300_799 + 86_400)), "9999-12-30T22:00:00.999Z");
    }
}
