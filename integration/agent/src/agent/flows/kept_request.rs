//! A request as the history keeps it before anybody asks for it: in one piece of memory.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use namegate_config::{
    l7::head::HttpFacts,
    rule::{Direction, Origin},
};
use namegate_l7_proxy::{Access, AccessVerdict, What};

/// A request of an endpoint, or a TLS connection.
#[derive(Clone, Debug)]
pub(crate) struct KeptRequest {
    /// Whose it is.
    pub(crate) endpoint: u32,
    pub(crate) verdict: AccessVerdict,
    time: SystemTime,
    client: SocketAddr,
    server: SocketAddr,
    direction: Direction,
    rule: Option<Arc<Origin>>,
    mismatch: bool,
    what: Kept,
    /// Method, path and host; or the server name.
    text: Box<str>,
}

#[derive(Clone, Copy, Debug)]
enum Kept {
    Http { method: usize, path: usize, code: u16, latency: Duration },
    Named,
    Nameless,
}

impl KeptRequest {
    pub(crate) fn new(endpoint: u32, time: SystemTime, access: Access) -> Self {
        let Access { client, server, direction, rule, verdict, mismatch, what } = access;
        let (what, text) = match what {
            What::Http { facts, code, latency } => {
                let HttpFacts { method, path, host, .. } = &*facts;
                let what = Kept::Http { method: method.len(), path: path.len(), code, latency };
                (what, [&**method, path, host].concat())
            }
            What::Tls { server_name: Some(name) } => (Kept::Named, name),
            What::Tls { server_name: None } => (Kept::Nameless, String::new()),
        };
        Self { endpoint, verdict, time, client, server, direction, rule, mismatch, what, text: text.into() }
    }

    /// The record again, and its time.
    pub(super) fn read(&self) -> (SystemTime, Access) {
        let what = match self.what {
            Kept::Http { method, path, code, latency } => {
                let (method, rest) = self.text.split_at(method);
                let (path, host) = rest.split_at(path);
                let [method, path, host] = [method, path, host].map(str::to_owned);
                What::Http { facts: Arc::new(HttpFacts { method, path, host, websocket: None }), code, latency }
            }
            Kept::Named => What::Tls { server_name: Some(self.text.to_string()) },
            Kept::Nameless => What::Tls { server_name: None },
        };
        let Self { client, server, direction, verdict, mismatch, .. } = *self;
        (self.time, Access { client, server, direction, rule: self.rule.clone(), verdict, mismatch, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_kept() {
        let rule = Origin { kind: "T".into(), namespace: Some("shop".into()), name: "r".into(), path: "x".into() };
        let facts = HttpFacts { method: "GET".into(), path: "/ä?b=1".into(), host: "a.io:80".into(), websocket: None };
        for what in [
            What::Http { facts: Arc::new(facts), code: 403, latency: Duration::from_micros(1_234) },
            What::Tls { server_name: Some("a.io".into()) },
            What::Tls { server_name: None },
        ] {
            let access = Access {
                client: "10.0.0.1:40000".parse().unwrap(),
                server: "[2001:db8::1]:80".parse().unwrap(),
                direction: Direction::Ingress,
                rule: Some(Arc::new(rule.clone())),
                verdict: AccessVerdict::Audited,
                mismatch: true,
                what,
            };
            let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(7);
            let kept = KeptRequest::new(3, time, access.clone());
            assert_eq!((kept.endpoint, kept.verdict, kept.read()), (3, AccessVerdict::Audited, (time, access)));
        }
    }
}
