//! Forms as data: read from `data/gauntlet`, and unfolded to cases, one for each combination of what varies.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::quic::{Datagram, QuicForm};
use crate::tls::TlsForm;

/// The files with forms.
const FILES: [&str; 5] = [
    include_str!("../../../data/gauntlet/http1.yaml"),
    include_str!("../../../data/gauntlet/paths.yaml"),
    include_str!("../../../data/gauntlet/http2.yaml"),
    include_str!("../../../data/gauntlet/tls.yaml"),
    include_str!("../../../data/gauntlet/quic.yaml"),
];
/// The allowed host of HTTP, and the other one on the same address.
pub(crate) const GOOD: &str = "good.test";
pub(crate) const BAD: &str = "bad.test";

/// What the policy of a port asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Policy {
    /// `rules.http` or `serverNames`.
    Limits,
    /// The name must have opened the address.
    Names,
}

/// What a form is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    Tls,
    Quic,
    /// A program of others, which speaks for itself.
    Program,
}

/// A group as a file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    group: String,
    forms: Vec<Form>,
}

/// A form as a file has it; what may stand in it is said in `http1.yaml`, `http2.yaml`, `tls.yaml` and `quic.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    name: String,
    #[serde(default = "limits")]
    on: Vec<Policy>,
    #[serde(default)]
    honest: bool,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    vary: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    send: Vec<String>,
    #[serde(default)]
    streams: Vec<Stream>,
    #[serde(default)]
    tls: Option<TlsForm>,
    #[serde(default)]
    datagrams: Vec<Datagram>,
    #[serde(default)]
    hellos: Vec<crate::hello::Hello>,
    #[serde(default)]
    program: Vec<String>,
}

/// A stream of HTTP/2.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stream {
    /// Names and values in their order.
    pub(crate) fields: Vec<(String, String)>,
    /// Sent in one DATA frame, where there is one.
    #[serde(default)]
    pub(crate) body: Option<String>,
    /// Fields that end the stream.
    #[serde(default)]
    pub(crate) trailers: Vec<(String, String)>,
}

/// A form of the data with every placeholder that varies filled in. Characters are bytes.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) policy: Policy,
    pub(crate) honest: bool,
    /// Servers that take part; all that speak the protocol where it is empty.
    pub(crate) to: Vec<String>,
    pub(crate) kind: Kind,
}

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Http1(Vec<String>),
    Http2(Vec<Stream>),
    Tls(Box<TlsForm>),
    Quic(QuicForm),
    Program(Vec<String>),
}

impl Case {
    pub(crate) fn protocol(&self) -> Protocol {
        match self.kind {
            Kind::Http1(_) => Protocol::Http1,
            Kind::Http2(_) => Protocol::Http2,
            Kind::Tls(_) => Protocol::Tls,
            Kind::Quic(_) => Protocol::Quic,
            Kind::Program(_) => Protocol::Program,
        }
    }

    /// The port that has the policy.
    pub(crate) fn port(&self) -> u16 {
        let is_clear = matches!(self.protocol(), Protocol::Http1 | Protocol::Http2);
        match (is_clear, self.policy) {
            (true, Policy::Limits) => 80,
            (true, Policy::Names) => 8081,
            (false, Policy::Limits) => 443,
            (false, Policy::Names) => 8444,
        }
    }
}

/// Every case of the data.
pub(crate) fn all() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for text in FILES {
        let groups: Vec<Group> = serde_saphyr::from_str(text).context("reading forms")?;
        for group in groups {
            for form in &group.forms {
                cases.extend(unfold(&group.group, form));
            }
        }
    }
    Ok(cases)
}

fn limits() -> Vec<Policy> {
    vec![Policy::Limits]
}

fn unfold(group: &str, form: &Form) -> Vec<Case> {
    let mut chosen: Vec<Vec<(&str, &str)>> = vec![Vec::new()];
    for (placeholder, values) in &form.vary {
        let mut longer = Vec::new();
        for one in &chosen {
            longer.extend(values.iter().map(|value| [&one[..], &[(placeholder.as_str(), value.as_str())]].concat()));
        }
        chosen = longer;
    }
    let policies = form.on.iter().flat_map(|policy| chosen.iter().map(move |chosen| (*policy, chosen)));
    policies.map(|(policy, chosen)| case(group, form, policy, chosen)).collect()
}

fn case(group: &str, form: &Form, policy: Policy, chosen: &[(&str, &str)]) -> Case {
    let fill = |text: &str| fill(text, chosen);
    let values: Vec<String> = chosen.iter().map(|(_, value)| value.escape_default().to_string()).collect();
    let mut name = form.name.clone();
    if !values.is_empty() {
        name = format!("{name}: {}", values.join(" | "));
    }
    let both = |fields: &[(String, String)]| fields.iter().map(|(name, value)| (fill(name), fill(value))).collect();
    let kind = if let Some(tls) = &form.tls {
        Kind::Tls(Box::new(tls.map(&fill)))
    } else if !form.streams.is_empty() {
        let stream = |stream: &Stream| Stream {
            fields: both(&stream.fields),
            body: stream.body.as_deref().map(&fill),
            trailers: both(&stream.trailers),
        };
        Kind::Http2(form.streams.iter().map(stream).collect())
    } else if !form.datagrams.is_empty() {
        Kind::Quic(QuicForm { hellos: form.hellos.clone(), datagrams: form.datagrams.clone() })
    } else if !form.program.is_empty() {
        Kind::Program(form.program.iter().map(|word| fill(word)).collect())
    } else {
        Kind::Http1(form.send.iter().map(|piece| fill(piece)).collect())
    };
    Case { group: group.to_owned(), name, policy, honest: form.honest, to: form.to.clone(), kind }
}

fn fill(text: &str, chosen: &[(&str, &str)]) -> String {
    chosen.iter().fold(text.to_owned(), |text, (placeholder, value)| text.replace(&format!("{{{placeholder}}}"), value))
}

/// Fills in what is the same for all forms, for HTTP: the mark, hosts, fields of an honest request.
pub(crate) fn complete(text: &str, mark: &str, policy: Policy) -> String {
    let (path, host) = match policy {
        Policy::Limits => ("/admin/{id}a", GOOD),
        Policy::Names => ("/public/{id}a", BAD),
    };
    let next = "GET /public/{id}z HTTP/1.1\r\n{head}\r\n";
    let filled = text.replace("{next}", next).replace("{path}", path).replace("{host}", host);
    let filled = filled.replace("{head}", "Host: {good}\r\nX-Limit: 1\r\n");
    filled.replace("{good}", GOOD).replace("{bad}", BAD).replace("{id}", mark)
}

/// Each character as the byte of its number.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(character).unwrap_or(b'?')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_holds_enough_forms_of_every_protocol() {
        let cases = all().unwrap();
        assert!(cases.len() >= 400, "{}", cases.len());
        for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Tls, Protocol::Quic] {
            let honest = cases.iter().filter(|case| case.protocol() == protocol && case.honest).count();
            assert!(honest > 0, "{protocol:?} has no control");
        }
        let mut keys: Vec<_> =
            cases.iter().map(|case| (&case.group, &case.name, case.port(), case.protocol())).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all, "two cases have the same name");
    }

    #[test]
    fn characters_are_bytes() {
        assert_eq!(bytes("a\u{80}\u{ff}"), [b'a', 0x80, 0xff]);
        let text = complete("{path} {next}", "t00001", Policy::Limits);
        assert_eq!(text, "/admin/t00001a GET /public/t00001z HTTP/1.1\r\nHost: good.test\r\nX-Limit: 1\r\n\r\n");
    }
}
