//! A pod that asks for names that all lead to the same many addresses, over TCP, since such answers fit in no datagram.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use namegate_testbed::Netns;
use namegate_testbed::dns::{Query, Reply, Transport, Zone};

use crate::names;

/// Names that share the addresses.
const NAMES: u64 = 260;
/// The addresses.
const ADDRESSES: u16 = 1_000;
const FIRST_ADDRESS: u32 = 0x1600_0001;
/// Questions a second, of all connections together.
const RATE: u32 = 1_000;
const CONNECTIONS: u32 = 16;
/// How long a connection may stay without an answer before it is opened anew.
const WITHIN: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be opened.
const PAUSE: Duration = Duration::from_millis(50);

/// What came of the questions.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) answers: AtomicU64,
    pub(super) refused: AtomicU64,
}

/// Adds the names to what the resolver answers.
pub(super) fn serve(zone: &Zone) {
    zone.script(|query: &Query| {
        let number: u32 = query.name.strip_prefix("n")?.strip_suffix(".greedy.test")?.parse().ok()?;
        Some(match query.transport {
            Transport::Udp => Reply::truncated(query),
            Transport::Tcp => Reply::octets(answer(&query.name, 60 + number)),
        })
    });
}

/// An answer with every address; written by hand, so that the resolver is not what is measured.
fn answer(name: &str, ttl: u32) -> Vec<u8> {
    let mut bytes = names::question_for(0, name);
    bytes[2..4].copy_from_slice(&0x8180_u16.to_be_bytes());
    bytes[6..8].copy_from_slice(&ADDRESSES.to_be_bytes());
    for at in 0..u32::from(ADDRESSES) {
        bytes.extend([0xc0, 0x0c, 0, 1, 0, 1]); // The name of the question, A, IN.
        bytes.extend(ttl.to_be_bytes());
        bytes.extend([0, 4]);
        bytes.extend(Ipv4Addr::from_bits(FIRST_ADDRESS + at).octets());
    }
    bytes
}

/// Asks at the steady rate until `stop`.
pub(super) fn ask(netns: &Netns, resolver: SocketAddr, stop: &AtomicBool, counts: &Counts) {
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut number = u64::from(connection);
                while !stop.load(Ordering::Relaxed) {
                    if converse(netns, resolver, stop, counts, &mut number).is_err() {
                        std::thread::sleep(PAUSE);
                    }
                }
            });
        }
    });
}

/// Asks over one connection until `stop`; an error is the end of the connection.
fn converse(netns: &Netns, to: SocketAddr, stop: &AtomicBool, counts: &Counts, number: &mut u64) -> Result<()> {
    let interval = Duration::from_secs(1) * CONNECTIONS / RATE;
    let mut stream = netns.call(move || TcpStream::connect_timeout(&to, WITHIN)).context("connecting")?;
    stream.set_read_timeout(Some(WITHIN))?;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let question = names::question_for(1, &format!("n{}.greedy.test", *number % NAMES));
        *number += u64::from(CONNECTIONS);
        stream.write_all(&[&u16::try_from(question.len())?.to_be_bytes()[..], &question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut bytes)?;
        let is_good = matches!(names::answer(&bytes), Some((_, true)));
        let count = if is_good { &counts.answers } else { &counts.refused };
        count.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(interval.saturating_sub(started.elapsed()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use namegate_testbed::proto::op::Message;

    use super::*;

    #[test]
    fn the_answer_is_read_by_others() {
        let message = Message::from_vec(&answer("n7.greedy.test", 67)).unwrap();
        assert_eq!((message.answers.len(), message.answers[999].ttl), (1_000, 67));
    }
}
