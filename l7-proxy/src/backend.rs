//! What the proxy asks of the agent, which knows rules and keeps records.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use namegate_config::{
    l7::head::HttpFacts,
    name::Fqdn,
    reference::Limits,
    rule::{Direction, Origin},
};

/// Answers what is asked of the requests of a connection, and takes records of them.
pub trait Backend: Clone + Send + Sync + 'static {
    /// The limits on requests of a connection. `None` where the backend has no answer: then no request passes.
    fn connection_policy(&self, question: Question) -> impl Future<Output = Option<ConnectionPolicy>> + Send;

    /// Grows when answers may have changed: open connections ask anew before their next request. It must not block.
    fn revision(&self) -> u64;

    /// Takes a record. It must not block.
    fn record(&self, access: Access);

    /// The number of the endpoint of this node that has the address: its connections are one share of those that the
    /// proxy serves. It must not block.
    fn endpoint(&self, address: IpAddr) -> Option<u32> {
        let _ = address;
        None
    }

    /// Takes note that a connection was refused since this endpoint has its share; `None` is a client that is none. It
    /// must not block.
    fn refused(&self, endpoint: Option<u32>) {
        let _ = endpoint;
    }

    /// Takes note that a connection of this endpoint was closed since the proxy kept too many bytes for it; `None` is a
    /// client that is none. It must not block.
    fn relieved(&self, endpoint: Option<u32>) {
        let _ = endpoint;
    }

    /// Is called on each thread of the proxy once in a second, so that memory which the thread has freed can go back to the
    /// system. It must not block.
    fn tidy(&self) {}
}

/// A connection, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who called.
    pub client: SocketAddr,
    /// The address that was called.
    pub server: SocketAddr,
    /// How long ago the connection began: names count that opened the address then.
    pub age: Duration,
    /// What it asks for.
    pub named: Named,
    /// Names that opened the address when the connection was let pass: they count as if they still did.
    pub known: Arc<[Fqdn]>,
}

/// The name that a connection or request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Not known yet, or not one of a protocol with names.
    Any,
    /// This one; `None` where it asks for none, or for none that a rule could name.
    One(Option<Fqdn>),
    /// It speaks a protocol without names.
    Nameless,
}

/// What is asked of the requests of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPolicy {
    /// The limits of each end that has any; a request passes where every one lets it pass.
    pub sides: Vec<(Direction, Limits)>,
    /// Whether the server is to see the client's address: its answers find their way back to the proxy.
    pub keeps_source: bool,
    /// What would be denied passes, and is recorded as such.
    pub audit: bool,
    /// It matters for which name a connection asks: the question is put again with it.
    pub bound: bool,
    /// What the name that was asked for means.
    pub binding: Match,
    /// Names that open the server's address for the client, few of them where there are many.
    pub names: Arc<[Fqdn]>,
}

/// Whether a connection asks for a name that opened its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Match {
    /// It does, or need not.
    #[default]
    Good,
    /// It does not: it passes, and is recorded as such.
    Observed,
    /// It does not, and does not pass.
    Refused,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessVerdict {
    /// It passed.
    Allowed,
    /// It did not.
    Denied,
    /// It passed, and would not outside of audit mode.
    Audited,
}

/// A record of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who asked.
    pub client: SocketAddr,
    /// Whom.
    pub server: SocketAddr,
    /// The end whose rules decided.
    pub direction: Direction,
    /// The rule that decided.
    pub rule: Option<Arc<Origin>>,
    /// What became of it.
    pub verdict: AccessVerdict,
    /// The name did not open the address: that decided.
    pub mismatch: bool,
    /// What was asked.
    pub what: What,
}

/// Bytes of a method, a path or a host on record. A longer one is cut, and ends with `…`: records wait and are kept by
/// their number.
const TEXT_MAX: usize = 1 << 10;

/// What a request asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// HTTP.
    Http {
        /// Method, path and host, of at most 1 KiB each.
        facts: Arc<HttpFacts>,
        /// Status that the client got.
        code: u16,
        /// From the request's head to that of the response.
        latency: Duration,
    },
    /// A TLS connection.
    Tls {
        /// The name it asked for.
        server_name: Option<String>,
    },
}

impl What {
    /// A request for the record of it.
    pub(crate) fn http(facts: &Arc<HttpFacts>, code: u16, latency: Duration) -> Self {
        let texts = [&facts.method, &facts.path, &facts.host];
        // A value of a header field keeps all that was read with it.
        let facts = if facts.websocket.is_none() && texts.iter().all(|text| text.len() <= TEXT_MAX) {
            Arc::clone(facts)
        } else {
            let [method, path, host] = texts.map(|text| cut(text));
            Arc::new(HttpFacts { method, path, host, websocket: None })
        };
        Self::Http { facts, code, latency }
    }
}

fn cut(text: &str) -> String {
    let kept = &text[..text.floor_char_boundary(TEXT_MAX)];
    if kept.len() < text.len() { format!("{kept}…") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_and_end_with_a_sign() {
        let facts = |path: &str, websocket: bool| {
            let websocket = websocket.then(|| "key".parse().unwrap());
            Arc::new(HttpFacts { method: "GET".into(), path: path.into(), host: "a.io".into(), websocket })
        };
        let long = format!("/{}", "ä".repeat(TEXT_MAX));
        for (path, websocket) in [("/a", false), ("/a", true), (&*long, false)] {
            let What::Http { facts, .. } = What::http(&facts(path, websocket), 200, Duration::ZERO) else { panic!() };
            let [kept, end] = if path.len() > TEXT_MAX { [&path[..TEXT_MAX - 1], "…"] } else { [path, ""] };
            assert_eq!((facts.path.strip_suffix(end), &facts.websocket), (Some(kept), &None));
        }
    }
}
