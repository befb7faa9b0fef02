//! One question to the kernel's routing sockets and its answers (RFC 3549; `rtnetlink(7)`).

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// Sends one request with the flags `flags` and gathers what comes back, up to its end or acknowledgement.
///
/// The request must ask for either: `NLM_F_ACK` or `NLM_F_DUMP`.
pub(crate) fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    socket.send(&octets, 0)?;
    let mut answers = Vec::new();
    loop {
        let (octets, _) = socket.recv_from_full()?;
        for payload in payloads(&octets) {
            match payload? {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

/// The messages of one datagram.
pub(crate) fn payloads(octets: &[u8]) -> impl Iterator<Item = io::Result<NetlinkPayload<RouteNetlinkMessage>>> + '_ {
    let mut rest = octets;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
            Ok(message) => {
                // Messages start at multiples of four; one of no length would not end.
                let length = (message.header.length as usize).next_multiple_of(4).clamp(4, rest.len().max(4));
                rest = rest.get(length..).unwrap_or_default();
                Some(Ok(message.payload))
            }
            Err(error) => {
                rest = &[];
                Some(Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())))
            }
        }
    })
}

/// Octets of a message's header (`netlink(7)`).
const HEADER_OCTETS: usize = 16;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The table changed while it was read: rows may be missing (`NLM_F_DUMP_INTR`).
const CHANGED: u16 = 0x10;
/// A table that changes all the time is read so often at most.
const READINGS_MAX: usize = 8;

/// The body of one message: the header of its family, then attributes.
pub(crate) type Body = Vec<u8>;

/// Sends one request as bytes and gathers the bodies of the answers of type `answers`. What is read is complete: a table
/// that changed meanwhile is read again, and is an error where it does not stop changing.
///
/// Unlike [`ask`] it does not read what the attributes hold, so an attribute of an unknown form spoils nothing.
pub(crate) fn bodies(kind: u16, answers: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Body>> {
    for _ in 0..READINGS_MAX {
        if let Some(found) = bodies_once(kind, answers, flags, body)? {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the table of the kernel changes faster than it can be read"))
}

/// `None` where the table changed while it was read.
fn bodies_once(kind: u16, answers: u16, flags: u16, body: &[u8]) -> io::Result<Option<Vec<Body>>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let length = u32::try_from(HEADER_OCTETS + body.len()).map_err(io::Error::other)?;
    let mut octets = length.to_ne_bytes().to_vec();
    octets.extend(kind.to_ne_bytes());
    octets.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    octets.extend([0; 8]);
    octets.extend(body);
    socket.send(&octets, 0)?;
    let (mut found, mut has_changed) = (Vec::new(), false);
    loop {
        let (octets, _) = received(&socket)?;
        let mut rest = &octets[..];
        while let Some((head, message, next)) = split(rest) {
            rest = next;
            has_changed |= head.flags & CHANGED != 0;
            let code = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            match head.kind {
                ERROR | DONE if code < 0 => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                ERROR | DONE => return Ok((!has_changed).then_some(found)),
                kind if kind == answers => found.push(message.to_vec()),
                _ => {}
            }
        }
    }
}

/// A datagram; a signal is no end.
fn received(socket: &Socket) -> io::Result<(Vec<u8>, SocketAddr)> {
    loop {
        match socket.recv_from_full() {
            Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
            received => return received,
        }
    }
}

struct Head {
    kind: u16,
    flags: u16,
}

/// The first message of a datagram, and what follows it.
fn split(octets: &[u8]) -> Option<(Head, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*octets.first_chunk()?);
    let length = usize::try_from(length).ok().filter(|length| *length >= HEADER_OCTETS)?;
    let number = |at: usize| Some(u16::from_ne_bytes(*octets.get(at..)?.first_chunk()?));
    let head = Head { kind: number(4)?, flags: number(6)? };
    let next = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((head, octets.get(HEADER_OCTETS..length)?, next))
}

/// The attributes that begin at `at` of a body: type and content. Nested ones are of the same form.
pub(crate) fn attributes(body: &[u8], at: usize) -> impl Iterator<Item = (u16, &[u8])> {
    /// Bits that say how the content is written.
    const FLAGS: u16 = 0xc000;
    const HEADER: usize = 4;
    let mut rest = body.get(at..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let content = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !FLAGS, content))
    })
}

/// Adds an attribute to a request.
pub(crate) fn attribute(body: &mut Body, kind: u16, content: &[u8]) {
    const HEADER: u16 = 4;
    let length = HEADER.saturating_add(u16::try_from(content.len()).unwrap_or(u16::MAX - HEADER));
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(content);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A number of four bytes.
pub(crate) fn number(content: &[u8]) -> Option<u32> {
    content.first_chunk().map(|octets| u32::from_ne_bytes(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut body = vec![0; 4];
        attribute(&mut body, 3, b"eth0\0");
        attribute(&mut body, 5 | 0x8000, &7_u32.to_ne_bytes());
        let found: Vec<_> = attributes(&body, 4).collect();
        assert_eq!(found, [(3, &b"eth0\0"[..]), (5, &7_u32.to_ne_bytes()[..])]);
        assert_eq!(attributes(&[1, 0, 0, 0], 0).count(), 0, "shorter than its own header");
        assert_eq!(attributes(&[9, 0, 0, 0, 1], 0).count(), 0, "longer than what is there");
    }
}
