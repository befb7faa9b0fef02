//! Tries whether a leg does its work before it is measured: what a rule allows passes, and nothing else does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use namegate_testbed::Netns;

use super::{Work, settings};

/// How long a leg may take until it answers.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long one try may take.
const ONE_WITHIN: Duration = Duration::from_secs(2);
/// Between two tries of a leg that does not answer yet.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until the leg passes on what is allowed; then what is not must be refused, where the leg has rules.
pub(crate) fn wait(
    netns: &Netns,
    target: SocketAddr,
    work: Work,
    has_rules: bool,
    mut check: impl FnMut() -> Result<()>,
) -> Result<()> {
    let (open, closed) = match work {
        Work::Http => (get(&settings::paths()[0]), get(settings::CLOSED_PATH)),
        Work::Tls | Work::Connect => (hello(settings::NAME), hello(settings::CLOSED_NAME)),
    };
    let started = Instant::now();
    loop {
        let heard = ask(netns, target, open.clone());
        if is_passed(work, &heard) {
            break;
        }
        check()?;
        if started.elapsed() > PATIENCE {
            bail!("no answer from {target} within {PATIENCE:?}, only {:?}", String::from_utf8_lossy(&heard));
        }
        std::thread::sleep(PAUSE);
    }
    ensure!(!has_rules || !is_passed(work, &ask(netns, target, closed)), "it passes on what no rule allows");
    Ok(())
}

/// The origin's status, or whatever it says to the first message of TLS.
fn is_passed(work: Work, heard: &[u8]) -> bool {
    match work {
        Work::Http => heard.starts_with(b"HTTP/1.1 200 "),
        Work::Tls | Work::Connect => !heard.is_empty(),
    }
}

/// Sends octets and gives the first ones that come back; none where the connection ends or breaks.
fn ask(netns: &Netns, target: SocketAddr, octets: Vec<u8>) -> Vec<u8> {
    let talk = move || {
        let mut stream = TcpStream::connect_timeout(&target, ONE_WITHIN)?;
        stream.set_read_timeout(Some(ONE_WITHIN))?;
        stream.write_all(&octets)?;
        let mut heard = vec![0; 1_024];
        let count = stream.read(&mut heard)?;
        heard.truncate(count);
        Ok::<_, std::io::Error>(heard)
    };
    netns.call(talk).unwrap_or_default()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", settings::NAME).into_bytes()
}

/// A small `ClientHello` with a server name, as one record (RFC 8446 §4.1.2, RFC 6066 §3). Servers answer by an alert.
fn hello(name: &str) -> Vec<u8> {
    let vector = |octets: &[u8]| {
        let length = u16::try_from(octets.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&length[..], octets].concat()
    };
    let server_name = [&[0, 0][..], &vector(&vector(&[&[0][..], &vector(name.as_bytes())].concat()))].concat();
    let body = [&[3, 3][..], &[7; 32], &[0], &vector(&[0x13, 1]), &[1, 0], &vector(&server_name)].concat();
    let message = [&[1, 0][..], &vector(&body)].concat();
    [&[22, 3, 1][..], &vector(&message)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_no_answers() {
        assert!(is_passed(Work::Http, b"HTTP/1.1 200 OK\r\n"));
        for heard in [&b"HTTP/1.1 403 Forbidden\r\n"[..], b""] {
            assert!(!is_passed(Work::Http, heard));
        }
        assert!(is_passed(Work::Tls, &[21, 3, 3, 0, 2, 2, 40]) && !is_passed(Work::Connect, b""));
    }

    #[test]
    fn lengths_in_the_hello_are_of_what_follows() {
        let octets = hello("a.test");
        assert_eq!(usize::from(u16::from_be_bytes([octets[3], octets[4]])), octets.len() - 5);
        assert_eq!(usize::from(u16::from_be_bytes([octets[7], octets[8]])), octets.len() - 9);
        assert!(octets.ends_with(b"a.test"));
    }
}
