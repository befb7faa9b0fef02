//! What is kept, for how long, and what is given of it.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{self, RData, RecordType, rdata},
};
use proptest::prelude::*;

use super::*;
use crate::transaction::cases::{answer, query, with_edns};

const A: u16 = 1;
const NS: u16 = 2;
const TXT: u16 = 16;
const NAME: &str = "api.allowed.test.";

fn resolver() -> SocketAddr {
    ([10, 96, 0, 10], 53).into()
}

fn key(message: &[u8]) -> Option<Key> {
    Key::of(resolver(), message)
}

/// The message with these octets in place of those at `at`.
fn changed(mut message: Vec<u8>, at: usize, octets: &[u8]) -> Vec<u8> {
    message[at..at + octets.len()].copy_from_slice(octets);
    message
}

/// The message with one more record in the additional section: owner, type, class, TTL, data.
fn with_additional(message: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut message = [message, &[0], &kind.to_be_bytes(), &[4, 208, 0, 0, 0, 0]].concat();
    message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    message.extend(data);
    message[11] += 1;
    message
}

#[test]
fn questions_that_are_the_same_share_an_answer() {
    let base = with_edns(query(1, NAME, A), 1232);
    let end = base.len();
    for (what, other, same) in [
        ("another ID", with_edns(query(2, NAME, A), 1232), true),
        ("letters in another case", with_edns(query(1, "aPi.ALLOWED.test.", A), 1232), true),
        ("another payload size", with_edns(query(1, NAME, A), 4096), true),
        ("another name", with_edns(query(1, "apj.allowed.test.", A), 1232), false),
        ("a dot inside of a label", with_edns(query(1, "api\\.allowed.test.", A), 1232), false),
        ("another type", with_edns(query(1, NAME, TXT), 1232), false),
        ("no EDNS", query(1, NAME, A), false),
        ("DO", changed(base.clone(), end - 4, &[0x80]), false),
        ("no RD", changed(base.clone(), 2, &[0]), false),
        ("CD", changed(base.clone(), 3, &[0x10]), false),
        ("AD", changed(base.clone(), 3, &[0x20]), false),
    ] {
        assert!(key(&other).is_some(), "{what}");
        assert_eq!(key(&base) == key(&other), same, "{what}");
    }
    let elsewhere: [SocketAddr; 3] =
        [([10, 96, 0, 10], 5353).into(), ([10, 96, 0, 11], 53).into(), (Ipv6Addr::LOCALHOST, 53).into()];
    for other in elsewhere {
        assert_ne!(key(&base), Key::of(other, &base), "{other}");
    }
}

#[test]
fn answers_for_one_asker_alone_have_no_key() {
    let plain = query(1, NAME, A);
    let edns = with_edns(plain.clone(), 1232);
    let end = edns.len();
    // 192.0.2.0/24 as client subnet (RFC 7871 §6), and a client's cookie (RFC 7873 §4.1).
    let subnet = [0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2];
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    for (what, message) in [
        ("client subnet", with_additional(&plain, kind::OPT, &subnet)),
        ("a cookie", with_additional(&plain, kind::OPT, &cookie)),
        ("TSIG", with_additional(&plain, kind::TSIG, &[0; 16])),
        ("TSIG after OPT", with_additional(&edns, kind::TSIG, &[0; 16])),
        ("SIG(0)", with_additional(&plain, kind::SIG, &[0; 19])),
        ("another version of EDNS", changed(edns.clone(), end - 5, &[1])),
        ("unknown flags of EDNS", changed(edns.clone(), end - 3, &[1])),
        ("an owner of OPT", changed([&plain[..], &[1, b'a'], &edns[end - 11..]].concat(), 11, &[1])),
        ("octets after the end", [&plain[..], &[0]].concat()),
        ("another class", changed(plain.clone(), plain.len() - 2, &[0, 3])),
        ("every type", query(1, NAME, 255)),
        ("TKEY", query(1, NAME, 249)),
        ("no type", query(1, NAME, 0)),
        ("an answer in the question", changed(answer(&plain, 1), 2, &[1, 0])),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(key(&message), None, "{what}");
    }
}

/// A record of the asked name.
fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [&[0xc0, 12], &kind.to_be_bytes()[..], &[0, 1], &ttl.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

fn address(ttl: u32) -> Vec<u8> {
    record(A, ttl, &[198, 18, 0, 1])
}

fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
    record(kind::SOA, ttl, &[&[0; 18][..], &minimum.to_be_bytes()].concat())
}

/// An answer with this response code and these records in its three sections.
fn response(rcode: u8, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let mut message = answer(&query(1, NAME, A), 0);
    message[3] |= rcode;
    for (section, records) in sections.into_iter().enumerate() {
        message[7 + 2 * section] = u8::try_from(records.len()).unwrap();
        message.extend(records.concat());
    }
    message
}

#[test]
fn an_answer_is_kept_as_long_as_the_first_of_its_records() {
    const NXDOMAIN: u8 = 3;
    let alias = |ttl| record(kind::CNAME, ttl, &[1, b'b', 0]);
    let opt = |ttl: u32, data: &[u8]| {
        let length = u16::try_from(data.len()).unwrap();
        [&[0, 0, 41, 4, 208], &ttl.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
    };
    let server = |ttl| record(NS, ttl, &[0]);
    let long = vec![record(TXT, 60, &[255; 255]); 16];
    for (what, rcode, [answers, authorities, additionals], want) in [
        ("one address", 0, [vec![address(60)], vec![], vec![]], Some(60)),
        ("the smallest TTL", 0, [vec![alias(50), address(60)], vec![server(40)], vec![]], Some(40)),
        ("of any section", 0, [vec![address(60)], vec![], vec![address(30)]], Some(30)),
        ("but not of OPT", 0, [vec![address(60)], vec![], vec![opt(0, &[])]], Some(60)),
        ("an hour at most", 0, [vec![address(86_400)], vec![], vec![]], Some(3_600)),
        ("no time", 0, [vec![address(0)], vec![], vec![]], None),
        ("a second", 0, [vec![address(1)], vec![], vec![]], None),
        ("two seconds", 0, [vec![address(2)], vec![], vec![]], Some(2)),
        ("a set top bit", 0, [vec![address(1 << 31)], vec![], vec![]], None),
        ("no such name", NXDOMAIN, [vec![], vec![soa(60, 30)], vec![]], Some(30)),
        ("for the TTL of SOA", NXDOMAIN, [vec![], vec![soa(20, 30)], vec![]], Some(20)),
        ("a quarter of an hour at most", NXDOMAIN, [vec![], vec![soa(9_000, 9_000)], vec![]], Some(900)),
        ("not at all", NXDOMAIN, [vec![], vec![soa(60, 0)], vec![]], None),
        ("nobody says how long", NXDOMAIN, [vec![], vec![], vec![]], None),
        ("an alias to no name", NXDOMAIN, [vec![alias(10)], vec![soa(60, 30)], vec![]], Some(10)),
        ("SOA as additional", NXDOMAIN, [vec![], vec![], vec![soa(60, 30)]], None),
        ("no such record", 0, [vec![], vec![soa(60, 30)], vec![]], Some(30)),
        ("an alias to no record", 0, [vec![alias(50)], vec![soa(60, 30)], vec![]], Some(30)),
        ("an alias alone", 0, [vec![alias(50)], vec![], vec![]], None),
        ("a referral", 0, [vec![], vec![server(60)], vec![]], None),
        ("nothing", 0, [vec![], vec![], vec![]], None),
        ("a half SOA", NXDOMAIN, [vec![], vec![record(kind::SOA, 60, &[0; 21])], vec![]], None),
        ("a failure", 2, [vec![address(60)], vec![], vec![]], None),
        ("a refusal", 5, [vec![], vec![soa(60, 30)], vec![]], None),
        ("an upper response code", 0, [vec![address(60)], vec![], vec![opt(1 << 24, &[])]], None),
        ("DO", 0, [vec![address(60)], vec![], vec![opt(0x8000, &[])]], Some(60)),
        ("an option", 0, [vec![address(60)], vec![], vec![opt(0, &[0, 10, 0, 0])]], None),
        ("a signature", 0, [vec![address(60)], vec![], vec![record(kind::TSIG, 60, &[])]], None),
        ("too long", 0, [long, vec![], vec![]], None),
    ] {
        let message = response(rcode, [&answers, &authorities, &additionals]);
        assert!(crate::answer::read_answer(&message).is_ok(), "{what}");
        let kept = Kept::of(&message, Instant::now()).map(|kept| kept.lasts_s);
        assert_eq!(kept, want, "{what}");
    }
    let good = response(0, [&[address(60)], &[], &[]]);
    for (what, message) in [
        ("cut short", changed(good.clone(), 2, &[0x83])),
        ("octets after the end", [&good[..], &[0]].concat()),
        ("a record too few", good[..good.len() - 1].to_vec()),
    ] {
        assert!(Kept::of(&message, Instant::now()).is_none(), "{what}");
    }
}

#[test]
fn what_is_left_is_given_and_no_more() {
    let (cache, start) = (Cache::new(10), Instant::now());
    let (question, mut out) = (query(1, NAME, A), Vec::new());
    let whole = changed(response(0, [&[address(60), address(90)], &[], &[]]), 2, &[0x85]);
    assert_eq!(cache.keep(key(&question).unwrap(), &whole, start), 0);
    for (age_ms, want) in [
        (0, Some([60, 90])),
        (1, Some([59, 89])),
        (1_000, Some([59, 89])),
        (1_001, Some([58, 88])),
        (59_000, Some([1, 31])),
        (59_001, None),
        (10, None),
    ] {
        let now = start + Duration::from_millis(age_ms);
        let is_there = cache.recall(&key(&question).unwrap(), now, &mut out);
        assert_eq!(is_there, want.is_some(), "after {age_ms} ms");
        let Some(want) = want else { continue };
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), want, "after {age_ms} ms");
        assert!(!message.metadata.authoritative && message.metadata.recursion_available);
    }
    assert_eq!(cache.len(), 0, "what has ended is not kept");
}

#[test]
fn a_denial_is_given_with_what_is_left_of_it() {
    let (cache, start, mut out) = (Cache::new(10), Instant::now(), Vec::new());
    let question = key(&query(1, NAME, A)).unwrap();
    cache.keep(question.clone(), &response(3, [&[], &[soa(300, 30)], &[]]), start);
    assert!(cache.recall(&question, start + Duration::from_secs(10), &mut out));
    let message = Message::from_vec(&out).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    // A client that takes the smaller of the two would forget it with us.
    assert_eq!(message.authorities[0].ttl, 20);
    assert!(!cache.recall(&question, start + Duration::from_secs(30), &mut out));
}

#[test]
fn the_answer_not_asked_for_longest_makes_room() {
    let (cache, now, mut out) = (Cache::new(3), Instant::now(), Vec::new());
    let question = |number: usize| key(&query(1, &format!("n{number}.allowed.test."), A)).unwrap();
    let message = answer(&query(1, "n0.allowed.test.", A), 1);
    let evicted = [0, 1, 2].map(|number| cache.keep(question(number), &message, now));
    assert!(cache.recall(&question(0), now, &mut out));
    assert_eq!((evicted, cache.keep(question(3), &message, now)), ([0, 0, 0], 1));
    let left = [0, 1, 2, 3].map(|number| cache.recall(&question(number), now, &mut out));
    assert_eq!(left, [true, false, true, true]);
    // One that is there already takes no room.
    assert_eq!(cache.keep(question(3), &message, now), 0);
    cache.clear();
    assert_eq!((cache.len(), cache.recall(&question(0), now, &mut out)), (0, false));
}

#[test]
fn no_more_answers_than_wanted_are_kept() {
    let (message, now) = (answer(&query(1, NAME, A), 1), Instant::now());
    for answers_max in [1, 10, 63, 64, 128, 1_000, 2_000] {
        let cache = Cache::new(answers_max);
        let mut evicted = 0;
        for number in 0..4_000 {
            evicted += cache.keep(key(&query(1, &format!("n{number}.test."), A)).unwrap(), &message, now);
        }
        assert!(cache.len() <= answers_max && cache.len() > answers_max * 9 / 10, "{} of {answers_max}", cache.len());
        assert_eq!(evicted, 4_000 - cache.len() as u64);
    }
}

fn records() -> impl Strategy<Value = rr::Record> {
    let labels = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=20), 0..4);
    let names = labels.prop_map(|labels| rr::Name::from_labels(labels).unwrap());
    let data = prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| RData::A(rdata::A(octets.into()))),
        any::<[u8; 16]>().prop_map(|octets| RData::AAAA(rdata::AAAA(octets.into()))),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|text| RData::TXT(rdata::TXT::from_bytes(vec![&text]))),
    ];
    (names, 0_u32..10_000, data).prop_map(|(name, ttl, data)| rr::Record::from_rdata(name, ttl, data))
}

proptest! {
    /// What another reads out of a recalled answer is what was kept, with smaller TTLs.
    #[test]
    fn nothing_but_ttls_changes(
        answers in prop::collection::vec(records(), 0..6),
        others in prop::collection::vec(records(), 0..6),
        age_s in 0_u64..5_000,
    ) {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(rr::Name::from_ascii(NAME).unwrap(), RecordType::A));
        message.add_answers(answers);
        message.add_additionals(others);
        let octets = message.to_vec().unwrap();
        let now = Instant::now();
        let all = || message.answers.iter().chain(&message.additionals);
        let least = all().map(|record| record.ttl).min().unwrap_or(0);
        let is_answer = message.answers.iter().any(|record| record.record_type() == RecordType::A);
        let kept = Kept::of(&octets, now);
        prop_assert_eq!(kept.is_some(), is_answer && least > 1);
        let mut out = Vec::new();
        let Some(kept) = kept else { return Ok(()) };
        let is_given = kept.write(now + Duration::from_secs(age_s), &mut out);
        prop_assert_eq!(is_given, age_s < u64::from(least.min(3_600)));
        if is_given {
            let given = Message::from_vec(&out).unwrap();
            // Records are equal whatever their TTLs.
            prop_assert_eq!(&given, &message);
            let left = |record: &rr::Record| record.ttl - u32::try_from(age_s).unwrap();
            let ttls: Vec<u32> = given.answers.iter().chain(&given.additionals).map(|record| record.ttl).collect();
            prop_assert_eq!(ttls, all().map(left).collect::<Vec<_>>());
        }
    }

    #[test]
    fn ends_on_every_input(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = key(&octets);
        let now = Instant::now();
        if let Some(kept) = Kept::of(&octets, now) {
            prop_assert!(kept.write(now, &mut Vec::new()));
        }
    }

    #[test]
    fn damage_is_seen_or_harmless(at in any::<prop::sample::Index>(), octet in any::<u8>()) {
        let mut message = response(3, [&[record(kind::CNAME, 10, &[1, b'b', 0])], &[soa(60, 30)], &[address(5)]]);
        let at = at.index(message.len());
        message[at] = octet;
        let now = Instant::now();
        if let Some(kept) = Kept::of(&message, now) {
            prop_assert!(kept.write(now, &mut Vec::new()));
            prop_assert!((2..=3_600).contains(&kept.lasts_s));
        }
    }
}

#[test]
fn an_ipv4_address_is_not_its_mapped_form() {
    let mapped = IpAddr::V6("::ffff:10.96.0.10".parse().unwrap());
    let question = query(1, NAME, A);
    assert_ne!(key(&question), Key::of(SocketAddr::new(mapped, 53), &question));
}
