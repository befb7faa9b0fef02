//! Rules whose references are not looked up yet.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use crate::{
    diagnostic::{Diagnostic, Place},
    l7::L7,
    labels::LabelSelector,
    rule::{Binding, Direction, Effect, Origin, PeerSelector, PortSet, Ports, Subject, Tier},
};

/// A group of prefixes (CiliumCIDRGroup).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CidrGroup {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
}

/// What an object says.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Rules(Vec<Draft>),
    CidrGroup(CidrGroup),
}

impl Body {
    /// Whether a rule of the object limits DNS questions.
    pub(super) fn limits_questions(&self) -> bool {
        match self {
            Self::Rules(drafts) => drafts.iter().any(|draft| matches!(draft.l7.as_deref(), Some(L7::Dns(_)))),
            Self::CidrGroup(_) => false,
        }
    }
}

/// A [`crate::rule::Rule`] in the making.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) origin: Arc<Origin>,
    pub(super) subject: Subject,
    pub(super) direction: Direction,
    pub(super) tier: Tier,
    pub(super) effect: Effect,
    pub(super) default_deny: bool,
    pub(super) peers: DraftPeers,
    pub(super) ports: Ports,
    pub(super) l7: Option<Arc<L7>>,
    pub(super) binding: Option<Binding>,
    pub(super) named_only: Option<PortSet>,
    /// Where it stands in its file.
    pub(super) place: Place,
}

#[derive(Clone, Debug)]
pub(super) enum DraftPeers {
    Any,
    Of(Vec<DraftPeer>),
}

#[derive(Clone, Debug)]
pub(super) enum DraftPeer {
    Ready(PeerSelector),
    /// Prefixes of groups, less the holes.
    Group {
        reference: GroupReference,
        except: Vec<IpNet>,
        dangling: Box<Diagnostic>,
    },
    Service {
        reference: ServiceReference,
        dangling: Box<Diagnostic>,
    },
}

#[derive(Clone, Debug)]
pub(super) enum GroupReference {
    Name(String),
    /// Over the labels of groups, with source [`super::translate::CIDR_GROUP`].
    Labels(LabelSelector),
}

#[derive(Clone, Debug)]
pub(super) enum ServiceReference {
    Name {
        namespace: String,
        name: String,
    },
    /// Over the labels of services; no namespace is any.
    Labels {
        namespace: Option<String>,
        selector: LabelSelector,
    },
}
