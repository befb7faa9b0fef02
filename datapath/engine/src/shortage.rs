//! What is not as it should be for want of room, and where it is said: for log, status, health and metrics.

use std::{collections::BTreeMap, sync::Arc};

use namegate_abi::map_names;

use crate::{Engine, topology::NODE_KEY};

/// Why an endpoint is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shut {
    /// Its policy found no room; the setting that makes more.
    NoRoom(&'static str),
    /// A row is missing without which more would pass than its rules say.
    Leaking,
}

/// What is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShortageKind {
    /// Rows of a map are missing, or could not be written.
    Rows,
    /// A namespace has more than its share.
    Share,
    /// An endpoint is closed.
    Closed,
    /// Learned addresses of an endpoint are not open any more.
    Names,
    /// Addresses of an endpoint are not open, and it has not been given them: their answers were refused.
    Withheld,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What kind of thing.
    pub kind: ShortageKind,
    /// Name of the map, `namespace/name` of the endpoint, or namespace and setting.
    pub subject: String,
    /// What happened, and what to do.
    pub message: String,
    /// The setting that makes room; empty where none does.
    pub setting: &'static str,
}

impl Engine {
    /// Everything that is not as it should be now. Empty where every rule is enforced.
    pub fn shortages(&self) -> Vec<Shortage> {
        let mut found = self.short_maps();
        found.extend(self.short_shares());
        found.extend(self.closed_endpoints());
        found.extend(self.placeless_endpoints());
        found.extend(self.closed_names());
        found
    }

    fn short_maps(&self) -> Vec<Shortage> {
        let mut found = Vec::new();
        let mut add = |map: &'static str, count: usize, what: &str, setting: &'static str| {
            if count > 0 {
                found.push(Shortage {
                    kind: ShortageKind::Rows,
                    subject: map.to_owned(),
                    message: format!("map `{map}` has no room for {count} {what}; raise `{setting}`"),
                    setting,
                });
            }
        };
        add(map_names::ADDRESSES, self.unplaced.len(), "addresses of endpoints, nodes or services", "limits.addresses");
        let above = self.unprefixed.iter().filter(|key| self.above_share.contains_key(key)).count();
        add(map_names::CIDRS, self.unprefixed.len() - above, "prefixes of policies", "limits.cidrs");
        let of_map = |setting: &&&str| **setting == "limits.policyRows";
        let uninstalled = self.uninstalled.values().filter(of_map).count();
        add(map_names::POLICY, uninstalled, "policies of endpoints", "limits.policyRows");
        add(map_names::RESOLVERS, self.unresolved.len(), "trusted resolvers", "dns.resolvers");
        let unwritten: usize = self.local.values().map(|local| local.unwritten.len()).sum();
        add(map_names::ENDPOINTS, unwritten, "endpoints, which are closed", "limits.endpoints");
        if let Some(doubt) = &self.doubt {
            let message = if doubt.is_blind {
                "the kernel's rows can't be read; every endpoint with a policy is closed until they can".to_owned()
            } else {
                format!("the kernel refused {} writes; they are tried again", doubt.failing.len().max(1))
            };
            found.push(Shortage { kind: ShortageKind::Rows, subject: "kernel".to_owned(), message, setting: "" });
        }
        found
    }

    /// Namespaces with more than their share.
    fn short_shares(&self) -> Vec<Shortage> {
        let mut counts: BTreeMap<(Arc<str>, &'static str), usize> = BTreeMap::new();
        for namespace in self.unprefixed.iter().filter_map(|key| self.above_share.get(key)) {
            *counts.entry((Arc::clone(namespace), "limits.cidrsPerNamespace")).or_default() += 1;
        }
        for (policy, setting) in &self.uninstalled {
            if let Some(namespace) = self.mirror.tenant(*policy).filter(|_| *setting != "limits.policyRows") {
                *counts.entry((Arc::clone(namespace), *setting)).or_default() += 1;
            }
        }
        let shown = |((namespace, setting), count): ((Arc<str>, &'static str), usize)| Shortage {
            kind: ShortageKind::Share,
            subject: format!("{namespace} {setting}"),
            message: format!(
                "namespace {namespace} has its share: {count} of its {} are left out; raise `{setting}`, or narrow its policies",
                if setting == "limits.cidrsPerNamespace" { "prefixes" } else { "policies" }
            ),
            setting,
        };
        counts.into_iter().map(shown).collect()
    }

    fn closed_endpoints(&self) -> Vec<Shortage> {
        let mut found = Vec::new();
        for (id, local) in &self.local {
            let (why, setting) = match local.closed {
                _ if !local.unwritten.is_empty() => {
                    ("there is no room for its row in map `ENDPOINTS`", "limits.endpoints")
                }
                Some(Shut::NoRoom(setting)) => ("there is no room for its policy", setting),
                Some(Shut::Leaking) => ("rows that its policy needs are missing", ""),
                None => continue,
            };
            let key = self.cache.endpoints.get(id).map_or(NODE_KEY, |known| &*known.key);
            let remedy =
                if setting.is_empty() { "the other problems say which" } else { "raise it, or narrow the policy" };
            let setting_text = if setting.is_empty() { String::new() } else { format!(" (`{setting}`)") };
            found.push(Shortage {
                kind: ShortageKind::Closed,
                subject: key.to_owned(),
                message: format!("closed in both directions: {why}{setting_text}; {remedy}"),
                setting,
            });
        }
        found
    }

    /// Endpoints that can't send: without a row their address is not theirs.
    fn placeless_endpoints(&self) -> Vec<Shortage> {
        let owned = self.unplaced.keys().filter_map(|address| Some((address.to_ip(), self.peers.owner(*address)?)));
        let own = owned.filter(|(_, who)| who.id.is_some());
        let shown = own.map(|(address, who)| Shortage {
            kind: ShortageKind::Closed,
            subject: who.key.to_string(),
            message: format!("it can't send from {address}: map `ADDRESSES` has no room; raise `limits.addresses`"),
            setting: "limits.addresses",
        });
        shown.collect()
    }

    fn closed_names(&self) -> Vec<Shortage> {
        let mut counts: BTreeMap<(Arc<str>, ShortageKind), usize> = BTreeMap::new();
        for row in &self.unopened {
            let kind = if self.withheld.contains(row) { ShortageKind::Withheld } else { ShortageKind::Names };
            let openings = self.cache.rows.get(row).into_iter().flat_map(|opened| &opened.openings);
            let mut endpoints: Vec<_> = openings.map(|opening| opening.endpoint).collect();
            endpoints.sort_unstable();
            endpoints.dedup();
            for known in endpoints.iter().filter_map(|endpoint| self.cache.endpoints.get(endpoint)) {
                *counts.entry((Arc::clone(&known.key), kind)).or_default() += 1;
            }
        }
        let shown = |((key, kind), count): ((Arc<str>, ShortageKind), usize)| Shortage {
            kind,
            subject: key.to_string(),
            message: format!(
                "{count} learned addresses are not open for want of room; raise `limits.addresses`, \
                 `limits.addressesPerEndpoint` or `limits.policyRows`"
            ),
            setting: "limits.addresses",
        };
        counts.into_iter().map(shown).collect()
    }
}
