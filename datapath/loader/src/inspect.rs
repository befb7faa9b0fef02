//! Looks whether programs and maps are still where they were put: other tools can take them away without a word.

use std::fmt;
use std::os::fd::AsFd;
use std::path::PathBuf;

use namegate_abi::NODE_INTERFACE;

use crate::bpf::{self, CGROUP_LINK, TCX_LINK};
use crate::datapath::{Datapath, Directions, PROGRAMS};
use crate::pins::{LinkPins, is_pinned};
use crate::{LoadError, node};

/// What is wrong with one program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its link is not pinned.
    Unpinned(&'static str),
    /// Its link hangs on nothing, or on something else.
    Detached(&'static str),
    /// Its link carries another program.
    OtherProgram(&'static str),
    /// Another program runs before it.
    NotFirst(&'static str),
}

impl Fault {
    /// Name of the program.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Unpinned(program)
            | Self::Detached(program)
            | Self::OtherProgram(program)
            | Self::NotFirst(program) => program,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpinned(program) => write!(f, "the link of `{program}` was removed"),
            Self::Detached(program) => write!(f, "`{program}` was detached"),
            Self::OtherProgram(program) => write!(f, "the link of `{program}` carries another program"),
            Self::NotFirst(program) => write!(f, "another program was put before `{program}`"),
        }
    }
}

/// Looks at links, programs and pins from any thread.
#[derive(Clone, Debug)]
pub struct Inspector {
    pins: PathBuf,
    links: LinkPins,
    /// Numbers of [`PROGRAMS`].
    programs: [u32; 2],
    /// Numbers of the programs of the node's sockets, where they are loaded.
    node: Option<[u32; 2]>,
    maps: Vec<(&'static str, u32)>,
}

impl Inspector {
    pub(crate) fn new(datapath: &Datapath) -> Self {
        let pins = datapath.links.folder().parent().map(PathBuf::from).unwrap_or_default();
        Self {
            pins,
            links: datapath.links.clone(),
            programs: datapath.numbers,
            node: datapath.node.as_ref().ok().map(node::Ready::numbers),
            maps: datapath.maps.numbers(),
        }
    }

    /// What is wrong with the programs of an interface; nothing where all is well.
    pub fn interface(&self, interface: u32, directions: Directions) -> Result<Vec<Fault>, LoadError> {
        let mut faults = Vec::new();
        for (program, number) in PROGRAMS.iter().zip(self.programs) {
            if !directions.include(program.direction) {
                continue;
            }
            let fault = self.link(interface, program.name, (TCX_LINK, number))?;
            let is_whole = fault.is_none();
            faults.extend(fault);
            if is_whole {
                let path = self.links.path(interface, program.name);
                let chain = bpf::chain(interface, program.hook).map_err(|source| LoadError::File {
                    action: "asking which programs run before that of",
                    path,
                    source,
                })?;
                let is_first = chain.first() == Some(&number);
                faults.extend((!is_first).then_some(Fault::NotFirst(program.name)));
            }
        }
        Ok(faults)
    }

    /// What is wrong with the programs of the node's own sockets, where they should be attached.
    pub fn node(&self, directions: Directions) -> Result<Vec<Fault>, LoadError> {
        let mut faults = Vec::new();
        for (program, number) in node::PROGRAMS.iter().zip(self.node.into_iter().flatten()) {
            if directions.include(program.direction) {
                faults.extend(self.link(NODE_INTERFACE, program.name, (CGROUP_LINK, number))?);
            }
        }
        Ok(faults)
    }

    /// Maps that are not pinned any more.
    pub fn maps(&self) -> Result<Vec<&'static str>, LoadError> {
        let mut gone = Vec::new();
        for (name, number) in &self.maps {
            if !is_pinned(&self.pins.join(name), *number)? {
                gone.push(*name);
            }
        }
        Ok(gone)
    }

    fn link(
        &self,
        interface: u32,
        program: &'static str,
        (kind, number): (u32, u32),
    ) -> Result<Option<Fault>, LoadError> {
        let Some(link) = self.links.open(interface, program)? else { return Ok(Some(Fault::Unpinned(program))) };
        let path = self.links.path(interface, program);
        let info = bpf::link_info(link.as_fd());
        let info = info.map_err(|source| LoadError::File { action: "reading the pinned link", path, source })?;
        let is_target = if kind == TCX_LINK { info.target == interface } else { info.target != 0 };
        Ok(match info.program == number {
            _ if info.kind != kind || !is_target => Some(Fault::Detached(program)),
            false => Some(Fault::OtherProgram(program)),
            true => None,
        })
    }
}
