//! What other tools may change under a running agent: the route to the proxies, the rule of nftables, and sysctls. Each is
//! looked at, and set again where the agent sets it itself.

use std::fs;
use std::io;
use std::net::IpAddr;

use namegate_abi::Settings;
use nix::net::if_::if_indextoname;

use crate::{routes, untracked};

/// Addresses of documentation (RFC 5737, RFC 3849) that no machine has.
const SAMPLES: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Something that was not as the agent needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it is about: a sysctl, a rule.
    pub subject: String,
    /// What was found, what it does, and whether it is set again.
    pub message: String,
}

/// What is looked after.
#[derive(Clone, Copy, Debug)]
pub struct Upkeep<'a> {
    /// Marks of the proxies.
    pub settings: &'a Settings,
    /// Whether requests are limited: their packets are sent back into the node.
    pub limits: bool,
    /// Whether nftables has the rule for that: a kernel without nftables never had it.
    pub nftables: bool,
    /// Interfaces with programs.
    pub interfaces: &'a [u32],
}

impl Upkeep<'_> {
    /// Looks at everything, sets again what can be, and gives what was found wrong.
    pub fn look(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        faults.extend(self.routes());
        if self.limits {
            faults.extend(self.early_demux());
            faults.extend(self.interfaces.iter().filter_map(|interface| returned(*interface)));
        }
        if self.nftables {
            faults.extend(self.nftables());
        }
        faults.extend(source_marks());
        faults
    }

    fn routes(&self) -> Option<Fault> {
        let lost = SAMPLES.into_iter().find(|to| routes::is_delivered(self.settings, *to).is_ok_and(|is| !is))?;
        let family = if lost.is_ipv4() { "IPv4" } else { "IPv6" };
        let found = format!(
            "packets for the proxies are not delivered to this node ({family}): the rule of preference {} or table {} is \
             gone, or another rule comes first",
            routes::PREFERENCE,
            routes::TABLE
        );
        Some(fault("route to the proxies", &found, routes::set_up(self.settings).map_err(io::Error::other)))
    }

    #[expect(clippy::unused_self, reason = "one of the things looked after")]
    fn early_demux(&self) -> Option<Fault> {
        let value = fs::read_to_string(routes::EARLY_DEMUX).ok()?;
        if value.trim() == "0" {
            return None;
        }
        let found = "it is on: limits on requests to endpoints drop their packets";
        Some(fault("net.ipv4.tcp_early_demux", found, routes::forward_proxied()))
    }

    fn nftables(&self) -> Option<Fault> {
        if untracked::is_there().ok()? {
            return None;
        }
        let found = format!(
            "table `{}` of nftables or its rule is gone: limited connections to a service are dropped",
            untracked::TABLE
        );
        Some(fault("nftables", &found, untracked::set_up(self.settings)))
    }
}

/// Strict checking of sources on an interface drops what is sent back into the node.
fn returned(interface: u32) -> Option<Fault> {
    let name = if_indextoname(interface).ok().filter(|name| !name.is_empty())?;
    let name = name.to_string_lossy();
    if !routes::is_strict(&name) {
        return None;
    }
    let found = "sources are checked strictly (1): limits on requests to the endpoint drop its packets";
    Some(fault(&format!("net.ipv4.conf.{name}.rp_filter"), found, routes::loosen(&name)))
}

/// With this sysctl the mark of a redirected packet decides on where its source is looked for, which is then this node.
fn source_marks() -> Option<Fault> {
    let value = fs::read_to_string("/proc/sys/net/ipv4/conf/all/src_valid_mark").ok()?;
    (value.trim() == "1").then(|| Fault {
        subject: "net.ipv4.conf.all.src_valid_mark".to_owned(),
        message:
            "it is 1, and redirected packets of IPv4 are dropped: questions of endpoints get no answer. Set it to 0"
                .to_owned(),
    })
}

fn fault(subject: &str, found: &str, mended: io::Result<()>) -> Fault {
    let message = match mended {
        Ok(()) => format!("{found}. It is set again; end the tool that changes it"),
        Err(error) => format!("{found}. It cannot be set again: {error}"),
    };
    Fault { subject: subject.to_owned(), message }
}
