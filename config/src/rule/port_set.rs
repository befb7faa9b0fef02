//! Ports as users write them: single ones and ranges.

use std::{fmt, str::FromStr, sync::Arc};

use super::RangeInclusive16;

/// Some ports.
///
/// ```
/// use namegate_config::rule::PortSet;
/// let ports: PortSet = "443, 8000-8999".parse().unwrap();
/// assert!(ports.contains(443) && ports.contains(8_080) && !ports.contains(80));
/// assert_eq!(ports.to_string(), "443,8000-8999");
/// assert!(!"none".parse::<PortSet>().unwrap().contains(443));
/// assert!("0".parse::<PortSet>().is_err() && "9-8".parse::<PortSet>().is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet(Arc<[RangeInclusive16]>);

impl PortSet {
    /// Whether the port is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }

    /// The ports as written: single ones, and the first and last of each range.
    pub fn ranges(&self) -> &[RangeInclusive16] {
        &self.0
    }
}

impl FromIterator<RangeInclusive16> for PortSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive16>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

/// Why a text is no [`PortSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a port is a number from 1 to 65535, or the first and the last of a range: `8000-8999`")]
pub struct NoPorts;

impl FromStr for RangeInclusive16 {
    type Err = NoPorts;

    fn from_str(text: &str) -> Result<Self, NoPorts> {
        let (start, end) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or(NoPorts);
        let range = Self { start: port(start)?, end: port(end)? };
        if range.start <= range.end { Ok(range) } else { Err(NoPorts) }
    }
}

impl fmt::Display for RangeInclusive16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end } = self;
        if start == end { write!(f, "{start}") } else { write!(f, "{start}-{end}") }
    }
}

impl FromStr for PortSet {
    type Err = NoPorts;

    /// Ports and ranges with commas between them, or `none`.
    fn from_str(text: &str) -> Result<Self, NoPorts> {
        if text == "none" {
            return Ok(Self::default());
        }
        text.split(',').map(|range| range.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let ranges: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}
