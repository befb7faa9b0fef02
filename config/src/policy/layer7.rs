//! `rules.http`, `rules.dns` and `serverNames` of Cilium's policies.

use super::{
    cilium::Section,
    object::Context,
    peers,
    ports::{Port, PortEntry, Protocol},
    shapes::elements,
};
use crate::{
    diagnostic::Code,
    l7::{HeaderMatch, HttpRule, L7, RegexText},
    name::NamePattern,
    question::Questions,
    reader::{Object, Value},
    rule::{Direction, RangeInclusive16, Transport},
};

/// Why `mismatch` is refused.
pub(super) const NO_CHANGES: &str = "Namegate changes no requests: a request without the header is denied";

/// The limits of one element of `toPorts`; none where it has no list or an empty one.
pub(super) fn limits(
    context: &mut Context<'_>,
    object: &Object<'_>,
    entries: &[PortEntry<'_>],
    section: Section,
) -> Option<L7> {
    let rules = object.get("rules").and_then(|rules| self::rules(context, &rules, entries, section));
    let Some(value) = object.get("serverNames") else { return rules };
    let names = server_names(context, &value, entries, section);
    if let Some(rules) = object.get("rules") {
        let found = context.reader.wrong(
            &rules,
            Code::Conflict,
            "`rules` cannot be read inside TLS, which `serverNames` asks for",
        );
        found.help = Some("keep one of `rules` and `serverNames`".to_owned());
        return None;
    }
    names
}

fn rules(context: &mut Context<'_>, value: &Value<'_>, entries: &[PortEntry<'_>], section: Section) -> Option<L7> {
    let shape = match section.direction {
        Direction::Ingress => &elements::INGRESS_LIMITS,
        Direction::Egress => &elements::EGRESS_LIMITS,
    };
    let object = context.reader.shaped(value, shape)?;
    match (object.get("http"), object.get("dns")) {
        (Some(http), None) => self::http(context, &http, entries, section),
        (None, Some(dns)) => self::dns(context, &dns, entries, section),
        (Some(_), Some(dns)) => {
            let problem = "`http` and `dns` exclude each other in one element of `toPorts`";
            context.reader.wrong(&dns, Code::Conflict, problem).help =
                Some("make two elements of `toPorts`".to_owned());
            None
        }
        (None, None) => {
            if object.fields().next().is_none() {
                let found = context.reader.wrong(value, Code::MissingField, "`http` or `dns` must be given");
                found.help = Some("leave `rules` out to set no limit".to_owned());
            }
            None
        }
    }
}

/// The elements of a list of limits; an empty one sets no limit.
fn alternatives<'n>(context: &mut Context<'_>, value: &Value<'n>) -> Option<Vec<Value<'n>>> {
    let items = context.reader.list(value)?;
    if items.is_empty() {
        let problem = "an empty list sets no limit: every request passes";
        context.reader.warn(value, Code::Widened, problem).help =
            Some("leave `rules` out, or name requests".to_owned());
        return None;
    }
    Some(items)
}

/// Notes what layer 7 limits do not go with: no ports, every port.
fn check_ports(context: &mut Context<'_>, value: &Value<'_>, entries: &[PortEntry<'_>]) {
    for entry in entries.iter().filter(|entry| entry.port == Port::Numbers(RangeInclusive16::ALL)) {
        context.reader.wrong(&entry.place, Code::Conflict, "`rules` cannot be used with port \"0\": name the ports");
    }
    if entries.is_empty() && !context.reader.has_errors() {
        context.reader.wrong(value, Code::MissingField, "`rules` needs `ports`");
    }
}

fn http(context: &mut Context<'_>, value: &Value<'_>, entries: &[PortEntry<'_>], section: Section) -> Option<L7> {
    let on = context.features.http;
    context.enforced(value, on, "`rules.http`");
    if section.of_node {
        context.reader.wrong(value, Code::Conflict, "a policy for nodes takes no `http` rules, only `dns`");
    }
    let items = alternatives(context, value)?;
    check_ports(context, value, entries);
    for entry in entries.iter().filter(|entry| entry.protocol != Protocol::Only(Transport::Tcp)) {
        let found = context.reader.wrong(&entry.place, Code::Conflict, "`http` rules need `protocol: TCP`");
        found.help = Some("write `protocol: TCP`; left out it stands for any protocol".to_owned());
    }
    Some(L7::Http(items.iter().filter_map(|item| http_rule(context, item)).collect()))
}

fn http_rule(context: &mut Context<'_>, value: &Value<'_>) -> Option<HttpRule> {
    let object = context.reader.shaped(value, &elements::REQUEST)?;
    let mut regex = |key: &str, check: fn(&str) -> Result<RegexText, String>| {
        let value = object.get(key)?;
        let text = context.reader.text(&value)?;
        match check(text) {
            // The empty text is how the API server writes an absent one.
            Ok(regex) => Some(regex).filter(|_| !text.is_empty()),
            Err(error) => {
                let problem = format!("is no regular expression: {error}");
                let found = context.reader.wrong(&value.at_value(), Code::BadValue, problem);
                found.help = text.starts_with('*').then(|| "`.*` stands for any text, `*` alone does not".to_owned());
                None
            }
        }
    };
    let (method, path) = (regex("method", RegexText::new), regex("path", RegexText::new));
    let host = regex("host", RegexText::ignoring_case);
    let mut headers = Vec::new();
    for item in object.get("headers").and_then(|list| context.reader.list(&list)).iter().flatten() {
        headers.extend(header(context, item));
    }
    for item in object.get("headerMatches").and_then(|list| context.reader.list(&list)).iter().flatten() {
        headers.extend(header_match(context, item));
    }
    Some(HttpRule { method, path, host, headers })
}

/// `Name: value`, or a name alone.
fn header(context: &mut Context<'_>, value: &Value<'_>) -> Option<HeaderMatch> {
    let text = context.reader.filled_text(value)?;
    let (name, wanted) = match text.split_once(' ') {
        Some((name, wanted)) => (name, Some(wanted.to_owned())),
        None => (text, None),
    };
    let name = name.strip_suffix(':').unwrap_or(name);
    Some(HeaderMatch { name: header_name(context, value, name)?, value: wanted })
}

fn header_match(context: &mut Context<'_>, value: &Value<'_>) -> Option<HeaderMatch> {
    let object = context.reader.shaped(value, &elements::HEADER_MATCH)?;
    let wanted = object.get("value").and_then(|value| context.reader.text(&value)).filter(|text| !text.is_empty());
    let place = context.reader.required(&object, "name")?;
    let name = context.reader.filled_text(&place)?;
    Some(HeaderMatch { name: header_name(context, &place, name)?, value: wanted.map(str::to_owned) })
}

/// A field name (RFC 9110 §5.1), in lower case.
fn header_name(context: &mut Context<'_>, place: &Value<'_>, name: &str) -> Option<String> {
    let is_token = |octet: u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet);
    if !name.is_empty() && name.bytes().all(is_token) {
        return Some(name.to_ascii_lowercase());
    }
    let problem = format!("`{name}` is no name of a header");
    let found = context.reader.wrong(&place.at_value(), Code::BadValue, problem);
    found.help = Some("write `Name: value` with a space, or the name alone".to_owned());
    None
}

fn dns(context: &mut Context<'_>, value: &Value<'_>, entries: &[PortEntry<'_>], section: Section) -> Option<L7> {
    let on = context.features.dns;
    context.enforced(value, on, "`rules.dns`");
    context.enforced_for_node(value, section.of_node, "`rules.dns`");
    let items = alternatives(context, value)?;
    check_ports(context, value, entries);
    for entry in entries {
        if matches!(entry.port, Port::Numbers(ports) if ports.start != ports.end && ports != RangeInclusive16::ALL) {
            context.reader.wrong(&entry.place, Code::Conflict, "`dns` rules take no range of ports");
        }
        if entry.protocol == Protocol::Only(Transport::Sctp) {
            context.reader.wrong(&entry.place, Code::Conflict, "`dns` rules need TCP, UDP or ANY");
        }
    }
    let names = items.iter().filter_map(|item| peers::name(context, item)).collect();
    Some(L7::Dns(Questions { names, types: context.query_types.clone() }))
}

fn server_names(
    context: &mut Context<'_>,
    value: &Value<'_>,
    entries: &[PortEntry<'_>],
    section: Section,
) -> Option<L7> {
    let on = context.features.server_names;
    context.enforced(value, on, "`serverNames`");
    if section.of_node {
        context.reader.wrong(value, Code::Conflict, "a policy for nodes takes no `serverNames`");
    }
    let items = context.reader.list(value)?;
    if items.is_empty() {
        context.reader.wrong(value, Code::BadValue, "must have at least one name").help =
            Some("leave `serverNames` out to set no limit".to_owned());
        return None;
    }
    for entry in entries {
        if matches!(entry.protocol, Protocol::Only(Transport::Udp | Transport::Sctp)) {
            context.reader.wrong(&entry.place, Code::Conflict, "`serverNames` are read from TLS over TCP");
        }
    }
    let mut names = Vec::new();
    for item in &items {
        let Some(text) = context.reader.text(item) else { continue };
        names.extend(peers::checked_pattern(context, item, NamePattern::pattern(text)));
    }
    Some(L7::ServerNames(names))
}
