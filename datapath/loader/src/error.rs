//! Why the datapath could not be loaded or attached, and what to do next.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use namegate_engine::GateError;

/// Why the datapath could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel is too old.
    #[error("the kernel {release} lacks {feature}; run a kernel of {}.{} or later", since.0, since.1)]
    Kernel {
        /// Version that runs.
        release: String,
        /// What is missing.
        feature: &'static str,
        /// The first version with it.
        since: (u32, u32),
    },
    /// The process may not do this.
    #[error("{action} was not permitted; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Privilege {
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Pins can only lie on a BPF file system.
    #[error("{} is not on a BPF file system; mount one there (`mount -t bpf bpf DIR`) or choose a folder below /sys/fs/bpf", path.display())]
    NotBpfFs {
        /// The folder for pins.
        path: PathBuf,
    },
    /// The BPF file system is this process's own: all that is pinned there goes with it.
    #[error(
        "{} is on a BPF file system that only this process sees: what is enforced would end with it. Mount one on the \
         node before the agent starts (`mount -t bpf bpf /sys/fs/bpf`); give a container that folder (`hostPath`), and a \
         unit no `PrivateMounts=`",
        path.display()
    )]
    PrivateBpfFs {
        /// The folder for pins.
        path: PathBuf,
    },
    /// Another agent writes the maps of this folder.
    #[error("another agent{holder} uses the pins {}; stop it, or set other `pins`, `state` and `socket`", pins.display())]
    InUse {
        /// The folder for pins.
        pins: PathBuf,
        /// Process and socket of the other one in brackets, where they are known.
        holder: String,
    },
    /// A folder or file could not be used.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A pinned map has other keys or values than this version writes. It stays in force.
    #[error(
        "the pinned map {} has another layout than this version of Namegate writes; what it enforces stays in force. \
         To go on, remove the folder {} (enforcement ends until the next start) and start again",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    Layout {
        /// The pinned map.
        path: PathBuf,
    },
    /// A pinned map holds more rows than the new limit. It stays in force.
    #[error("map `{map}` holds {rows} rows and shall have room for {rows_max}; raise `{setting}`")]
    Shrunk {
        /// Name of the map.
        map: &'static str,
        /// Rows in it.
        rows: usize,
        /// Its new size.
        rows_max: u32,
        /// The setting of its size.
        setting: &'static str,
    },
    /// The kernel refused the maps or the object.
    #[error("loading the eBPF object")]
    Object(#[source] Box<EbpfError>),
    /// The object lacks a program or map: it is of another version.
    #[error("the eBPF object lacks `{0}`; it belongs to another version of Namegate")]
    Missing(&'static str),
    /// The kernel refused a program.
    #[error("loading the eBPF program `{program}`")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// The kernel's error.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("attaching `{program}` to the interface with index {interface}")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Index of the interface.
        interface: u32,
        /// The kernel's error.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached to the node's sockets.
    #[error("attaching `{program}` to the root of the control groups")]
    AttachNode {
        /// Name of the program.
        program: &'static str,
        /// The kernel's error.
        #[source]
        source: Box<ProgramError>,
    },
    /// The root of the control groups is not to be seen.
    #[error(
        "the root of the control groups (cgroup2) is not mounted here; mount it (`mount -t cgroup2 none DIR`), and give a \
         container the node's cgroup namespace"
    )]
    NoControlGroups,
    /// A program could not be run over a packet.
    #[error("running `{program}` over a packet on the interface with index {interface}")]
    Trial {
        /// Name of the program.
        program: &'static str,
        /// Index of the interface.
        interface: u32,
        /// The kernel's error.
        #[source]
        source: Box<ProgramError>,
    },
    /// A link could not be read.
    #[error("reading the link of `{program}` on the interface with index {interface}")]
    Link {
        /// Name of the program.
        program: &'static str,
        /// Index of the interface.
        interface: u32,
        /// The kernel's error.
        #[source]
        source: Box<LinkError>,
    },
    /// There is no such interface.
    #[error("there is no interface with index {interface}")]
    NoInterface {
        /// The index asked for.
        interface: u32,
    },
    /// A map could not be written or read.
    #[error(transparent)]
    Gate(#[from] GateError),
}

impl LoadError {
    /// Whether the kernel says that the interface is not there, and not only that it could not be asked.
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::NoInterface { .. })
    }

    /// An error of the object, told apart where it is about privileges.
    pub(crate) fn of_object(error: EbpfError) -> Self {
        match permission(&error) {
            Some(source) => Self::Privilege { action: "loading eBPF", source },
            None => Self::Object(Box::new(error)),
        }
    }
}

/// The refusal at the bottom of an error, if it is one of privileges.
fn permission(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::PermissionDenied
        {
            return Some(
                io.raw_os_error().map_or(io::ErrorKind::PermissionDenied.into(), io::Error::from_raw_os_error),
            );
        }
        at = error.source();
    }
    None
}
