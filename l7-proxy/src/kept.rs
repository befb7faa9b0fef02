//! Header fields of a request that goes on, kept in one piece until it is judged again.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use namegate_config::l7::is_override;

/// Bytes of header fields that are kept. Of a request that has more, only those are kept that ask for another method or
/// path, and no condition on a field holds when it is judged again.
const BYTES_MAX: usize = 8 << 10;

/// Fields, one after the other: the lengths of name and value, the name, the value.
#[derive(Debug)]
pub(crate) struct KeptFields(Box<[u8]>);

impl KeptFields {
    pub(crate) fn new(fields: &HeaderMap) -> Self {
        let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
        let bytes: usize = fields.iter().map(size).sum();
        let is_kept = |name: &HeaderName| bytes <= BYTES_MAX || is_override(name);
        let kept = || fields.iter().filter(|(name, _)| is_kept(name));
        let mut all = Vec::with_capacity(kept().map(|field| size(field) + 2 * size_of::<usize>()).sum());
        for (name, value) in kept() {
            for length in [name.as_str().len(), value.len()] {
                all.extend_from_slice(&length.to_ne_bytes());
            }
            all.extend_from_slice(name.as_str().as_bytes());
            all.extend_from_slice(value.as_bytes());
        }
        Self(all.into())
    }

    /// The fields as rules see them.
    pub(crate) fn read(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        let mut rest = &*self.0;
        while let Some((name, value)) = take(&mut rest) {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                fields.append(name, value);
            }
        }
        fields
    }
}

/// Takes the next field off.
fn take<'f>(rest: &mut &'f [u8]) -> Option<(&'f [u8], &'f [u8])> {
    let (name, after_name) = rest.split_first_chunk()?;
    let (value, fields) = after_name.split_first_chunk()?;
    let (name, after_name) = fields.split_at_checked(usize::from_ne_bytes(*name))?;
    let (value, after) = after_name.split_at_checked(usize::from_ne_bytes(*value))?;
    *rest = after;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use namegate_config::l7::{HttpRule, RegexText, head::HttpFacts};

    use super::*;

    fn fields(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn fields_are_read_as_they_were_kept() {
        let mut all = fields(&[("host", "a.io"), ("x-own", ""), ("accept", "*/*")]);
        all.append("x-own", HeaderValue::from_bytes(b"\xff\t2").unwrap());
        all.append("host", HeaderValue::from_static("b.io"));
        for fields in [all, HeaderMap::new()] {
            assert_eq!(KeptFields::new(&fields).read(), fields);
        }
    }

    #[test]
    fn what_asks_for_another_path_or_method_counts_also_beside_long_fields() {
        let text = |text| Some(RegexText::new(text).unwrap());
        let rule = HttpRule { method: text("GET"), path: text("/public"), ..HttpRule::default() };
        let facts = HttpFacts { method: "GET".into(), path: "/public".into(), host: "a.io".into(), websocket: None };
        let long = "x".repeat(BYTES_MAX);
        for (name, value, want) in [
            ("X-Original-URL", "/admin", false),
            ("X_Rewrite_Url", "/admin", false),
            ("X-HTTP-Method-Override", "DELETE", false),
            ("X-Original-URL", "/public", true),
            ("X-Limit", "1", true),
        ] {
            let fields = fields(&[("cookie", &long), (name, value)]);
            assert_eq!(rule.matches(&facts, &fields), want, "{name}");
            let kept = KeptFields::new(&fields).read();
            assert_eq!(rule.matches(&facts, &kept), want, "{name} is kept");
            assert!(!kept.contains_key("cookie"));
        }
    }
}
