//! The slow, obvious evaluator: what a set of rules means, one flow at a time. Tests hold the compiled tables against it.
//!
//! Tiers follow the network-policy-api: Admin rules in order until one accepts or denies; then the Normal rules, where a
//! denial beats an allowance; then, where no Normal rule made denial the default, the Baseline rules in order.
//! It knows no time: the names of a [`Peer`] are those whose TTL has not ended.

use std::{fmt, sync::Arc};

use crate::{
    l7::{L7, Request},
    labels::Labels,
    name::Fqdn,
    peer::{NamedPort, Peer},
    rule::{Binding, Direction, Effect, Origin, PortMatch, Ports, Rule, Subject, Tier, Transport},
};

/// The endpoint whose rules are asked.
#[derive(Clone, Copy, Debug)]
pub struct SubjectFacts<'a> {
    /// Its labels.
    pub labels: &'a Labels,
    /// Whether it is the host endpoint of a node.
    pub is_node: bool,
    /// Ports it names; used for ingress.
    pub named_ports: &'a [NamedPort],
}

/// What is judged beside the two sides: protocol and destination port of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; for ICMP and ICMPv6 `type << 8 | code`; 0 for protocols without either.
    pub port: u16,
}

/// `443/TCP`, `ICMP type 8`, `protocol 47`.
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port } = self;
        if let Some(transport) = Transport::ALL.into_iter().find(|transport| transport.number() == *protocol) {
            return write!(f, "{port}/{}", transport.as_str());
        }
        match *protocol {
            ICMP => write!(f, "ICMP type {}", port >> 8),
            ICMPV6 => write!(f, "ICMPv6 type {}", port >> 8),
            _ => write!(f, "protocol {protocol}"),
        }
    }
}

/// IANA protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IANA protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// The answer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the flow may pass.
    pub allowed: bool,
    /// The rule that decided; none for defaults.
    pub by: Option<Arc<Origin>>,
    /// How it came about.
    pub reason: Reason,
}

/// How a verdict came about; the words are those of the kernel's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A rule allows it.
    Rule,
    /// No policy selects the endpoint in this direction, or none of them denies by default.
    NoPolicy,
    /// The node may reach its own endpoints unless a rule denies it.
    LocalHost,
    /// No rule allows it and the endpoint's default is to deny.
    DefaultDeny,
    /// A deny rule matches.
    DenyRule,
    /// Rules allow the flow, and none of them the request inside it.
    L7,
}

impl Reason {
    /// A short word for JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::NoPolicy => "no-policy",
            Self::LocalHost => "local-host",
            Self::DefaultDeny => "default-deny",
            Self::DenyRule => "deny-rule",
            Self::L7 => "l7",
        }
    }
}

impl Verdict {
    fn default(reason: Reason) -> Self {
        Self { allowed: reason != Reason::DefaultDeny, by: None, reason }
    }

    fn of(rule: &Rule) -> Self {
        let allowed = rule.effect == Effect::Allow;
        let reason = if allowed { Reason::Rule } else { Reason::DenyRule };
        Self { allowed, by: Some(Arc::clone(&rule.origin)), reason }
    }
}

/// Judges one new flow of the subject in one direction. Layer 7 limits are not looked at.
pub fn verdict(rules: &[Rule], subject: &SubjectFacts<'_>, peer: &Peer, direction: Direction, flow: Flow) -> Verdict {
    decide(&rules.iter().collect::<Vec<_>>(), subject, &Seen::whole(peer), direction, flow, &|_| true)
}

/// Judges a request inside a flow: as [`verdict`], and then the layer 7 limits of the rules that allow the flow.
///
/// They add up: one rule without limits lifts those of all others. Where no rule makes denial the default, limits deny
/// nothing either.
pub fn verdict_l7(
    rules: &[Rule],
    subject: &SubjectFacts<'_>,
    peer: &Peer,
    direction: Direction,
    flow: Flow,
    request: &Request,
) -> Verdict {
    decide(&rules.iter().collect::<Vec<_>>(), subject, &Seen::whole(peer), direction, flow, &|l7| l7.allows(request))
}

/// What is asked of the requests inside a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limits {
    /// Nothing: each may pass.
    Free,
    /// One of these rules must allow the request. Each has limits.
    Rules(Vec<Arc<Rule>>),
    /// The flow itself may not pass; a rule that says so, where one does.
    Closed(Option<Arc<Origin>>),
}

/// The layer 7 limits on one flow of the subject, for whoever reads its requests: [`verdict_l7`] for every request.
pub fn limits(
    rules: &[Arc<Rule>],
    subject: &SubjectFacts<'_>,
    peer: &Peer,
    direction: Direction,
    flow: Flow,
) -> Limits {
    limits_seen(rules, subject, &Seen::whole(peer), direction, flow)
}

/// The same for a connection from the subject that asks for a name: rules that are bound as strictly as `binding` see this
/// name of the peer alone, or none where the peer does not have it. Others see every name, so the least strict rule that
/// allows the flow decides.
pub fn limits_asking(
    rules: &[Arc<Rule>],
    subject: &SubjectFacts<'_>,
    peer: &Peer,
    flow: Flow,
    asked: Option<&Fqdn>,
    binding: Binding,
) -> Limits {
    let names = peer.names.iter().filter(|name| Some(*name) == asked).cloned().collect();
    let asked = Some(SeenName { peer: Peer { names, ..peer.clone() }, binding, nameless_to: None });
    limits_seen(rules, subject, &Seen { whole: peer, asked }, Direction::Egress, flow)
}

/// The same for a connection of a protocol without names: rules that are bound as strictly as `binding` see no name of the
/// peer where they let only connections with a name pass on the port, and every name else.
pub fn limits_nameless(
    rules: &[Arc<Rule>],
    subject: &SubjectFacts<'_>,
    peer: &Peer,
    flow: Flow,
    binding: Binding,
) -> Limits {
    let nameless = Peer { names: Vec::new(), ..peer.clone() };
    let asked = Some(SeenName { peer: nameless, binding, nameless_to: Some(flow.port) });
    limits_seen(rules, subject, &Seen { whole: peer, asked }, Direction::Egress, flow)
}

fn limits_seen(
    rules: &[Arc<Rule>],
    subject: &SubjectFacts<'_>,
    peer: &Seen<'_>,
    direction: Direction,
    flow: Flow,
) -> Limits {
    let all: Vec<&Rule> = rules.iter().map(|rule| &**rule).collect();
    let verdict = |passes| decide(&all, subject, peer, direction, flow, &move |_| passes);
    let flow_alone = verdict(true);
    if !flow_alone.allowed {
        return Limits::Closed(flow_alone.by);
    }
    if verdict(false).allowed {
        return Limits::Free;
    }
    let limiting = |rule: &&Arc<Rule>| {
        rule.tier == Tier::Normal
            && rule.effect == Effect::Allow
            && rule.l7.is_some()
            && is_matching(rule, subject, peer, direction, flow)
    };
    Limits::Rules(rules.iter().filter(limiting).cloned().collect())
}

/// A peer as each rule sees it.
struct Seen<'a> {
    whole: &'a Peer,
    asked: Option<SeenName>,
}

/// A peer as rules see it that are bound as strictly as `binding`.
struct SeenName {
    peer: Peer,
    binding: Binding,
    /// The port, where the connection is of a protocol without names.
    nameless_to: Option<u16>,
}

impl SeenName {
    fn is_for(&self, rule: &Rule) -> bool {
        rule.is_bound(self.binding) && self.nameless_to.is_none_or(|port| rule.is_named_only(port))
    }
}

impl<'a> Seen<'a> {
    const fn whole(peer: &'a Peer) -> Self {
        Self { whole: peer, asked: None }
    }

    fn by(&self, rule: &Rule) -> &Peer {
        match &self.asked {
            Some(asked) if asked.is_for(rule) => &asked.peer,
            _ => self.whole,
        }
    }
}

/// Whether the rule is about this flow of the subject.
fn is_matching(rule: &Rule, subject: &SubjectFacts<'_>, peer: &Seen<'_>, direction: Direction, flow: Flow) -> bool {
    let peer = peer.by(rule);
    let named_ports = match direction {
        Direction::Ingress => subject.named_ports,
        Direction::Egress => &peer.named_ports,
    };
    rule.direction == direction
        && subject.is_selected(&rule.subject)
        && rule.peers.matches(peer)
        && rule.ports.matches(flow, named_ports)
}

/// `passes` says whether limits let the request pass.
fn decide(
    rules: &[&Rule],
    subject: &SubjectFacts<'_>,
    peer: &Seen<'_>,
    direction: Direction,
    flow: Flow,
    passes: &dyn Fn(&L7) -> bool,
) -> Verdict {
    let is_selecting = |rule: &&Rule| rule.direction == direction && subject.is_selected(&rule.subject);
    let selecting: Vec<&Rule> = rules.iter().copied().filter(is_selecting).collect();
    let is_matching = |rule: &&Rule| is_matching(rule, subject, peer, direction, flow);
    let matching: Vec<&Rule> = selecting.iter().copied().filter(is_matching).collect();

    let admin = first(&matching, |tier| if let Tier::Admin(number) = tier { Some(number) } else { None });
    if let Some(rule) = admin.filter(|rule| rule.effect != Effect::Pass) {
        return Verdict::of(rule);
    }
    let normal = |effect| matching.iter().filter(move |rule| rule.tier == Tier::Normal && rule.effect == effect);
    let denied = normal(Effect::Deny).next();
    let allowed = || normal(Effect::Allow).find(|rule| rule.l7.as_ref().is_none_or(|l7| passes(l7)));
    if let Some(rule) = denied.or_else(allowed) {
        return Verdict::of(rule);
    }
    let by_default = selecting.iter().any(|rule| rule.tier == Tier::Normal && rule.default_deny);
    let from_local_host = is_from_local_host(subject, peer.whole, direction);
    match normal(Effect::Allow).next() {
        Some(rule) if !by_default => return Verdict::of(rule),
        Some(rule) if !from_local_host => {
            return Verdict { allowed: false, by: Some(Arc::clone(&rule.origin)), reason: Reason::L7 };
        }
        _ => {}
    }
    if by_default {
        return Verdict::default(if from_local_host { Reason::LocalHost } else { Reason::DefaultDeny });
    }
    match first(&matching, |tier| if let Tier::Baseline(number) = tier { Some(number) } else { None }) {
        Some(rule) => Verdict::of(rule),
        None => Verdict::default(Reason::NoPolicy),
    }
}

fn is_from_local_host(subject: &SubjectFacts<'_>, peer: &Peer, direction: Direction) -> bool {
    direction == Direction::Ingress && !subject.is_node && peer.labels.is_reserved("host")
}

/// The rule that decides a tier whose rules stand in order: see [`Tier`].
fn first<'a>(matching: &[&'a Rule], number: impl Fn(Tier) -> Option<u32>) -> Option<&'a Rule> {
    let strictness = |effect| match effect {
        Effect::Deny => 0,
        Effect::Pass => 1,
        Effect::Allow => 2,
    };
    matching
        .iter()
        .filter_map(|rule| number(rule.tier).map(|number| ((number, strictness(rule.effect)), *rule)))
        .min_by_key(|(order, _)| *order)
        .map(|(_, rule)| rule)
}

impl SubjectFacts<'_> {
    /// Whether a rule with this subject applies to the endpoint.
    pub fn is_selected(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Endpoints(selector) => !self.is_node && selector.matches(self.labels),
            Subject::Nodes(selector) => self.is_node && selector.matches(self.labels),
        }
    }
}

impl Ports {
    /// Whether the flow is one of them; `named` are the ports that its destination names.
    pub fn matches(&self, flow: Flow, named: &[NamedPort]) -> bool {
        match self {
            Self::Any => true,
            Self::Of(alternatives) => alternatives.iter().any(|alternative| alternative.matches(flow, named)),
        }
    }
}

impl PortMatch {
    /// Whether the flow is one of these; `named` are the ports that its destination names.
    pub fn matches(&self, flow: Flow, named: &[NamedPort]) -> bool {
        match self {
            Self::Numbers { protocol, ports } => protocol.number() == flow.protocol && ports.contains(flow.port),
            Self::Named { protocol, name } => named.iter().any(|port| {
                port.name == *name
                    && protocol.is_none_or(|protocol| protocol == port.protocol)
                    && port.protocol.number() == flow.protocol
                    && port.port == flow.port
            }),
            Self::Icmp { v6, kind } => {
                flow.protocol == if *v6 { ICMPV6 } else { ICMP } && flow.port >> 8 == u16::from(*kind)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        labels::{LabelSelector, Requirement},
        question::QueryType,
        rule::{Entity, PeerSelector, Peers, RangeInclusive16},
    };

    const WEB: Flow = Flow { protocol: 6, port: 80 };

    fn rule(tier: Tier, effect: Effect) -> Rule {
        let origin =
            Origin { kind: "T".into(), namespace: None, name: format!("{tier:?} {effect:?}"), path: "x".into() };
        Rule {
            origin: Arc::new(origin),
            subject: Subject::Endpoints(LabelSelector::default()),
            direction: Direction::Egress,
            tier,
            effect,
            default_deny: tier == Tier::Normal,
            peers: Peers::Any,
            ports: Ports::Any,
            l7: None,
            binding: None,
            named_only: None,
        }
    }

    fn web() -> Ports {
        Ports::Of(vec![tcp(80)])
    }

    fn tcp(port: u16) -> PortMatch {
        PortMatch::Numbers { protocol: Transport::Tcp, ports: RangeInclusive16 { start: port, end: port } }
    }

    fn world() -> Peer {
        Peer {
            labels: Arc::new(Labels::reserved("world")),
            address: "192.0.2.1".parse().unwrap(),
            names: vec![],
            named_ports: Arc::new([]),
        }
    }

    fn judge(rules: &[Rule], flow: Flow) -> Reason {
        let labels = Labels::pod("empire", [], [], None);
        let subject = SubjectFacts { labels: &labels, is_node: false, named_ports: &[] };
        verdict(rules, &subject, &world(), Direction::Egress, flow).reason
    }

    #[test]
    fn tiers_decide_one_after_another() {
        use Effect::{Allow, Deny, Pass};
        let (admin, normal, baseline) = (Tier::Admin, Tier::Normal, Tier::Baseline);
        let nothing = Rule { peers: Peers::Of(vec![]), ..rule(normal, Allow) };
        let quiet = Rule { default_deny: false, ..nothing.clone() };
        for (rules, want) in [
            (vec![], Reason::NoPolicy),
            (vec![nothing.clone()], Reason::DefaultDeny),
            (vec![quiet.clone()], Reason::NoPolicy),
            (vec![rule(normal, Allow), rule(normal, Deny)], Reason::DenyRule),
            (vec![rule(normal, Allow), nothing.clone()], Reason::Rule),
            (vec![rule(admin(1), Allow), rule(normal, Deny)], Reason::Rule),
            (vec![rule(admin(2), Allow), rule(admin(1), Deny)], Reason::DenyRule),
            (vec![rule(admin(1), Pass), rule(admin(2), Deny), rule(normal, Allow)], Reason::Rule),
            (vec![rule(admin(1), Pass), rule(normal, Deny)], Reason::DenyRule),
            (vec![rule(admin(1), Allow), rule(admin(1), Deny)], Reason::DenyRule),
            (vec![rule(admin(1), Allow), rule(admin(1), Pass), nothing.clone()], Reason::DefaultDeny),
            (vec![rule(baseline(1), Deny)], Reason::DenyRule),
            (vec![rule(baseline(2), Deny), rule(baseline(1), Allow)], Reason::Rule),
            (vec![rule(baseline(1), Allow), nothing], Reason::DefaultDeny),
            (vec![rule(baseline(1), Deny), quiet], Reason::DenyRule),
            (vec![rule(baseline(1), Deny), rule(normal, Allow)], Reason::Rule),
            (vec![Rule { direction: Direction::Ingress, ..rule(normal, Deny) }], Reason::NoPolicy),
            (vec![Rule { subject: Subject::Nodes(LabelSelector::default()), ..rule(normal, Deny) }], Reason::NoPolicy),
        ] {
            assert_eq!(judge(&rules, WEB), want, "{rules:#?}");
        }
    }

    #[test]
    fn ports_match_the_destination() {
        let dns = NamedPort { name: "dns".into(), protocol: Transport::Udp, port: 53 };
        let named = |protocol| Ports::Of(vec![PortMatch::Named { protocol, name: "dns".into() }]);
        let ping = |v6| Ports::Of(vec![PortMatch::Icmp { v6, kind: if v6 { 128 } else { 8 } }]);
        let flow = |protocol, port| Flow { protocol, port };
        for (ports, flow, want) in [
            (Ports::Any, flow(47, 0), true),
            (Ports::Of(vec![]), WEB, false),
            (web(), WEB, true),
            (web(), flow(17, 80), false),
            (web(), flow(6, 81), false),
            (named(None), flow(17, 53), true),
            (named(Some(Transport::Udp)), flow(17, 53), true),
            (named(Some(Transport::Tcp)), flow(17, 53), false),
            (named(None), flow(6, 53), false),
            (ping(false), flow(ICMP, 8 << 8), true),
            (ping(false), flow(ICMPV6, 8 << 8), false),
            (ping(false), flow(ICMP, 0), false),
            (ping(true), flow(ICMPV6, 128 << 8 | 1), true),
        ] {
            assert_eq!(ports.matches(flow, std::slice::from_ref(&dns)), want, "{ports:?} {flow:?}");
        }
    }

    #[test]
    fn named_ports_are_those_of_the_destination() {
        let named = Ports::Of(vec![PortMatch::Named { protocol: None, name: "web".into() }]);
        let allow = |direction| Rule { ports: named.clone(), direction, ..rule(Tier::Normal, Effect::Allow) };
        let rules = [allow(Direction::Egress), allow(Direction::Ingress)];
        let labels = Labels::pod("empire", [], [], None);
        let web = |port| NamedPort { name: "web".into(), protocol: Transport::Tcp, port };
        let subject = SubjectFacts { labels: &labels, is_node: false, named_ports: &[web(8080)] };
        let peer = Peer { named_ports: Arc::new([web(80)]), ..world() };
        for (direction, port, want) in [
            (Direction::Egress, 80, true),
            (Direction::Egress, 8080, false),
            (Direction::Ingress, 80, false),
            (Direction::Ingress, 8080, true),
        ] {
            let got = verdict(&rules, &subject, &peer, direction, Flow { protocol: 6, port });
            assert_eq!(got.allowed, want, "{direction:?} {port}");
        }
    }

    #[test]
    fn the_node_reaches_its_endpoints_unless_denied() {
        let labels = Labels::pod("empire", [], [], None);
        let subject = SubjectFacts { labels: &labels, is_node: false, named_ports: &[] };
        let host = Peer { labels: Arc::new(Labels::node(true, [])), ..world() };
        let nobody =
            Rule { direction: Direction::Ingress, peers: Peers::Of(vec![]), ..rule(Tier::Normal, Effect::Allow) };
        let deny =
            Rule { peers: Peers::Of(vec![PeerSelector::Entity(Entity::Host)]), effect: Effect::Deny, ..nobody.clone() };
        let judge = |rules: &[Rule]| verdict(rules, &subject, &host, Direction::Ingress, WEB).reason;
        assert_eq!(judge(std::slice::from_ref(&nobody)), Reason::LocalHost);
        assert_eq!(judge(&[nobody, deny]), Reason::DenyRule);
    }

    #[test]
    fn limits_of_layer_7_add_up() {
        use crate::{l7::L7, name::NamePattern};
        let names = |text| Some(Arc::new(L7::Dns(vec![NamePattern::pattern(text).unwrap()].into())));
        let limited = |text| Rule { l7: names(text), ..rule(Tier::Normal, Effect::Allow) };
        let free = rule(Tier::Normal, Effect::Allow);
        let elsewhere = Rule { ports: web(), ..free.clone() };
        let quiet = Rule { default_deny: false, ..limited("a.io") };
        let labels = Labels::pod("empire", [], [], None);
        let subject = SubjectFacts { labels: &labels, is_node: false, named_ports: &[] };
        let flow = Flow { protocol: 17, port: 53 };
        for (rules, want) in [
            (vec![], Reason::NoPolicy),
            (vec![limited("b.io")], Reason::Rule),
            (vec![limited("a.io")], Reason::L7),
            (vec![limited("a.io"), limited("*.io")], Reason::Rule),
            (vec![limited("a.io"), free.clone()], Reason::Rule),
            (vec![limited("a.io"), elsewhere], Reason::L7),
            (vec![limited("b.io"), rule(Tier::Normal, Effect::Deny)], Reason::DenyRule),
            (vec![limited("a.io"), rule(Tier::Admin(1), Effect::Allow)], Reason::Rule),
            (vec![quiet.clone()], Reason::Rule),
            (vec![quiet, limited("c.io")], Reason::L7),
        ] {
            let request = Request::Dns { name: "b.io".parse().unwrap(), kind: QueryType::A };
            let got = verdict_l7(&rules, &subject, &world(), Direction::Egress, flow, &request);
            let shared: Vec<Arc<Rule>> = rules.iter().cloned().map(Arc::new).collect();
            let passes = match limits(&shared, &subject, &world(), Direction::Egress, flow) {
                Limits::Free => true,
                Limits::Rules(rules) => rules.iter().any(|rule| rule.l7.as_ref().unwrap().allows(&request)),
                Limits::Closed(_) => false,
            };
            assert_eq!(passes, got.allowed, "{rules:#?}");
            assert_eq!((got.reason, got.allowed), (want, !matches!(want, Reason::L7 | Reason::DenyRule)), "{rules:#?}");
        }
        let host = Peer { labels: Arc::new(Labels::node(true, [])), ..world() };
        let rules = [Rule { direction: Direction::Ingress, ..limited("a.io") }];
        let request = Request::Dns { name: "b.io".parse().unwrap(), kind: QueryType::A };
        assert_eq!(verdict_l7(&rules, &subject, &host, Direction::Ingress, flow, &request).reason, Reason::LocalHost);
    }

    #[test]
    fn the_least_strict_rule_that_allows_a_connection_decides_on_its_name() {
        use crate::{l7::L7, name::NamePattern, rule::PeerSelector};
        let to = |peer: PeerSelector, binding| Rule {
            peers: Peers::Of(vec![peer]),
            binding,
            ..rule(Tier::Normal, Effect::Allow)
        };
        let name = |text, binding| to(PeerSelector::Name(NamePattern::pattern(text).unwrap()), Some(binding));
        let bound = |text| name(text, Binding::Enforce);
        let world_open = to(PeerSelector::Entity(Entity::World), Some(Binding::Enforce));
        let quiet = Rule { default_deny: false, ..bound("a.io") };
        let limited = Rule { l7: Some(Arc::new(L7::Http(vec![]))), ..bound("a.io") };
        let peer = Peer { names: vec!["a.io".parse().unwrap(), "b.io".parse().unwrap()], ..world() };
        let labels = Labels::pod("empire", [], [], None);
        let subject = SubjectFacts { labels: &labels, is_node: false, named_ports: &[] };
        // Whether a.io, b.io, a name that the address was not given for, and no name pass.
        for (rules, want) in [
            (vec![bound("a.io")], [true, false, false, false]),
            (vec![bound("a.io"), bound("b.io")], [true, true, false, false]),
            (vec![bound("*.io")], [true, true, false, false]),
            (vec![name("a.io", Binding::Observe)], [true; 4]),
            (vec![bound("a.io"), name("a.io", Binding::Off)], [true; 4]),
            (vec![bound("a.io"), name("c.io", Binding::Off)], [true, false, false, false]),
            (vec![bound("a.io"), world_open.clone()], [true; 4]),
            (vec![bound("a.io"), rule(Tier::Admin(1), Effect::Allow)], [true; 4]),
            (vec![quiet], [true; 4]),
            (vec![limited.clone()], [false; 4]),
            (vec![limited, bound("b.io")], [false, true, false, false]),
        ] {
            let rules: Vec<Arc<Rule>> = rules.into_iter().map(Arc::new).collect();
            let names: [Option<Fqdn>; 4] =
                [Some("a.io"), Some("b.io"), Some("c.io"), None].map(|name| name.map(|name| name.parse().unwrap()));
            let passes = names.each_ref().map(|name| {
                limits_asking(&rules, &subject, &peer, WEB, name.as_ref(), Binding::Enforce) == Limits::Free
            });
            assert_eq!(passes, want, "{rules:#?}");
        }
    }

    #[test]
    fn protocols_without_names_pass_where_a_rule_that_allows_the_flow_lets_them() {
        use crate::{name::NamePattern, rule::PeerSelector};
        let bound = |binding, named_only: Option<&str>| Rule {
            peers: Peers::Of(vec![PeerSelector::Name(NamePattern::pattern("a.io").unwrap())]),
            binding: Some(binding),
            named_only: named_only.map(|ports| ports.parse().unwrap()),
            ..rule(Tier::Normal, Effect::Allow)
        };
        let enforced = |ports| bound(Binding::Enforce, Some(ports));
        let other = Rule { peers: Peers::Any, ports: Ports::Of(vec![tcp(22)]), ..enforced("none") };
        let peer = Peer { names: vec!["a.io".parse().unwrap()], ..world() };
        let labels = Labels::pod("empire", [], [], None);
        let subject = SubjectFacts { labels: &labels, is_node: false, named_ports: &[] };
        for (rules, want) in [
            (vec![enforced("80,8000-8999")], false),
            (vec![enforced("1-65535")], false),
            (vec![bound(Binding::Enforce, None)], false),
            (vec![enforced("443")], true),
            (vec![enforced("none")], true),
            (vec![bound(Binding::Observe, Some("80"))], true),
            (vec![enforced("80"), enforced("none")], true),
            (vec![enforced("80"), other], false),
        ] {
            let rules: Vec<Arc<Rule>> = rules.into_iter().map(Arc::new).collect();
            let limits = limits_nameless(&rules, &subject, &peer, WEB, Binding::Enforce);
            assert_eq!(limits == Limits::Free, want, "{rules:#?}");
        }
    }

    #[test]
    fn the_verdict_names_the_rule() {
        let other = Rule {
            subject: Subject::Endpoints(LabelSelector::new([Requirement::equals("app", "other")])),
            ..rule(Tier::Normal, Effect::Deny)
        };
        let allow = rule(Tier::Normal, Effect::Allow);
        let labels = Labels::pod("empire", [], [], None);
        let subject = SubjectFacts { labels: &labels, is_node: false, named_ports: &[] };
        let got = verdict(&[other, allow.clone()], &subject, &world(), Direction::Egress, WEB);
        assert_eq!(got.by, Some(allow.origin));
    }
}
