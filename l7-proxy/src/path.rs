//! The path as rules see it: one spelling for what a server takes for the same (RFC 3986 §6.2.2), merged slashes.
//!
//! What servers read in different ways is refused rather than guessed: encoded slashes, backslashes, controls.

/// Why a path can not be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is not the path of a server's resource (RFC 9112 §3.2.1).
    #[error("the request target is not a path")]
    NotAPath,
    /// `%` without two hexadecimal digits.
    #[error("the path has a broken percent-encoding")]
    Encoding,
    /// `%2F`, `%5C` or `\`.
    #[error("the path has an encoded slash or a backslash")]
    Separator,
    /// An encoded or plain control character.
    #[error("the path has a control character")]
    Control,
}

/// Normalises path and query: unreserved characters decoded, hexadecimal digits in upper case, runs of slashes merged,
/// dot segments removed. The query stays as it is.
pub fn normalise(target: &str) -> Result<String, PathError> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
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
            other => segments.push(other),
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

/// Whether nothing is to be changed, as is most often so: plain characters, no empty segment, none that begins with a dot.
fn is_normal(path: &str) -> bool {
    let octets = path.as_bytes();
    octets.iter().all(|octet| octet.is_ascii_graphic() && !matches!(octet, b'%' | b'\\'))
        && !octets.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

fn decode(path: &str) -> Result<String, PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            match character {
                '\\' => return Err(PathError::Separator),
                other if other.is_control() => return Err(PathError::Control),
                other => decoded.push(other),
            }
            continue;
        }
        let mut digit = || characters.next().and_then(|digit| digit.to_digit(16)).ok_or(PathError::Encoding);
        let octet = digit()? << 4 | digit()?;
        match char::from_u32(octet) {
            Some('/' | '\\') => return Err(PathError::Separator),
            Some(control) if control.is_ascii_control() => return Err(PathError::Control),
            Some(plain) if plain.is_ascii_alphanumeric() || "-._~".contains(plain) => decoded.push(plain),
            _ => {
                decoded.push('%');
                let hexadecimal = |digit| char::from_digit(digit, 16).unwrap_or('0').to_ascii_uppercase();
                decoded.extend([hexadecimal(octet >> 4), hexadecimal(octet & 0xf)]);
            }
        }
    }
    Ok(decoded)
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
            assert_eq!(normalise(target), want.map(str::to_owned), "{target}");
            if let Ok(once) = normalise(target) {
                assert_eq!(normalise(&once).as_deref(), Ok(once.as_str()), "a second time: {target}");
            }
        }
    }
}
