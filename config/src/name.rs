//! DNS names and the patterns of `matchName` and `matchPattern`.
//!
//! A pattern is matched label by label without a regular expression, in time linear in pattern times name. The rules are
//! those of Cilium 1.20: a run of stars stands for any characters of one label; two or more stars before a first dot
//! stand for one or more whole labels; a pattern of stars alone matches every name.

mod index;

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

pub use index::NameIndex;

/// Longest name in octets, without the final dot (RFC 1035 §2.3.4).
pub const NAME_OCTETS_MAX: usize = 253;
/// Longest label in octets (RFC 1035 §2.3.4).
pub const LABEL_OCTETS_MAX: usize = 63;
/// Longest pattern in characters (the schema of CiliumNetworkPolicy).
pub const PATTERN_CHARS_MAX: usize = 255;

/// A fully qualified name: lower case letters, digits, `-` and `_`; no trailing dot; 1 to 253 octets, labels of 1 to 63
/// (RFC 1035 §2.3.4). The root is the empty text. Names with other octets are not representable: no pattern names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fqdn(Arc<str>);

/// Why a text is no [`Fqdn`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than 253 octets.
    #[error("a name has at most {NAME_OCTETS_MAX} octets, this one has {0}")]
    Long(usize),
    /// A label is empty or longer than 63 octets.
    #[error("the label at octet {at} has {len} octets; a label has 1 to {LABEL_OCTETS_MAX}")]
    Label {
        /// Where the label starts.
        at: usize,
        /// Its length.
        len: usize,
    },
    /// A character that no host name has.
    #[error("`{0}` at octet {1} is not a letter, digit, `-` or `_` (write other scripts as xn-- labels)")]
    Character(char, usize),
}

impl Fqdn {
    /// The name without a trailing dot; empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Labels from left to right; none for the root.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.split('.').filter(|label| !label.is_empty())
    }
}

impl FromStr for Fqdn {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        if bare.len() > NAME_OCTETS_MAX {
            return Err(NameError::Long(bare.len()));
        }
        if text == "." {
            return Ok(Self("".into()));
        }
        let mut at = 0;
        for label in bare.split('.') {
            if let Some((offset, character)) = label.char_indices().find(|&(_, c)| !is_name_char(c)) {
                return Err(NameError::Character(character, at + offset));
            }
            if label.is_empty() || label.len() > LABEL_OCTETS_MAX {
                return Err(NameError::Label { at, len: label.len() });
            }
            at += label.len() + 1;
        }
        if bare.bytes().any(|octet| octet.is_ascii_uppercase()) {
            return Ok(Self(bare.to_ascii_lowercase().into()));
        }
        Ok(Self(bare.into()))
    }
}

impl Borrow<str> for Fqdn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "." } else { &self.0 })
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// A `matchName` or `matchPattern`: lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern {
    /// As printed.
    text: Arc<str>,
    shape: Shape,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Shape {
    /// One name.
    Exact,
    /// Stars alone: every name and the root.
    Everything,
    /// Two or more stars, then a dot: one or more labels, then the rest.
    AnyLabelsThen(Vec<String>),
    /// Label patterns from left to right.
    Labels(Vec<String>),
}

/// Why a text is no [`NamePattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No text.
    #[error("the pattern is empty")]
    Empty,
    /// Longer than the schema allows.
    #[error("a pattern has at most {PATTERN_CHARS_MAX} characters, this one has {0}")]
    Long(usize),
    /// Two dots in a row, or a dot at the start.
    #[error("the label at character {0} is empty")]
    EmptyLabel(usize),
    /// A character outside the grammar.
    #[error("`{0}` at character {1} cannot stand in a name pattern (letters, digits, `-`, `_`, `.` and `*` can)")]
    Character(char, usize),
    /// A star where a name is wanted.
    #[error("`matchName` is one name; write `matchPattern` to use `*`")]
    StarInName,
}

impl NamePattern {
    /// Reads a `matchName`: one name, no star.
    pub fn name(text: &str) -> Result<Self, PatternError> {
        if text.contains('*') {
            return Err(PatternError::StarInName);
        }
        Self::pattern(text)
    }

    /// Reads a `matchPattern`. A leading empty label and the root alone are refused, as the schema does.
    pub fn pattern(text: &str) -> Result<Self, PatternError> {
        let bare = Self::checked(text)?;
        Ok(Self { shape: Shape::of(&bare), text: bare.into() })
    }

    fn checked(text: &str) -> Result<String, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.chars().count() > PATTERN_CHARS_MAX {
            return Err(PatternError::Long(text.chars().count()));
        }
        let bare = text.strip_suffix('.').unwrap_or(text);
        let mut label_empty = true;
        for (at, c) in bare.chars().enumerate() {
            match c {
                '.' if label_empty => return Err(PatternError::EmptyLabel(at)),
                '.' => label_empty = true,
                c if is_name_char(c) || c == '*' => label_empty = false,
                c => return Err(PatternError::Character(c, at)),
            }
        }
        if label_empty {
            return Err(PatternError::EmptyLabel(bare.len()));
        }
        Ok(bare.to_ascii_lowercase())
    }

    /// Whether the name is one of those the pattern stands for.
    pub fn matches(&self, name: &Fqdn) -> bool {
        match &self.shape {
            Shape::Everything => true,
            Shape::Exact => *self.text == *name.0,
            Shape::Labels(patterns) => labels_match(patterns, name.as_str()),
            Shape::AnyLabelsThen(patterns) => {
                let labels: Vec<&str> = name.labels().collect();
                labels.len() > patterns.len()
                    && patterns
                        .iter()
                        .zip(&labels[labels.len() - patterns.len()..])
                        .all(|(pattern, label)| label_matches(pattern, label))
            }
        }
    }

    /// The pattern, lower case, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The labels behind the last label with a star: every name that it matches ends with them.
    pub fn fixed_labels(&self) -> &str {
        match self.text.rsplit_once('*') {
            Some((_, rest)) => rest.split_once('.').map_or("", |(_, labels)| labels),
            None => &self.text,
        }
    }

    /// The one name it stands for, where it has no star.
    pub fn exact(&self) -> Option<&str> {
        matches!(self.shape, Shape::Exact).then_some(&*self.text)
    }
}

impl Shape {
    fn of(bare: &str) -> Self {
        let owned = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        if !bare.contains('*') {
            return Self::Exact;
        }
        if bare.bytes().all(|octet| octet == b'*') {
            return Self::Everything;
        }
        let after_stars = bare.trim_start_matches('*');
        match after_stars.strip_prefix('.') {
            Some(rest) if bare.len() - after_stars.len() >= 2 => Self::AnyLabelsThen(owned(rest)),
            _ => Self::Labels(owned(bare)),
        }
    }
}

fn labels_match(patterns: &[String], name: &str) -> bool {
    let mut labels = name.split('.');
    patterns.iter().all(|pattern| labels.next().is_some_and(|label| label_matches(pattern, label)))
        && labels.next().is_none()
}

/// Greedy match with one point to fall back to: the last star seen.
fn label_matches(pattern: &str, label: &str) -> bool {
    let (pattern, label) = (pattern.as_bytes(), label.as_bytes());
    let (mut p, mut l) = (0, 0);
    let mut fallback = None;
    while l < label.len() {
        match pattern.get(p) {
            Some(b'*') => {
                fallback = Some((p + 1, l));
                p += 1;
            }
            Some(octet) if *octet == label[l] => {
                p += 1;
                l += 1;
            }
            _ => {
                let Some((after_star, taken)) = fallback else { return false };
                fallback = Some((after_star, taken + 1));
                p = after_star;
                l = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|octet| *octet == b'*')
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names() {
        for (text, want) in [
            ("cilium.io", Ok("cilium.io")),
            ("CILIUM.io.", Ok("cilium.io")),
            ("_sip._tcp.a.io", Ok("_sip._tcp.a.io")),
            (".", Ok(".")),
            ("a..io", Err(NameError::Label { at: 2, len: 0 })),
            ("", Err(NameError::Label { at: 0, len: 0 })),
            ("b\u{fc}cher.example", Err(NameError::Character('\u{fc}', 1))),
            ("a b.io", Err(NameError::Character(' ', 1))),
        ] {
            let got = text.parse::<Fqdn>().map(|name| name.to_string());
            assert_eq!(got, want.map(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn refuses_patterns() {
        for (text, want) in [
            ("", PatternError::Empty),
            (".", PatternError::EmptyLabel(0)),
            (".io", PatternError::EmptyLabel(0)),
            ("a..io", PatternError::EmptyLabel(2)),
            ("a?.io", PatternError::Character('?', 1)),
        ] {
            assert_eq!(NamePattern::pattern(text), Err(want), "{text:?}");
        }
        assert_eq!(NamePattern::name("*.io"), Err(PatternError::StarInName));
    }
}
