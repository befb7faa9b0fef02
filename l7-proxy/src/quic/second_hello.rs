//! What a second `ClientHello`, after a `HelloRetryRequest`, may change (RFC 8446 §4.1.2).

use super::packet::Malformed;

/// Extensions that may be changed, added or left out: `padding`, `pre_shared_key`, `early_data`, `cookie`, `key_share`,
/// `encrypted_client_hello` (RFC 9849 §6.1.5).
const CHANGEABLE: [u16; 6] = [21, 41, 42, 44, 51, 0xfe0d];

/// Whether a second hello asks for what the first asked for. Both are whole messages with their heads.
pub(super) fn repeats(first: &[u8], second: &[u8]) -> bool {
    let both = (parts(first), parts(second));
    matches!(both, (Ok(first), Ok(second)) if first == second)
}

/// What must stay the same.
#[derive(PartialEq, Eq)]
struct Parts<'m> {
    /// Everything before the extensions.
    fixed: &'m [u8],
    /// The extensions that may not be changed, with their types.
    extensions: Vec<(u16, &'m [u8])>,
}

fn parts(message: &[u8]) -> Result<Parts<'_>, Malformed> {
    // Head of the message, version, random.
    let mut rest = message.get(4 + 2 + 32..).ok_or(Malformed)?;
    take(&mut rest, 1)?; // session
    take(&mut rest, 2)?; // suites
    take(&mut rest, 1)?; // compression
    let fixed = &message[4..message.len() - rest.len()];
    let mut extensions = if rest.is_empty() { &[] } else { take(&mut rest, 2)? };
    let mut kept = Vec::new();
    while !extensions.is_empty() {
        let (kind, after) = extensions.split_first_chunk().ok_or(Malformed)?;
        extensions = after;
        let data = take(&mut extensions, 2)?;
        let kind = u16::from_be_bytes(*kind);
        if !CHANGEABLE.contains(&kind) {
            kept.push((kind, data));
        }
    }
    Ok(Parts { fixed, extensions: kept })
}

/// A vector whose length stands in so many bytes before it.
fn take<'o>(rest: &mut &'o [u8], length_bytes: usize) -> Result<&'o [u8], Malformed> {
    let (length, after) = rest.split_at_checked(length_bytes).ok_or(Malformed)?;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (vector, after) = after.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(vector)
}
