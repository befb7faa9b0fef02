//! System calls of BPF that are about links, pins and the order of programs (`bpf(2)`, `linux/bpf.h`).
//!
//! They take an interface by its index: its name may be another one's a moment later.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_DETACH: libc::c_int = 34;

/// `BPF_F_BEFORE` without a program to be before: ahead of all.
const FIRST: u32 = 1 << 3;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u32 = 3;
/// Programs on one side of an interface that are asked for; the kernel takes no more (`BPF_MPROG_MAX`).
const PROGRAMS_MAX: u32 = 64;

/// `BPF_LINK_TYPE_CGROUP` and `BPF_LINK_TYPE_TCX`.
pub(crate) const CGROUP_LINK: u32 = 3;
pub(crate) const TCX_LINK: u32 = 11;

/// Where a program hangs on an interface (`BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    Ingress = 46,
    Egress = 47,
}

/// A link as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) program: u32,
    /// Index of the interface; of a control group the lower half of its number. 0 where the link hangs on nothing.
    pub(crate) target: u32,
}

/// One call with the attributes as numbers of four bytes; zeroes follow.
fn call(command: libc::c_int, attributes: &mut [u32]) -> io::Result<libc::c_int> {
    let octets = size_of_val(attributes);
    // SAFETY: The kernel reads and writes at most `octets` bytes at the pointer. Pointers among the attributes lead to
    // memory that their caller keeps for the time of the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), octets) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(libc::c_int::try_from(result).unwrap_or_default()) }
}

/// The same for a call that gives a descriptor.
fn open(command: libc::c_int, attributes: &mut [u32]) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: The kernel has just made the descriptor for this call's caller.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Both halves of a pointer, as they lie in memory.
fn halves<T>(pointer: *const T) -> [u32; 2] {
    let octets = (pointer.addr() as u64).to_ne_bytes();
    let half = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
    [half(0), half(4)]
}

fn descriptor(of: BorrowedFd<'_>) -> u32 {
    of.as_raw_fd().cast_unsigned()
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned.
pub(crate) fn pinned(at: &Path) -> io::Result<OwnedFd> {
    let name = path(at)?;
    let [low, high] = halves(name.as_ptr());
    open(OBJ_GET, &mut [low, high, 0, 0])
}

/// Pins a link, map or program.
pub(crate) fn pin(object: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let name = path(at)?;
    let [low, high] = halves(name.as_ptr());
    call(OBJ_PIN, &mut [low, high, descriptor(object), 0]).map(drop)
}

/// The first numbers of what the kernel knows of an object.
fn info<const NUMBERS: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; NUMBERS]> {
    let mut numbers = [0; NUMBERS];
    let [low, high] = halves(numbers.as_mut_ptr());
    let octets = u32::try_from(size_of_val(&numbers)).unwrap_or_default();
    call(OBJ_GET_INFO_BY_FD, &mut [descriptor(object), octets, low, high])?;
    Ok(numbers)
}

/// What the kernel knows of a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let [kind, _, program, _, target, _] = info(link)?;
    Ok(LinkInfo { kind, program, target })
}

/// Number of a map or program.
pub(crate) fn object_number(object: BorrowedFd<'_>) -> io::Result<u32> {
    let [_, number] = info(object)?;
    Ok(number)
}

/// Numbers of the programs on one side of an interface, in the order in which they run.
pub(crate) fn chain(interface: u32, hook: Hook) -> io::Result<Vec<u32>> {
    let mut programs = [0_u32; PROGRAMS_MAX as usize];
    let [low, high] = halves(programs.as_mut_ptr());
    let mut attributes = [interface, hook as u32, 0, 0, low, high, PROGRAMS_MAX, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    match call(PROG_QUERY, &mut attributes) {
        Ok(_) => {}
        // No program was ever there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let count = usize::try_from(attributes[6].min(PROGRAMS_MAX)).unwrap_or_default();
    Ok(programs[..count].to_vec())
}

/// Attaches a program to one side of an interface, ahead of others.
pub(crate) fn attach_first(program: BorrowedFd<'_>, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
    open(LINK_CREATE, &mut [descriptor(program), interface, hook as u32, FIRST, 0, 0, 0, 0])
}

/// Takes the program of a link off. When this returns no later packet meets it.
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_DETACH, &mut [descriptor(link)]).map(drop)
}

/// Loads a program of an interface that drops every packet.
pub(crate) fn load_closed() -> io::Result<OwnedFd> {
    /// `r0 = TCX_DROP; exit`.
    const INSTRUCTIONS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let [low, high] = halves(INSTRUCTIONS.as_ptr());
    let license = c"Apache-2.0";
    let [license_low, license_high] = halves(license.as_ptr());
    let mut attributes = [0; 20];
    attributes[..6].copy_from_slice(&[CLASSIFIER, 2, low, high, license_low, license_high]);
    attributes[17] = Hook::Ingress as u32;
    open(PROG_LOAD, &mut attributes)
}
