//! `ClientHello` messages of TLS 1.2 and 1.3 (RFC 5246 §7.4.1.2, RFC 8446 §4.1.2), as odd as a form wants them.

use serde::Deserialize;

use crate::form::bytes;

/// `TLS_CHACHA20_POLY1305_SHA256`, and suites of TLS 1.2 that servers have.
const SUITES_13: &[u8] = &[0x13, 0x03];
const SUITES_12: &[u8] = &[0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30, 0xcc, 0xa9, 0xcc, 0xa8];
const SERVER_NAME: u16 = 0;
const GROUPS: u16 = 10;
const SIGNATURES: u16 = 13;
const ALPN: u16 = 16;
const VERSIONS: u16 = 43;
const COOKIE: u16 = 44;
const KEY_SHARE: u16 = 51;

/// A `ClientHello` as the data has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    /// Extensions with server names, each with its names; one that begins with a digit and `:` has that type.
    #[serde(default)]
    pub(crate) names: Vec<Vec<String>>,
    /// Without a key share: a server of TLS 1.3 answers `HelloRetryRequest`.
    #[serde(default)]
    pub(crate) no_share: bool,
    /// TLS 1.2 alone.
    #[serde(default)]
    pub(crate) tls12: bool,
    /// The names come after all other extensions.
    #[serde(default)]
    pub(crate) names_last: bool,
    /// Further extensions as they stand, before the others; characters are bytes.
    #[serde(default)]
    pub(crate) before: String,
    /// The same, after the others.
    #[serde(default)]
    pub(crate) after: String,
    /// `legacy_version`; characters are bytes.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// Bytes after the extensions, inside of the message.
    #[serde(default)]
    pub(crate) tail: String,
    /// What the length of the extensions says too much.
    #[serde(default)]
    pub(crate) too_long: u16,
}

/// What a hello carries besides its form.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content<'c> {
    pub(crate) random: [u8; 32],
    pub(crate) session: &'c [u8],
    /// The share of X25519.
    pub(crate) share: &'c [u8],
    pub(crate) cookie: &'c [u8],
    /// Protocols and transport parameters, for QUIC.
    pub(crate) quic: Option<&'c [u8]>,
}

impl Hello {
    /// Fills placeholders in.
    pub(crate) fn map(&self, fill: &dyn Fn(&str) -> String) -> Self {
        let names = self.names.iter().map(|names| names.iter().map(|name| fill(name)).collect()).collect();
        Self {
            names,
            before: fill(&self.before),
            after: fill(&self.after),
            tail: fill(&self.tail),
            version: self.version.as_deref().map(fill),
            ..self.clone()
        }
    }

    /// The message, with type and length.
    pub(crate) fn message(&self, content: &Content<'_>) -> Vec<u8> {
        let mut body = self.version.as_deref().map_or(vec![3, 3], bytes);
        body.extend(content.random);
        body.extend(short(content.session));
        body.extend(long(if self.tls12 { SUITES_12 } else { SUITES_13 }));
        body.extend([1, 0]);
        let extensions = self.extensions(content);
        let length = u16::try_from(extensions.len()).unwrap_or(u16::MAX).saturating_add(self.too_long);
        body.extend(length.to_be_bytes());
        body.extend(extensions);
        body.extend(bytes(&self.tail));
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX) | 1 << 24;
        [&length.to_be_bytes()[..], &body].concat()
    }

    fn extensions(&self, content: &Content<'_>) -> Vec<u8> {
        let names: Vec<u8> = self.names.iter().flat_map(|names| extension(SERVER_NAME, &server_names(names))).collect();
        let mut all = bytes(&self.before);
        if !self.names_last {
            all.extend(&names);
        }
        all.extend(extension(GROUPS, &long(&[0, 29])));
        all.extend(extension(SIGNATURES, &long(&[4, 3, 8, 4, 5, 3, 8, 5, 8, 6, 4, 1])));
        if !self.tls12 {
            all.extend(extension(VERSIONS, &[2, 3, 4]));
            let share = [&[0, 29][..], &long(content.share)].concat();
            all.extend(extension(KEY_SHARE, &long(if self.no_share { &[] } else { &share })));
        }
        if !content.cookie.is_empty() {
            all.extend(extension(COOKIE, &long(content.cookie)));
        }
        if let Some(parameters) = content.quic {
            all.extend(extension(ALPN, &long(&short(b"h3"))));
            all.extend(parameters);
        }
        if self.names_last {
            all.extend(&names);
        }
        all.extend(bytes(&self.after));
        all
    }
}

fn server_names(names: &[String]) -> Vec<u8> {
    let entry = |name: &String| {
        let (kind, name) = match name.split_once(':') {
            Some((kind, name)) => (kind.parse().unwrap_or(0), name),
            None => (0, name.as_str()),
        };
        [&[kind][..], &long(&bytes(name))].concat()
    };
    long(&names.iter().flat_map(entry).collect::<Vec<u8>>())
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(content)].concat()
}

/// With a length of one byte.
pub(crate) fn short(content: &[u8]) -> Vec<u8> {
    [&[u8::try_from(content.len()).unwrap_or(u8::MAX)][..], content].concat()
}

/// With a length of two bytes.
fn long(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes()[..], content].concat()
}
