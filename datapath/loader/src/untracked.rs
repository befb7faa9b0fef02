//! A rule of nftables by which connection tracking leaves redirected packets alone.
//!
//! A packet towards an endpoint has been tracked when the program sends it back into the node. Where a service's address
//! was translated before, tracking it again would make a second connection with the same replies, and the kernel drops
//! such packets (`nf_conntrack_confirm`). Left alone, the replies belong to the first connection, which translates them
//! back. The table is replaced as a whole and stays when the agent ends, as the routes do.

use std::io;

use namegate_abi::Settings;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Name of the table, of family `inet`.
pub const TABLE: &str = "namegate";
const CHAIN: &str = "prerouting";
/// Before connection tracking (`NF_IP_PRI_RAW`).
const PRIORITY: i32 = -300;

// linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = NEW_TABLE | 2;
const NEW_CHAIN: u16 = NEW_TABLE | 3;
const NEW_RULE: u16 = NEW_TABLE | 6;
const GET_RULE: u16 = NEW_TABLE | 7;
const UNSPECIFIED: u8 = 0;
const INET: u8 = 1;
/// Set on attributes that hold attributes (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;
const REGISTER: u32 = 1;
const META_MARK: u32 = 3;
const COMPARE_EQUAL: u32 = 0;

// linux/netlink.h.
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const DUMP: u16 = 0x300;
const HEADER_OCTETS: usize = 16;

/// Puts the rule in place, in one transaction.
pub fn set_up(settings: &Settings) -> io::Result<()> {
    transact(&[
        (NEW_TABLE, CREATE, table()),
        (DELETE_TABLE, 0, table()),
        (NEW_TABLE, CREATE, table()),
        (NEW_CHAIN, CREATE, chain()),
        (NEW_RULE, CREATE | APPEND, rule(settings.redirect_mark, settings.mark_mask)),
    ])
}

/// Takes the rule away; one that is not there is no error.
pub fn remove() -> io::Result<()> {
    transact(&[(NEW_TABLE, CREATE, table()), (DELETE_TABLE, 0, table())])
}

/// Whether the rule is in its place.
pub fn is_there() -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let wanted = [text(1, TABLE), text(2, CHAIN)].concat();
    socket.send(&message(GET_RULE, DUMP, 1, INET, 0, &wanted), 0)?;
    let mut found = false;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        for (kind, code) in kinds(&answers) {
            match kind {
                NEW_RULE => found = true,
                // No such table.
                ERROR if -code == libc::ENOENT => return Ok(false),
                ERROR if code != 0 => return Err(io::Error::from_raw_os_error(-code)),
                DONE => return Ok(found),
                _ => {}
            }
        }
    }
}

fn table() -> Vec<u8> {
    text(1, TABLE)
}

fn chain() -> Vec<u8> {
    let hook = [number(1, 0), attribute(2, &PRIORITY.to_be_bytes())].concat();
    [text(1, TABLE), text(3, CHAIN), attribute(4 | NESTED, &hook), text(7, "filter")].concat()
}

/// `meta mark & BITS == MARK notrack`.
fn rule(mark: u32, bits: u32) -> Vec<u8> {
    // Marks are compared in the order of this machine's octets.
    let value = |number: u32| attribute(1, &number.to_ne_bytes());
    let meta = [number(1, REGISTER), number(2, META_MARK)].concat();
    let masked = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, 4),
        attribute(4 | NESTED, &value(bits)),
        attribute(5 | NESTED, &value(0)),
    ];
    let compared = [number(1, REGISTER), number(2, COMPARE_EQUAL), attribute(3 | NESTED, &value(mark))];
    let expressions = [
        expression("meta", Some(&meta)),
        expression("bitwise", Some(&masked.concat())),
        expression("cmp", Some(&compared.concat())),
        expression("notrack", None),
    ];
    [text(1, TABLE), text(2, CHAIN), attribute(4 | NESTED, &expressions.concat())].concat()
}

fn expression(name: &str, data: Option<&[u8]>) -> Vec<u8> {
    let data = data.map(|data| attribute(2 | NESTED, data)).unwrap_or_default();
    attribute(1 | NESTED, &[text(1, name), data].concat())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

/// Length, kind and value, filled up to a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX); // All are short.
    let mut octets = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    octets.resize(octets.len().next_multiple_of(4), 0);
    octets
}

/// Sends messages as one batch. All of them take hold, or none.
fn transact(messages: &[(u16, u16, Vec<u8>)]) -> io::Result<()> {
    let mut octets = message(BATCH_BEGIN, 0, 0, UNSPECIFIED, SUBSYSTEM, &[]);
    let mut last = 0;
    for (kind, flags, body) in messages {
        last += 1;
        octets.extend(message(*kind, *flags | ACKNOWLEDGE, last, INET, 0, body));
    }
    octets.extend(message(BATCH_END, 0, last + 1, UNSPECIFIED, SUBSYSTEM, &[]));
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&octets, 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        for (sequence, code) in codes(&answers) {
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            if sequence == last {
                return Ok(());
            }
        }
    }
}

/// A header (`nlmsghdr`), the part all messages of netfilter share (`nfgenmsg`), attributes.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_OCTETS + 4 + body.len()).unwrap_or(u32::MAX); // All are short.
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags | REQUEST).to_ne_bytes()].concat();
    let rest = [&sequence.to_ne_bytes()[..], &[0; 4], &[family, 0], &resource.to_be_bytes(), body].concat();
    [header, rest].concat()
}

/// Sequence number and code of each acknowledgement.
fn codes(octets: &[u8]) -> Vec<(u32, i32)> {
    let all = messages(octets).filter(|one| one.kind == ERROR);
    all.filter_map(|one| Some((one.sequence, one.code?))).collect()
}

/// Type of each message, and what stands where an acknowledgement has its code.
fn kinds(octets: &[u8]) -> Vec<(u16, i32)> {
    messages(octets).map(|one| (one.kind, one.code.unwrap_or(0))).collect()
}

/// The head of a message.
struct Head {
    kind: u16,
    sequence: u32,
    /// The first word after it.
    code: Option<i32>,
}

fn messages(mut octets: &[u8]) -> impl Iterator<Item = Head> + '_ {
    let word = |octets: &[u8], at: usize| octets.get(at..at + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(word(octets, 0)?);
        let kind = word(octets, 4)?;
        let sequence = u32::from_ne_bytes(word(octets, 8)?);
        let code = word(octets, HEADER_OCTETS).map(i32::from_ne_bytes);
        // One of no length would not end.
        let length = (length as usize).next_multiple_of(4).max(HEADER_OCTETS);
        octets = octets.get(length..).unwrap_or_default();
        Some(Head { kind: u16::from_ne_bytes([kind[0], kind[1]]), sequence, code })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_filled_up() {
        assert_eq!(text(1, "namegate"), [&[13, 0, 1, 0][..], b"namegate\0\0\0\0"].concat());
        assert_eq!(number(2, 3), [8, 0, 2, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn acknowledgements_are_read() {
        let mut octets = message(ERROR, 0, 7, 0, 0, &[]);
        octets[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        octets.extend(message(0x20, 0, 8, 0, 0, &[]));
        assert_eq!(codes(&octets), [(7, -17)]);
        for length in 0..octets.len() {
            assert!(codes(&octets[..length]).len() <= 1, "{length}");
        }
        assert_eq!(codes(&[0; 64]), []);
    }
}
