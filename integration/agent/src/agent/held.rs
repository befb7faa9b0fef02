//! Datagrams that may begin a connection, held until the name in them is known: then they go on, in their order and with
//! their sender's address, or nowhere.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use namegate_abi::FlowKey;
use namegate_api::view::{Flow, Verdict};
use namegate_config::{rule::Binding, shares::Shares};
use namegate_l7_proxy::{
    quic::{Flight, Heard},
    send_as,
};
use namegate_loader::Opening;
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    clock::boot_ns,
    fair_cache::FairCache,
    gate::Door,
    openings::{Check, Checks, Seen, datagrams, judge},
    refusals::Bound,
};

/// Flows known at a time; of an endpoint that has its share, the one not seen for longest gives way.
const FLOWS_MAX: usize = 4_096;
/// Octets that wait of one flow, and of all.
const FLOW_OCTETS_MAX: usize = 64 << 10;
const OCTETS_MAX: usize = 16 << 20;
/// What has waited longer was sent again by its client, or is of an earlier agent's time.
const AGE_MAX_NS: u64 = 3_000_000_000;
/// How long datagrams wait for the name to be whole.
const WAIT_MAX_NS: u64 = 10_000_000_000;
/// Ports tried where the kernel's choice for IPv4 is taken for IPv6.
const PORT_TRIES: usize = 16;

/// Flows whose datagrams are looked at.
pub(crate) struct Waiting {
    flows: FairCache<Line>,
    /// That wait, by endpoint.
    octets: Shares<u32>,
    mark: u32,
}

/// What is known of one flow, and what of it waits.
#[derive(Default)]
struct Line {
    flight: Flight,
    held: Vec<Vec<u8>>,
    octets: usize,
    /// When the first of them came.
    since_ns: u64,
    /// A refusal was told: its client tries again.
    told: bool,
}

impl Waiting {
    pub(crate) fn new(mark: u32) -> Self {
        Self { flows: FairCache::new(FLOWS_MAX), octets: Shares::new(OCTETS_MAX, OCTETS_MAX), mark }
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
            let Some(heard) = self.hold(record.flow, datagram, record.time_ns) else {
                checks.count(Check::Unread);
                door.refusals().count(Bound::HeldDatagrams, record.flow.endpoint);
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
    fn hold(&mut self, flow: FlowKey, datagram: &[u8], now_ns: u64) -> Option<Heard> {
        if !self.flows.contains(&flow)
            && let Some((other, gone)) = self.flows.push(flow, Line::default())
        {
            self.octets.give(other.endpoint, gone.octets);
        }
        let line = self.flows.get_mut(&flow)?;
        if line.octets + datagram.len() > FLOW_OCTETS_MAX {
            return None;
        }
        self.octets.take(flow.endpoint, datagram.len()).ok()?;
        if line.held.is_empty() {
            line.since_ns = now_ns;
        }
        line.held.push(datagram.to_vec());
        line.octets += datagram.len();
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
        if self.flows.get_mut(flow).is_none_or(|line| line.held.len() > 1 && !all) {
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
        let Some(line) = self.flows.get_mut(flow) else { return Vec::new() };
        self.octets.give(flow.endpoint, std::mem::take(&mut line.octets));
        std::mem::take(&mut line.held)
    }

    /// Drops datagrams whose connection has not said its name in time, with what is known of it.
    pub(crate) fn expire(&mut self, now_ns: u64, checks: &Checks) {
        let is_late = |line: &Line| !line.held.is_empty() && now_ns.saturating_sub(line.since_ns) > WAIT_MAX_NS;
        for (flow, line) in self.flows.extract(is_late) {
            self.octets.give(flow.endpoint, line.octets);
            checks.count(Check::Unread);
        }
    }
}

/// The record of a connection that does not pass, or would not where names were enforced; nobody answers where the gate
/// has stopped.
async fn ask(door: &Door, seen: Seen) -> Option<Option<Flow>> {
    let judged = door.ask_always(move |gate| {
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

    fn flow(endpoint: u32, port: u16) -> FlowKey {
        FlowKey { endpoint, local_port: port, ..FlowKey::default() }
    }

    const HOSTILE: u32 = 1;
    const HONEST: u32 = 2;
    /// Begins a connection of QUIC, and does not say its name.
    const PARTIAL: [u8; 1_200] = {
        let mut datagram = [0; 1_200];
        datagram[0] = 0xc0;
        datagram[4] = 1;
        datagram
    };

    #[test]
    fn what_waits_has_bounds() {
        let mut waiting = Waiting::new(0);
        let datagram = vec![0x40; 16 << 10];
        for _ in 0..4 {
            assert_eq!(waiting.hold(flow(1, 1), &datagram, 0), Some(Heard::Known));
        }
        assert_eq!(waiting.hold(flow(1, 1), &[0x40], 0), None, "of one flow");
        for endpoint in 1..=64 {
            for port in 2..=256 {
                (0..4).for_each(|_| drop(waiting.hold(flow(endpoint, port), &datagram, 0)));
            }
        }
        assert!(waiting.octets.all() <= OCTETS_MAX && waiting.octets.all() > OCTETS_MAX / 2, "of all");
        let mut waiting = Waiting::new(0);
        for port in 1..20_000 {
            waiting.hold(flow(1, port), &[0x40], 0);
        }
        assert_eq!(waiting.octets.all(), FLOWS_MAX / 2, "flows that gave way wait no more");
    }

    #[test]
    fn a_flood_of_one_endpoint_leaves_room_and_ends() {
        let (mut waiting, checks) = (Waiting::new(0), Checks::default());
        assert!(waiting.hold(flow(HONEST, 1), &PARTIAL, 0).is_some());
        let mut refused = 0;
        for port in 0..20_000 {
            refused += u32::from(waiting.hold(flow(HOSTILE, port % 500), &PARTIAL, 0).is_none());
        }
        assert!(refused > 0);
        for _ in 0..20 {
            assert!(waiting.hold(flow(HONEST, 2), &PARTIAL, 5_000_000_000).is_some(), "{:?}", waiting.octets);
        }
        assert_eq!(waiting.drop_held(&flow(HONEST, 1)).len(), 1, "what waited is there");
        waiting.expire(WAIT_MAX_NS + 1, &checks);
        assert_eq!(waiting.octets.of(&HOSTILE), 0, "what has waited too long is gone");
        assert_eq!(waiting.octets.of(&HONEST), 20 * PARTIAL.len());
        waiting.expire(2 * WAIT_MAX_NS, &checks);
        assert_eq!(waiting.octets.all(), 0);
    }
}
