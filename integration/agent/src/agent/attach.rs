//! Programs on interfaces, as the thread that owns the kernel's maps sees them: which should carry some, which could not,
//! and what was put back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use namegate_abi::NODE_INTERFACE;
use namegate_loader::{Directions, LoadError};

use super::{
    gate::{Chain, Gate},
    problems::ProblemKind,
};

/// Why programs are not attached to an interface that went meanwhile.
pub(super) const GONE: &str = "the interface is gone, and its endpoint is still listed";

impl Gate {
    /// Interfaces whose programs could not be attached, and why.
    pub(crate) fn failed(&self) -> &BTreeMap<u32, String> {
        &self.failed
    }

    /// Interfaces whose packets are judged: programs are attached, and the row of an endpoint is there. An error is that
    /// this cannot be said for now.
    pub(crate) fn guarded(&self) -> Result<HashSet<u32>, LoadError> {
        let is_whole = |interface: &u32| !self.failed.contains_key(interface) && self.engine.has_interface(*interface);
        Ok(self.datapath.attached()?.into_iter().filter(is_whole).collect())
    }

    /// Which interfaces the kernel's rows give to which endpoint, by `namespace/name`.
    pub(crate) fn known_interfaces(&self) -> HashMap<String, Vec<u32>> {
        let mut known: HashMap<String, Vec<u32>> = HashMap::new();
        for (interface, key) in self.engine.interfaces() {
            if interface != NODE_INTERFACE
                && let Some(key) = key
            {
                known.entry(key.to_string()).or_default().push(interface);
            }
        }
        known
    }

    /// Programs and pins that were put back after another tool took them away.
    pub(crate) fn healed(&self) -> u64 {
        self.healed
    }

    /// Interfaces and the directions in which they should be judged.
    pub(crate) fn attachments(&self) -> (BTreeSet<u32>, Directions) {
        (self.wanted.clone(), self.directions)
    }

    /// Takes programs off interfaces that are not wanted any more.
    pub(super) fn leave(&mut self) {
        const SUBJECT: &str = "links";
        // An interface may go while programs are attached to it: then nobody misses them.
        let wanted = &self.wanted;
        self.failed.retain(|interface, _| *interface == NODE_INTERFACE || wanted.contains(interface));
        let attached = match self.datapath.attached() {
            Ok(attached) => attached,
            Err(error) => {
                // Who leaves is let go with the next change: until then it stays enforced.
                return self.problems.raise(ProblemKind::Lookup, SUBJECT, Chain(&error).to_string());
            }
        };
        self.problems.clear(ProblemKind::Lookup, SUBJECT);
        for interface in attached.into_iter().filter(|interface| !self.wanted.contains(interface)) {
            if let Err(error) = self.datapath.detach(interface) {
                let message = format!("interface {interface} is enforced though no endpoint has it: {}", Chain(&error));
                self.problems.raise(ProblemKind::Lookup, SUBJECT, message);
            }
        }
    }

    /// Puts programs back where another tool took them away, and says what is attached then.
    pub(crate) fn heal(&mut self, interfaces: &[u32], node: bool, maps: bool) {
        for interface in interfaces.iter().copied() {
            if !self.wanted.contains(&interface) {
                continue;
            }
            self.attach(interface);
            self.healed += u64::from(!self.failed.contains_key(&interface));
        }
        if node {
            self.guard_node();
            self.healed += u64::from(!self.failed.contains_key(&NODE_INTERFACE));
        }
        if maps {
            match self.datapath.pin_maps_again() {
                Ok(pinned) => self.healed += pinned.len() as u64,
                Err(error) => tracing::error!(error = %Chain(&error), "maps are not pinned"),
            }
        }
    }

    /// Tries once more what could not be attached.
    pub(crate) fn attach_again(&mut self) {
        for interface in self.failed.keys().copied().collect::<Vec<u32>>() {
            if interface == NODE_INTERFACE {
                self.guard_node();
            } else {
                self.attach(interface);
            }
        }
    }

    pub(super) fn attach(&mut self, interface: u32) {
        if self.audits() && !self.engine.has_interface(interface) {
            // Without its row the programs would close what is only to be recorded.
            self.failed.insert(interface, "its row found no room, and an audit closes nothing".to_owned());
            return;
        }
        match self.datapath.attach(interface, self.directions) {
            Ok(()) => drop(self.failed.remove(&interface)),
            Err(error) => {
                let why = if error.is_gone() { GONE.to_owned() } else { Chain(&error).to_string() };
                let former = self.failed.insert(interface, why);
                // The endpoint ends: what says so is on its way.
                if error.is_gone() {
                    tracing::debug!(interface, "gone before programs were attached");
                } else if former.is_none() {
                    tracing::error!(interface, error = %Chain(&error), "programs could not be attached");
                }
            }
        }
    }

    /// Attaches to the node's sockets where a rule selects the node, and only there.
    pub(super) fn guard_node(&mut self) {
        let wanted = self.engine.node_id().is_some();
        let guarded = if wanted { self.datapath.guard_node(self.directions) } else { self.datapath.release_node() };
        match guarded {
            Ok(()) => drop(self.failed.remove(&NODE_INTERFACE)),
            Err(error) => {
                if self.failed.insert(NODE_INTERFACE, Chain(&error).to_string()).is_none() {
                    tracing::error!(error = %Chain(&error), wanted, "the node's own sockets");
                }
            }
        }
    }
}
