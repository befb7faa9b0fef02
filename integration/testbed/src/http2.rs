//! HTTP/2 frames, byte by byte (RFC 9113 §4.1, RFC 7541): what a client that floods sends.

/// What a client of HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// HEADERS.
pub const HEADERS: u8 = 1;
/// `RST_STREAM`.
pub const RESET: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PING.
pub const PING: u8 = 6;
/// `WINDOW_UPDATE`.
pub const WINDOW_UPDATE: u8 = 8;
/// CONTINUATION.
pub const CONTINUATION: u8 = 9;
/// Flags of HEADERS: the request has no body, the head is whole.
pub const WHOLE_REQUEST: u8 = 0x5;
/// The largest window (RFC 9113 §6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Setting of the window of each stream.
const INITIAL_WINDOW: u16 = 4;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The preface, and settings by which the server may send as much as it likes.
pub fn hello() -> Vec<u8> {
    let window = [&INITIAL_WINDOW.to_be_bytes()[..], &WINDOW_MAX.to_be_bytes()].concat();
    let wider = (WINDOW_MAX - 65_535).to_be_bytes();
    [PREFACE, &frame(SETTINGS, 0, 0, &window), &frame(WINDOW_UPDATE, 0, 0, &wider)].concat()
}

/// A block of fields: GET of this path.
pub fn get(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap_or(0);
    [&[0x82, 0x86, 0x04, length], path.as_bytes(), &[0x01, 6], b"a.test"].concat()
}

/// A field that goes into the dynamic table, `x-bomb`, with a value of so many bytes.
pub fn indexed(bytes: usize) -> Vec<u8> {
    // A length of 127 and more is continued by seven bits a byte (RFC 7541 §5.1).
    let (mut field, mut left) = ([&[0x40, 6][..], b"x-bomb", &[0x7f]].concat(), bytes - 0x7f);
    while left >= 0x80 {
        field.push(u8::try_from(left & 0x7f).unwrap_or(0) | 0x80);
        left >>= 7;
    }
    field.push(u8::try_from(left).unwrap_or(0));
    field.extend(std::iter::repeat_n(b'a', bytes));
    field
}

/// The newest field of the dynamic table, again.
pub const AGAIN: u8 = 0xbe;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_fields_have_their_lengths() {
        assert_eq!(frame(PING, 0, 0, &[7; 8])[..9], [0, 0, 8, 6, 0, 0, 0, 0, 0]);
        assert_eq!(indexed(127)[8..10], [0x7f, 0]);
        assert_eq!(indexed(4_000)[8..11], [0x7f, 0xa1, 0x1e], "3873 = 30 * 128 + 33");
        assert_eq!(get("/v1").len(), 4 + 3 + 2 + 6);
    }
}
