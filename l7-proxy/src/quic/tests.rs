//! What a client may send, and what hides another name.

use namegate_config::name::Fqdn;

use super::{
    attempt::STREAM_BYTES_MAX,
    packet::Cursor,
    sealing::{Sealing, crypto, varint},
    *,
};

/// RFC 9001 §A.1 and RFC 9369 §A.1.
const ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
/// The first message of RFC 9001 §A.2 and RFC 9369 §A.2.
const HELLO: &str = "010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c000004130113020\
    10000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d0017001800100007000504616c706e0005000501\
    00000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b0003020304000d001\
    0000e0403050306030203080408050806002d00020101001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff0801\
    100104800075300901100f088394c8f03e51570806048000ffff";

const PLAIN: Sealing<'_> = Sealing::of(Version::V1, &ID);
/// An identifier that the server chose.
const SERVER_ID: [u8; 8] = [0xf0; 8];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hello() -> Vec<u8> {
    bytes(HELLO)
}

/// The same with another name of as many bytes.
fn hello_of(name: &str) -> Vec<u8> {
    let mut hello = hello();
    let at = hello.windows(11).position(|part| part == b"example.com").unwrap();
    hello[at..at + 11].copy_from_slice(name.as_bytes());
    hello
}

fn sealed(payload: &[u8]) -> Vec<u8> {
    PLAIN.seal(payload)
}

/// A packet whose keys are not known here: of 0-RTT, or of the handshake.
fn keyed(kind: u8, id: &[u8], source: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0, 1];
    for id in [id, source] {
        packet.push(u8::try_from(id.len()).unwrap());
        packet.extend(id);
    }
    packet.extend(varint(40));
    packet.extend([0x5a; 40]);
    packet
}

const ZERO_RTT: u8 = 0xd0;
const HANDSHAKE: u8 = 0xe0;

fn connection(id: &[u8]) -> Connection {
    let packet = Sealing::of(Version::V1, id).seal(&[1]);
    let Ok(Datagram::Long(packets)) = Datagram::read(&packet) else { panic!("no packet") };
    packets[0].connection
}

fn first() -> Connection {
    connection(&ID)
}

fn example(connection: Connection) -> Heard {
    Heard::Asks(connection, Some("example.com".parse::<Fqdn>().unwrap()))
}

/// A flow that may begin whatever it likes.
#[derive(Default)]
struct Client(Flight);

impl Client {
    fn hear(&mut self, datagram: &[u8]) -> Heard {
        self.0.read(datagram, |_| true)
    }

    /// One whose connection asked for `example.com`, and passed.
    fn passed() -> Self {
        let mut client = Self::default();
        assert_eq!(client.hear(&sealed(&crypto(0, &hello()))), example(first()));
        client.0.settle(first(), true);
        client
    }
}

fn alone(datagram: &[u8]) -> Heard {
    Client::default().hear(datagram)
}

#[test]
fn the_vectors_of_both_versions_are_read() {
    for (version, begins, tag) in [
        (
            Version::V1,
            "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9bd8bab936b47d92ec356c",
            "e221af44860018ab0856972e194cd934",
        ),
        (
            Version::V2,
            "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485dd04de806071bf03dceebfa162e75d6c",
            "a18b2faa745b6fe189cf772a9f84cbfc",
        ),
    ] {
        // The vectors write the offset in one byte.
        let mut payload = [&[6, 0][..], &varint(hello().len()), &hello()].concat();
        payload.resize(1_162, 0);
        let packet = Sealing::of(version, &ID).numbered(2, 4).seal(&payload);
        assert_eq!(packet.len(), 1_200);
        assert!(packet.starts_with(&bytes(begins)) && packet.ends_with(&bytes(tag)), "{version:?}");
        let mut client = Client::default();
        assert_eq!(client.hear(&packet), example(first()), "{version:?}");
        client.0.settle(first(), true);
        assert_eq!(client.hear(&packet), Heard::Known, "sent again");
    }
}

#[test]
fn frames_come_in_any_order_and_split() {
    let hello = hello();
    for at in 1..hello.len() {
        let (early, late) = (crypto(0, &hello[..at]), crypto(at, &hello[at..]));
        let mut client = Client::default();
        assert_eq!(client.hear(&sealed(&late)), Heard::Partial(first()), "{at}");
        let mut one = Sealing { fills: 0, ..PLAIN }.numbered(1, 1).seal(&[&[1, 0][..], &early].concat());
        one.extend(PLAIN.numbered(2, 1).seal(&[1]));
        assert_eq!(client.hear(&one), example(first()), "{at}");
        client.0.settle(first(), false);
        assert_eq!(client.hear(&one), Heard::Refused(first()), "{at}");
    }
    let acknowledged = [&[2, 0, 0, 1, 0, 0, 0, 3, 1, 0, 0, 0, 1, 2, 3][..], &crypto(0, &hello)].concat();
    assert_eq!(alone(&sealed(&acknowledged)), example(first()));
}

#[test]
fn a_server_that_gets_each_part_at_once_may_choose_its_identifier_between_two() {
    let hello = hello();
    let (early, late) = hello.split_at(80);
    let late = Sealing { id: &SERVER_ID, ..PLAIN }.numbered(1, 1).seal(&crypto(80, late));
    let cases = [(Flight::default(), Heard::Unread), (Flight::observed(), example(first()))];
    for (flight, want) in cases {
        let mut client = Client(flight);
        assert_eq!(client.hear(&sealed(&crypto(0, early))), Heard::Partial(first()));
        assert_eq!(client.hear(&late), want);
    }
}

#[test]
fn what_a_server_could_read_in_another_way_is_refused() {
    let hello = hello();
    let changed = hello_of("denied.test");
    let mut client = Client::passed();
    let other = sealed(&crypto(0, &changed));
    assert_eq!(client.hear(&other), Heard::Asks(first(), None), "the same connection, another message");
    client.0.settle(first(), false);
    assert_eq!(client.hear(&sealed(&crypto(0, &hello))), Heard::Refused(first()));
    let twice = [crypto(0, &hello[..80]), crypto(60, &changed[60..])].concat();
    assert_eq!(alone(&sealed(&twice)), Heard::Asks(first(), None));
    let two = [sealed(&crypto(0, &hello)), Sealing::of(Version::V1, &[9; 8]).seal(&crypto(0, &changed))].concat();
    assert_eq!(alone(&two), Heard::Unread, "two connections in a datagram");
    let two = [sealed(&crypto(0, &hello)), Sealing::of(Version::V2, &ID).seal(&crypto(0, &changed))].concat();
    assert_eq!(alone(&two), Heard::Unread, "two versions in a datagram");
    for (payload, what) in [
        (vec![8, 0], "a frame of later packets"),
        (vec![0x40, 6, 0, 1, 1], "a type in two bytes"),
        (crypto(STREAM_BYTES_MAX - 1, b"ab"), "past the bound"),
        (crypto(0, &[2, 0, 0, 0]), "another message"),
        (vec![0x1d, 0, 0], "the end of an application"),
    ] {
        assert_eq!(alone(&sealed(&payload)), Heard::Asks(first(), None), "{what}");
    }
    let closing = [&[0x1c, 0, 0, 1, 0x41][..], &crypto(0, &changed)].concat();
    let named = Heard::Asks(first(), Some("denied.test".parse().unwrap()));
    assert_eq!(alone(&sealed(&closing)), named, "what follows the end of a connection is read");
    let mut draft = sealed(&crypto(0, &hello));
    draft[1..5].copy_from_slice(&[0xff, 0, 0, 29]);
    assert_eq!(alone(&draft), Heard::OtherVersion);
}

#[test]
fn a_connection_does_not_begin_again_in_another_version() {
    for name in ["denied.test", "example.com"] {
        let mut client = Client::passed();
        let other = Sealing::of(Version::V2, &ID).seal(&crypto(0, &hello_of(name)));
        assert_eq!(client.hear(&other), Heard::Unread, "{name}");
        assert_eq!(client.hear(&sealed(&crypto(0, &hello()))), Heard::Known, "the first goes on");
        let mut client = Client::default();
        assert_eq!(client.hear(&sealed(&crypto(0, &hello()[..9]))), Heard::Partial(first()));
        assert_eq!(client.hear(&other), Heard::Unread, "{name}, before the first is whole");
        let asks = Heard::Asks(first(), Some(name.parse().unwrap()));
        assert_eq!(alone(&other), asks, "alone it is a connection like any other");
    }
}

#[test]
fn what_opens_with_no_keys_goes_nowhere() {
    let mut client = Client::passed();
    let mut damaged = sealed(&crypto(0, &hello()));
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(client.hear(&damaged), Heard::Unread);
    assert_eq!(client.hear(&Sealing { keys_id: &[7; 8], ..PLAIN }.seal(&[1])), Heard::Unread);
    assert_eq!(alone(&Sealing { fills: 0, ..PLAIN }.seal(&crypto(0, &hello()))), Heard::Unread, "a short datagram");
    assert_eq!(alone(&Sealing { fills: 1_199, ..PLAIN }.seal(&crypto(0, &hello()))), Heard::Unread);
    assert_eq!(
        alone(&Sealing::of(Version::V1, &[9; 7]).seal(&crypto(0, &hello()))),
        Heard::Unread,
        "a short identifier"
    );
    let packet = sealed(&crypto(0, &hello()));
    for at in 1..packet.len() {
        assert_eq!(alone(&packet[..at]), Heard::Unread, "cut after {at}");
    }
    let mut retry = sealed(&[1]);
    retry[0] |= 0x30;
    assert_eq!(alone(&retry), Heard::Unread, "a client sends no Retry");
}

#[test]
fn packet_numbers_are_those_of_the_server() {
    let hello = hello();
    let mut client = Client::default();
    let mut hear =
        |number, number_bytes, payload: &[u8]| client.hear(&PLAIN.numbered(number, number_bytes).seal(payload));
    assert_eq!(hear(0x1_0000, 3, &crypto(0, &hello[..9])), Heard::Partial(first()));
    assert_eq!(hear(0x1_0005, 1, &crypto(9, &hello[9..20])), Heard::Partial(first()), "one byte of it is sent");
    assert_eq!(hear(0x1_0090, 1, &crypto(20, &hello[20..30])), Heard::Unread, "as far away as no server looks");
    assert_eq!(hear(0x1_0080, 1, &crypto(20, &hello[20..])), example(first()));
}

#[test]
fn a_second_hello_repeats_the_first() {
    let (hello, denied) = (hello(), hello_of("denied.test"));
    let end = hello.len();
    let send = |client: &mut Client, bytes: &[u8]| client.hear(&PLAIN.numbered(1, 1).seal(&crypto(end, bytes)));
    let mut client = Client::passed();
    assert_eq!(send(&mut client, &hello[..90]), Heard::Partial(first()), "it waits");
    assert_eq!(client.hear(&keyed(HANDSHAKE, &SERVER_ID, &[])), Heard::Known);
    assert_eq!(send(&mut client, &hello), Heard::Completes(first()));
    assert_eq!(send(&mut client, &hello), Heard::Known, "sent again");
    let third = PLAIN.numbered(2, 1).seal(&crypto(2 * end, &hello));
    assert_eq!(client.hear(&third), Heard::Asks(first(), None), "a server asks once");
    for (what, second) in [("another name", denied), ("no hello", vec![11, 0, 0, 0])] {
        let mut client = Client::passed();
        assert_eq!(send(&mut client, &second), Heard::Asks(first(), None), "{what}");
        client.0.settle(first(), false);
        assert_eq!(client.hear(&keyed(HANDSHAKE, &SERVER_ID, &[])), Heard::Unread, "{what}");
        let both = [&hello[..], &second].concat();
        assert_eq!(alone(&sealed(&crypto(0, &both))), Heard::Asks(first(), None), "{what}, at once");
    }
    assert_eq!(alone(&sealed(&crypto(0, &[&hello[..], &hello].concat()))), example(first()));
    assert_eq!(alone(&sealed(&crypto(0, &[&hello[..], &hello[..9]].concat()))), Heard::Partial(first()));
}

#[test]
fn packets_that_begin_nothing_go_with_their_connection() {
    let mut client = Client::default();
    for packet in [keyed(ZERO_RTT, &ID, &[]), keyed(HANDSHAKE, &ID, &[]), keyed(HANDSHAKE, &SERVER_ID, &[])] {
        assert_eq!(client.hear(&packet), Heard::Unread, "of no connection");
    }
    assert_eq!(client.hear(&sealed(&crypto(0, &hello()[..9]))), Heard::Partial(first()));
    assert_eq!(client.hear(&keyed(ZERO_RTT, &ID, &[])), Heard::Partial(first()));
    assert_eq!(client.hear(&keyed(HANDSHAKE, &SERVER_ID, &[])), Heard::Unread, "no server has answered");
    let whole = [sealed(&crypto(0, &hello())), keyed(ZERO_RTT, &ID, &[])].concat();
    assert_eq!(client.hear(&whole), example(first()));
    client.0.settle(first(), true);
    assert_eq!(client.hear(&keyed(ZERO_RTT, &ID, &[])), Heard::Known);
    assert_eq!(client.hear(&keyed(HANDSHAKE, &SERVER_ID, &[])), Heard::Known);
    assert_eq!(client.hear(&keyed(HANDSHAKE, &SERVER_ID, &[1])), Heard::Unread, "of another client");
    assert_eq!(alone(&[keyed(HANDSHAKE, &ID, &[]), sealed(&crypto(0, &hello()))].concat()), example(first()));
    let acknowledges = Sealing { id: &SERVER_ID, ..PLAIN }.numbered(1, 1);
    let both = [acknowledges.seal(&[2, 0, 0, 0, 0]), keyed(HANDSHAKE, &SERVER_ID, &[])].concat();
    assert_eq!(client.hear(&both), Heard::Known, "the server's identifier, the same keys");
    let other = Sealing { source: &[1], ..acknowledges };
    assert_eq!(client.hear(&other.seal(&[2, 0, 0, 0, 0])), Heard::Unread, "of another client");
    for short in [&[0x40; 30][..], &[0; 30], &[]] {
        assert_eq!(alone(short), Heard::Known, "a short header");
    }
}

#[test]
fn a_server_may_retry_or_change_the_version() {
    let mut client = Client::passed();
    let after_retry = connection(&SERVER_ID);
    let again = Sealing::of(Version::V1, &SERVER_ID).numbered(1, 1);
    assert_eq!(client.hear(&again.seal(&crypto(0, &hello()))), example(after_retry), "it is asked again");
    let upgraded = Sealing { version: Version::V2, keys_version: Version::V2, id: &[0xe0; 8], ..PLAIN }.numbered(2, 1);
    assert_eq!(client.hear(&upgraded.seal(&[2, 0, 0, 0, 0])), Heard::Known, "RFC 9369 §4.1");
    let negotiated = connection(&[8; 8]);
    let anew = Sealing::of(Version::V2, &[8; 8]).seal(&crypto(0, &hello()));
    assert_eq!(client.hear(&anew), example(negotiated), "RFC 9000 §6.2");
}

#[test]
fn a_connection_that_may_not_begin_is_not_known() {
    let mut flight = Flight::default();
    assert_eq!(flight.read(&sealed(&crypto(0, &hello())), |_| false), Heard::Unread);
    assert!(!flight.knows(first()));
    for number in 0..=ATTEMPTS_MAX {
        let id = [u8::try_from(number).unwrap(); 9];
        let heard = flight.read(&Sealing::of(Version::V1, &id).seal(&crypto(0, &hello()[..9])), |_| true);
        let want = if number < ATTEMPTS_MAX { Heard::Partial(connection(&id)) } else { Heard::Unread };
        assert_eq!(heard, want, "none begins beyond the bound");
    }
    assert!(flight.knows(connection(&[0; 9])), "none gives way");
    assert!(flight.bytes() <= ATTEMPTS_MAX * Flight::bytes_for());
}

#[test]
fn changed_bytes_never_panic() {
    let whole = [sealed(&crypto(0, &hello())), keyed(HANDSHAKE, &ID, &[])].concat();
    for at in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut changed = whole.clone();
            changed[at] = byte;
            let _ = alone(&changed);
        }
    }
    assert!(Cursor(&[0xff]).vector().is_err());
}
