//! DNS questions as limits see them: a name and a record type.

use std::{fmt, str::FromStr};

use crate::name::{Fqdn, NamePattern};

/// Words for record types (IANA, "Resource Record (RR) TYPEs") and their numbers.
const WORDS: [(&str, u16); 23] = [
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("NULL", 10),
    ("PTR", 12),
    ("HINFO", 13),
    ("MX", 15),
    ("TXT", 16),
    ("AAAA", 28),
    ("LOC", 29),
    ("SRV", 33),
    ("NAPTR", 35),
    ("CERT", 37),
    ("DNAME", 39),
    ("DS", 43),
    ("SSHFP", 44),
    ("DNSKEY", 48),
    ("TLSA", 52),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("URI", 256),
    ("CAA", 257),
];

/// The record type that a question asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryType(pub u16);

impl QueryType {
    /// IPv4 addresses.
    pub const A: Self = Self(1);
    /// IPv6 addresses.
    pub const AAAA: Self = Self(28);
}

/// Why a text is no record type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no record type of this name; write one of {}, or a number as TYPE65", words())]
pub struct UnknownType;

fn words() -> String {
    WORDS.map(|(word, _)| word).join(", ")
}

impl FromStr for QueryType {
    type Err = UnknownType;

    /// A word in any letter case, or `TYPE` and a number (RFC 3597 §5).
    fn from_str(text: &str) -> Result<Self, UnknownType> {
        let upper = text.to_ascii_uppercase();
        let number = upper.strip_prefix("TYPE").filter(|digits| digits.bytes().all(|octet| octet.is_ascii_digit()));
        let known = WORDS.iter().find(|(word, _)| *word == upper).map(|(_, number)| *number);
        known.or_else(|| number?.parse().ok()).map(Self).ok_or(UnknownType)
    }
}

impl fmt::Display for QueryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match WORDS.iter().find(|(_, number)| *number == self.0) {
            Some((word, _)) => f.write_str(word),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// DNS questions that pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Questions {
    /// Names that one of these matches.
    pub names: Vec<NamePattern>,
    /// Record types; `None` is every one.
    pub types: Option<Vec<QueryType>>,
}

impl Questions {
    /// Whether the name may be asked for, with a type that passes.
    pub fn names_it(&self, name: &Fqdn) -> bool {
        self.names.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether the question passes.
    pub fn allows(&self, name: &Fqdn, kind: QueryType) -> bool {
        self.types.as_ref().is_none_or(|types| types.contains(&kind)) && self.names_it(name)
    }
}

impl From<Vec<NamePattern>> for Questions {
    /// With every type.
    fn from(names: Vec<NamePattern>) -> Self {
        Self { names, types: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_words_and_numbers() {
        for (text, want) in [
            ("A", Some((1, "A"))),
            ("aaaa", Some((28, "AAAA"))),
            ("TYPE65", Some((65, "HTTPS"))),
            ("type65280", Some((65_280, "TYPE65280"))),
            ("TYPE65536", None),
            ("TYPE", None),
            ("TYPE+1", None),
            ("ANY", None),
            ("*", None),
            ("", None),
        ] {
            let got = text.parse::<QueryType>().ok().map(|kind| (kind.0, kind.to_string()));
            assert_eq!(got, want.map(|(number, word)| (number, word.to_owned())), "{text}");
        }
    }

    #[test]
    fn name_and_type_must_both_pass() {
        let names = vec![NamePattern::pattern("*.io").unwrap()];
        let all = Questions::from(names.clone());
        let some = Questions { names, types: Some(vec![QueryType::A, QueryType::AAAA]) };
        let txt = QueryType(16);
        for (questions, name, kind, want) in [
            (&all, "a.io", txt, true),
            (&all, "a.com", QueryType::A, false),
            (&some, "a.io", QueryType::AAAA, true),
            (&some, "a.io", txt, false),
            (&some, "a.com", QueryType::A, false),
        ] {
            assert_eq!(questions.allows(&name.parse().unwrap(), kind), want, "{name} {kind} {questions:?}");
        }
    }
}
