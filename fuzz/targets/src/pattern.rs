//! `matchPattern` and `matchName`.

use namegate_config::name::{Fqdn, NamePattern};

/// A pattern, and names below it, one a line. Without a newline the octets are spelled with few letters, so that
/// patterns and names meet often.
///
/// # Panics
/// A pattern is taken that the grammar does not have, or refused though it has it; or it matches another name than the
/// rules say.
pub fn pattern(data: &[u8]) {
    let text = if data.contains(&b'\n') { str::from_utf8(data).map(str::to_owned).ok() } else { Some(spelled(data)) };
    let Some(text) = text else { return };
    let mut lines = text.lines();
    let written = lines.next().unwrap_or_default();
    let parsed = NamePattern::pattern(written);
    assert_eq!(parsed.is_ok(), is_pattern(written), "{written:?}: {parsed:?}");
    let exact = NamePattern::name(written);
    assert_eq!(exact.is_ok(), is_pattern(written) && !written.contains('*'), "{written:?}: {exact:?}");
    let Ok(parsed) = parsed else { return };
    let printed = NamePattern::pattern(parsed.as_str());
    assert_eq!(printed.as_ref(), Ok(&parsed), "what is printed is not what was read");
    let bare = written.strip_suffix('.').unwrap_or(written).to_ascii_lowercase();
    for line in lines.chain(["."]) {
        let name = line.parse::<Fqdn>();
        assert_eq!(name.is_ok(), is_name(line), "{line:?}: {name:?}");
        let Ok(name) = name else { continue };
        let want = selects(&bare, &line.strip_suffix('.').unwrap_or(line).to_ascii_lowercase());
        assert_eq!(parsed.matches(&name), want, "{written:?} {line:?}");
        assert_eq!(
            exact.as_ref().is_ok_and(|exact| exact.matches(&name)),
            exact.is_ok() && want,
            "{written:?} {line:?}"
        );
    }
}

fn spelled(data: &[u8]) -> String {
    const LETTERS: [char; 16] = ['a', 'b', '*', '.', '\n', 'a', '*', '.', '\n', 'A', '-', '_', '*', '.', 'a', 'b'];
    data.iter().map(|octet| LETTERS[usize::from(octet % 16)]).collect()
}

/// `^([-a-zA-Z0-9_*]+[.]?)+$` with at most 255 characters: the schema of `CiliumNetworkPolicy`.
fn is_pattern(text: &str) -> bool {
    text.chars().count() <= 255 && is_dotted(text, |c| is_inner(c) || c == '*')
}

/// RFC 1035 §2.3.4, with the characters of patterns; or the root.
fn is_name(text: &str) -> bool {
    let bare = text.strip_suffix('.').unwrap_or(text);
    text == "." || (is_dotted(text, is_inner) && bare.len() <= 253 && bare.split('.').all(|label| label.len() <= 63))
}

fn is_dotted(text: &str, is_inner: impl Fn(char) -> bool + Copy) -> bool {
    let labels: Vec<&str> = text.split('.').collect();
    let labels = match &labels[..] {
        [rest @ .., ""] if !rest.is_empty() => rest,
        all => all,
    };
    labels.iter().all(|label| !label.is_empty() && label.chars().all(is_inner))
}

fn is_inner(c: char) -> bool {
    matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_')
}

/// The rules as they are told; both texts lower case and without a trailing dot.
fn selects(pattern: &str, name: &str) -> bool {
    if pattern.chars().all(|c| c == '*') {
        return true;
    }
    let rest = pattern.trim_start_matches('*');
    if pattern.len() - rest.len() >= 2 && rest.starts_with('.') {
        // Any number of labels, at least one, then what follows the first dot.
        return name.match_indices('.').any(|(at, _)| at > 0 && spells(&rest[1..], &name[at + 1..]));
    }
    spells(pattern, name)
}

/// Whether the name comes out when each star becomes characters of one label: a table of every pair of beginnings.
fn spells(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let mut table = vec![vec![false; name.len() + 1]; pattern.len() + 1];
    table[0][0] = true;
    for p in 1..=pattern.len() {
        for n in 0..=name.len() {
            let last = n.checked_sub(1).map(|at| name[at]);
            table[p][n] = match (pattern[p - 1], last) {
                ('*', None) => table[p - 1][0],
                ('*', Some(c)) => table[p - 1][n] || (c != '.' && table[p][n - 1]),
                (_, None) => false,
                (letter, Some(c)) => letter == c && table[p - 1][n - 1],
            };
        }
    }
    table[pattern.len()][name.len()]
}
