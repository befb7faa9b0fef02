//! The forms in which a client can ask, and what the server must have seen of each.

use serde::Deserialize;

/// A form of HTTP. The server has a port for each form of TLS, so that an answer proves the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1 in clear text.
    Http1,
    /// HTTP/1.1 that asks for a change to HTTP/2 (RFC 7540 §3.2, deprecated by RFC 9113 §3.1).
    Upgrade,
    /// HTTP/2 in clear text with prior knowledge.
    H2c,
    /// HTTP/1.1 over TLS 1.2.
    Tls12,
    /// HTTP/1.1 over TLS 1.3 with a classical group.
    Tls13,
    /// HTTP/1.1 over TLS 1.3 with X25519MLKEM768.
    MlKem,
    /// HTTP/2 over TLS.
    Http2,
    /// HTTP/3.
    Http3,
}

/// What the server says that it saw.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Version of HTTP.
    pub(crate) proto: String,
    /// `Host` or `:authority`.
    pub(crate) host: String,
    /// Version of TLS; empty without.
    pub(crate) tls: String,
    /// Group that the keys were agreed by; empty where Go does not tell.
    pub(crate) group: String,
    /// The field `Upgrade`.
    pub(crate) upgrade: String,
    /// The field `HTTP2-Settings`.
    pub(crate) settings: String,
}

impl Protocol {
    pub(crate) const ALL: [Self; 8] =
        [Self::Http1, Self::Upgrade, Self::H2c, Self::Tls12, Self::Tls13, Self::MlKem, Self::Http2, Self::Http3];

    /// As the clients' arguments have it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Upgrade => "upgrade",
            Self::H2c => "h2c",
            Self::Tls12 => "tls12",
            Self::Tls13 => "tls13",
            Self::MlKem => "mlkem",
            Self::Http2 => "http2",
            Self::Http3 => "http3",
        }
    }

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Upgrade => "HTTP/1.1, Upgrade: h2c",
            Self::H2c => "HTTP/2, clear text",
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
            Self::MlKem => "TLS 1.3, X25519MLKEM768",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
        }
    }

    /// Port of the server.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http1 | Self::Upgrade | Self::H2c => 9_080,
            Self::Tls12 => 9_412,
            Self::Tls13 => 9_413,
            Self::MlKem => 9_468,
            Self::Http2 | Self::Http3 => 9_443,
        }
    }

    /// Whether requests are read, and can be answered 403.
    pub(crate) fn is_clear(self) -> bool {
        self.port() == 9_080
    }

    /// The URL on a name.
    pub(crate) fn url(self, name: &str) -> String {
        format!("{}://{name}:{}/", if self.is_clear() { "http" } else { "https" }, self.port())
    }

    /// What is wrong with what the server saw of a request for a name.
    pub(crate) fn objection(self, name: &str, seen: &Seen) -> Option<String> {
        let (proto, tls) = match self {
            Self::Http1 | Self::Upgrade => ("HTTP/1.1", ""),
            Self::H2c => ("HTTP/2.0", ""),
            Self::Tls12 => ("HTTP/1.1", "TLS 1.2"),
            Self::Tls13 | Self::MlKem => ("HTTP/1.1", "TLS 1.3"),
            Self::Http2 => ("HTTP/2.0", "TLS 1.3"),
            Self::Http3 => ("HTTP/3.0", "TLS 1.3"),
        };
        let host = format!("{name}:{}", self.port());
        let is_hybrid = seen.group == "X25519MLKEM768";
        let wrong = (&*seen.proto, &*seen.tls, &*seen.host) != (proto, tls, &*host)
            || (self == Self::MlKem && !is_hybrid)
            || (self == Self::Tls13 && is_hybrid);
        wrong.then(|| format!("the server saw {seen:?}"))
    }
}

impl Seen {
    /// In a few words.
    pub(crate) fn words(&self) -> String {
        let parts = [&self.proto, &self.tls, &self.group].into_iter().filter(|part| !part.is_empty());
        parts.map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}
