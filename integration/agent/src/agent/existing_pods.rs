//! Finds the node's side of the interfaces of pods that were there before anybody registered them.
//!
//! Every network namespace of the machine is looked into. A namespace is a pod's where a process in it belongs to the pod's
//! control group, whose name holds the pod's uid: nothing in the pod chooses that. Where no process shows it, the pod is the
//! namespace that has its address.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use namegate_loader::{
    links::{self, Links},
    netns::{self, Inside},
};
use nix::errno::Errno;

/// Namespaces are looked into so often at most.
const PAUSE: Duration = Duration::from_secs(1);
/// Folders where network namespaces have names.
const NAMED: &str = "/run/netns";
/// Processes and the namespaces they are in.
const PROCESSES: &str = "/proc";
/// The namespace of the caller.
const OWN: &str = "/proc/self/ns/net";

/// A network namespace of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Namespace {
    inside: Inside,
    /// Uids of the pods whose processes are in it.
    uids: BTreeSet<String>,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Adopter {
    namespaces: Vec<Namespace>,
    /// Uids of the pods of this node.
    uids: BTreeSet<String>,
    looked: Option<Instant>,
    /// When to look again for what was not found.
    again: Option<Instant>,
    /// Why the last look failed; what an earlier one found holds until one succeeds.
    failure: Option<String>,
}

impl Adopter {
    /// A new reading begins; `uids` are those of the pods of this node.
    pub(crate) fn begin(&mut self, uids: BTreeSet<&str>) {
        self.again = None;
        self.uids = uids.into_iter().map(str::to_owned).collect();
    }

    /// Interfaces on this side that lead to a pod, in the order of their index; an error where that cannot be said.
    pub(crate) fn interfaces(&mut self, uids: &[String], addresses: &[IpAddr]) -> Result<Vec<u32>, String> {
        let found = living(of_pod(&self.namespaces, uids, addresses));
        if !found.is_empty() && self.failure.is_none() {
            return Ok(found);
        }
        let now = Instant::now();
        let next = self.looked.map(|looked| looked + PAUSE).filter(|next| *next > now);
        if next.is_none() {
            self.looked = Some(now);
            match look(&self.uids) {
                Ok(namespaces) => {
                    self.namespaces = namespaces;
                    self.failure = None;
                }
                Err(error) => self.failure = Some(error.to_string()),
            }
        }
        let found = of_pod(&self.namespaces, uids, addresses);
        if found.is_empty() || self.failure.is_some() {
            self.again = Some(next.unwrap_or(now + PAUSE));
        }
        match &self.failure {
            Some(error) => Err(format!("looking for its interface: {error}")),
            None => Ok(found),
        }
    }

    /// The name of the first interface, as it is shown.
    pub(crate) fn shown(interfaces: &Result<Vec<u32>, String>) -> Option<String> {
        let first = interfaces.as_ref().ok()?.first()?;
        links::by_index(*first).ok()?.map(|link| link.name)
    }

    /// When a reading could find more.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Why the last look failed.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

/// Those that the kernel does not call gone.
fn living(mut interfaces: Vec<u32>) -> Vec<u32> {
    interfaces.retain(|index| !matches!(links::by_index(*index), Ok(None)));
    interfaces
}

/// Interfaces that lead to a pod's namespaces.
fn of_pod(namespaces: &[Namespace], uids: &[String], addresses: &[IpAddr]) -> Vec<u32> {
    let is_its = |namespace: &&Namespace| uids.iter().any(|uid| namespace.uids.contains(uid));
    let mut found: Vec<u32> = namespaces.iter().filter(is_its).flat_map(|one| one.inside.interfaces.clone()).collect();
    if found.is_empty() {
        // What is inside chooses its addresses: a namespace that is another pod's is never this one's.
        let has_address = |namespace: &&Namespace| {
            namespace.uids.is_empty() && namespace.inside.addresses.iter().any(|address| addresses.contains(address))
        };
        found = namespaces.iter().filter(has_address).flat_map(|one| one.inside.interfaces.clone()).collect();
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Every other network namespace of the machine. What cannot be read is an error; what went meanwhile is not.
fn look(uids: &BTreeSet<String>) -> io::Result<Vec<Namespace>> {
    let own = fs::metadata(OWN)?.ino();
    let mut by_inode: HashMap<u64, (PathBuf, BTreeSet<String>)> = HashMap::new();
    for path in processes()? {
        let netns = path.join("ns/net");
        let Some(inode) = there(fs::metadata(&netns))?.map(|metadata| metadata.ino()) else { continue };
        if inode != own {
            let groups = there(fs::read_to_string(path.join("cgroup")))?.unwrap_or_default();
            let (_, found) = by_inode.entry(inode).or_insert_with(|| (netns, BTreeSet::new()));
            found.extend(uids_in(&groups, uids));
        }
    }
    for path in entries(NAMED)? {
        let Some(inode) = there(fs::metadata(&path))?.map(|metadata| metadata.ino()) else { continue };
        if inode != own {
            // A name lasts longer than a process.
            by_inode.entry(inode).or_default().0 = path;
        }
    }
    let links = Links::read()?;
    let ordered: BTreeMap<u64, (PathBuf, BTreeSet<String>)> = by_inode.into_iter().collect();
    let mut namespaces = Vec::with_capacity(ordered.len());
    for (path, uids) in ordered.into_values() {
        match there(netns::inside(&links, &path)) {
            Ok(inside) => namespaces.extend(inside.flatten().map(|inside| Namespace { inside, uids })),
            Err(error) if is_file(&path) => {
                tracing::debug!(%error, path = %path.display(), "no network namespace");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(namespaces)
}

/// A file below [`NAMED`] that is a leftover of a namespace, and none itself.
fn is_file(path: &Path) -> bool {
    use nix::sys::statfs::{NSFS_MAGIC, statfs};
    path.starts_with(NAMED) && statfs(path).is_ok_and(|found| found.filesystem_type() != NSFS_MAGIC)
}

/// `None` where what was asked for is gone, or is one that a process without rights may not see, as those of the kernel.
fn there<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    const GONE: [Errno; 2] = [Errno::ENOENT, Errno::ESRCH];
    match asked {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.raw_os_error().is_some_and(|number| GONE.contains(&Errno::from_raw(number))) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error),
    }
}

fn processes() -> io::Result<Vec<PathBuf>> {
    let is_process = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|it| it.is_ascii_digit()))
    };
    Ok(entries(PROCESSES)?.into_iter().filter(is_process).collect())
}

fn entries(folder: &str) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = there(fs::read_dir(folder))? else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Uids of pods in the names of control groups: `…/pod<uid>/…`, with underlines where systemd makes them.
fn uids_in<'a>(groups: &str, uids: &'a BTreeSet<String>) -> impl Iterator<Item = String> + 'a {
    let groups: String = groups.replace('_', "-");
    uids.iter().filter(move |uid| !uid.is_empty() && groups.contains(&format!("pod{uid}"))).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2f0c1f5e-7a54-4a0a-9a0b-1a2b3c4d5e6f";
    const OTHER: &str = "b7a3c1de-0000-4a0a-9a0b-1a2b3c4d5e6f";

    fn namespace(uids: &[&str], addresses: &[&str], interfaces: &[u32]) -> Namespace {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let inside = Inside { addresses, interfaces: interfaces.to_vec() };
        Namespace { inside, uids: uids.iter().map(|uid| (*uid).to_owned()).collect() }
    }

    #[test]
    fn a_pod_is_where_its_processes_are_whatever_addresses_say() {
        let address: [IpAddr; 1] = ["10.244.1.10".parse().unwrap()];
        let of = |namespaces: &[Namespace]| of_pod(namespaces, &[UID.to_owned()], &address);
        let own = namespace(&[UID], &[], &[7, 9]);
        let thief = namespace(&[OTHER], &["10.244.1.10"], &[8]);
        let unnamed = namespace(&[], &["10.244.1.10"], &[6]);
        assert_eq!(of(&[own.clone(), thief.clone(), unnamed.clone()]), [7, 9]);
        assert_eq!(of(std::slice::from_ref(&thief)), [0; 0], "it is another pod's");
        assert_eq!(of(&[thief, unnamed]), [6]);
        assert_eq!(of(&[namespace(&[UID, OTHER], &[], &[5])]), [5]);
    }

    #[test]
    fn uids_stand_in_the_names_of_control_groups() {
        let uids = BTreeSet::from([UID.to_owned(), OTHER.to_owned(), String::new()]);
        let of = |groups: &str| uids_in(groups, &uids).collect::<Vec<_>>();
        let systemd = format!("kubepods-besteffort-pod{}.slice", UID.replace('-', "_"));
        for groups in [
            format!("0::/kubepods/besteffort/pod{UID}/0123\n"),
            format!("0::/../../{systemd}/cri-containerd-0123.scope\n"),
            format!("12:cpu:/x\n0::/kubepods.slice/{systemd}\n"),
        ] {
            assert_eq!(of(&groups), [UID], "{groups}");
        }
        assert_eq!(of("0::/system.slice/kubelet.service\n"), [""; 0]);
    }
}
