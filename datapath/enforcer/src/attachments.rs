//! Programs on interfaces: which should carry some, which could not, and what was put back.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use namegate_abi::NODE_INTERFACE;
use namegate_engine::{MapWriter, Topology};

use crate::{
    FaultKind, GONE, ProgramError, Programs,
    handle::{Repair, Served},
    writer::Enforcer,
};

/// The links of interfaces among faults.
const LINKS: &str = "links";

/// What is known of programs on interfaces.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    /// Interfaces that should carry programs.
    pub(crate) wanted: BTreeSet<u32>,
    /// Those of them that carried programs at the start and that no endpoint has: they are closed until one takes them, or
    /// they are gone.
    pub(crate) unowned: BTreeSet<u32>,
    /// Interfaces whose rows named a known endpoint at the start; `None` once [`Self::unowned`] is found out.
    pub(crate) known: Option<BTreeSet<u32>>,
    /// Interfaces whose programs could not be attached, and why.
    pub(crate) failed: BTreeMap<u32, String>,
    /// Programs and pins that were put back after another tool took them away.
    pub(crate) healed: u64,
    /// Interfaces with programs, as they were listed last; empty where they could not be.
    pub(crate) attached: HashSet<u32>,
}

impl Attachments {
    /// Makes the interfaces of a topology those that are wanted.
    pub(crate) fn want(&mut self, topology: &Topology) {
        let first = topology.endpoints.iter().filter_map(|endpoint| endpoint.interface);
        self.wanted = first.chain(topology.more_interfaces.values().flatten().copied()).collect();
        self.unowned.retain(|interface| !self.wanted.contains(interface));
        self.wanted.extend(&self.unowned);
        // An interface may go while programs are attached to it: then nobody misses them.
        let wanted = &self.wanted;
        self.failed.retain(|interface, _| *interface == NODE_INTERFACE || wanted.contains(interface));
    }

    /// Keeps what carries programs since an earlier run where nothing says whose it is: it may be the interface of an
    /// endpoint that was renamed or moved, and whose name the lost journal held. Without a row it is closed.
    fn keep_unowned(&mut self, attached: &[u32]) {
        let Some(known) = self.known.take() else { return };
        let is_unowned = |interface: &u32| !known.contains(interface) && !self.wanted.contains(interface);
        self.unowned = attached.iter().copied().filter(is_unowned).collect();
        self.wanted.extend(&self.unowned);
    }

    /// Forgets an interface that no endpoint has and that is gone; says whether it is such a one.
    fn forget_unowned(&mut self, interface: u32) -> bool {
        let is_unowned = self.unowned.remove(&interface);
        if is_unowned {
            self.wanted.remove(&interface);
            self.failed.remove(&interface);
        }
        is_unowned
    }
}

impl<K: MapWriter + Programs> Enforcer<K> {
    /// Takes programs off interfaces that are not wanted any more.
    pub(crate) fn leave(&mut self, served: &Served) {
        let attached = match self.kernel.attached() {
            Ok(attached) => attached,
            // Who leaves is let go with the next change: until then it stays enforced.
            Err(error) => return self.observer.raise(FaultKind::Lookup, LINKS, error.to_string()),
        };
        self.observer.clear(FaultKind::Lookup, LINKS);
        if !self.is_audit {
            self.attachments.keep_unowned(&attached);
        }
        let wanted = &self.attachments.wanted;
        let leaving: Vec<u32> = attached.into_iter().filter(|interface| !wanted.contains(interface)).collect();
        for interface in leaving {
            if let Err(error) = self.kernel.detach(interface) {
                let message = format!("interface {interface} is enforced though no endpoint has it: {error}");
                self.observer.raise(FaultKind::Lookup, LINKS, message);
            }
            self.install_some(served);
        }
    }

    /// Attaches programs to every interface that is wanted. Those that are attached already stay.
    pub(crate) fn attach_all(&mut self, served: &Served) {
        for interface in self.attachments.wanted.clone() {
            self.attach(interface);
            self.install_some(served);
        }
    }

    /// Puts programs back where another tool took them away.
    pub(crate) fn repair(&mut self, repair: &Repair, served: &Served) {
        for interface in repair.interfaces.iter().copied() {
            if self.attachments.wanted.contains(&interface) {
                self.attach(interface);
                self.attachments.healed += u64::from(!self.attachments.failed.contains_key(&interface));
                self.install_some(served);
            }
        }
        if repair.node {
            self.attach_node();
            self.attachments.healed += u64::from(!self.attachments.failed.contains_key(&NODE_INTERFACE));
        }
        if repair.maps {
            match self.kernel.pin_maps_again() {
                Ok(pinned) => self.attachments.healed += pinned as u64,
                Err(error) => tracing::error!(%error, "maps are not pinned"),
            }
        }
    }

    /// Tries once more what could not be attached.
    pub(crate) fn attach_again(&mut self, served: &Served) {
        for interface in self.attachments.failed.keys().copied().collect::<Vec<u32>>() {
            if interface == NODE_INTERFACE {
                self.attach_node();
            } else {
                self.attach(interface);
            }
            self.install_some(served);
        }
    }

    fn attach(&mut self, interface: u32) {
        let attachments = &mut self.attachments;
        if self.is_audit && !self.engine.has_interface(interface) {
            // Without its row the programs would close what is only to be recorded.
            attachments.failed.insert(interface, "its row found no room, and an audit closes nothing".to_owned());
            return;
        }
        match self.kernel.attach(interface) {
            Ok(()) => drop(attachments.failed.remove(&interface)),
            Err(ProgramError { is_gone: true, .. }) if attachments.forget_unowned(interface) => {
                tracing::info!(interface, "an interface that no endpoint has is gone");
            }
            Err(ProgramError { message, is_gone }) => {
                let why = if is_gone { GONE.to_owned() } else { message.clone() };
                let former = attachments.failed.insert(interface, why);
                // The endpoint ends: what says so is on its way.
                if is_gone {
                    tracing::debug!(interface, "gone before programs were attached");
                } else if former.is_none() {
                    tracing::error!(interface, error = message, "programs could not be attached");
                }
            }
        }
    }

    /// Attaches to the node's sockets where a rule selects the node, and only there.
    pub(crate) fn attach_node(&mut self) {
        let wanted = self.engine.node_id().is_some();
        let failed = &mut self.attachments.failed;
        match self.kernel.attach_node(wanted) {
            Ok(()) => drop(failed.remove(&NODE_INTERFACE)),
            Err(error) => {
                if failed.insert(NODE_INTERFACE, error.to_string()).is_none() {
                    tracing::error!(%error, wanted, "the node's own sockets");
                }
            }
        }
    }

    /// Lists the interfaces that carry programs by now.
    pub(crate) fn list_attached(&mut self) {
        // Nothing is said to be judged of which that is not known.
        self.attachments.attached = self.kernel.attached().unwrap_or_default().into_iter().collect();
    }
}
