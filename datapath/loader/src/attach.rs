//! Programs on interfaces: attached ahead of all others, kept there, and taken off.

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::{ProgramError, SchedClassifier};

use crate::bpf::{self, TCX_LINK};
use crate::datapath::{Datapath, Directions, PROGRAMS, Program};
use crate::{LoadError, links, routes};

impl Datapath {
    /// Attaches the programs of `directions` to the host-side interface of an endpoint, ahead of others there, and
    /// takes off those of the other direction. Programs that an earlier run attached are replaced without a gap, and those
    /// that are attached already stay.
    ///
    /// An interface that the kernel does not know gives [`LoadError::NoInterface`].
    pub fn attach(&mut self, ifindex: u32, directions: Directions) -> Result<(), LoadError> {
        for program in PROGRAMS {
            if !directions.include(program.direction) {
                self.links.detach(ifindex, program.name)?;
            } else if self.replace(ifindex, &program)? {
                self.come_first(ifindex, &program)?;
            } else {
                self.attach_new(ifindex, &program)?;
            }
        }
        Ok(())
    }

    /// Takes the programs off an interface; one without programs, or that is gone, is no error.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), LoadError> {
        PROGRAMS.iter().try_for_each(|program| self.links.detach(ifindex, program.name))
    }

    /// Sees to it that the pinned link is the loaded program's; says whether there is a link with this living interface.
    pub(crate) fn replace(&mut self, interface: u32, wanted: &Program) -> Result<bool, LoadError> {
        let Some(link) = self.links.open(interface, wanted.name)? else { return Ok(false) };
        let info = bpf::link_info(link.as_fd()).map_err(|source| attach_error(wanted, interface, source.into()))?;
        if info.kind != TCX_LINK || info.target != interface {
            return Ok(false);
        }
        if info.program != self.number(wanted) {
            let refused = |source| attach_error(wanted, interface, source);
            let link_error = |source| LoadError::Link { program: wanted.name, interface, source: Box::new(source) };
            let pinned = PinnedLink::from_pin(self.links.path(interface, wanted.name)).map_err(link_error)?;
            let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(link_error)?;
            let program = self.program(wanted.name)?;
            // The pin keeps the link.
            program.attach_to_link(link).and_then(|id| program.take_link(id)).map_err(refused)?;
        }
        Ok(true)
    }

    /// Number of a loaded program in the kernel.
    pub(crate) fn number(&self, of: &Program) -> u32 {
        let at = PROGRAMS.iter().position(|program| program.name == of.name);
        at.map_or(0, |at| self.numbers[at])
    }

    fn attach_new(&mut self, interface: u32, wanted: &Program) -> Result<(), LoadError> {
        // A link that hangs on nothing any more.
        self.links.remove(interface, wanted.name)?;
        if let Ok(Some(link)) = links::by_index(interface) {
            routes::accept_returned(&link.name);
        }
        let link = self.attach_first(interface, wanted)?;
        self.links.pin(&link, interface, wanted.name)
    }

    fn attach_first(&mut self, interface: u32, wanted: &Program) -> Result<OwnedFd, LoadError> {
        let program = self.program(wanted.name)?;
        let program = program.fd().map_err(|source| attach_error(wanted, interface, source))?;
        bpf::attach_first(program.as_fd(), interface, wanted.hook).map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV) => LoadError::NoInterface { interface },
            _ => attach_error(wanted, interface, source.into()),
        })
    }

    /// Moves the program ahead of others that were put before it. Meanwhile nothing passes: the kernel takes a program once
    /// for each side of an interface, and so one that drops everything stands in.
    fn come_first(&mut self, interface: u32, wanted: &Program) -> Result<(), LoadError> {
        let refused = |source: std::io::Error| attach_error(wanted, interface, source.into());
        let chain = bpf::chain(interface, wanted.hook).map_err(refused)?;
        if chain.first() == Some(&self.number(wanted)) {
            return Ok(());
        }
        let closed = bpf::load_closed().map_err(refused)?;
        let closed = bpf::attach_first(closed.as_fd(), interface, wanted.hook).map_err(refused)?;
        let moved = self.links.detach(interface, wanted.name).and_then(|()| self.attach_new(interface, wanted));
        if let Err(error) = bpf::detach(closed.as_fd()) {
            tracing::error!(%error, interface, "a program that drops everything goes a moment later");
        }
        moved
    }
}

/// Number of a program in the kernel.
pub(crate) fn number(program: &SchedClassifier, name: &'static str) -> Result<u32, LoadError> {
    let number = program.info().map(|info| info.id());
    number.map_err(|source| LoadError::Program { program: name, source: Box::new(source) })
}

fn attach_error(program: &Program, interface: u32, source: ProgramError) -> LoadError {
    LoadError::Attach { program: program.name, interface, source: Box::new(source) }
}
