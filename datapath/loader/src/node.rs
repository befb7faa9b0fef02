//! The node's own sockets: two programs at the root of the control groups, pinned like those of an interface.
//!
//! They are attached only where a policy selects the node. See the kernel's `Documentation/bpf/prog_cgroup_sockopt.rst`
//! for how programs of one group live side by side, and `cgroup-v2.rst` for the root.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError};
use namegate_abi::{Direction, NODE_INTERFACE};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::datapath::{Datapath, Directions};
use crate::programs::Programs;
use crate::{LoadError, bpffs};

/// A program and the packets of sockets that it sees.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) direction: Direction,
    hook: CgroupSkbAttachType,
}

pub(crate) const PROGRAMS: [Program; 2] = [
    Program { name: "from_node", direction: Direction::Egress, hook: CgroupSkbAttachType::Egress },
    Program { name: "to_node", direction: Direction::Ingress, hook: CgroupSkbAttachType::Ingress },
];

/// The first kernel whose programs of control groups can tell network namespaces apart.
const SINCE: (u32, u32) = (6, 15);
/// What these programs need of it.
const FEATURE: &str = "bpf_get_netns_cookie for sockets, which policies for the node need";

/// The programs are loaded.
pub(crate) struct Ready {
    /// Of the control groups.
    root: PathBuf,
    /// As [`PROGRAMS`].
    programs: [CgroupSkb; 2],
    /// Numbers of the programs in the kernel.
    numbers: [u32; 2],
}

impl Ready {
    pub(crate) fn numbers(&self) -> [u32; 2] {
        self.numbers
    }
}

/// Cookie of the network namespace of the calling thread.
pub(crate) fn namespace() -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut octets = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: The kernel writes at most `octets` octets to `cookie`; the socket is open.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut octets,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Loads the programs, where the kernel and the mounted file systems let them work.
pub(crate) fn load(kept: &mut Programs<'_>) -> Result<Ready, LoadError> {
    bpffs::check_kernel(FEATURE, SINCE)?;
    let root = root()?;
    let [from, to] = PROGRAMS.map(|program| kept.for_sockets(program.name, program.hook));
    let programs = [from?, to?];
    let number = |at: usize| {
        let number = programs[at].info().map(|info| info.id());
        number.map_err(|source| LoadError::Program { program: PROGRAMS[at].name, source: Box::new(source) })
    };
    let numbers = [number(0)?, number(1)?];
    Ok(Ready { root, programs, numbers })
}

/// The folder of the root of the control groups.
fn root() -> Result<PathBuf, LoadError> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(MOUNTS).map_err(|source| LoadError::File {
        action: "reading",
        path: MOUNTS.into(),
        source,
    })?;
    mounted(&mounts).into_iter().find(|folder| is_root(folder)).ok_or(LoadError::NoControlGroups)
}

/// Where the second version of control groups is mounted (`proc_pid_mountinfo(5)`).
fn mounted(mounts: &str) -> Vec<PathBuf> {
    let folder = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let folder = mount.split(' ').nth(4)?;
        // The kernel writes spaces in octal.
        kind.starts_with("cgroup2 ").then(|| folder.replace("\\040", " ").into())
    };
    mounts.lines().filter_map(folder).collect()
}

/// Every group but the root has a type. A container may see a part of the tree as if it were the whole.
fn is_root(folder: &Path) -> bool {
    folder.join("cgroup.procs").exists() && !folder.join("cgroup.type").exists()
}

impl Datapath {
    /// Why policies for the node cannot be enforced here; `None` where they can.
    pub fn node_refusal(&self) -> Option<&LoadError> {
        self.node.as_ref().err()
    }

    /// Attaches the programs of `directions` to the node's sockets, and takes off those of the other direction. What is
    /// judged is the row of [`NODE_INTERFACE`].
    pub fn guard_node(&mut self, directions: Directions) -> Result<(), LoadError> {
        let faults = self.inspector().node(directions)?;
        for program in PROGRAMS {
            if !directions.include(program.direction) {
                self.links.remove(NODE_INTERFACE, program.name)?;
            } else if self.node.is_err() || faults.iter().any(|fault| fault.program() == program.name) {
                self.attach_to_sockets(&program)?;
            }
        }
        Ok(())
    }

    /// Takes the programs off the node's sockets; none is no error.
    pub fn release_node(&mut self) -> Result<(), LoadError> {
        PROGRAMS.iter().try_for_each(|program| self.links.remove(NODE_INTERFACE, program.name))
    }

    /// Puts the loaded program into the place of one that an earlier run attached. False where it is of no known name.
    pub(crate) fn adopt_node(&mut self, name: &str) -> Result<bool, LoadError> {
        let Some(program) = PROGRAMS.into_iter().find(|program| program.name == name) else { return Ok(false) };
        self.attach_to_sockets(&program)?;
        Ok(true)
    }

    /// One of [`PROGRAMS`].
    pub(crate) fn node_program(&mut self, name: &'static str) -> Result<&mut CgroupSkb, LoadError> {
        let at = PROGRAMS.iter().position(|program| program.name == name);
        match (&mut self.node, at) {
            (Ok(Ready { programs, .. }), Some(at)) => Ok(&mut programs[at]),
            _ => Err(LoadError::Missing(name)),
        }
    }

    /// Attaches beside an earlier link, whose pin then gives way: for a moment both programs judge by the same maps.
    fn attach_to_sockets(&mut self, wanted: &Program) -> Result<(), LoadError> {
        let refused = |source| LoadError::AttachNode { program: wanted.name, source: Box::new(source) };
        let root = self.node.as_ref().map_err(|_| LoadError::Missing(wanted.name))?.root.clone();
        let group = File::open(&root).map_err(|source| LoadError::File { action: "opening", path: root, source })?;
        let program = self.node_program(wanted.name)?;
        // Links of a group stand beside each other always; the kernel takes no flag that says so.
        let id = program.attach(group, wanted.hook, CgroupAttachMode::Single).map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        let link = FdLink::try_from(link).map_err(|_| refused(ProgramError::NotAttached))?;
        bpffs::make_folder(self.links.folder())?;
        let path = self.links.path(NODE_INTERFACE, wanted.name);
        let aside = self.links.path(NODE_INTERFACE, &format!("{}-new", wanted.name));
        // One that an agent left behind when it was killed here.
        let _ = fs::remove_file(&aside);
        let pinned = link.pin(&aside).map_err(io::Error::other).and_then(|_| fs::rename(&aside, &path));
        pinned.map_err(|source| LoadError::File { action: "pinning the link", path, source })
    }
}

/// The name of the program that judges a direction.
pub(crate) fn program_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => PROGRAMS[0].name,
        Direction::Ingress => PROGRAMS[1].name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_the_second_version_are_found() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
                      cut";
        assert_eq!(mounted(mounts), [PathBuf::from("/sys/fs/cgroup/uni fied")]);
    }

    #[test]
    fn namespaces_have_cookies() {
        assert_ne!(namespace().unwrap(), 0);
        assert_eq!(namespace().unwrap(), namespace().unwrap());
    }
}
