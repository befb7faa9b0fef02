//! What a thing holds, as 128 bits: equal things have equal numbers, and nobody can write two different things with one.

use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};

/// The first half of SHA-256 over what the thing hashes.
///
/// Policies come from tenants, so the hash resists collisions. Another build may order the fields of a rule otherwise:
/// then rules get new numbers, and their flows are judged again.
pub(crate) fn content_of(thing: &impl Hash) -> u128 {
    let mut bytes = Bytes(Sha256::new());
    thing.hash(&mut bytes);
    let digest = bytes.0.finalize();
    digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// Hands bytes to the digest.
struct Bytes(Sha256);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// No short form is asked for.
    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_things_have_equal_numbers_and_others_have_others() {
        let thing = |text: &str, number: Option<u16>| content_of(&(text, vec![number]));
        assert_eq!(thing("a", Some(1)), thing("a", Some(1)));
        for other in [thing("b", Some(1)), thing("a", None), thing("a", Some(2)), thing("", Some(1))] {
            assert_ne!(thing("a", Some(1)), other);
        }
    }
}
