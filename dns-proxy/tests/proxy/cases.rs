//! The cases of `conformance/dns-wire.json`, and questions as octets.

use std::net::IpAddr;

#[derive(serde::Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) question: Asked,
    response_hex: String,
    expect: Expect,
}

#[derive(serde::Deserialize)]
pub(crate) struct Asked {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(serde::Deserialize)]
struct Expect {
    inject: serde_json::Value,
    reply: String,
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let file = include_str!("../../../conformance/dns-wire.json");
    let cases = serde_json::from_str::<File>(file).unwrap().cases;
    assert_eq!(cases.len(), 54);
    cases
}

impl Case {
    pub(crate) fn response(&self) -> Vec<u8> {
        let digits = self.response_hex.as_bytes();
        let octet = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(octet).collect()
    }

    pub(crate) fn query(&self, id: u16) -> Vec<u8> {
        let kind = match self.question.kind.as_str() {
            "A" => 1,
            "AAAA" => 28,
            "HTTPS" => 65,
            other => panic!("type {other}"),
        };
        query(id, &self.question.name, kind)
    }

    /// Whether these addresses and TTLs are what may be opened.
    pub(crate) fn may_open(&self, addresses: &[(IpAddr, u32)]) -> bool {
        let mut got: Vec<_> = addresses.to_vec();
        got.sort_unstable();
        match &self.expect.inject {
            // "[] or [198.51.100.7]", "[] or addresses of a response that parses and answers the question"
            serde_json::Value::String(any_of) => {
                assert!(any_of.starts_with("any-of: [] or "), "{any_of}");
                got.is_empty() || got.iter().all(|(address, _)| any_of.contains(&address.to_string()))
            }
            list => {
                let pairs: Vec<(IpAddr, serde_json::Value)> = serde_json::from_value(list.clone()).unwrap();
                let ttl = |text: &serde_json::Value| match text.as_str() {
                    Some("min-ttl") => 0,
                    Some("max-ttl") => i32::MAX.cast_unsigned(),
                    _ => u32::try_from(text.as_u64().unwrap()).unwrap(),
                };
                let mut want: Vec<_> = pairs.iter().map(|(address, text)| (*address, ttl(text))).collect();
                want.sort_unstable();
                got == want
            }
        }
    }

    /// Whether a client may see this reply, which the proxy gave in the end.
    pub(crate) fn may_see(&self, reply: &[u8], query: &[u8]) -> bool {
        let rcode = reply[3] & 0xf;
        let is_servfail = rcode == 2 && reply[6..8] == [0, 0];
        let upstream = self.response();
        let is_forwarded = reply[..2] == query[..2]
            && reply.len() == upstream.len()
            && reply[2..12] == upstream[2..12]
            && reply[query.len()..] == upstream[query.len()..];
        match self.expect.reply.as_str() {
            "forward" | "forward (or with the hints removed and nothing injected)" | "forward-or-drop" => is_forwarded,
            "forward-or-servfail" | "any but a crash or a hang" => is_forwarded || is_servfail,
            "forward-or-refuse" => is_forwarded || rcode == 5,
            // Asked again over TCP, the resolver says the same: that is no answer.
            "drop-or-servfail" | "retry-over-tcp" => is_servfail,
            other => panic!("{}: {other}", self.id),
        }
    }
}

/// A question with RD set; `\` takes a dot into a label.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(name_octets(name));
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// A name on the wire.
pub(crate) fn name_octets(name: &str) -> Vec<u8> {
    let (mut octets, mut label) = (Vec::new(), Vec::new());
    let mut characters = name.bytes();
    while let Some(character) = characters.next() {
        match character {
            b'\\' => label.extend(characters.next()),
            b'.' => {
                octets.push(u8::try_from(label.len()).unwrap());
                octets.append(&mut label);
            }
            other => label.push(other),
        }
    }
    octets.push(0);
    octets
}

/// The same question with an OPT record that names a payload size (RFC 6891 §6.1.2).
pub(crate) fn with_edns(mut query: Vec<u8>, octets: u16) -> Vec<u8> {
    query[11] = 1;
    query.extend([0, 0, 41]);
    query.extend(octets.to_be_bytes());
    query.extend([0; 6]);
    query
}

/// An answer to a question with addresses of 198.18.0.0/15 and TTL 60, as many as wanted.
pub(crate) fn answer(query: &[u8], addresses: u16) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|octet| *octet == 0).unwrap() + 5;
    let mut message = query[..end].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&addresses.to_be_bytes());
    message[8..12].fill(0);
    for number in 0..addresses {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 18]);
        message.extend(number.to_be_bytes());
    }
    message
}

/// An answer without records that says it is not whole.
pub(crate) fn truncated(query: &[u8]) -> Vec<u8> {
    let mut message = answer(query, 0);
    message[2] |= 2;
    message
}
