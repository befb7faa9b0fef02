//! The first packets of QUIC: bytes as they come, and datagrams that a client seals as the input says. What goes on is read
//! by a model of a server: it must be asked for no name that was not judged.

use arbitrary::{Arbitrary, Unstructured};
use namegate_l7_proxy::{
    hello::{self, Hello},
    quic::{
        Connection, Flight, Heard, Version,
        sealing::{Sealing, crypto},
    },
};

use crate::quic_server::{Server, chosen};

/// Names of as many bytes, of which the first may pass.
const ALLOWED: &str = "good.test";
const DENIED: &str = "evil.test";
/// Bytes of a part of a handshake: a datagram has no more.
const PART_MAX: usize = 1_500;
/// Steps of one client.
const STEPS_MAX: usize = 24;

/// One datagram of a client.
#[derive(Arbitrary, Debug)]
enum Step {
    /// As it comes.
    Raw(Vec<u8>),
    Sealed {
        packet: Sealed,
        damages: Option<(u16, u8)>,
    },
    /// Two packets in one datagram.
    Both {
        first: Sealed,
        second: Sealed,
    },
}

/// An Initial packet.
#[derive(Arbitrary, Debug)]
struct Sealed {
    is_v2: bool,
    are_keys_v2: Option<bool>,
    connection: u8,
    /// Whether the identifier in it is the one that the server chose.
    is_answer: bool,
    source: Option<u8>,
    number: u64,
    number_bytes: u8,
    is_short: bool,
    frames: Vec<Frame>,
}

#[derive(Arbitrary, Debug)]
enum Frame {
    /// One of the handshakes.
    Whole { handshake: u8 },
    /// A part of one.
    Part { handshake: u8, from: u16, length: u16 },
    /// As it comes.
    Raw(Vec<u8>),
}

/// Datagrams.
///
/// # Panics
/// A datagram without a long header is not let pass, or the model of a server is asked for a name that was not allowed.
pub fn quic_initial(data: &[u8]) {
    let heard = Flight::default().read(data, |_| true);
    if data.first().is_none_or(|head| head & 0x80 == 0) {
        assert_eq!(heard, Heard::Known, "a short header");
    }
    play(data);
}

/// Plays the input; gives how many handshakes the servers could read.
fn play(data: &[u8]) -> usize {
    let mut input = Unstructured::new(data);
    let handshakes = handshakes();
    let mut client = Client::default();
    let mut servers = [Server::new(false), Server::new(true)];
    for _ in 0..STEPS_MAX {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        for datagram in client.send(step.datagram(&handshakes)) {
            for server in &mut servers {
                server.take(&datagram);
            }
        }
        for handshake in servers.iter().flat_map(Server::handshakes) {
            assert_allowed(&handshake);
        }
        if input.is_empty() {
            break;
        }
    }
    servers.iter().flat_map(Server::handshakes).filter(|handshake| !handshake.is_empty()).count()
}

/// A flow, with what waits of it.
#[derive(Default)]
struct Client {
    flight: Flight,
    waits: Vec<(Connection, Vec<u8>)>,
    begun: Vec<Connection>,
}

impl Client {
    /// What goes on where a datagram was sent, as the agent has it.
    fn send(&mut self, datagram: Vec<u8>) -> Vec<Vec<u8>> {
        let begun = &mut self.begun;
        let heard = self.flight.read(&datagram, |connection| {
            let is_new = !begun.contains(&connection);
            begun.push(connection);
            is_new
        });
        let (connection, passes) = match heard {
            Heard::Known => return vec![datagram],
            Heard::Partial(connection) => {
                self.waits.push((connection, datagram));
                return Vec::new();
            }
            Heard::Asks(connection, name) => {
                let passes = name.is_some_and(|name| name.as_str() == ALLOWED);
                self.flight.settle(connection, passes);
                (connection, passes)
            }
            Heard::Completes(connection) => (connection, true),
            Heard::Refused(_) | Heard::OtherVersion | Heard::Unread => return Vec::new(),
        };
        let waited = self.waits.extract_if(.., |(of, _)| *of == connection).map(|(_, datagram)| datagram);
        let all: Vec<Vec<u8>> = waited.chain([datagram]).collect();
        if passes { all } else { Vec::new() }
    }
}

impl Step {
    fn datagram(&self, handshakes: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Sealed { packet, damages } => {
                let mut packet = packet.seal(handshakes);
                if let Some((at, change)) = damages {
                    let at = usize::from(*at) % packet.len();
                    packet[at] ^= change;
                }
                packet
            }
            Self::Both { first, second } => [first.seal(handshakes), second.seal(handshakes)].concat(),
        }
    }
}

impl Sealed {
    fn seal(&self, handshakes: &[Vec<u8>]) -> Vec<u8> {
        let version = |is_v2| if is_v2 { Version::V2 } else { Version::V1 };
        let keys_id = [self.connection % 4; 8];
        let id = if self.is_answer { chosen(&keys_id) } else { keys_id.to_vec() };
        let source: &[u8] = if self.source.is_some() { &[1; 4] } else { &[] };
        let frames: Vec<u8> = self.frames.iter().flat_map(|frame| frame.bytes(handshakes)).collect();
        let sealing = Sealing {
            id: &id,
            keys_version: version(self.are_keys_v2.unwrap_or(self.is_v2)),
            source,
            fills: if self.is_short { 0 } else { 1_200 },
            ..Sealing::of(version(self.is_v2), &keys_id)
        };
        let number = self.number & ((1 << 20) - 1);
        // A packet is never shorter than its sample needs.
        let frames = if frames.len() < 4 { [&frames[..], &[0; 4]].concat() } else { frames };
        sealing.numbered(number, usize::from(self.number_bytes % 4) + 1).seal(&frames[..frames.len().min(8_000)])
    }
}

impl Frame {
    fn bytes(&self, handshakes: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Whole { handshake } => crypto(0, &handshakes[usize::from(*handshake) % handshakes.len()]),
            Self::Part { handshake, from, length } => {
                let handshake = &handshakes[usize::from(*handshake) % handshakes.len()];
                let from = usize::from(*from) % handshake.len();
                let length = usize::from(*length).min(handshake.len() - from).min(PART_MAX);
                crypto(from, &handshake[from..from + length])
            }
        }
    }
}

/// Handshakes that a hostile client puts together: a name alone, a second hello, and one inside of an extension.
fn handshakes() -> Vec<Vec<u8>> {
    let (allowed, denied) = (hello(ALLOWED, &[]), hello(DENIED, &[]));
    let holds = hello(ALLOWED, &denied);
    vec![
        allowed.clone(),
        denied.clone(),
        [&allowed[..], &allowed].concat(),
        [&allowed[..], &denied].concat(),
        [&holds[..], &denied].concat(),
    ]
}

/// A hello with a name, and an extension that holds something.
fn hello(name: &str, held: &[u8]) -> Vec<u8> {
    let vector = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes()[..], bytes].concat();
    let list = vector(&[&[0][..], &vector(name.as_bytes())].concat());
    let extensions = [&[0, 0][..], &vector(&list), &[0x3a, 0x3a], &vector(held)].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &vector(&extensions)].concat();
    [&[1, 0][..], &vector(&body)].concat()
}

/// Each hello that a server reads asks for the name that may pass.
fn assert_allowed(handshake: &[u8]) {
    let mut rest = handshake;
    while let Some((&[kind, high, middle, low], body)) = rest.split_first_chunk::<4>() {
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let Some(after) = body.get(length..) else { break };
        let message = &rest[..rest.len() - after.len()];
        if kind == 1 {
            let read = hello::read_message(message, false);
            let is_allowed = matches!(&read, Ok(Hello::Whole(Some(name))) if name.as_str() == ALLOWED);
            assert!(is_allowed, "the server is asked: {read:?}");
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs that are drawn, and their length in bytes.
    const DRAWN: usize = 300;
    const DRAWN_BYTES: usize = 2_048;

    fn sealed(connection: u8, handshake: u8, from: u16, length: u16) -> Step {
        let frames = vec![Frame::Part { handshake, from, length }];
        let packet = Sealed {
            is_v2: false,
            are_keys_v2: None,
            connection,
            is_answer: false,
            source: None,
            number: u64::from(from),
            number_bytes: 3,
            is_short: false,
            frames,
        };
        Step::Sealed { packet, damages: None }
    }

    #[test]
    fn the_model_reads_what_a_client_seals() {
        let handshakes = handshakes();
        let mut server = Server::new(false);
        server.take(&sealed(1, 1, 20, u16::MAX).datagram(&handshakes));
        assert_eq!(server.handshakes(), [Vec::<u8>::new()], "a gap");
        server.take(&sealed(1, 1, 0, 30).datagram(&handshakes));
        assert_eq!(server.handshakes(), [handshakes[1].clone()]);
        let hears = std::panic::catch_unwind(|| assert_allowed(&handshakes[1]));
        assert!(hears.is_err(), "the name that may not pass is found");
        assert_allowed(&handshakes[2]);
    }

    #[test]
    fn drawn_clients_do_not_get_past_the_model() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let read: usize = (0..DRAWN).map(|_| play(&std::array::from_fn::<u8, DRAWN_BYTES, _>(|_| draw()))).sum();
        assert!(read > 0, "no server could read anything");
    }
}
