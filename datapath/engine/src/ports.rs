//! A verdict for every protocol and port as one function, and the fewest trie prefixes that say the same.
//!
//! The prefixes are chosen as in ORTC (Draves, King, Venkatachary, Zill, "Constructing Optimal IP Routing Tables",
//! INFOCOM 1999): bottom up the values a subtree could inherit, top down the one it gets.

use std::collections::{BTreeMap, BTreeSet};

use namegate_abi::{PolicyKey, PolicyValue, policy_flags, policy_verdict};
use namegate_config::{
    peer::NamedPort,
    reference::{ICMP, ICMPV6},
    rule::{Direction, PortMatch, Ports},
};

use crate::Row;

/// What holds up the datagrams of a flow.
const NAMES_HELD: u8 = policy_flags::HOLD_NAME | policy_flags::REQUIRE_NAME;

/// What a policy says about one peer, for every protocol and port. ICMP's port is `type << 8 | code`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Value of protocols that are not listed.
    default: PolicyValue,
    /// Listed protocols: pieces in the order of their start; the first starts at 0.
    protocols: BTreeMap<u8, Vec<Piece>>,
}

/// A value from `start` up to the start of the next piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First port.
    pub(crate) start: u16,
    /// Value of all its ports.
    pub(crate) value: PolicyValue,
}

/// One row of the policy trie without policy, identity and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRow {
    /// Prefix length of the whole key.
    pub(crate) prefix: u32,
    /// IANA protocol number; 0 below [`PolicyKey::PROTOCOL_BITS`].
    pub(crate) protocol: u8,
    /// Port; bits past the prefix are zero.
    pub(crate) port: u16,
    /// The verdict.
    pub(crate) value: PolicyValue,
}

impl PortRow {
    /// The row of one policy, identity and direction.
    pub(crate) fn of(&self, policy: u32, identity: u32, direction: Direction) -> Row {
        let direction = match direction {
            Direction::Ingress => namegate_abi::Direction::Ingress,
            Direction::Egress => namegate_abi::Direction::Egress,
        };
        let key = PolicyKey::new(policy, direction, identity, self.protocol, self.port);
        Row::Policy(self.prefix, key, self.value)
    }
}

impl Function {
    /// The same value everywhere.
    pub(crate) fn constant(default: PolicyValue) -> Self {
        Self { default, protocols: BTreeMap::new() }
    }

    /// Sets the pieces of one protocol.
    pub(crate) fn set(&mut self, protocol: u8, mut pieces: Vec<Piece>) {
        pieces.dedup_by(|next, kept| next.value == kept.value);
        self.protocols.insert(protocol, pieces);
    }

    /// Sets the value of one port.
    pub(crate) fn put(&mut self, protocol: u8, port: u16, value: PolicyValue) {
        let pieces = self.protocols.entry(protocol).or_insert_with(|| vec![Piece { start: 0, value: self.default }]);
        let after = port.checked_add(1);
        let at =
            |port: u16| pieces.partition_point(|piece| piece.start <= port).checked_sub(1).map(|at| pieces[at].value);
        let next = after.and_then(at);
        pieces.retain(|piece| piece.start != port);
        pieces.push(Piece { start: port, value });
        if let (Some(start), Some(value)) = (after, next)
            && !pieces.iter().any(|piece| piece.start == start)
        {
            pieces.push(Piece { start, value });
        }
        pieces.sort_unstable_by_key(|piece| piece.start);
        pieces.dedup_by(|next, kept| next.value == kept.value);
    }

    /// Whether a flow that this function lets pass would be denied, or sent another way, by `new`.
    pub(crate) fn is_narrowed_by(&self, new: &Self) -> bool {
        let passes = |value: PolicyValue| value.verdict != policy_verdict::DENY;
        let way = |value: PolicyValue| (value.verdict, value.proxy_port, value.flags & NAMES_HELD);
        let cut = |old: PolicyValue, new: PolicyValue| passes(old) && way(old) != way(new);
        cut(self.default, new.default)
            || self
                .protocols_with(new)
                .iter()
                .any(|&protocol| self.beside(new, protocol).iter().any(|&(_, here, other)| cut(here, other)))
    }

    /// The fewest rows found that give this function where other keys fall through to `below`.
    pub(crate) fn rows(&self, below: &Self) -> Vec<PortRow> {
        let mut rows = Vec::new();
        let falls = self.default == below.default;
        if !falls {
            rows.push(PortRow { prefix: PolicyKey::PEER_BITS, protocol: 0, port: 0, value: self.default });
        }
        let inherited = if falls { None } else { Some(self.default) };
        for protocol in self.protocols_with(below) {
            let pieces = self.beside(below, protocol);
            let leaves: Vec<Leaf> = pieces
                .iter()
                .map(|&(start, value, other)| Leaf { start: start.into(), value, falls: falls && value == other })
                .collect();
            let tree = Tree::over(0, 16, &leaves);
            tree.write(protocol, Place { from: 0, bits: 16 }, inherited, &mut rows);
        }
        rows
    }

    fn protocols_with(&self, other: &Self) -> BTreeSet<u8> {
        self.protocols.keys().chain(other.protocols.keys()).copied().collect()
    }

    /// Pieces of one protocol on which both functions are constant: start, value here, value there.
    fn beside(&self, other: &Self, protocol: u8) -> Vec<(u16, PolicyValue, PolicyValue)> {
        let starts = |function: &Self| {
            let pieces = function.protocols.get(&protocol).into_iter().flatten();
            pieces.map(|piece| piece.start).collect::<Vec<_>>()
        };
        let cuts: BTreeSet<u16> = std::iter::once(0).chain(starts(self)).chain(starts(other)).collect();
        cuts.into_iter().map(|at| (at, self.at(protocol, at), other.at(protocol, at))).collect()
    }

    /// The value of one port.
    pub(crate) fn at(&self, protocol: u8, port: u16) -> PolicyValue {
        let Some(pieces) = self.protocols.get(&protocol) else { return self.default };
        let after = pieces.partition_point(|piece| piece.start <= port);
        after.checked_sub(1).map_or(self.default, |at| pieces[at].value)
    }
}

/// A run of ports with one value.
#[derive(Clone, Copy)]
struct Leaf {
    start: u32,
    value: PolicyValue,
    /// Whether no row at all gives the value too.
    falls: bool,
}

/// Ports `from .. from + 2^bits`.
#[derive(Clone, Copy)]
struct Place {
    from: u32,
    bits: u32,
}

/// What a subtree may inherit without a row at its root; `None` stands for no row above it.
type Choices = Vec<Option<PolicyValue>>;

enum Tree {
    Leaf(Choices),
    Fork(Choices, Box<[Tree; 2]>),
}

impl Tree {
    /// The tree over `2^bits` ports from `from`. `leaves` are sorted; the first begins at or before `from`.
    fn over(from: u32, bits: u32, leaves: &[Leaf]) -> Self {
        let end = from + (1 << bits);
        let first = leaves.partition_point(|leaf| leaf.start <= from).saturating_sub(1);
        let leaves = &leaves[first..leaves.partition_point(|leaf| leaf.start < end)];
        if let [leaf] = leaves {
            let fall = if leaf.falls { Some(None) } else { None };
            return Self::Leaf(std::iter::once(Some(leaf.value)).chain(fall).collect());
        }
        let halves = [Self::over(from, bits - 1, leaves), Self::over(from + (1 << (bits - 1)), bits - 1, leaves)];
        let [left, right] = halves.each_ref().map(Self::choices);
        let both: Choices = left.iter().filter(|choice| right.contains(choice)).copied().collect();
        let choices = if both.is_empty() {
            let more = right.iter().filter(|choice| !left.contains(choice));
            left.iter().chain(more).copied().collect()
        } else {
            both
        };
        Self::Fork(choices, Box::new(halves))
    }

    fn choices(&self) -> &Choices {
        match self {
            Self::Leaf(choices) | Self::Fork(choices, _) => choices,
        }
    }

    fn write(&self, protocol: u8, place: Place, mut inherited: Option<PolicyValue>, rows: &mut Vec<PortRow>) {
        if !self.choices().contains(&inherited)
            && let Some(value) = self.choices().iter().flatten().next()
        {
            let prefix = PolicyKey::PROTOCOL_BITS + (16 - place.bits);
            let port = u16::try_from(place.from).unwrap_or_default();
            rows.push(PortRow { prefix, protocol, port, value: *value });
            inherited = Some(*value);
        }
        if let Self::Fork(_, halves) = self {
            let bits = place.bits - 1;
            for (half, from) in halves.iter().zip([place.from, place.from + (1 << bits)]) {
                half.write(protocol, Place { from, bits }, inherited, rows);
            }
        }
    }
}

/// Names of ports in the alternatives.
pub(crate) fn names(ports: &Ports) -> impl Iterator<Item = &String> {
    let alternatives = match ports {
        Ports::Any => &[][..],
        Ports::Of(alternatives) => alternatives,
    };
    alternatives.iter().filter_map(|alternative| match alternative {
        PortMatch::Named { name, .. } => Some(name),
        _ => None,
    })
}

/// Protocol, first and last port of what an alternative matches; `named` are the ports that the destination names.
pub(crate) fn spans_of(alternative: &PortMatch, named: &[NamedPort]) -> Vec<(u8, u16, u16)> {
    match alternative {
        PortMatch::Numbers { protocol, ports } => vec![(protocol.number(), ports.start, ports.end)],
        PortMatch::Icmp { v6, kind } => {
            let first = u16::from(*kind) << 8;
            vec![(if *v6 { ICMPV6 } else { ICMP }, first, first | 0xff)]
        }
        PortMatch::Named { protocol, name } => named
            .iter()
            .filter(|port| port.name == *name && protocol.is_none_or(|protocol| protocol == port.protocol))
            .map(|port| (port.protocol.number(), port.port, port.port))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(rule: u32) -> PolicyValue {
        PolicyValue { verdict: u8::from(rule != 0), flags: 0, proxy_port: 0, rule }
    }

    fn look_up(rows: &[PortRow], protocol: u8, port: u16) -> Option<PolicyValue> {
        let covers = |row: &&PortRow| match row.prefix {
            PolicyKey::PEER_BITS => true,
            prefix => {
                let bits = prefix - PolicyKey::PROTOCOL_BITS;
                let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
                row.protocol == protocol && port & mask == row.port
            }
        };
        rows.iter().filter(covers).max_by_key(|row| row.prefix).map(|row| row.value)
    }

    fn functions() -> impl Strategy<Value = Function> {
        let pieces = proptest::collection::btree_map(any::<u16>(), 0..4_u32, 0..6);
        (0..3_u32, proptest::collection::btree_map(6..9_u8, (0..4_u32, pieces), 0..3)).prop_map(
            |(default, protocols)| {
                let mut function = Function::constant(value(default));
                for (protocol, (first, pieces)) in protocols {
                    let later = pieces.into_iter().filter(|(start, _)| *start > 0);
                    let pieces = std::iter::once((0, first)).chain(later);
                    function.set(protocol, pieces.map(|(start, rule)| Piece { start, value: value(rule) }).collect());
                }
                function
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn rows_say_what_the_function_says(function in functions(), below in functions(), ports: Vec<u16>) {
            let rows = function.rows(&below);
            for protocol in 5..10_u8 {
                let edges = function.beside(&below, protocol).into_iter().flat_map(|(at, ..)| [at, at.saturating_sub(1)]);
                for port in edges.chain(ports.iter().copied()) {
                    let got = look_up(&rows, protocol, port).unwrap_or_else(|| below.at(protocol, port));
                    prop_assert_eq!(got, function.at(protocol, port), "{} {}", protocol, port);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn one_port_is_set_and_no_other(function in functions(), protocol in 5..10_u8, port: u16, ports: Vec<u16>) {
            let mut changed = function.clone();
            changed.put(protocol, port, value(9));
            let near = [port.saturating_sub(1), port, port.saturating_add(1), 0, u16::MAX];
            for (protocol, at) in (5..10_u8).flat_map(|protocol| near.iter().chain(&ports).map(move |at| (protocol, *at))) {
                let is_it = (protocol, at) == (protocol, port) && changed.at(protocol, at) == value(9);
                prop_assert!(is_it || changed.at(protocol, at) == function.at(protocol, at), "{} {}", protocol, at);
            }
            prop_assert_eq!(changed.at(protocol, port), value(9));
        }
    }

    #[test]
    fn rows_are_few() {
        let nothing = Function::constant(PolicyValue::default());
        let one = |pieces: &[(u16, u32)]| {
            let mut function = nothing.clone();
            function.set(6, pieces.iter().map(|&(start, rule)| Piece { start, value: value(rule) }).collect());
            function.rows(&nothing).len()
        };
        for (what, pieces, want) in [
            ("nothing", &[(0, 0)][..], 0),
            ("every port", &[(0, 1)][..], 1),
            ("one port", &[(0, 0), (443, 1), (444, 0)][..], 1),
            ("all but one port", &[(0, 1), (443, 0), (444, 1)][..], 2),
            ("1024 and up", &[(0, 0), (1024, 1)][..], 2),
            ("8000 to 8079", &[(0, 0), (8000, 1), (8080, 0)][..], 2),
        ] {
            assert_eq!(one(pieces), want, "{what}");
        }
    }
}
