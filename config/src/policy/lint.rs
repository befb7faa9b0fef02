//! What policies do together that their writers may not have meant: warnings, never errors.
//!
//! Only what is certain is told: a rule covers another where this follows from how both are written.

use std::collections::{HashMap, HashSet};

use super::{Catalog, Document, draft::Body, draft::Draft, translate};
use crate::{
    diagnostic::{Code, Diagnostic},
    l7::L7,
    labels::{LabelSelector, Labels, Operator, Requirement},
    name::{LABEL_OCTETS_MAX, NAME_OCTETS_MAX, NamePattern},
    rule::{CidrReach, CidrSelector, Effect, Entity, PeerSelector, Peers, PortMatch, Ports, Rule, Subject, Tier},
};

/// Everybody whom policies can be about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// Labels of endpoints.
    pub endpoints: Vec<Labels>,
    /// Labels of nodes.
    pub nodes: Vec<Labels>,
}

/// Looks at all policies together. Without an audience nothing is said about rules that are about nobody.
pub fn lint(documents: &[Document], catalog: &Catalog, audience: Option<&Audience>) -> Vec<Diagnostic> {
    let rules = translate(documents, catalog).rules;
    let drafts = documents.iter().flat_map(|document| match &document.body {
        Body::Rules(drafts) => &drafts[..],
        Body::CidrGroup(_) => &[],
    });
    let placed: Vec<(&Draft, &Rule)> = drafts.zip(&rules).collect();
    let mut found = twice(documents);
    if let Some(audience) = audience {
        found.extend(about_nobody(&placed, audience));
    }
    for (draft, rule) in &placed {
        found.extend(endless_name(draft, rule));
        found.extend(covered(draft, rule, &rules));
        found.extend(plain_dots(draft, rule));
    }
    // Elements with several port lists are several rules: one warning is enough.
    let mut seen = HashSet::new();
    found.retain(|one| seen.insert((one.file().to_owned(), one.span().offset(), one.problem.clone())));
    found
}

/// Objects of one kind, namespace and name.
fn twice(documents: &[Document]) -> Vec<Diagnostic> {
    let mut seen = HashMap::new();
    let mut found = Vec::new();
    for document in documents {
        let key = (&document.kind, &document.namespace, &document.name);
        let Some((file, line)) = seen.get(&key) else {
            seen.insert(key, document.place.file_and_line());
            continue;
        };
        let problem = format!("the same object stands in {file}, line {line}: both are in force here");
        let mut warning = document.place.warning(Code::DuplicateObject, problem);
        warning.help = Some("Kubernetes keeps the last one only: give one of them another name".to_owned());
        found.push(warning);
    }
    found
}

/// Subjects that select nobody, once for each object.
fn about_nobody(placed: &[(&Draft, &Rule)], audience: &Audience) -> Vec<Diagnostic> {
    let mut told = HashSet::new();
    let mut found = Vec::new();
    for (draft, rule) in placed {
        let (selector, who, what) = match &rule.subject {
            Subject::Endpoints(selector) => (selector, &audience.endpoints, "endpoint"),
            Subject::Nodes(selector) => (selector, &audience.nodes, "node"),
        };
        let object = (&rule.origin.kind, &rule.origin.namespace, &rule.origin.name);
        if !who.iter().any(|labels| selector.matches(labels)) && told.insert((object, &rule.subject)) {
            let problem = format!("the rule is about no {what} that is known: none matches {selector}");
            found.push(draft.place.warning(Code::MatchesNothing, problem));
        }
    }
    found
}

/// Patterns whose own letters are more than a name can have.
fn endless_name(draft: &Draft, rule: &Rule) -> Option<Diagnostic> {
    let Peers::Of(selectors) = &rule.peers else { return None };
    let pattern = selectors.iter().find_map(|selector| match selector {
        PeerSelector::Name(pattern) if is_endless(pattern) => Some(pattern),
        _ => None,
    })?;
    let problem = format!(
        "`{}` stands for no name: labels have at most {LABEL_OCTETS_MAX} octets, names {NAME_OCTETS_MAX}",
        pattern.as_str()
    );
    Some(draft.place.warning(Code::MatchesNothing, problem))
}

fn is_endless(pattern: &NamePattern) -> bool {
    let letters = |text: &str| text.bytes().filter(|octet| *octet != b'*').count();
    let text = pattern.as_str();
    letters(text) > NAME_OCTETS_MAX || text.split('.').any(|label| letters(label) > LABEL_OCTETS_MAX)
}

/// Hosts and paths that look like plain text, with a dot that stands for any character.
fn plain_dots(draft: &Draft, rule: &Rule) -> Vec<Diagnostic> {
    let Some(L7::Http(rules)) = rule.l7.as_deref() else { return Vec::new() };
    let texts = rules.iter().flat_map(|rule| [("host", &rule.host), ("path", &rule.path)]);
    let plain = texts.filter_map(|(field, text)| Some((field, text.as_ref()?.as_str()))).filter(|(_, text)| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric();
        let has_dot =
            text.as_bytes().windows(3).any(|three| is_letter(three[0]) && three[1] == b'.' && is_letter(three[2]));
        has_dot && !text.contains(|character| r"\[](){}*+?|^$".contains(character))
    });
    let warn = |(field, text): (&str, &str)| {
        let problem = format!("`{field}: {text}` is a regular expression: its dots stand for any character");
        let mut warning = draft.place.warning(Code::PlainText, problem);
        warning.help = Some(format!("write `{}`", text.replace('.', r"\.")));
        warning
    };
    plain.map(warn).collect()
}

/// An allowance that a denial takes away, or limits that another allowance lifts.
fn covered(draft: &Draft, rule: &Rule, rules: &[Rule]) -> Option<Diagnostic> {
    if rule.effect != Effect::Allow
        || rule.tier != Tier::Normal
        || matches!(&rule.peers, Peers::Of(all) if all.is_empty())
    {
        return None;
    }
    // Most rules can do neither: what follows is slow for many rules.
    let may_matter = |other: &&Rule| other.effect == Effect::Deny || (rule.l7.is_some() && other.l7.is_none());
    let normal = rules.iter().filter(|other| other.tier == Tier::Normal);
    let mut covering = normal.filter(may_matter).filter(|other| covers(other, rule));
    if let Some(deny) = covering.clone().find(|other| other.effect == Effect::Deny) {
        let problem = format!("`{}` denies everything that this rule allows", deny.origin);
        let mut warning = draft.place.warning(Code::Shadowed, problem);
        warning.help = Some("a deny rule goes before every allow rule: narrow it, or remove this rule".to_owned());
        return Some(warning);
    }
    let wider = covering.find(|other| other.effect == Effect::Allow)?;
    let problem = format!("`{}` allows the same flows without limits: those of this rule limit nothing", wider.origin);
    let mut warning = draft.place.warning(Code::Widened, problem);
    warning.help = Some("rules add up: narrow the other rule, or give it limits too".to_owned());
    Some(warning)
}

/// Whether one rule matches, for all its subjects, every flow that the other matches.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    if wide.direction != narrow.direction {
        return false;
    }
    let subject = match (&wide.subject, &narrow.subject) {
        (Subject::Endpoints(wide), Subject::Endpoints(narrow)) | (Subject::Nodes(wide), Subject::Nodes(narrow)) => {
            selector_covers(wide, narrow)
        }
        _ => false,
    };
    subject && peers_cover(&wide.peers, &narrow.peers) && ports_cover(&wide.ports, &narrow.ports)
}

fn peers_cover(wide: &Peers, narrow: &Peers) -> bool {
    match (wide, narrow) {
        (Peers::Any, _) => true,
        (Peers::Of(wide), Peers::Any) => wide.contains(&PeerSelector::Entity(Entity::All)),
        (Peers::Of(wide), Peers::Of(narrow)) => {
            narrow.iter().all(|narrow| wide.iter().any(|wide| peer_covers(wide, narrow)))
        }
    }
}

fn peer_covers(wide: &PeerSelector, narrow: &PeerSelector) -> bool {
    match (wide, narrow) {
        // Names and prefixes of Cilium select nobody inside the cluster.
        (PeerSelector::Entity(Entity::All), _) | (PeerSelector::Entity(Entity::World), PeerSelector::Name(_)) => true,
        (PeerSelector::Entity(Entity::World), PeerSelector::Cidr(cidr)) => cidr.reach == CidrReach::OutsideCluster,
        (PeerSelector::Labels(wide), PeerSelector::Labels(narrow)) => selector_covers(wide, narrow),
        (PeerSelector::Cidr(wide), PeerSelector::Cidr(narrow)) => cidr_covers(wide, narrow),
        (wide, narrow) => wide == narrow,
    }
}

/// Every requirement of the wide selector follows from one of the narrow one.
fn selector_covers(wide: &LabelSelector, narrow: &LabelSelector) -> bool {
    wide.requirements().all(|wide| narrow.requirements().any(|narrow| follows(wide, narrow)))
}

fn follows(wide: &Requirement, narrow: &Requirement) -> bool {
    if wide.key != narrow.key || (wide.source != narrow.source && wide.source.is_some()) {
        return false;
    }
    match (&wide.operator, &narrow.operator) {
        (Operator::Exists, Operator::In(_)) => true,
        (Operator::In(wide), Operator::In(narrow)) => narrow.is_subset(wide),
        // Any source may have the value that one source has not.
        (Operator::NotIn(_) | Operator::DoesNotExist, _) if wide.source != narrow.source => false,
        (Operator::NotIn(wide), Operator::NotIn(narrow)) => wide.is_subset(narrow),
        (wide, narrow) => wide == narrow,
    }
}

fn cidr_covers(wide: &CidrSelector, narrow: &CidrSelector) -> bool {
    let reaches = wide.reach == CidrReach::Everything || wide.reach == narrow.reach;
    let is_spared = |hole: &ipnet::IpNet| {
        let apart = !hole.contains(&narrow.net) && !narrow.net.contains(hole);
        apart || narrow.except.iter().any(|own| own.contains(hole))
    };
    reaches && wide.net.contains(&narrow.net) && wide.except.iter().all(is_spared)
}

fn ports_cover(wide: &Ports, narrow: &Ports) -> bool {
    match (wide, narrow) {
        (Ports::Any, _) => true,
        (Ports::Of(_), Ports::Any) => false,
        (Ports::Of(wide), Ports::Of(narrow)) => {
            narrow.iter().all(|narrow| wide.iter().any(|wide| port_covers(wide, narrow)))
        }
    }
}

fn port_covers(wide: &PortMatch, narrow: &PortMatch) -> bool {
    match (wide, narrow) {
        (
            PortMatch::Numbers { protocol, ports },
            PortMatch::Numbers { protocol: narrow_protocol, ports: narrow_ports },
        ) => protocol == narrow_protocol && ports.start <= narrow_ports.start && narrow_ports.end <= ports.end,
        (PortMatch::Named { protocol: None, name }, PortMatch::Named { protocol: _, name: narrow_name }) => {
            name == narrow_name
        }
        (wide, narrow) => wide == narrow,
    }
}
