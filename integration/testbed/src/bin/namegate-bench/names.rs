//! The names that are asked for, as a zone, as dnsperf's list and as messages (RFC 1035 §4).

use std::fmt::Write;
use std::net::Ipv4Addr;

/// How many names there are.
pub(crate) const NAMES: u16 = 5_000;
/// Their zone.
pub(crate) const ZONE: &str = "bench.test";
/// Time to live of each address, seconds.
pub(crate) const TTL_S: u32 = 60;
/// Octets of a message's header.
pub(crate) const HEADER_OCTETS: usize = 12;

/// A name by its number.
pub(crate) fn name(number: u16) -> String {
    format!("name-{number:04}.{ZONE}")
}

/// The zone as a master file. Each name has an address of its own; nothing is ever sent there.
pub(crate) fn zone() -> String {
    let mut text = format!("$ORIGIN {ZONE}.\n$TTL {TTL_S}\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\n");
    let mut line = |number: u16, owner: &str| {
        let [high, low] = number.to_be_bytes();
        let _ = writeln!(text, "{owner} A {}", Ipv4Addr::new(20, 0, high, low)); // Writing to a string does not fail.
    };
    line(NAMES, "ns");
    (0..NAMES).for_each(|number| line(number, &format!("{}.", name(number))));
    text
}

/// dnsperf's list of questions.
pub(crate) fn questions() -> String {
    let lines: Vec<_> = (0..NAMES).map(|number| name(number) + " A\n").collect();
    lines.concat()
}

/// A question for the address of a name by its number.
pub(crate) fn question(id: u16, number: u16) -> Vec<u8> {
    question_for(id, &name(number))
}

/// A question for the address of a name.
pub(crate) fn question_for(id: u16, name: &str) -> Vec<u8> {
    const RECURSION_DESIRED: u16 = 0x0100;
    const ADDRESS: u16 = 1;
    const INTERNET: u16 = 1;
    let mut octets: Vec<u8> = [id, RECURSION_DESIRED, 1, 0, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    for label in name.split('.') {
        octets.push(u8::try_from(label.len()).unwrap_or(u8::MAX)); // None is longer than 63.
        octets.extend_from_slice(label.as_bytes());
    }
    octets.push(0);
    octets.extend([ADDRESS, INTERNET].iter().flat_map(|word| word.to_be_bytes()));
    octets
}

/// The identifier of an answer, and whether it is one with at least one record and no error.
pub(crate) fn answer(octets: &[u8]) -> Option<(u16, bool)> {
    let header: &[u8; HEADER_OCTETS] = octets.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (is_answer, code, records) = (word(2) & 0x8000 != 0, word(2) & 0x000f, word(6));
    is_answer.then_some((word(0), code == 0 && records > 0))
}

/// Whether an answer is SERVFAIL (RFC 1035 §4.1.1).
pub(crate) fn is_server_failure(bytes: &[u8]) -> bool {
    const SERVER_FAILURE: u8 = 2;
    bytes.get(3).is_some_and(|flags| flags & 0x0f == SERVER_FAILURE)
}

#[cfg(test)]
mod tests {
    use namegate_testbed::proto::op::Message;

    use super::*;

    #[test]
    fn questions_are_read_by_others() {
        let message = Message::from_vec(&question(7, 42)).unwrap();
        assert_eq!(message.queries.len(), 1);
        assert_eq!(message.queries[0].to_string(), "name-0042.bench.test. IN A");
        assert_eq!(message.metadata.id, 7);
        assert!(message.metadata.recursion_desired);
    }

    #[test]
    fn answers_are_told_from_questions_errors_and_scraps() {
        let with = |flags: u16, records: u16| {
            let words = [9, flags, 1, records, 0, 0];
            words.iter().flat_map(|word: &u16| word.to_be_bytes()).collect::<Vec<_>>()
        };
        for (octets, want) in [
            (with(0x8180, 1), Some((9, true))),
            (with(0x8180, 0), Some((9, false))),
            (with(0x8185, 1), Some((9, false))),
            (with(0x0100, 1), None),
            (vec![0; HEADER_OCTETS - 1], None),
            (vec![], None),
        ] {
            assert_eq!(answer(&octets), want, "{octets:?}");
        }
    }

    #[test]
    fn every_name_has_an_address_of_its_own() {
        let zone = zone();
        let addresses: Vec<_> = zone.lines().filter_map(|line| line.split_once(" A ")).map(|(_, it)| it).collect();
        let mut different = addresses.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!((addresses.len(), different.len()), (usize::from(NAMES) + 1, usize::from(NAMES) + 1));
    }
}
