//! Datagrams that may begin a connection, held until the name in them is known: then they go on, in their order and with
//! their sender's address, or nowhere.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZeroUsize,
};

use lru::LruCache;
use namegate_abi::FlowKey;
use namegate_api::view::{Flow, Verdict};
use namegate_config::rule::Binding;
use namegate_l7_proxy::{
    quic::{Flight, Heard},
    send_as,
};
use namegate_loader::Opening;
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    clock::boot_ns,
    gate::Door,
    openings::{Check, Checks, Seen, datagrams, judge},
};

/// Flows known at a time; the one heard of longest ago gives way.
const FLOWS_MAX: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();
/// Octets that wait of one flow, and of all.
const FLOW_OCTETS_MAX: usize = 64 << 10;
const OCTETS_MAX: usize = 16 << 20;
/// What has waited longer was sent again by its client, or is of an earlier agent's time.
const AGE_MAX_NS: u64 = 3_000_000_000;
/// Ports tried where the kernel's choice for IPv4 is taken for IPv6.
const PORT_TRIES: usize = 16;

/// Flows whose datagrams are looked at.
pub(crate) struct Waiting {
    flows: LruCache<FlowKey, Line>,
    /// That wait of all flows.
    octets: usize,
    mark: u32,
}

/// What is known of one flow, and what of it waits.
#[derive(Default)]
struct Line {
    flight: Flight,
    held: Vec<Vec<u8>>,
    octets: usize,
    /// A refusal was told: its client tries again.
    told: bool,
}

impl Waiting {
    pub(crate) fn new(mark: u32) -> Self {
        Self { flows: LruCache::new(FLOWS_MAX), octets: 0, mark }
    }

    /// Takes a packet that the kernel held; gives the record of a connection that does not pass, or would not where names
    /// were enforced.
    pub(crate) async fn take(&mut self, opening: Opening, door: &Door, checks: &Checks) -> Option<Flow> {
        let record = opening.record;
        let is_late = boot_ns().saturating_sub(record.time_ns) > AGE_MAX_NS;
        if is_late || record.length as usize != opening.octets.len() {
            checks.count(Check::Unread);
            return None;
        }
        let mut told = None;
        for datagram in datagrams(&opening) {
            let Some(heard) = self.hold(record.flow, datagram) else {
                checks.count(Check::Unread);
                continue;
            };
            let asked = match heard {
                Heard::Partial => continue,
                Heard::Known => {
                    self.go_on(&record.flow, false);
                    continue;
                }
                Heard::Asks(name) => name,
                Heard::Refused => None,
            };
            let seen = Seen { flow: record.flow, rule: record.rule, began_ns: record.time_ns, asked };
            let Some(mismatch) = ask(door, seen).await else {
                self.drop_held(&record.flow);
                continue;
            };
            let passes = mismatch.as_ref().is_none_or(|flow| flow.verdict != Verdict::Denied);
            checks.count(match (&mismatch, passes) {
                (None, _) => Check::Matched,
                (Some(_), true) => Check::Mismatched,
                (Some(_), false) => Check::Refused,
            });
            told = self.settle(&record.flow, passes, mismatch).or(told);
        }
        told
    }

    /// Adds a datagram to those that wait of its flow; `None` where there is no room.
    fn hold(&mut self, flow: FlowKey, datagram: &[u8]) -> Option<Heard> {
        if !self.flows.contains(&flow)
            && let Some((_, gone)) = self.flows.push(flow, Line::default())
        {
            self.octets -= gone.octets;
        }
        let line = self.flows.get_mut(&flow)?;
        if line.octets + datagram.len() > FLOW_OCTETS_MAX || self.octets + datagram.len() > OCTETS_MAX {
            return None;
        }
        line.held.push(datagram.to_vec());
        line.octets += datagram.len();
        self.octets += datagram.len();
        Some(line.flight.read(datagram))
    }

    /// Carries out what was decided on the connection that asked last; gives its record the first time.
    fn settle(&mut self, flow: &FlowKey, passes: bool, mismatch: Option<Flow>) -> Option<Flow> {
        let line = self.flows.get_mut(flow)?;
        line.flight.settle(passes);
        let is_news = passes || !std::mem::replace(&mut line.told, true);
        if passes {
            self.go_on(flow, true);
        } else {
            self.drop_held(flow);
        }
        mismatch.filter(|_| is_news)
    }

    /// Sends what waits of a flow; where others wait before the last datagram, only if `all` may go.
    fn go_on(&mut self, flow: &FlowKey, all: bool) {
        if self.flows.peek(flow).is_none_or(|line| line.held.len() > 1 && !all) {
            return;
        }
        let held = self.drop_held(flow);
        let client = SocketAddr::new(flow.local.to_ip(), flow.local_port);
        let server = SocketAddr::new(flow.remote.to_ip(), flow.remote_port);
        match send_as(client, server, self.mark, &held) {
            Ok(sent) if sent == held.len() => {}
            Ok(sent) => tracing::debug!(%client, %server, sent, of = held.len(), "held datagrams were lost"),
            Err(error) => tracing::error!(%client, %server, %error, "held datagrams could not be sent on"),
        }
    }

    fn drop_held(&mut self, flow: &FlowKey) -> Vec<Vec<u8>> {
        let Some(line) = self.flows.peek_mut(flow) else { return Vec::new() };
        self.octets -= std::mem::take(&mut line.octets);
        std::mem::take(&mut line.held)
    }
}

/// The record of a connection that does not pass, or would not where names were enforced; nobody answers where the gate
/// has stopped.
async fn ask(door: &Door, seen: Seen) -> Option<Option<Flow>> {
    let judged = door.ask(move |gate| {
        let of = |binding| judge(gate.engine(), &seen, binding);
        of(Binding::Enforce).or_else(|| of(Binding::Observe))
    });
    judged.await.ok()
}

/// Sockets by which the programs know that somebody looks at names, and their port. Without the mark they would be taken
/// for those of another program that has bound the port after an agent ended.
pub(crate) fn presence(mark: u32) -> io::Result<(u16, Vec<UdpSocket>)> {
    let mut tries = PORT_TRIES;
    loop {
        tries -= 1;
        let v4 = marked((Ipv4Addr::LOCALHOST, 0).into(), mark)?;
        let port = v4.local_addr()?.port();
        match marked((Ipv6Addr::LOCALHOST, port).into(), mark) {
            Ok(v6) => return Ok((port, vec![v4, v6])),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            // A machine without IPv6.
            Err(_) => return Ok((port, vec![v4])),
        }
    }
}

fn marked(address: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> FlowKey {
        FlowKey { local_port: port, ..FlowKey::default() }
    }

    #[test]
    fn what_waits_has_bounds() {
        let mut waiting = Waiting::new(0);
        let datagram = vec![0x40; 16 << 10];
        for _ in 0..4 {
            assert_eq!(waiting.hold(flow(1), &datagram), Some(Heard::Known));
        }
        assert_eq!(waiting.hold(flow(1), &[0x40]), None, "of one flow");
        for port in 2..=256 {
            (0..4).for_each(|_| drop(waiting.hold(flow(port), &datagram)));
        }
        assert_eq!((waiting.octets, waiting.hold(flow(300), &[0x40])), (OCTETS_MAX, None), "of all");
        assert_eq!(waiting.drop_held(&flow(2)).len(), 4);
        assert_eq!(waiting.hold(flow(300), &datagram), Some(Heard::Known));
        for port in 1_000..1_000 + 4_096 {
            waiting.hold(flow(port), &[0x40]);
        }
        assert_eq!(waiting.octets, 4_096, "flows that gave way wait no more");
    }
}
