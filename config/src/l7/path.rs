//! The path as rules see it: one spelling for what a server takes for the same (RFC 3986 §6.2.2), merged slashes.
//!
//! What servers read in different ways is refused rather than guessed. `docs/http-paths.md` has the table of what which
//! server makes of each form.

/// Why a path can not be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.why())]
pub enum PathError {
    /// It is not the path of a server's resource (RFC 9112 §3.2.1).
    NotAPath,
    /// `#`: a request target has no fragment (RFC 9112 §3.2).
    Fragment,
    /// `%` without two hexadecimal digits, or bytes that are not UTF-8.
    Encoding,
    /// `\`, or an encoded `/`, `\`, `?` or `;`.
    Separator,
    /// An encoded or plain control character.
    Control,
    /// A byte beyond ASCII that is not percent-encoded (RFC 3986 §2).
    NotAscii,
    /// `%252e`: a dot, a separator or another special character for a server that decodes twice.
    EncodedTwice,
    /// Dots, blanks or nothing at all before parameters, or dots beside blanks: `..;x`, `;x`, `..%20`.
    Segment,
}

impl PathError {
    /// The reason in words.
    pub const fn why(self) -> &'static str {
        match self {
            Self::NotAPath => "the request target is not a path",
            Self::Fragment => "the request target has a fragment",
            Self::Encoding => "the path has a broken percent-encoding",
            Self::Separator => "the path has an encoded slash, question mark or semicolon, or a backslash",
            Self::Control => "the path has a control character",
            Self::NotAscii => "the path has a character that must be percent-encoded",
            Self::EncodedTwice => "the path has a special character that is percent-encoded twice",
            Self::Segment => "the path has a segment that some servers take for a dot segment or an empty one",
        }
    }
}

/// Normalises path and query: unreserved characters decoded, hexadecimal digits in upper case, runs of slashes merged,
/// dot segments removed. The query stays as it is.
pub fn normalise(target: &str) -> Result<String, PathError> {
    let (path, query) = split(target);
    if target.contains('#') {
        return Err(PathError::Fragment);
    }
    if !path.starts_with('/') {
        return Err(PathError::NotAPath);
    }
    if is_normal(path) {
        return Ok(target.to_owned());
    }
    let decoded = decode(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut rest = decoded.split('/').filter(|segment| !segment.is_empty()).peekable();
    let mut ends_open = decoded.ends_with('/');
    while let Some(segment) = rest.next() {
        match segment {
            "." => ends_open |= rest.peek().is_none(),
            ".." => {
                segments.pop();
                ends_open |= rest.peek().is_none();
            }
            other => {
                check_segment(other)?;
                segments.push(other);
            }
        }
    }
    let mut normal = String::with_capacity(target.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if segments.is_empty() || ends_open {
        normal.push('/');
    }
    if let Some(query) = query {
        normal.push('?');
        normal.push_str(query);
    }
    Ok(normal)
}

/// A normalised path, and its query, as servers read it that drop the parameters of segments (RFC 3986 §3.3): `/a;v=1/b`
/// as `/a/b`. `None` where there are no parameters.
pub fn without_parameters(target: &str) -> Option<String> {
    let (path, query) = split(target);
    if !path.contains(';') {
        return None;
    }
    let bare: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    let mut bare = bare.join("/");
    if let Some(query) = query {
        bare.push('?');
        bare.push_str(query);
    }
    Some(bare)
}

/// Path and query.
fn split(target: &str) -> (&str, Option<&str>) {
    target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)))
}

/// Whether nothing is to be changed or refused, as is most often so: plain characters, and no segment that is empty or
/// begins with a dot or with parameters.
fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'\\'))
        && !bytes.windows(2).any(|pair| matches!(pair, b"//" | b"/." | b"/;"))
}

/// Decodes unreserved characters, and refuses those that only some servers decode.
fn decode(path: &str) -> Result<String, PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let byte = hexadecimal(&mut bytes).ok_or(PathError::Encoding)?;
                match byte {
                    b'/' | b'\\' | b'?' | b';' => return Err(PathError::Separator),
                    control if control.is_ascii_control() => return Err(PathError::Control),
                    plain if is_unreserved(plain) => decoded.push(char::from(plain)),
                    other => {
                        let encoded = format!("%{other:02X}");
                        decoded.push_str(&encoded);
                    }
                }
            }
            b'\\' => return Err(PathError::Separator),
            control if control.is_ascii_control() => return Err(PathError::Control),
            plain if plain.is_ascii() => decoded.push(char::from(plain)),
            _ => return Err(PathError::NotAscii),
        }
    }
    Ok(decoded)
}

/// The byte of two hexadecimal digits.
fn hexadecimal(bytes: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let mut digit = || char::from(bytes.next()?).to_digit(16);
    u8::try_from(digit()? << 4 | digit()?).ok()
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Refuses a segment that some servers take for `.`, `..`, or none, and one that means something else decoded twice.
fn check_segment(segment: &str) -> Result<(), PathError> {
    let plain = plain(segment)?;
    if plain.contains(char::is_control) {
        return Err(PathError::Control);
    }
    let mut after_percent = plain.split('%').skip(1);
    let is_hidden = |rest: &str| {
        let byte = hexadecimal(&mut rest.bytes());
        byte.is_some_and(|byte| byte == b'.' || !is_unreserved(byte))
    };
    if after_percent.any(is_hidden) {
        return Err(PathError::EncodedTwice);
    }
    // Where parameters begin, or a fragment for a server that decodes too early.
    let bare = plain.split([';', '#']).next().unwrap_or_default();
    let has_nothing = bare.chars().all(|character| character == '.' || character.is_whitespace());
    // A segment of three dots and more is a name.
    let is_name = bare.len() == plain.len() && bare.bytes().all(|byte| byte == b'.');
    if has_nothing && !is_name { Err(PathError::Segment) } else { Ok(()) }
}

/// A segment of [`decode`], fully decoded.
fn plain(segment: &str) -> Result<String, PathError> {
    let mut plain = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'%' { hexadecimal(&mut bytes).ok_or(PathError::Encoding)? } else { byte });
    }
    String::from_utf8(plain).map_err(|_| PathError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_one_resource() {
        for (target, want) in [
            ("/", Ok("/")),
            ("/metrics", Ok("/metrics")),
            ("/metrics?x=1", Ok("/metrics?x=1")),
            ("/metrics?x=%2e%2e%2F//", Ok("/metrics?x=%2e%2e%2F//")),
            ("/metrics/", Ok("/metrics/")),
            ("//metrics", Ok("/metrics")),
            ("/a//b///c", Ok("/a/b/c")),
            ("/a/./b", Ok("/a/b")),
            ("/a/../metrics", Ok("/metrics")),
            ("/../../metrics", Ok("/metrics")),
            ("/metrics/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/b/.", Ok("/a/b/")),
            ("/metrics/../secret", Ok("/secret")),
            ("/metrics/%2e%2e/secret", Ok("/secret")),
            ("/metrics/.%2E/secret", Ok("/secret")),
            ("/metrics/...", Ok("/metrics/...")),
            ("/%6Detrics", Ok("/metrics")),
            ("/%6detrics", Ok("/metrics")),
            ("/a%20b%c3%a9", Ok("/a%20b%C3%A9")),
            ("/%2541", Ok("/%2541")),
            ("/a;v=1", Ok("/a;v=1")),
            ("", Err(PathError::NotAPath)),
            ("*", Err(PathError::NotAPath)),
            ("metrics", Err(PathError::NotAPath)),
            ("?x", Err(PathError::NotAPath)),
            ("/a%2Fb", Err(PathError::Separator)),
            ("/a%2fb", Err(PathError::Separator)),
            ("/a%5cb", Err(PathError::Separator)),
            ("/a\\b", Err(PathError::Separator)),
            ("/a%00", Err(PathError::Control)),
            ("/a%0d%0ab", Err(PathError::Control)),
            ("/a%7f", Err(PathError::Control)),
            ("/a\tb", Err(PathError::Control)),
            ("/a%", Err(PathError::Encoding)),
            ("/a%4", Err(PathError::Encoding)),
            ("/a%zz", Err(PathError::Encoding)),
            ("/a%é1", Err(PathError::Encoding)),
        ] {
            check(target, want);
        }
    }

    #[test]
    fn what_servers_read_differently_is_refused() {
        for (target, want) in [
            ("/a;v=1/..;/b", Err(PathError::Segment)),
            ("/public/..;/admin", Err(PathError::Segment)),
            ("/public/..;x=1/admin", Err(PathError::Segment)),
            ("/public/%2e%2e;/admin", Err(PathError::Segment)),
            ("/public/.;/admin", Err(PathError::Segment)),
            ("/public/...;/admin", Err(PathError::Segment)),
            ("/public/;/../admin", Err(PathError::Segment)),
            ("/;x", Err(PathError::Segment)),
            ("/public/..%20/admin", Err(PathError::Segment)),
            ("/public/%20../admin", Err(PathError::Segment)),
            ("/public/..%e2%80%83/admin", Err(PathError::Segment)),
            ("/public/..%3b/admin", Err(PathError::Separator)),
            ("/public/%2E%2E%3Bx/admin", Err(PathError::Separator)),
            ("/public;x=/admin", Ok("/public;x=/admin")),
            ("/public;x=/../admin", Ok("/admin")),
            ("/a;v=..", Ok("/a;v=..")),
            ("/a.;v", Ok("/a.;v")),
            ("/a%3fb", Err(PathError::Separator)),
            ("/a%23b", Ok("/a%23b")),
            ("/public/..%23", Err(PathError::Segment)),
            ("/public/%23x/../admin", Err(PathError::Segment)),
            ("/a#b", Err(PathError::Fragment)),
            ("/a?b#c", Err(PathError::Fragment)),
            ("/public/%c0%ae%c0%ae/admin", Err(PathError::Encoding)),
            ("/%e9", Err(PathError::Encoding)),
            ("/%ef%bc%8e%ef%bc%8e/a", Ok("/%EF%BC%8E%EF%BC%8E/a")),
            ("/%c2%85", Err(PathError::Control)),
            ("/é", Err(PathError::NotAscii)),
            ("/public/%252e%252e/admin", Err(PathError::EncodedTwice)),
            ("/public/%25%32%65/admin", Err(PathError::EncodedTwice)),
            ("/a%25252fb", Err(PathError::EncodedTwice)),
            ("/a%252Fb", Err(PathError::EncodedTwice)),
            ("/100%25", Ok("/100%25")),
            ("/100%25/a", Ok("/100%25/a")),
            ("/a:b", Ok("/a:b")),
            ("/%3a", Ok("/%3A")),
        ] {
            check(target, want);
        }
    }

    fn check(target: &str, want: Result<&str, PathError>) {
        assert_eq!(normalise(target), want.map(str::to_owned), "{target}");
        if let Ok(once) = normalise(target) {
            assert_eq!(normalise(&once).as_deref(), Ok(once.as_str()), "a second time: {target}");
        }
    }

    #[test]
    fn parameters_of_segments_are_dropped_up_to_the_next_slash() {
        for (target, want) in
            [("/a/b?x;y", None), ("/a;v=1", Some("/a")), ("/a;v=1/b;c;d?x;y", Some("/a/b?x;y")), ("/a;/", Some("/a/"))]
        {
            assert_eq!(without_parameters(target).as_deref(), want, "{target}");
        }
    }
}
