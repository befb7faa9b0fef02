//! The server's answer to a WebSocket handshake (RFC 6455 §4.2.2): only the one that the client asked for opens a tunnel.

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    HeaderMap,
    header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE},
};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

/// What a server appends to the key before it makes the digest (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether the fields of a "101 Switching Protocols" answer the handshake with this key.
pub(crate) fn is_accepted(key: &HeaderValue, fields: &HeaderMap) -> bool {
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(GUID);
    let accept = BASE64_STANDARD.encode(digest.finish());
    let is_one = |name, wanted: &str| {
        let mut values = fields.get_all(name).iter();
        let is_wanted = values.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()));
        is_wanted && values.next().is_none()
    };
    let mut accepts = fields.get_all(SEC_WEBSOCKET_ACCEPT).iter();
    let mut options = fields.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    is_one(UPGRADE, "websocket")
        && options.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade")))
        && accepts.next().is_some_and(|value| value == accept.as_str())
        && accepts.next().is_none()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    #[test]
    fn only_the_answer_to_the_handshake_accepts_it() {
        // The key and the answer of RFC 6455 §1.3.
        const ACCEPT: (&str, &str) = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        const UPGRADE: (&str, &str) = ("upgrade", "WebSocket");
        const CONNECTION: (&str, &str) = ("connection", "keep-alive, Upgrade");
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        for (fields, want) in [
            (&[UPGRADE, CONNECTION, ACCEPT][..], true),
            (&[CONNECTION, ACCEPT], false),
            (&[UPGRADE, ACCEPT], false),
            (&[UPGRADE, CONNECTION], false),
            (&[UPGRADE, CONNECTION, ACCEPT, ACCEPT], false),
            (&[UPGRADE, ("upgrade", "h2c"), CONNECTION, ACCEPT], false),
            (&[("upgrade", "h2c"), CONNECTION, ACCEPT], false),
            (&[UPGRADE, CONNECTION, ("sec-websocket-accept", "S3pPLMBiTxaQ9kYGzzhZRbK+xOo=")], false),
        ] {
            let field = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            assert_eq!(is_accepted(&key, &fields.iter().map(field).collect()), want, "{fields:?}");
        }
    }
}
