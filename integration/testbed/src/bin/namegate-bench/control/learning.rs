//! Asks for many names as fast as answers come, so that an endpoint has learned them.

use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use namegate_testbed::Netns;

use crate::names;

/// Questions on the way at a time.
const WINDOW: u16 = 64;
/// How long the answers of one window may take before those that are missing are asked for again.
const WITHIN: Duration = Duration::from_secs(2);
/// How often one window is asked.
const TRIES: usize = 10;

/// Asks for each of these names until it is answered without an error.
pub(super) fn learn(netns: &Netns, resolver: SocketAddr, numbers: Range<u16>) -> Result<()> {
    let socket = netns.call(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(resolver)?;
        socket.set_read_timeout(Some(WITHIN))?;
        Ok::<_, std::io::Error>(socket)
    });
    let socket = socket.with_context(|| format!("opening a socket to ask {resolver}"))?;
    let mut first = numbers.start;
    while first < numbers.end {
        let end = numbers.end.min(first.saturating_add(WINDOW));
        window(&socket, (first..end).collect())?;
        first = end;
    }
    Ok(())
}

fn window(socket: &UdpSocket, mut waiting: Vec<u16>) -> Result<()> {
    let mut bytes = [0; 1_500];
    for _ in 0..TRIES {
        for number in &waiting {
            socket.send(&names::question(*number, *number)).context("asking")?;
        }
        while !waiting.is_empty() {
            let Ok(length) = socket.recv(&mut bytes) else { break };
            if let Some((id, true)) = names::answer(&bytes[..length]) {
                waiting.retain(|number| *number != id);
            } else if names::is_server_failure(&bytes[..length]) {
                break; // The others of the window are asked for again as well: it is not measured here.
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
    }
    bail!("{} names stay without an answer after {TRIES} tries", waiting.len())
}
