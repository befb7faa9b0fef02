//! Flows of UDP with connections that were let pass by the names that they asked for.

use core::mem::{offset_of, size_of};

/// Bytes of the names of one flow.
pub const FLOW_NAMES_BYTES: usize = 496;

/// Value of `NAMED_FLOWS`: what the agent let pass in a flow, and whether it may go on. 512 bytes, no holes.
///
/// The agent alone writes it. It holds the names, so that an agent that starts anew can judge them by the rules of its own
/// time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedFlow {
    /// When the connection that was let pass last began: `CLOCK_BOOTTIME`, nanoseconds.
    pub began_ns: u64,
    /// Rule that allowed it.
    pub rule: u32,
    /// Bytes of [`NamedFlow::names`] that count.
    pub length: u16,
    /// Not 0: the rules allow one of the names no more, and nothing of the flow goes on.
    pub ended: u8,
    /// Zero.
    pub spare: u8,
    /// Names, each after its length; an empty one stands for connections without a name.
    pub names: [u8; FLOW_NAMES_BYTES],
}
const _: () = assert!(size_of::<NamedFlow>() == 512 && offset_of!(NamedFlow, names) == 16);

impl NamedFlow {
    /// A flow that has passed no connection yet.
    pub const fn new(began_ns: u64, rule: u32) -> Self {
        Self { began_ns, rule, length: 0, ended: 0, spare: 0, names: [0; FLOW_NAMES_BYTES] }
    }

    /// The names that connections asked for.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.names.get(..usize::from(self.length)).unwrap_or_default();
        core::iter::from_fn(move || {
            let (length, after) = rest.split_first()?;
            let (name, others) = after.split_at_checked(usize::from(*length))?;
            rest = others;
            Some(name)
        })
    }

    /// Adds a name; false where there is no room for it.
    pub fn add(&mut self, name: &[u8]) -> bool {
        if self.names().any(|other| other == name) {
            return true;
        }
        let at = usize::from(self.length);
        let end = at + 1 + name.len();
        let Ok(length) = u8::try_from(name.len()) else { return false };
        let Ok(whole) = u16::try_from(end) else { return false };
        let Some(room) = self.names.get_mut(at..end) else { return false };
        room[0] = length;
        room[1..].copy_from_slice(name);
        self.length = whole;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_once_and_as_many_as_there_is_room_for() {
        let mut flow = NamedFlow::new(1, 2);
        let names = ["a.io", "", "b.io"];
        for name in names.into_iter().chain(names) {
            assert!(flow.add(name.as_bytes()), "{name}");
        }
        assert!(flow.names().eq(names.map(str::as_bytes)));
        let long = [b'x'; 253];
        assert!(flow.add(&long));
        assert!(!flow.add(&[b'y'; 253]) && !flow.add(&[b'z'; 256]));
        assert_eq!(flow.names().last(), Some(&long[..]));
        assert!(flow.add(b"c.io"), "a shorter one fits");
    }

    #[test]
    fn a_row_that_says_too_much_gives_what_is_there() {
        let mut flow = NamedFlow { length: u16::MAX, ..NamedFlow::new(0, 0) };
        assert_eq!(flow.names().count(), 0);
        (flow.length, flow.names[0]) = (3, 9);
        assert_eq!(flow.names().count(), 0);
    }
}
