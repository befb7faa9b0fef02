//! Datagrams that may begin a connection, held until the name in them is known: then they go on, in their order and with
//! their sender's address, or nowhere. What one connection may is used by no other of the same flow.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use namegate_abi::{FlowKey, OpeningRecord};
use namegate_api::view::Flow;
use namegate_config::{name::Fqdn, rule::Binding, shares::Shares};
use namegate_enforcer::Reader;
use namegate_l7_proxy::{
    quic::{Connection, Flight, Heard},
    send_as,
};
use namegate_loader::Opening;
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    asked_names::{Check, Checks, Judged, Seen, datagrams, is_quic, judge},
    begun::Begun,
    clock::boot_ns,
    fair_cache::FairCache,
    named_flows::NamedFlows,
    refusals::{Bound, Refusals},
};

/// Flows known at a time; of an endpoint that has its share, the one not seen for longest gives way.
const FLOWS_MAX: usize = 4_096;
/// Octets that wait of one flow, and all that is kept of all flows.
const FLOW_OCTETS_MAX: usize = 64 << 10;
const OCTETS_MAX: usize = 16 << 20;
/// What has waited longer was sent again by its client, or is of an earlier agent's time.
const WAIT_MAX_NS: u64 = 3_000_000_000;
/// A flow is forgotten when no datagram that may begin a connection came for so long.
const IDLE_MAX_NS: u64 = 60_000_000_000;
/// How often is looked for those that have waited too long.
const LOOK_NS: u64 = 1_000_000_000;
/// Ports tried where the kernel's choice for IPv4 is taken for IPv6.
const PORT_TRIES: usize = 16;

/// What decides about a connection, and where the decisions are noted and counted.
#[derive(Clone, Copy)]
pub(crate) struct Judging<'a> {
    pub(crate) reader: &'a Reader,
    pub(crate) named: &'a NamedFlows,
    pub(crate) checks: &'a Checks,
    pub(crate) refusals: &'a Refusals,
}

impl Judging<'_> {
    /// Counts a connection that finds no room.
    fn refuse(&self, bound: Bound, endpoint: u32) {
        self.checks.count_unread(endpoint);
        self.refusals.count(bound, endpoint);
    }
}

/// Flows whose datagrams are looked at.
pub(crate) struct Waiting {
    flows: FairCache<Line>,
    begun: Begun,
    /// What is kept of all flows, by endpoint.
    octets: Shares<u32>,
    /// When was looked last for what has waited too long.
    looked_ns: u64,
    mark: u32,
}

/// What is known of one flow, and what of it waits.
#[derive(Default)]
struct Line {
    flight: Flight,
    held: Vec<Held>,
    /// What the endpoint's share was charged with.
    octets: usize,
    /// When the last of its datagrams came.
    last_ns: u64,
    /// A refusal was told: its client tries again.
    told: bool,
}

/// A datagram that waits.
struct Held {
    connection: Connection,
    since_ns: u64,
    datagram: Vec<u8>,
}

impl Line {
    fn held_octets(&self) -> usize {
        self.held.iter().map(|held| held.datagram.len()).sum()
    }

    /// Charges the endpoint's share with what is kept now; `reserved` was charged beforehand.
    fn charge(&mut self, octets: &mut Shares<u32>, endpoint: u32, reserved: usize) {
        octets.give(endpoint, self.octets + reserved);
        self.octets = self.held_octets() + self.flight.bytes();
        octets.take_unchecked(endpoint, self.octets);
    }
}

impl Waiting {
    pub(crate) fn new(mark: u32) -> Self {
        let (flows, octets) = (FairCache::new(FLOWS_MAX), Shares::new(OCTETS_MAX, OCTETS_MAX));
        Self { flows, begun: Begun::new(), octets, looked_ns: 0, mark }
    }

    /// Takes a packet that the kernel held; gives the record of a connection that does not pass, or would not where names
    /// were enforced.
    pub(crate) fn take(&mut self, opening: &Opening, judging: Judging<'_>) -> Option<Flow> {
        let record = opening.record;
        let now_ns = boot_ns();
        self.expire(now_ns, judging.checks);
        let is_late = now_ns.saturating_sub(record.time_ns) > WAIT_MAX_NS;
        if is_late || record.length as usize != opening.octets.len() {
            judging.checks.count_unread(record.flow.endpoint);
            return None;
        }
        if judging.named.goes_on(&record.flow) == Some(false) {
            judging.checks.count(Check::Refused);
            return None;
        }
        let (mut told, mut going) = (None, Vec::new());
        for datagram in datagrams(opening) {
            // What begins nothing goes on with a connection that was let pass.
            if is_quic(datagram) {
                told = self.take_one(&record, datagram, judging, &mut going).or(told);
            } else if judging.named.goes_on(&record.flow) == Some(true) {
                going.push(datagram.to_vec());
            }
        }
        self.send(&record.flow, &going);
        told
    }

    /// Takes a datagram; adds it, and those that waited for it, to `going` where they go on.
    fn take_one(
        &mut self,
        record: &OpeningRecord,
        datagram: &[u8],
        judging: Judging<'_>,
        going: &mut Vec<Vec<u8>>,
    ) -> Option<Flow> {
        let flow = record.flow;
        let heard = match self.read(&flow, datagram, record.time_ns) {
            Ok(heard) => heard,
            Err(bound) => {
                judging.refuse(bound, flow.endpoint);
                return None;
            }
        };
        let (connection, asked) = match heard {
            Heard::Asks(connection, name) => (Some(connection), name),
            Heard::OtherVersion if !self.is_told(&flow) => (None, None),
            Heard::Known => {
                going.push(datagram.to_vec());
                return None;
            }
            Heard::Completes(connection) => {
                going.extend(self.release(&flow, connection));
                going.push(datagram.to_vec());
                return None;
            }
            Heard::Partial(connection) => {
                if !self.hold(&flow, connection, datagram, record.time_ns) {
                    judging.refuse(Bound::HeldDatagrams, flow.endpoint);
                }
                return None;
            }
            Heard::Refused(_) | Heard::OtherVersion | Heard::Unread => {
                judging.checks.count_unread(flow.endpoint);
                return None;
            }
        };
        self.judge(record, (connection, asked), datagram, judging, going)
    }

    /// Judges a connection by the name that it asks for, with the datagram that has the rest of it.
    fn judge(
        &mut self,
        record: &OpeningRecord,
        (connection, asked): (Option<Connection>, Option<Fqdn>),
        datagram: &[u8],
        judging: Judging<'_>,
        going: &mut Vec<Vec<u8>>,
    ) -> Option<Flow> {
        let flow = record.flow;
        let checks = judging.checks;
        let seen = Seen { flow, rule: record.rule, began_ns: record.time_ns, asked, known: Vec::new() };
        let view = judging.reader.view();
        if view.endpoint_by_address(flow.local.to_ip()).is_none() {
            // It has only just come: its rules are not published yet.
            checks.count_unread(flow.endpoint);
            return None;
        }
        let (passes, mismatch) = match judge(&view, &seen, Binding::Enforce) {
            Judged::Passes => (true, judge(&view, &seen, Binding::Observe).refused()),
            // The rules that let it come here have gone, or are not published yet.
            Judged::Closed => {
                checks.count_unread(flow.endpoint);
                return None;
            }
            Judged::Refused(record) => (false, Some(*record)),
        };
        if passes && !judging.named.note(&seen) {
            judging.refuse(Bound::NamedFlows, flow.endpoint);
            connection.map(|connection| self.settle(&flow, connection, false));
            return None;
        }
        checks.count(match (&mismatch, passes) {
            (None, _) => Check::Matched,
            (Some(_), true) => Check::Mismatched,
            (Some(_), false) => Check::Refused,
        });
        let waited = connection.map(|connection| self.settle(&flow, connection, passes)).unwrap_or_default();
        if passes {
            going.extend(waited);
            going.push(datagram.to_vec());
            return mismatch;
        }
        let is_news = self.flows.get_mut(&flow).is_none_or(|line| !std::mem::replace(&mut line.told, true));
        mismatch.filter(|_| is_news)
    }

    /// Reads a datagram; the error is the bound that leaves no room for what it says.
    fn read(&mut self, flow: &FlowKey, datagram: &[u8], now_ns: u64) -> Result<Heard, Bound> {
        if !self.flows.contains(flow)
            && let Some((other, gone)) = self.flows.push(*flow, Line::default())
        {
            self.octets.give(other.endpoint, gone.octets);
        }
        let Some(line) = self.flows.get_mut(flow) else { return Err(Bound::HeldDatagrams) };
        self.octets.take(flow.endpoint, Flight::bytes_for()).map_err(|_| Bound::HeldDatagrams)?;
        line.last_ns = now_ns;
        let mut is_full = false;
        let heard = line.flight.read(datagram, |connection| {
            let claimed = self.begun.claim(flow, connection, now_ns);
            is_full = claimed.is_err();
            claimed.unwrap_or(false)
        });
        line.charge(&mut self.octets, flow.endpoint, Flight::bytes_for());
        if is_full { Err(Bound::QuicConnections) } else { Ok(heard) }
    }

    /// Adds a datagram to those that wait of its flow; false where there is no room.
    fn hold(&mut self, flow: &FlowKey, connection: Connection, datagram: &[u8], since_ns: u64) -> bool {
        let Some(line) = self.flows.get_mut(flow) else { return false };
        if line.held_octets() + datagram.len() > FLOW_OCTETS_MAX
            || self.octets.take(flow.endpoint, datagram.len()).is_err()
        {
            return false;
        }
        line.held.push(Held { connection, since_ns, datagram: datagram.to_vec() });
        line.charge(&mut self.octets, flow.endpoint, datagram.len());
        true
    }

    /// Carries out what was decided on a connection; gives what waited of it.
    fn settle(&mut self, flow: &FlowKey, connection: Connection, passes: bool) -> Vec<Vec<u8>> {
        if let Some(line) = self.flows.get_mut(flow) {
            line.flight.settle(connection, passes);
        }
        self.release(flow, connection)
    }

    /// Takes out what waits of a connection, and not for too long.
    fn release(&mut self, flow: &FlowKey, connection: Connection) -> Vec<Vec<u8>> {
        let Some(line) = self.flows.get_mut(flow) else { return Vec::new() };
        let now_ns = line.last_ns;
        let released = line.held.extract_if(.., |held| held.connection == connection);
        let in_time = released.filter(|held| now_ns.saturating_sub(held.since_ns) <= WAIT_MAX_NS);
        let datagrams = in_time.map(|held| held.datagram).collect();
        line.charge(&mut self.octets, flow.endpoint, 0);
        datagrams
    }

    fn is_told(&self, flow: &FlowKey) -> bool {
        self.flows.peek(flow).is_some_and(|line| line.told)
    }

    /// Sends datagrams in the name of their client.
    fn send(&self, flow: &FlowKey, datagrams: &[Vec<u8>]) {
        if datagrams.is_empty() {
            return;
        }
        let client = SocketAddr::new(flow.local.to_ip(), flow.local_port);
        let server = SocketAddr::new(flow.remote.to_ip(), flow.remote_port);
        match send_as(client, server, self.mark, datagrams) {
            Ok(sent) if sent == datagrams.len() => {}
            Ok(sent) => tracing::debug!(%client, %server, sent, of = datagrams.len(), "held datagrams were lost"),
            Err(error) => tracing::error!(%client, %server, %error, "held datagrams could not be sent on"),
        }
    }

    /// Drops datagrams whose connection has not said its name in time, and forgets flows that begin no connection any more.
    /// It looks once in a second at most.
    pub(crate) fn expire(&mut self, now_ns: u64, checks: &Checks) {
        if now_ns.saturating_sub(self.looked_ns) < LOOK_NS {
            return;
        }
        self.looked_ns = now_ns;
        for (flow, line) in self.flows.iter_mut() {
            let is_late = |held: &Held| now_ns.saturating_sub(held.since_ns) > WAIT_MAX_NS;
            if line.held.iter().any(is_late) {
                line.held.retain(|held| !is_late(held));
                line.charge(&mut self.octets, flow.endpoint, 0);
                checks.count_unread(flow.endpoint);
            }
        }
        for (flow, line) in self.flows.extract(|line| now_ns.saturating_sub(line.last_ns) > IDLE_MAX_NS) {
            self.octets.give(flow.endpoint, line.octets);
        }
        let flows = &self.flows;
        self.begun
            .expire(now_ns, |flow, connection| flows.peek(flow).is_some_and(|line| line.flight.knows(connection)));
    }
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
mod tests;
