//! `toPorts`: ports and protocols as texts, ranges, names, and the layer 7 limits beside them.

use std::sync::Arc;

use super::{cilium::Section, layer7, object::Context, shapes::elements};
use crate::{
    diagnostic::Code,
    l7::L7,
    language::Bounds,
    reader::{Object, Value},
    rule::{Direction, Effect, PortMatch, Ports, RangeInclusive16, Transport},
};

/// Most ports in one element of `toPorts`.
pub(super) const PORTS_MAX: usize = 40;
/// Longest name of a port in characters (RFC 6335 §5.1).
pub(super) const NAME_CHARS_MAX: usize = 15;
/// `endPort`.
pub(super) const END: Bounds = Bounds(0, 65_535);
/// Words for protocols.
pub(super) const PROTOCOLS: [(&str, Protocol); 4] = [
    ("TCP", Protocol::Only(Transport::Tcp)),
    ("UDP", Protocol::Only(Transport::Udp)),
    ("SCTP", Protocol::Only(Transport::Sctp)),
    ("ANY", Protocol::Any),
];

/// Ports with the layer 7 limits that hold for them.
pub(super) struct PortGroup {
    pub(super) ports: Ports,
    pub(super) l7: Option<Arc<L7>>,
}

/// One entry of `ports`, before layer 7 is looked at.
pub(super) struct PortEntry<'n> {
    pub(super) place: Value<'n>,
    /// As written; `ANY` where it is left out.
    pub(super) protocol: Protocol,
    pub(super) port: Port,
}

/// The protocol of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Any,
    Only(Transport),
}

/// The port of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Numbers(RangeInclusive16),
    Named(String),
}

/// The ports of an element, by layer 7 limits; `None` where the list is empty and sets no limit.
pub(super) fn to_ports(context: &mut Context<'_>, value: &Value<'_>, section: Section) -> Option<Vec<PortGroup>> {
    let items = context.reader.list(value)?;
    if items.is_empty() {
        return None;
    }
    let mut groups: Vec<(Option<Arc<L7>>, Vec<PortMatch>)> = Vec::new();
    for item in &items {
        let (l7, matches) = port_rule(context, item, section);
        match groups.iter_mut().find(|(other, _)| *other == l7) {
            Some((_, all)) => all.extend(matches),
            None => groups.push((l7, matches)),
        }
    }
    Some(groups.into_iter().map(|(l7, matches)| PortGroup { ports: Ports::Of(matches), l7 }).collect())
}

fn port_rule(context: &mut Context<'_>, value: &Value<'_>, section: Section) -> (Option<Arc<L7>>, Vec<PortMatch>) {
    let shape = match (section.direction, section.effect) {
        (_, Effect::Deny) => &elements::DENIED_PORTS,
        (Direction::Ingress, _) => &elements::INGRESS_PORTS,
        (Direction::Egress, _) => &elements::EGRESS_PORTS,
    };
    let Some(object) = context.reader.shaped(value, shape) else { return (None, Vec::new()) };
    let entries = ports(context, value, &object);
    let l7 = if section.effect == Effect::Deny { None } else { layer7::limits(context, &object, &entries, section) };
    let matches = entries.iter().flat_map(|entry| entry.matches(l7.as_ref())).collect();
    (l7.map(Arc::new), matches)
}

fn ports<'n>(context: &mut Context<'_>, value: &Value<'n>, object: &Object<'n>) -> Vec<PortEntry<'n>> {
    let list = object.get("ports");
    let items = list.as_ref().map(|list| context.reader.list(list));
    let items = match items {
        Some(None) => return Vec::new(),
        Some(Some(items)) => items,
        None => Vec::new(),
    };
    if items.is_empty() {
        let found = context.reader.warn(
            list.as_ref().unwrap_or(value),
            Code::MatchesNothing,
            "without a port this matches nothing",
        );
        found.help = Some("leave `toPorts` out to select every port".to_owned());
    }
    if let Some(list) = list.filter(|_| items.len() > PORTS_MAX) {
        let problem = format!("at most {PORTS_MAX} ports can stand here, these are {}", items.len());
        context.reader.wrong(&list, Code::BadValue, problem).help = Some("make two elements of `toPorts`".to_owned());
    }
    items.into_iter().filter_map(|item| entry(context, item)).collect()
}

fn entry<'n>(context: &mut Context<'_>, place: Value<'n>) -> Option<PortEntry<'n>> {
    let object = context.reader.shaped(&place, &elements::PORT)?;
    let protocol = match object.get("protocol") {
        Some(value) => protocol(context, &value),
        None => Some(Protocol::Any),
    };
    let start = context.reader.required(&object, "port").and_then(|value| port(context, &value));
    let end = object.get("endPort").map(|value| (context.reader.integer(&value, END.range()), value));
    let (protocol, port) = (protocol?, start?);
    let port = match (port, end) {
        (port, None) => port,
        (_, Some((None, _))) => return None,
        (port, Some((Some(end), value))) => range(context, &port, end, &value)?,
    };
    Some(PortEntry { place, protocol, port })
}

/// A range from a port to `end`.
pub(super) fn range(context: &mut Context<'_>, port: &Port, end: u32, value: &Value<'_>) -> Option<Port> {
    let end = u16::try_from(end).ok()?;
    match port {
        Port::Named(_) => {
            context.reader.wrong(value, Code::Conflict, "`endPort` needs a number as `port`");
            None
        }
        &Port::Numbers(RangeInclusive16::ALL) => {
            context.reader.wrong(value, Code::Conflict, "port \"0\" is every port already").help =
                Some("start the range at \"1\"".to_owned());
            None
        }
        &Port::Numbers(RangeInclusive16 { start, .. }) if end < start => {
            let problem = format!("the range ends at {end}, below its start {start}");
            context.reader.wrong(&value.at_value(), Code::BadValue, problem);
            None
        }
        &Port::Numbers(RangeInclusive16 { start, .. }) => Some(Port::Numbers(RangeInclusive16 { start, end })),
    }
}

fn protocol(context: &mut Context<'_>, value: &Value<'_>) -> Option<Protocol> {
    const OTHERS: [&str; 8] = ["VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH", "ICMPv6"];
    let text = context.reader.text(value)?;
    if text == "ICMP" || text == "ICMPv6" {
        let problem = format!("`{text}` has no ports");
        let found = context.reader.wrong(&value.at_value(), Code::BadValue, problem);
        found.help = Some("write `icmps: [{fields: [{type: EchoRequest}]}]` instead of `toPorts`".to_owned());
        return None;
    }
    if OTHERS.contains(&text) {
        let problem = format!("`{text}` cannot be selected: only TCP, UDP, SCTP and ICMP can");
        context.reader.wrong(&value.at_value(), Code::Unsupported, problem);
        return None;
    }
    context.reader.choice(value, &PROTOCOLS)
}

/// A port as text: a number, `0` for every port, or a name.
fn port(context: &mut Context<'_>, value: &Value<'_>) -> Option<Port> {
    let text = context.reader.filled_text(value)?;
    let place = value.at_value();
    if !text.bytes().all(|octet| octet.is_ascii_digit()) {
        return named(context, &place, text);
    }
    if text.len() > 1 && text.starts_with('0') {
        let bare = text.trim_start_matches('0');
        let found = context.reader.wrong(
            &place,
            Code::BadValue,
            format!("`{text}` has leading zeros; Cilium reads it as octal"),
        );
        found.help = Some(format!("write \"{}\"", if bare.is_empty() { "0" } else { bare }));
        return None;
    }
    let Ok(number) = text.parse::<u16>() else {
        context.reader.wrong(&place, Code::BadValue, format!("{text} is not within 0 and 65535"));
        return None;
    };
    Some(Port::Numbers(if number == 0 {
        RangeInclusive16::ALL
    } else {
        RangeInclusive16 { start: number, end: number }
    }))
}

/// A name of a port (RFC 6335 §5.1); letter case does not count.
pub(super) fn named(context: &mut Context<'_>, place: &Value<'_>, text: &str) -> Option<Port> {
    if let Some((start, end)) = text.split_once(['-', ':', '.']).filter(|(start, end)| {
        [start, end].iter().all(|part| !part.is_empty() && part.bytes().all(|octet| octet.is_ascii_digit()))
    }) {
        let found = context.reader.wrong(place, Code::BadValue, format!("`{text}` is neither a port nor a name"));
        found.help = Some(format!("write a range as `port: \"{start}\"` and `endPort: {end}`"));
        return None;
    }
    let is_inner = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-';
    let problem = if text.chars().count() > NAME_CHARS_MAX {
        format!("a name of a port has at most {NAME_CHARS_MAX} characters, `{text}` has {}", text.chars().count())
    } else if !text.bytes().all(is_inner)
        || !text.bytes().any(|octet| octet.is_ascii_alphabetic())
        || text.starts_with('-')
        || text.ends_with('-')
        || text.contains("--")
    {
        format!(
            "`{text}` is neither a port nor a name of one: letters, digits and single inner dashes, one letter at least"
        )
    } else {
        return Some(Port::Named(text.to_ascii_lowercase()));
    };
    context.reader.wrong(place, Code::BadValue, problem);
    None
}

impl PortEntry<'_> {
    /// What it matches. With layer 7 limits, `ANY` is the protocols that can carry such requests.
    fn matches(&self, l7: Option<&L7>) -> Vec<PortMatch> {
        let protocols: &[Transport] = match (&self.protocol, l7) {
            (Protocol::Only(protocol), _) => std::slice::from_ref(protocol),
            (Protocol::Any, None) => &Transport::ALL,
            (Protocol::Any, Some(L7::Dns(_))) => &[Transport::Tcp, Transport::Udp],
            (Protocol::Any, Some(L7::Http(_) | L7::ServerNames(_))) => &[Transport::Tcp],
        };
        let one = |protocol: &Transport| match &self.port {
            Port::Numbers(ports) => PortMatch::Numbers { protocol: *protocol, ports: *ports },
            Port::Named(name) => PortMatch::Named { protocol: Some(*protocol), name: name.clone() },
        };
        protocols.iter().map(one).collect()
    }
}
