//! How lenient servers read a path: what each kind of them does besides, in every combination.

/// A server, by what it does to a path.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one habit, and servers have them in any combination")]
pub(super) struct Lenient {
    /// Drops the parameters of segments before it decodes (servlet containers).
    drops_parameters: bool,
    /// How often it decodes: once, or twice behind another server.
    decodes: u8,
    /// Drops parameters after that (servlet containers behind a server that has decoded).
    drops_decoded_parameters: bool,
    /// Takes a backslash for a slash, and drops dots and blanks at the end of segments (Windows).
    is_windows: bool,
    /// Takes an overlong form of UTF-8 for the character (old Java and PHP).
    takes_overlong: bool,
    /// Ends the path at a decoded question mark, `#` or NUL (Apache in front of PHP-FPM, C libraries).
    cuts: bool,
}

impl Lenient {
    /// All combinations.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..96_u8).map(|number| {
            let has = |bit: u8| (number / 3) & (1 << bit) != 0;
            Self {
                decodes: number % 3,
                drops_parameters: has(0),
                drops_decoded_parameters: has(1),
                is_windows: has(2),
                takes_overlong: has(3),
                cuts: has(4),
            }
        })
    }

    /// The resource that it serves.
    pub(super) fn reads(self, target: &str) -> String {
        let path = target.split('?').next().unwrap_or_default();
        let mut bytes = path.as_bytes().to_vec();
        if self.drops_parameters {
            bytes = without_parameters(&bytes);
        }
        for _ in 0..self.decodes {
            bytes = decoded(&bytes);
        }
        if self.takes_overlong {
            bytes = short(&bytes);
        }
        if self.drops_decoded_parameters {
            bytes = without_parameters(&bytes);
        }
        if self.is_windows {
            bytes = bytes.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
        }
        if self.cuts {
            let end = bytes.iter().position(|byte| b"?#\0".contains(byte)).unwrap_or(bytes.len());
            // A name that is cut off is served as it is: what counts is where it lies.
            bytes.truncate(end);
        }
        self.resolved(&String::from_utf8_lossy(&bytes))
    }

    fn resolved(self, path: &str) -> String {
        let mut segments: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            let name = if self.is_windows { segment.trim_end_matches([' ', '\u{a0}']) } else { segment };
            match name {
                "" | "." => {}
                ".." => drop(segments.pop()),
                name => segments.push(name),
            }
        }
        format!("/{}/", segments.join("/"))
    }
}

/// The name of a field as a variable of CGI (RFC 3875 §4.1.18).
pub(super) fn cgi_name(field: &str) -> String {
    let letter = |one: char| if one.is_ascii_alphanumeric() { one.to_ascii_uppercase() } else { '_' };
    format!("HTTP_{}", field.chars().map(letter).collect::<String>())
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let bare =
        path.split(|byte| *byte == b'/').map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or(&[]));
    bare.collect::<Vec<_>>().join(&b'/')
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.extend(u8::try_from(high << 4 | low));
                at += 3;
            }
            (byte, ..) => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

/// Overlong forms of two bytes as the characters of ASCII that they stand for.
fn short(path: &[u8]) -> Vec<u8> {
    let mut short = Vec::new();
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        if let (0xc0 | 0xc1, Some(next)) = (first, after.first()) {
            short.push((first & 1) << 6 | next & 0x3f);
            rest = &after[1..];
        } else {
            short.push(*first);
            rest = after;
        }
    }
    short
}
