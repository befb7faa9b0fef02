//! Connections that ask for a name: whether the name may be asked for, and how many there were of each kind.

use std::sync::atomic::{AtomicU64, Ordering};

use namegate_abi::{FlowKey, Reason, begins_quic};
use namegate_api::{
    rfc3339,
    view::{Counter, Direction, Flow, FlowPeer, Refused, Verdict},
};
use namegate_config::{
    name::Fqdn,
    reference::{self, Limits},
    rule::{self, Binding},
};
use namegate_enforcer::View;
use namegate_engine::NamesAt;
use namegate_loader::Opening;

use super::{
    clock, flows,
    refusals::{Bound, Refusals},
};

/// What became of connections, counted.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    counts: [AtomicU64; WORDS.len()],
    /// Those without a name that could be looked at, by endpoint.
    unread: Refusals,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Matched,
    Mismatched,
    Nameless,
    Unread,
    Refused,
    Revoked,
}

const WORDS: [&str; 6] = ["matched", "mismatched", "nameless", "unread", "refused", "revoked"];

/// The datagrams that a packet carried.
pub(super) fn datagrams(opening: &Opening) -> impl Iterator<Item = &[u8]> {
    let each = match usize::from(opening.record.segment) {
        0 => opening.octets.len(),
        segment => segment,
    };
    opening.octets.chunks(each.max(1))
}

/// Whether a datagram can begin a connection of QUIC.
pub(super) fn is_quic(datagram: &[u8]) -> bool {
    datagram.first_chunk().is_some_and(|head| begins_quic(*head))
}

impl Checks {
    pub(super) fn count(&self, check: Check) {
        self.counts[check as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection of an endpoint that could not be looked at.
    pub(super) fn count_unread(&self, endpoint: u32) {
        self.count(Check::Unread);
        self.unread.count(Bound::Handshakes, endpoint);
    }

    /// Connections that could not be looked at, by endpoint.
    pub(super) fn unread(&self, view: &View<'_>) -> Vec<Refused> {
        self.unread.shown(view)
    }

    /// Every word with its count, always in the same order; `lost` are copies that the kernel could not hand over.
    pub(crate) fn counters(&self, lost: u64) -> Vec<Counter> {
        let counts = WORDS.into_iter().zip(&self.counts).map(|(word, count)| (word, count.load(Ordering::Relaxed)));
        counts.chain([("lost", lost)]).map(|(what, count)| Counter { what: what.to_owned(), count }).collect()
    }
}

/// A connection that asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) flow: FlowKey,
    pub(super) rule: u32,
    pub(super) began_ns: u64,
    pub(super) asked: Option<Fqdn>,
    /// Names that opened the address when the connection was let pass, if it was.
    pub(super) known: Vec<Fqdn>,
}

/// What becomes of a connection.
#[derive(Debug)]
pub(super) enum Judged {
    Passes,
    /// Nothing passes there, whatever its name: the programs deny it.
    Closed,
    /// It does not pass by its name, with the record of that.
    Refused(Box<Flow>),
}

impl Judged {
    pub(super) fn refused(self) -> Option<Flow> {
        if let Self::Refused(flow) = self { Some(*flow) } else { None }
    }
}

/// Judges a connection where names are bound this strictly.
pub(super) fn judge(view: &View<'_>, seen: &Seen, binding: Binding) -> Judged {
    let Seen { flow, rule, began_ns, asked, known } = seen;
    let names = NamesAt { at: *began_ns, known };
    let (own, peer) = (flow.local.to_ip(), flow.remote.to_ip());
    let judged = reference::Flow { protocol: flow.protocol, port: flow.remote_port };
    let limits = view.limits();
    let asking = limits.limits_asking(own, peer, judged, asked.as_ref(), binding, names);
    let whole = limits.limits(own, peer, rule::Direction::Egress, judged, names);
    if matches!(whole, Limits::Closed(_)) {
        return Judged::Closed;
    }
    if !matches!(asking, Limits::Closed(_)) {
        return Judged::Passes;
    }
    let openers = limits.openers((own, peer), judged, binding, *began_ns, flows::NAMES_MAX);
    let fqdns: Vec<String> = openers.iter().map(ToString::to_string).collect();
    let asked = asked.as_ref().map(ToString::to_string);
    Judged::Refused(Box::new(Flow {
        time: rfc3339(clock::calendar(*began_ns)),
        verdict: if binding == Binding::Enforce { Verdict::Denied } else { Verdict::Audited },
        direction: Direction::Egress,
        endpoint: flows::endpoint(view, flow.endpoint),
        reason_text: flows::mismatch_text(asked.as_deref(), &fqdns),
        peer: FlowPeer { address: peer, name: None, fqdns, identity: 0 },
        source: own,
        source_port: flow.local_port,
        destination: peer,
        destination_port: flow.remote_port,
        protocol: flows::protocol(flow.protocol),
        rule: view.origin(*rule).map(ToString::to_string),
        reason: Reason::NameMismatch.word().to_owned(),
        tcp_flags: 0,
        length: 0,
        http: None,
        server_name: asked,
    }))
}
