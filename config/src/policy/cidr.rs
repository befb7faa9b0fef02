//! Prefixes: `address/length` texts, holes, groups.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    draft::{DraftPeer, GroupReference},
    object::Context,
    selector::{self, Keys},
    shapes::{cilium, elements, kubernetes},
    translate::CIDR_GROUP,
};
use crate::{
    diagnostic::{Code, Severity},
    reader::{Object, Value},
    rule::{CidrReach, CidrSelector, PeerSelector},
};

/// A prefix; with `bare`, an address alone too. Host bits are cleared with a warning.
pub(super) fn prefix(context: &mut Context<'_>, value: &Value<'_>, bare: bool) -> Option<IpNet> {
    let text = context.reader.filled_text(value)?;
    let place = value.at_value();
    let net = match (strictly(text), text.parse::<IpAddr>()) {
        (Some(net), _) => net,
        (_, Ok(address)) if bare => address.into(),
        (_, Ok(address)) => {
            let found = context.reader.wrong(&place, Code::BadValue, format!("`{text}` has no prefix length"));
            found.help = Some(format!("write `{}` for this one address", IpNet::from(address)));
            return None;
        }
        _ => {
            let found = context.reader.wrong(&place, Code::BadValue, format!("`{text}` is not a prefix"));
            found.help = Some(prefix_help(text).to_owned());
            return None;
        }
    };
    if matches!(net, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
        let found = context.reader.wrong(&place, Code::BadValue, "an IPv4-mapped prefix selects no packet");
        found.help = Some("write it as an IPv4 prefix".to_owned());
        return None;
    }
    if net.addr() != net.network() {
        let problem = format!("`{text}` has bits beyond its length set; it stands for {}", net.trunc());
        context.reader.warn(&place, Code::Overwritten, problem);
    }
    Some(net.trunc())
}

/// `address/length`. No number may start with a zero: some would read it as octal.
fn strictly(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let bits: u8 = length.parse().ok().filter(|bits: &u8| bits.to_string() == length)?;
    IpNet::new(address.parse().ok()?, bits).ok()
}

fn prefix_help(text: &str) -> &'static str {
    match text.split_once('/') {
        Some((address, length)) if has_leading_zero(address, length) => "write numbers without leading zeros",
        Some((_, length)) if length.contains('.') => "write the mask as a length, `10.0.0.0/8`",
        Some(_) => "IPv4 prefixes have a length of 0 to 32, IPv6 prefixes of 0 to 128",
        None => "write an address and a length, `10.0.0.0/8` or `2001:db8::/32`",
    }
}

fn has_leading_zero(address: &str, length: &str) -> bool {
    let starts_with_zero = |number: &str| number.len() > 1 && number.starts_with('0');
    starts_with_zero(length) || (!address.contains(':') && address.split('.').any(starts_with_zero))
}

/// Prefixes that each must lie inside `net`, where that is known.
pub(super) fn holes(context: &mut Context<'_>, object: &Object<'_>, net: Option<IpNet>) -> Vec<IpNet> {
    let Some(list) = object.get("except").and_then(|list| context.reader.list(&list)) else { return Vec::new() };
    let mut holes = Vec::new();
    for item in &list {
        let Some(hole) = prefix(context, item, false) else { continue };
        if let Some(net) = net.filter(|net| !net.contains(&hole)) {
            let problem = format!("{hole} does not lie inside {net}");
            context.reader.wrong(&item.at_value(), Code::BadValue, problem);
            continue;
        }
        if net == Some(hole) {
            context.reader.warn(&item.at_value(), Code::MatchesNothing, "this leaves nothing of the prefix");
        }
        holes.push(hole);
    }
    holes
}

/// `ipBlock` of NetworkPolicy.
pub(super) fn ip_block(context: &mut Context<'_>, value: &Value<'_>) -> Option<DraftPeer> {
    let object = context.reader.shaped(value, &kubernetes::IP_BLOCK)?;
    let net = context.reader.required(&object, "cidr").and_then(|cidr| prefix(context, &cidr, false));
    let holes = holes(context, &object, net);
    Some(DraftPeer::Ready(PeerSelector::Cidr(CidrSelector::new(net?, holes, CidrReach::Everything))))
}

/// One entry of `toCIDRSet` or `fromCIDRSet`.
pub(super) fn set(context: &mut Context<'_>, value: &Value<'_>) -> Option<DraftPeer> {
    let object = context.reader.shaped(value, &elements::CIDR_SET)?;
    let given: Vec<Value<'_>> = elements::CIDR_SET.one_of().iter().filter_map(|key| object.get(key)).collect();
    match &given[..] {
        [] => {
            context.reader.wrong(
                value,
                Code::MissingField,
                "one of `cidr`, `cidrGroupRef`, `cidrGroupSelector` is wanted",
            );
            holes(context, &object, None);
            return None;
        }
        [_] => {}
        [_, second, ..] => {
            let problem = "only one of `cidr`, `cidrGroupRef`, `cidrGroupSelector` can stand in one entry";
            context.reader.wrong(second, Code::Conflict, problem).help = Some("make two entries".to_owned());
            return None;
        }
    }
    if let Some(cidr) = object.get("cidr") {
        let net = prefix(context, &cidr, false);
        let holes = holes(context, &object, net);
        return Some(DraftPeer::Ready(PeerSelector::Cidr(CidrSelector::new(net?, holes, CidrReach::OutsideCluster))));
    }
    let except = holes(context, &object, None);
    let (reference, place, problem) = if let Some(name) = object.get("cidrGroupRef") {
        let text = context.reader.filled_text(&name)?.to_owned();
        let problem = format!("there is no CiliumCIDRGroup `{text}`; this entry selects nobody");
        (GroupReference::Name(text), name, problem)
    } else {
        let selector_value = object.get("cidrGroupSelector")?;
        let selector = selector::plain(context, &selector_value, Keys::Plain(CIDR_GROUP, ""))?;
        let problem = "no CiliumCIDRGroup has these labels; this entry selects nobody".to_owned();
        (GroupReference::Labels(selector), selector_value, problem)
    };
    let dangling = context.reader.prepared(&place, Code::Dangling, problem, Severity::Warning);
    Some(DraftPeer::Group { reference, except, dangling: Box::new(dangling) })
}

/// The prefixes of a CiliumCIDRGroup.
pub(super) fn group(context: &mut Context<'_>, object: &Object<'_>) -> Vec<IpNet> {
    let spec = context.reader.required(object, "spec");
    let Some(spec) = spec.and_then(|spec| context.reader.shaped(&spec, &cilium::GROUP_SPEC)) else { return Vec::new() };
    let list = context.reader.required(&spec, "externalCIDRs").and_then(|list| context.reader.list(&list));
    list.unwrap_or_default().iter().filter_map(|item| prefix(context, item, false)).collect()
}
