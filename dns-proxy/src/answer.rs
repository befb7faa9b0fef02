//! What an answer may open: the addresses at the end of the alias chain that starts at the asked name, and nothing else
//! in the message. It knows the message alone, not who asked or whom the resolver is trusted by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use namegate_config::name::Fqdn;

use crate::{
    special::is_special,
    wire::{CLASS_IN, HEADER_OCTETS, Header, Name, Question, Record, WireError, kind, number},
};

/// Aliases followed from the asked name. Resolvers stop at 8 to 16 as well.
const CHAIN_LINKS_MAX: usize = 16;
/// CNAME records looked at in one answer; an answer with more opens nothing.
const CNAMES_MAX: usize = 64;
/// Service parameters with addresses (RFC 9460 §14.3.2).
const IPV4HINT: u16 = 4;
const IPV6HINT: u16 = 6;

/// What was read out of one answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The asked name, then the aliases. Names that no pattern can name are left out.
    pub names: Vec<Fqdn>,
    /// Sorted, each once, with the smallest TTL on the way to it, in seconds.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Addresses refused because they are special.
    pub special: u64,
}

/// Reads a message as the answer to the question in it: what it may open. The proxy itself checks first that the
/// question is the one that was asked.
///
/// # Errors
/// The message is one that no client should see.
pub fn read_answer(message: &[u8]) -> Result<Reading, WireError> {
    read(message, Header::read(message)?, Question::read(message)?)
}

/// Reads an answer whose header and question fit. An error is a message that no client should see.
pub(crate) fn read(message: &[u8], header: Header, question: Question) -> Result<Reading, WireError> {
    let sections = Sections::walk(message, header, question.end)?;
    let asked_for_addresses = matches!(question.kind, kind::A | kind::AAAA | kind::HTTPS | kind::SVCB);
    if sections.is_error || question.class != CLASS_IN || !asked_for_addresses {
        return Ok(Reading::default());
    }
    let Some(chain) = Chain::follow(message, &sections.cnames)? else { return Ok(Reading::default()) };
    let mut reading = Reading { names: chain.names, ..Reading::default() };
    let mut at = question.end;
    for _ in 0..header.answers {
        let record = Record::read(message, at)?;
        at = record.data.end;
        if record.kind == question.kind && record.class == CLASS_IN && chain.end.is_at(message, record.owner)? {
            let ttl = chain.ttl.min(ttl(record.ttl));
            addresses_of(record.kind, &message[record.data], |address| {
                if is_special(address) {
                    reading.special += 1;
                } else {
                    reading.addresses.push((address, ttl));
                }
            })?;
        }
    }
    reading.addresses.sort_unstable();
    reading.addresses.dedup_by_key(|(address, _)| *address);
    Ok(reading)
}

/// A set top bit means zero (RFC 2181 §8).
pub(crate) fn ttl(on_the_wire: u32) -> u32 {
    if on_the_wire > i32::MAX.cast_unsigned() { 0 } else { on_the_wire }
}

/// What one pass over all sections found.
struct Sections {
    /// NOERROR is neither in the header nor, with the upper bits in OPT, elsewhere (RFC 6891 §6.1.3).
    is_error: bool,
    /// Of the answer section and the class IN; one more than may be.
    cnames: Vec<Record>,
}

impl Sections {
    /// Every record that the header promises is there, and the ones we read fit their type.
    fn walk(message: &[u8], header: Header, start: usize) -> Result<Self, WireError> {
        let mut found = Self { is_error: header.rcode() != 0, cnames: Vec::new() };
        let mut at = start;
        for _ in 0..header.answers {
            let record = Record::read(message, at)?;
            at = record.data.end;
            if record.class == CLASS_IN {
                found.answer(message, record)?;
            }
        }
        for _ in 0..u32::from(header.authorities) + u32::from(header.additionals) {
            let record = Record::read(message, at)?;
            at = record.data.end;
            found.is_error |= record.kind == kind::OPT && record.ttl >> 24 != 0;
        }
        Ok(found)
    }

    fn answer(&mut self, message: &[u8], record: Record) -> Result<(), WireError> {
        if record.kind == kind::CNAME {
            if crate::wire::walk_name(message, record.data.start, |_| ())? != record.data.end {
                return Err(WireError::Data);
            }
            if self.cnames.len() <= CNAMES_MAX {
                self.cnames.push(record);
            }
            return Ok(());
        }
        addresses_of(record.kind, &message[record.data], |_| ())
    }
}

/// The aliases from the asked name to the last.
struct Chain {
    end: Name,
    names: Vec<Fqdn>,
    /// The smallest of its links; the greatest number where there is none.
    ttl: u32,
}

impl Chain {
    /// None where nothing may be opened: a loop, too many links, or an asked name that no pattern can name.
    fn follow(message: &[u8], cnames: &[Record]) -> Result<Option<Self>, WireError> {
        let (asked, _) = Name::read(message, HEADER_OCTETS)?;
        let Some(name) = asked.fqdn() else { return Ok(None) };
        let mut chain = Self { end: asked, names: vec![name], ttl: u32::MAX };
        if cnames.len() > CNAMES_MAX {
            return Ok(None);
        }
        for _ in 0..=CHAIN_LINKS_MAX {
            let Some(link) = chain.next(message, cnames)? else { return Ok(Some(chain)) };
            chain.ttl = chain.ttl.min(ttl(link.ttl));
            chain.end = Name::read(message, link.data.start)?.0;
            chain.names.extend(chain.end.fqdn());
        }
        Ok(None)
    }

    fn next<'r>(&self, message: &[u8], cnames: &'r [Record]) -> Result<Option<&'r Record>, WireError> {
        for cname in cnames {
            if self.end.is_at(message, cname.owner)? {
                return Ok(Some(cname));
            }
        }
        Ok(None)
    }
}

/// Calls `each` with the addresses in a record's data; an error where the data does not fit the type.
fn addresses_of(record_kind: u16, data: &[u8], mut each: impl FnMut(IpAddr)) -> Result<(), WireError> {
    match record_kind {
        kind::A => each(Ipv4Addr::from_octets(data.try_into().map_err(|_| WireError::Data)?).into()),
        kind::AAAA => each(Ipv6Addr::from_octets(data.try_into().map_err(|_| WireError::Data)?).into()),
        kind::HTTPS | kind::SVCB => hints(data, each)?,
        _ => {}
    }
    Ok(())
}

/// The addresses among service parameters (RFC 9460 §2.2): clients may connect to them without another question.
fn hints(data: &[u8], mut each: impl FnMut(IpAddr)) -> Result<(), WireError> {
    let is_alias = number(data, 0)? == 0;
    let mut at = target_end(data)?;
    while at < data.len() && !is_alias {
        let (key, length) = (number(data, at)?, usize::from(number(data, at + 2)?));
        at += 4;
        let value = data.get(at..at + length).ok_or(WireError::Data)?;
        at += length;
        match key {
            IPV4HINT => {
                let (hints, []) = value.as_chunks::<4>() else { return Err(WireError::Data) };
                for octets in hints {
                    each(Ipv4Addr::from_octets(*octets).into());
                }
            }
            IPV6HINT => {
                let (hints, []) = value.as_chunks::<16>() else { return Err(WireError::Data) };
                for octets in hints {
                    each(Ipv6Addr::from_octets(*octets).into());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The octet after the target's name, which is never compressed (RFC 9460 §2.2).
fn target_end(data: &[u8]) -> Result<usize, WireError> {
    let mut at = 2;
    loop {
        match *data.get(at).ok_or(WireError::Data)? {
            0 => return Ok(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return Err(WireError::Data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record whose owner and data are written out.
    fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap();
        [owner, &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length.to_be_bytes(), data].concat()
    }

    fn message(asked: u16, records: &[Vec<u8>]) -> Vec<u8> {
        let count = u8::try_from(records.len()).unwrap();
        let mut message = vec![0, 0, 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
        message.extend(name("a.test"));
        message.extend(asked.to_be_bytes());
        message.extend([0, 1]);
        message.extend(records.concat());
        message
    }

    fn name(text: &str) -> Vec<u8> {
        let label = |label: &str| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
        text.split('.').flat_map(label).chain([0]).collect()
    }

    fn names(reading: &Reading) -> Vec<&str> {
        reading.names.iter().map(Fqdn::as_str).collect()
    }

    #[test]
    fn the_chain_is_followed_in_any_order() {
        let records = [
            record(&name("C.test"), kind::A, 30, &[198, 51, 100, 1]),
            record(&name("b.TEST"), kind::CNAME, 20, &name("c.test")),
            record(&name("other.test"), kind::A, 5, &[198, 51, 100, 9]),
            record(&name("A.test"), kind::CNAME, 40, &name("B.test")),
        ];
        let reading = read_answer(&message(kind::A, &records)).unwrap();
        assert_eq!(names(&reading), ["a.test", "b.test", "c.test"]);
        assert_eq!(reading.addresses, [("198.51.100.1".parse().unwrap(), 20)]);
    }

    #[test]
    fn a_chain_has_sixteen_links() {
        for (links, opens) in [(16, true), (17, false)] {
            let alias = |link: usize| if link == 0 { name("a.test") } else { name(&format!("l{link}.test")) };
            let mut records: Vec<_> =
                (0..links).map(|link| record(&alias(link), kind::CNAME, 60, &alias(link + 1))).collect();
            records.push(record(&alias(links), kind::A, 60, &[198, 51, 100, 1]));
            let reading = read_answer(&message(kind::A, &records)).unwrap();
            assert_eq!(!reading.addresses.is_empty(), opens, "{links} links");
        }
    }

    #[test]
    fn names_that_no_pattern_can_name_open_nothing_or_are_left_out() {
        let odd = [&[3][..], b"a.b", &name("test")].concat();
        let records = [record(&name("a.test"), kind::CNAME, 60, &odd), record(&odd, kind::A, 60, &[198, 51, 100, 1])];
        let reading = read_answer(&message(kind::A, &records)).unwrap();
        assert_eq!((names(&reading), reading.addresses.len()), (vec!["a.test"], 1));
        let mut asked_oddly = message(kind::A, &[record(&[0xc0, 12], kind::A, 60, &[198, 51, 100, 1])]);
        asked_oddly[13] = b'.';
        assert_eq!(read_answer(&asked_oddly).unwrap(), Reading::default());
    }

    #[test]
    fn the_smallest_ttl_of_one_address_holds() {
        let records = [9, 4, 7].map(|ttl| record(&[0xc0, 12], kind::A, ttl, &[198, 51, 100, 1]));
        let reading = read_answer(&message(kind::A, &records)).unwrap();
        assert_eq!(reading.addresses, [("198.51.100.1".parse().unwrap(), 4)]);
    }

    #[test]
    fn service_records_give_their_hints() {
        let cdn = name("cdn.test");
        let hints = [&[0, 1, 0, 3, 2][..], b"h2", &[0, 4, 0, 8, 198, 51, 100, 1, 127, 0, 0, 1]].concat();
        let service = [&[0, 1], &cdn[..], &hints].concat();
        let alias = [&[0, 0], &cdn[..]].concat();
        for (data, want) in [
            (service.clone(), Ok((1, 1))),
            (alias, Ok((0, 0))),
            (service[..service.len() - 1].to_vec(), Err(WireError::Data)),
            ([&[0, 1, 0, 0, 4, 0, 3][..], &[198, 51, 100]].concat(), Err(WireError::Data)),
            (vec![0, 1, 0xc0, 12], Err(WireError::Data)),
            (vec![0, 1], Err(WireError::Data)),
            (vec![0], Err(WireError::Short)),
        ] {
            let got = read_answer(&message(kind::HTTPS, &[record(&[0xc0, 12], kind::HTTPS, 60, &data)]));
            assert_eq!(got.map(|reading| (reading.addresses.len(), reading.special)), want, "{data:?}");
        }
    }

    #[test]
    fn an_upper_response_code_opens_nothing() {
        let mut refused = message(kind::A, &[record(&[0xc0, 12], kind::A, 60, &[198, 51, 100, 1])]);
        refused[11] = 1;
        refused.extend([0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
        assert_eq!(read_answer(&refused).unwrap(), Reading::default());
        let length = refused.len();
        refused[length - 6] = 0;
        assert_eq!(read_answer(&refused).unwrap().addresses.len(), 1);
    }
}
