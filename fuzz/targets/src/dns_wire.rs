//! Answers of resolvers, beside another reader of DNS messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::svcb::SvcParamValue},
};
use ipnet::IpNet;
use namegate_config::name::Fqdn;
use namegate_dns_proxy::{Reading, WireError, read_answer};

/// Most aliases that are followed, and most CNAME records of an answer that opens something.
const LINKS_MAX: usize = 16;
const CNAMES_MAX: usize = 64;

/// A message.
///
/// # Panics
/// The walker reads something else than hickory-proto where that reads an answer; opens an address twice or a special
/// one; or refuses what hickory-proto reads, but for pointers into the header and compressed targets of service records
/// (RFC 9460 §2.2).
pub fn dns_wire(data: &[u8]) {
    let read = read_answer(data);
    assert_eq!(read, read_answer(data));
    if let Ok(reading) = &read {
        assert!(reading.addresses.windows(2).all(|pair| pair[0].0 < pair[1].0), "{reading:?}");
        assert!(!reading.addresses.iter().any(|(address, _)| is_special(*address)), "{reading:?}");
    }
    let Ok(message) = Message::from_vec(data) else { return };
    let is_answer = message.metadata.message_type == MessageType::Response && message.metadata.op_code == OpCode::Query;
    if !is_answer || message.queries.len() != 1 {
        return;
    }
    match read {
        Ok(reading) => assert_eq!(reading, what_opens(&message), "{message:?}"),
        Err(WireError::Pointer) => {}
        Err(error) => assert!(error == WireError::Data && has_services(&message), "{error:?} {message:?}"),
    }
}

fn has_services(message: &Message) -> bool {
    message.answers.iter().any(|record| matches!(record.record_type(), RecordType::HTTPS | RecordType::SVCB))
}

/// The rules as they are told, on a message that was read by others.
fn what_opens(message: &Message) -> Reading {
    let query = &message.queries[0];
    let is_error = message.metadata.response_code != ResponseCode::NoError;
    let asks_addresses =
        matches!(query.query_type, RecordType::A | RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB);
    let (Some(asked), DNSClass::IN, true, false) = (fqdn(&query.name), query.query_class, asks_addresses, is_error)
    else {
        return Reading::default();
    };
    let answers: Vec<&Record> = message.answers.iter().filter(|record| record.dns_class == DNSClass::IN).collect();
    let (mut end, mut names, mut least, mut links) = (query.name.clone(), vec![asked], u32::MAX, 0);
    while let Some((target, ttl)) = answers.iter().find_map(|record| alias(record, &end)) {
        (end, least, links) = (target, least.min(ttl), links + 1);
        names.extend(fqdn(&end));
        if links > LINKS_MAX {
            return Reading::default();
        }
    }
    let cnames = answers.iter().filter(|record| matches!(record.data, RData::CNAME(_))).count();
    if cnames > CNAMES_MAX {
        return Reading::default();
    }
    let mut opened = Vec::new();
    for record in answers {
        if record.record_type() == query.query_type && same(&record.name, &end) {
            opened.extend(addresses(&record.data).into_iter().map(|address| (address, least.min(ttl(record.ttl)))));
        }
    }
    let special = opened.iter().filter(|(address, _)| is_special(*address)).count();
    opened.retain(|(address, _)| !is_special(*address));
    opened.sort_unstable();
    opened.dedup_by_key(|(address, _)| *address);
    Reading { names, addresses: opened, special: special as u64 }
}

fn alias(record: &Record, owner: &Name) -> Option<(Name, u32)> {
    let RData::CNAME(target) = &record.data else { return None };
    same(&record.name, owner).then(|| (target.0.clone(), ttl(record.ttl)))
}

/// RFC 2181 §8.
fn ttl(written: u32) -> u32 {
    if written >= 1 << 31 { 0 } else { written }
}

fn same(one: &Name, other: &Name) -> bool {
    one.iter().map(<[u8]>::to_ascii_lowercase).eq(other.iter().map(<[u8]>::to_ascii_lowercase))
}

fn fqdn(name: &Name) -> Option<Fqdn> {
    let label = |label: &[u8]| Some(str::from_utf8(label).ok().filter(|label| !label.contains('.'))?.to_owned());
    let labels: Vec<String> = name.iter().map(label).collect::<Option<_>>()?;
    if labels.is_empty() { ".".parse().ok() } else { labels.join(".").parse().ok() }
}

fn addresses(data: &RData) -> Vec<IpAddr> {
    let service = match data {
        RData::A(address) => return vec![address.0.into()],
        RData::AAAA(address) => return vec![address.0.into()],
        RData::HTTPS(https) => &https.0,
        RData::SVCB(svcb) => svcb,
        _ => return Vec::new(),
    };
    // Alias mode has no parameters (RFC 9460 §2.4.2).
    let parameters = service.svc_params.iter().filter(|_| service.svc_priority != 0);
    parameters
        .flat_map(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|address| IpAddr::V4(address.0)).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|address| IpAddr::V6(address.0)).collect(),
            _ => Vec::new(),
        })
        .collect()
}

/// Blocks that open nothing.
const SPECIAL: [&str; 14] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "::/96",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
];
/// Blocks that open nothing where they stand inside an IPv6 address.
const PRIVATE: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];

fn is_special(address: IpAddr) -> bool {
    if is_in(&SPECIAL, address) {
        return true;
    }
    let IpAddr::V6(v6) = address else { return false };
    embedded(v6).into_iter().any(|v4| is_in(&SPECIAL, v4.into()) || is_in(&PRIVATE, v4.into()))
}

fn is_in(blocks: &[&str], address: IpAddr) -> bool {
    blocks.iter().any(|block| block.parse::<IpNet>().expect("blocks are prefixes").contains(&address))
}

/// IPv4 addresses that translators and tunnels read out of an address (RFC 6052, 8215, 3056, 4380).
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let bits = address.to_bits();
    let v4 = |shift: u32| Ipv4Addr::from_bits(u32::try_from(bits >> shift & 0xffff_ffff).expect("32 bits"));
    let is_in = |block: &str| is_in(&[block], address.into());
    let mut found = Vec::new();
    if is_in("64:ff9b::/96") || is_in("64:ff9b:1::/48") {
        found.push(v4(0));
    }
    if is_in("64:ff9b:1::/48") && !is_in("64:ff9b:1::/96") {
        let octets = address.octets();
        found.push(Ipv4Addr::new(octets[6], octets[7], octets[9], octets[10]));
    }
    if is_in("2002::/16") {
        found.push(v4(80));
    }
    if is_in("2001::/32") {
        found.push(v4(64));
        found.push(Ipv4Addr::from_bits(!v4(0).to_bits()));
    }
    found
}
