//! A change that is applied in pieces: what is still to be done, in which order.
//!
//! Each stage leaves every verdict but those it is about as it was, and between any two pieces answers may be learned:
//!
//! 1. The selectors of old and new rules are in force together: identities become finer, no verdict changes.
//! 2. Peers move: each address in one write.
//! 3. Rows of new policies are written while nobody uses them, then each endpoint moves to its policy in one write.
//! 4. Policies and selectors that nobody uses go: identities become coarser, no verdict changes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use namegate_abi::{Address, AddressKey, CidrKey};

use crate::{
    EndpointId, Key, MapOp, ledger::PolicyContent, names::NameId, rules::RuleChanges, selectors::TermId, sound::Leaks,
};

/// Key of the row of a prefix.
pub(crate) type NetKey = (u32, CidrKey);

/// What a change still has to do.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) stage: Stage,
    /// Selectors that came, whose peers are not looked for yet.
    pub(crate) entered: BTreeSet<TermId>,
    /// Selectors that nothing uses any more.
    pub(crate) leaving: BTreeSet<TermId>,
    /// Names of ports that rules or peers may have now, or no longer.
    pub(crate) port_names: BTreeSet<String>,
    /// Addresses of the cluster that selectors match otherwise.
    pub(crate) places: BTreeSet<Address>,
    /// Prefixes that selectors match otherwise.
    pub(crate) nets: BTreeSet<NetKey>,
    /// Learned names that selectors match otherwise.
    pub(crate) names: VecDeque<NameId>,
    /// Learned addresses whose row may say something else.
    pub(crate) rows: BTreeSet<AddressKey>,
    /// Addresses of the cluster that belong to others now.
    pub(crate) moved: BTreeSet<Address>,
    /// Whether one of them has another row.
    pub(crate) is_moved: bool,
    /// Whether a prefix has another row.
    pub(crate) has_put_prefix: bool,
    /// Service addresses of the trusted resolvers, where these are handed over anew.
    pub(crate) resolvers: Option<Vec<IpAddr>>,
    /// Policies that have no rows yet.
    pub(crate) install: BTreeSet<u32>,
    /// The one that is getting them, and the identities that it still has to judge.
    pub(crate) installing: Option<(u32, VecDeque<u32>)>,
    /// Learned addresses, and the policy that their endpoint moves to.
    pub(crate) admit: Option<VecDeque<(AddressKey, u32)>>,
    /// Endpoints that move to another policy or interface.
    pub(crate) point: BTreeSet<EndpointId>,
    /// Interfaces that endpoints have left.
    pub(crate) vacated: Vec<u32>,
    /// How they move.
    pub(crate) pointing: Option<Pointing>,
    /// Endpoints that are gone.
    pub(crate) gone: BTreeSet<EndpointId>,
    /// Policies that no endpoint should be judged by any more.
    pub(crate) retired: BTreeMap<u32, PolicyContent>,
    /// Rows of such policies.
    pub(crate) deletes: VecDeque<Key>,
    pub(crate) rules: RuleChanges,
    /// The stages run a second time: what found no room may find it now.
    pub(crate) is_retry: bool,
}

/// How endpoints move to their policies.
#[derive(Debug, Default)]
pub(crate) struct Pointing {
    pub(crate) leaks: Leaks,
    pub(crate) is_moved: bool,
    /// Flows may have been judged by rows that are no more.
    pub(crate) is_doubtful: bool,
    pub(crate) revision: Option<u32>,
    pub(crate) moved: Option<u32>,
}

/// What is done next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing.
    #[default]
    Done,
    /// Addresses, prefixes and names get finer identities.
    Refine,
    /// Addresses of the cluster go to others.
    Move,
    /// New policies get their rows.
    Install,
    /// Learned addresses get their rows in them.
    Admit,
    /// Endpoints move to their policies.
    Point,
    /// Endpoints that are gone lose their names.
    Leave,
    /// Old policies go.
    Drop,
    /// Addresses, prefixes and names get coarser identities.
    Coarsen,
    /// The last thing.
    End,
}

/// How much one piece may do: rows that are looked at, and writes.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
    /// Writes that were there before.
    ops: usize,
}

impl Budget {
    pub(crate) const fn new(units: usize, ops: &[MapOp]) -> Self {
        Self { left: units, ops: ops.len() }
    }

    /// Counts one unit, and the writes since the last time; false where the piece is full.
    pub(crate) fn spend(&mut self, ops: &[MapOp]) -> bool {
        let written = ops.len().saturating_sub(self.ops);
        self.ops = ops.len();
        self.left = self.left.saturating_sub(written.saturating_add(1));
        self.left > 0
    }
}

impl Work {
    /// Whether nothing is to be done.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }
}
