//! Policy routing that delivers redirected packets to this node: a rule for the mark, and a table in which every
//! destination is local. Both families.
//!
//! They stay when the agent ends: so does enforcement, and a packet is marked only where the proxy's socket was found.

use std::net::IpAddr;
use std::{fs, io};

use namegate_abi::Settings;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::ask;

/// The table of local delivery.
pub const TABLE: u32 = 2_004;
/// Rules of this preference are looked at before those of the main table (32766) and of most network plugins.
pub const PREFERENCE: u32 = 90;
/// The loopback interface has the first index of every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Why redirected packets could not be routed to this node.
#[derive(Debug, thiserror::Error)]
#[error("{action} for {family} ({by_hand})")]
pub struct RouteError {
    action: &'static str,
    family: &'static str,
    /// What would do the same.
    by_hand: String,
    #[source]
    source: io::Error,
}

/// Makes rule and route for both families where they are missing. A kernel without IPv6 has IPv4 alone.
pub fn set_up(settings: &Settings) -> Result<(), RouteError> {
    for family in FAMILIES {
        let added = ask(RouteNetlinkMessage::NewRule(rule(family, settings)), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        match added {
            Err(error) if lacks_family(&error) => continue,
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(rule_error("adding the rule for redirected packets", family, settings, error));
            }
            _ => {}
        }
        match ask(RouteNetlinkMessage::NewRoute(route(family)), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE) {
            Err(error) if !lacks_family(&error) => {
                return Err(route_error("adding the route of redirected packets", family, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes rule and route; those that are not there are no error.
pub fn remove(settings: &Settings) -> Result<(), RouteError> {
    for family in FAMILIES {
        match ask(RouteNetlinkMessage::DelRule(rule(family, settings)), NLM_F_ACK) {
            Err(error) if !is_absent(&error) => {
                return Err(rule_error("removing the rule for redirected packets", family, settings, error));
            }
            _ => {}
        }
        match ask(RouteNetlinkMessage::DelRoute(route(family)), NLM_F_ACK) {
            Err(error) if !is_absent(&error) => {
                return Err(route_error("removing the route of redirected packets", family, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the kernel looks for the socket of a packet before it routes it.
pub(crate) const EARLY_DEMUX: &str = "/proc/sys/net/ipv4/tcp_early_demux";

/// Lets packets of a connection between others, whose socket a proxy of this node has, be forwarded as far as the program
/// that sends them back: the kernel drops them on the way where it has found the socket before (`ip_forward`).
pub fn forward_proxied() -> io::Result<()> {
    if fs::read_to_string(EARLY_DEMUX)?.trim() == "0" {
        return Ok(());
    }
    fs::write(EARLY_DEMUX, "0")
}

/// Lets a packet that was about to leave by an interface come in by it again: strict checking of sources (`rp_filter` 1,
/// RFC 3704) becomes loose there. A machine where that is not to be set keeps it, and such packets are dropped.
pub(crate) fn accept_returned(interface: &str) {
    if is_strict(interface)
        && let Err(error) = loosen(interface)
    {
        tracing::warn!(%error, interface, "strict checking of sources stays: limits on requests to it drop them");
    }
}

/// Whether sources are checked strictly on an interface: the higher value of its own and that of all counts.
pub(crate) fn is_strict(interface: &str) -> bool {
    let value = |interface: &str| fs::read_to_string(source_check(interface)).unwrap_or_default();
    let values = [interface, "all"].map(value);
    values.iter().any(|value| value.trim() == "1") && values.iter().all(|value| value.trim() != "2")
}

/// Makes the checking of sources on an interface loose.
pub(crate) fn loosen(interface: &str) -> io::Result<()> {
    fs::write(source_check(interface), "2")
}

fn source_check(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter")
}

/// Whether a redirected packet to an address of any other machine is delivered to this node. True where the kernel lacks
/// the family.
pub(crate) fn is_delivered(settings: &Settings, to: IpAddr) -> io::Result<bool> {
    let (family, bits) = if to.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    let mut question = RouteMessage::default();
    question.header = RouteHeader { address_family: family, destination_prefix_length: bits, ..RouteHeader::default() };
    question.attributes = vec![RouteAttribute::Destination(to.into()), RouteAttribute::Mark(settings.redirect_mark)];
    match ask(RouteNetlinkMessage::GetRoute(question), NLM_F_ACK) {
        Ok(answers) => Ok(answers.iter().any(
            |answer| matches!(answer, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local),
        )),
        Err(error) if lacks_family(&error) => Ok(true),
        // No route at all.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

fn rule(family: AddressFamily, settings: &Settings) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PREFERENCE),
        RuleAttribute::FwMark(settings.redirect_mark),
        RuleAttribute::FwMask(settings.mark_mask),
        RuleAttribute::Table(TABLE),
    ];
    rule
}

fn route(family: AddressFamily) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family,
        table: RouteHeader::RT_TABLE_UNSPEC,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![RouteAttribute::Oif(LOOPBACK), RouteAttribute::Table(TABLE)];
    route
}

/// The kernel was built or started without IPv6.
fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT))
}

fn is_absent(error: &io::Error) -> bool {
    lacks_family(error) || matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// The family, and the option of `ip` for it.
const fn words(family: AddressFamily) -> (&'static str, &'static str) {
    match family {
        AddressFamily::Inet => ("IPv4", "-4"),
        _ => ("IPv6", "-6"),
    }
}

fn rule_error(action: &'static str, family: AddressFamily, settings: &Settings, source: io::Error) -> RouteError {
    let (family, option) = words(family);
    let (mark, bits) = (settings.redirect_mark, settings.mark_mask);
    let by_hand = format!("`ip {option} rule add pref {PREFERENCE} fwmark {mark:#x}/{bits:#x} lookup {TABLE}`");
    RouteError { action, family, by_hand, source }
}

fn route_error(action: &'static str, family: AddressFamily, source: io::Error) -> RouteError {
    let (family, option) = words(family);
    RouteError {
        action,
        family,
        by_hand: format!("`ip {option} route add local default dev lo table {TABLE}`"),
        source,
    }
}
