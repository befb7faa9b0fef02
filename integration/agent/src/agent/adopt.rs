//! Finds the node's side of the interfaces of pods that were there before anybody registered them.
//!
//! Every network namespace of the machine is looked into; who has the address of a pod is the pod.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use namegate_loader::netns;
use nix::net::if_::if_indextoname;

/// Namespaces are looked into so often at most.
const PAUSE: Duration = Duration::from_secs(1);
/// Folders where network namespaces have names.
const NAMED: &str = "/run/netns";
/// Processes and the namespaces they are in.
const PROCESSES: &str = "/proc";
/// The namespace of the caller.
const OWN: &str = "/proc/self/ns/net";

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Adopter {
    by_address: HashMap<IpAddr, u32>,
    looked: Option<Instant>,
    /// When to look again for what was not found.
    again: Option<Instant>,
}

impl Adopter {
    /// A new reading begins.
    pub(crate) fn begin(&mut self) {
        self.again = None;
    }

    /// The name of the interface on this side of the link of whoever has one of the addresses.
    pub(crate) fn interface(&mut self, addresses: &[IpAddr]) -> Option<String> {
        if let Some(found) = self.known(addresses) {
            return Some(found);
        }
        let now = Instant::now();
        let next = self.looked.map(|looked| looked + PAUSE).filter(|next| *next > now);
        if next.is_none() {
            self.looked = Some(now);
            self.by_address = look();
        }
        let found = self.known(addresses);
        if found.is_none() {
            self.again = Some(next.unwrap_or(now + PAUSE));
        }
        found
    }

    /// When a reading could find more.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.again
    }

    fn known(&self, addresses: &[IpAddr]) -> Option<String> {
        let indices = addresses.iter().filter_map(|address| self.by_address.get(address));
        let mut names = indices.filter_map(|index| if_indextoname(*index).ok()?.into_string().ok());
        names.next()
    }
}

/// Who has which address, in every other network namespace of the machine.
fn look() -> HashMap<IpAddr, u32> {
    let mut seen: HashSet<u64> = inode(&PathBuf::from(OWN)).into_iter().collect();
    let mut found = HashMap::new();
    for path in namespaces() {
        let Some(inode) = inode(&path) else { continue };
        if !seen.insert(inode) {
            continue;
        }
        match netns::addresses(&path) {
            Ok(addresses) => found.extend(addresses),
            // Processes and namespaces go while they are looked at.
            Err(error) => tracing::debug!(%error, netns = %path.display(), "looking for the interfaces of pods"),
        }
    }
    found
}

fn namespaces() -> impl Iterator<Item = PathBuf> {
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let is_process = |name: &str| name.bytes().all(|octet| octet.is_ascii_digit());
    let processes = entries(PROCESSES).filter(move |entry| entry.file_name().to_str().is_some_and(is_process));
    processes.map(|entry| entry.path().join("ns/net")).chain(entries(NAMED).map(|entry| entry.path()))
}

fn inode(path: &PathBuf) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}
