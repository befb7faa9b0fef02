//! HTTP/2 with prior knowledge (RFC 9113), as frames that no library would send.

use std::collections::BTreeMap;

use crate::form::{Stream, bytes};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The bytes of a connection with these streams: the preface, then a piece for each stream.
pub(crate) fn pieces(streams: &[Stream]) -> Vec<Vec<u8>> {
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, ACK, 0, &[])].concat();
    let numbered = streams.iter().zip((1_u32..).step_by(2));
    [opening].into_iter().chain(numbered.map(|(stream, number)| frames(stream, number))).collect()
}

fn frames(stream: &Stream, number: u32) -> Vec<u8> {
    let is_alone = stream.body.is_none() && stream.trailers.is_empty();
    let flags = END_HEADERS | if is_alone { END_STREAM } else { 0 };
    let mut all = frame(HEADERS, flags, number, &fields(&stream.fields));
    if let Some(body) = &stream.body {
        let flags = if stream.trailers.is_empty() { END_STREAM } else { 0 };
        all.extend(frame(DATA, flags, number, &bytes(body)));
    }
    if !stream.trailers.is_empty() {
        all.extend(frame(HEADERS, END_HEADERS | END_STREAM, number, &fields(&stream.trailers)));
    }
    all
}

/// The bodies of what came back, by place of the stream in the form. Characters are bytes.
pub(crate) fn bodies(said: &str) -> BTreeMap<usize, String> {
    let said = bytes(said);
    let (mut rest, mut bodies) = (&said[..], BTreeMap::<usize, String>::new());
    while let [high, middle, low, kind, _flags, a, b, c, d, more @ ..] = rest {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        let (content, after) = more.split_at(length.min(more.len()));
        if *kind == DATA {
            let stream = u32::from_be_bytes([*a, *b, *c, *d]) / 2;
            let body = bodies.entry(usize::try_from(stream).unwrap_or(usize::MAX)).or_default();
            body.extend(content.iter().copied().map(char::from));
        }
        rest = after;
    }
    bodies
}

/// Literal fields without indexing (RFC 7541 §6.2.2).
fn fields(fields: &[(String, String)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A plain string (RFC 7541 §5.2).
fn text(text: &str) -> Vec<u8> {
    let bytes = bytes(text);
    let mut length = Vec::new();
    if let Ok(short @ 0..=126) = u8::try_from(bytes.len()) {
        length.push(short);
    } else {
        let mut rest = bytes.len() - 127;
        length.push(127);
        while rest >= 128 {
            length.push(u8::try_from(rest % 128).unwrap_or(0) | 128);
            rest /= 128;
        }
        length.push(u8::try_from(rest).unwrap_or(0));
    }
    [length, bytes].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(0).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_of_their_streams() {
        let mut said = frame(SETTINGS, 0, 0, &[]);
        for (stream, part) in [(3, "b"), (1, "a"), (3, "c")] {
            said.extend(frame(DATA, 0, stream, part.as_bytes()));
        }
        let said: String = said.into_iter().map(char::from).collect();
        assert_eq!(bodies(&said), [(0, "a".to_owned()), (1, "bc".to_owned())].into());
    }

    #[test]
    fn long_strings_have_their_length_in_more_bytes() {
        assert_eq!(text("ab"), [2, b'a', b'b']);
        assert_eq!(text(&"a".repeat(1_337 + 127))[..3], [127, 0b1011_1001, 10]);
    }
}
