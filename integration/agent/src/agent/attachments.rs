//! Whether programs are where they should be: looked at again and again, put back where another tool took them away, and
//! said in health for each endpoint until it is so.
//!
//! Looking is done on the thread that reads files, and only putting back on the thread that owns the kernel's maps.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use namegate_abi::NODE_INTERFACE;
use namegate_config::endpoints::{Attachment, Endpoint};
use namegate_enforcer::{Enforcement, EnforcerHandle, GONE, NotDone, Repair};
use namegate_loader::{Directions, Fault, Inspector, links};

use super::{
    absent::interfaces_like,
    enforcer::Chain,
    interfaces::{self, Found},
    policy_state::SharedPolicyState,
    problems::{ProblemKind, Problems},
};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// The same after something was put back.
const SOON: Duration = Duration::from_millis(200);
/// A look takes this part of the time at most.
const SHARE: u32 = 50;
/// How long an endpoint may wait for its interface before it is a problem.
const GRACE: Duration = Duration::from_secs(10);
/// Begin the subjects of what this file raises.
const ENDPOINT: &str = "endpoint ";
const PROGRAMS: &str = "programs of ";
const INTERFACE: &str = "interface ";
const MAPS: &str = "pinned maps";

/// Where programs should be, and whether they are.
pub(crate) struct Attachments {
    inspector: Inspector,
    enforcer: EnforcerHandle,
    directions: Directions,
    problems: Arc<Problems>,
    policy_state: Arc<SharedPolicyState>,
    next: Instant,
    /// Since when each endpoint waits.
    waiting: HashMap<String, Instant>,
}

/// What a look found.
struct Seen {
    /// What is wrong, by interface.
    faults: BTreeMap<u32, String>,
    /// Where looking failed, and why.
    unseen: BTreeMap<u32, String>,
    /// Maps that are not pinned.
    unpinned: Result<Vec<&'static str>, String>,
}

impl Attachments {
    /// Nothing looked at yet.
    pub(crate) fn new(
        inspector: Inspector,
        (enforcer, directions): (EnforcerHandle, Directions),
        problems: Arc<Problems>,
        policy_state: Arc<SharedPolicyState>,
    ) -> Self {
        Self { inspector, enforcer, directions, problems, policy_state, next: Instant::now(), waiting: HashMap::new() }
    }

    /// When the next look is due.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Looks, where it is time.
    pub(crate) fn inspect_if_due(&mut self, found: &Found) {
        if self.next <= Instant::now() {
            self.inspect(found);
        }
    }

    /// Looks at every interface, puts back what is gone, and says what is wrong.
    pub(crate) fn inspect(&mut self, found: &Found) {
        let start = Instant::now();
        let Ok(wanted) = self.wanted() else {
            self.next = start + PERIOD; // The agent ends.
            return;
        };
        let seen = self.look(&wanted);
        let is_whole = seen.faults.is_empty() && seen.unpinned.as_ref().is_ok_and(Vec::is_empty);
        self.say(&wanted, &seen, found);
        if !is_whole {
            self.put_back(&seen);
        }
        let pause = if is_whole { PERIOD } else { SOON };
        self.next = Instant::now() + pause.max(start.elapsed() * SHARE);
    }

    /// Tries once more what failed, and asks what should be attached.
    fn wanted(&self) -> Result<Arc<Enforcement>, NotDone> {
        let reader = self.enforcer.reader();
        if !reader.enforcement().is_attached() {
            self.enforcer.attach_again().wait()?;
        }
        Ok(reader.enforcement())
    }

    fn look(&self, wanted: &Enforcement) -> Seen {
        let unpinned = self.inspector.maps().map_err(|error| Chain(&error).to_string());
        let mut seen = Seen { unpinned, faults: BTreeMap::new(), unseen: BTreeMap::new() };
        let node = wanted.selects_node.then_some(NODE_INTERFACE);
        for interface in wanted.wanted.iter().copied().chain(node) {
            if wanted.failed.contains_key(&interface) {
                continue;
            }
            let faults = match interface {
                NODE_INTERFACE => self.inspector.node(self.directions),
                interface => self.inspector.interface(interface, self.directions),
            };
            match faults {
                Ok(faults) if faults.is_empty() || is_gone(interface) => {}
                Ok(faults) => drop(seen.faults.insert(interface, text(&faults))),
                Err(error) => drop(seen.unseen.insert(interface, Chain(&error).to_string())),
            }
        }
        seen
    }

    fn put_back(&self, seen: &Seen) {
        let interfaces: Vec<u32> = seen.faults.keys().copied().filter(|index| *index != NODE_INTERFACE).collect();
        let node = seen.faults.contains_key(&NODE_INTERFACE);
        let maps = seen.unpinned.as_ref().is_ok_and(|gone| !gone.is_empty());
        // The agent may be about to end.
        let _ = self.enforcer.repair(Repair { interfaces, node, maps }).wait();
    }

    /// Raises what is wrong and clears what is right again.
    fn say(&mut self, wanted: &Enforcement, seen: &Seen, found: &Found) {
        let names: HashMap<u32, &String> =
            found.interfaces.iter().flat_map(|(key, indices)| indices.iter().map(move |index| (*index, key))).collect();
        let subject = |interface: &u32| programs_of(names.get(interface).map(|key| key.as_str()), *interface);
        let faults = seen.faults.iter().map(|(interface, faults)| {
            (subject(interface), format!("{faults} by another tool; it is put back: look which tool does that"))
        });
        self.problems.replace(ProblemKind::Attachment, PROGRAMS, faults);
        let unseen = seen.unseen.iter().map(|(interface, error)| (subject(interface), error.clone()));
        self.problems.replace(ProblemKind::Lookup, PROGRAMS, unseen);
        let gone = seen.unpinned.as_ref().ok().filter(|gone| !gone.is_empty());
        let gone = gone.map(|gone| (MAPS.to_owned(), format!("{} were removed and are pinned again", gone.join(", "))));
        self.problems.replace(ProblemKind::Interference, MAPS, gone);
        let unseen = seen.unpinned.as_ref().err().map(|error| (MAPS.to_owned(), error.clone()));
        self.problems.replace(ProblemKind::Lookup, MAPS, unseen);
        let unenforced = self.unenforced(wanted, found);
        self.problems.replace(ProblemKind::Attachment, ENDPOINT, unenforced);
        self.problems.replace(ProblemKind::Attachment, INTERFACE, unowned(wanted));
    }

    /// Endpoints that are not enforced as they should be, and why.
    fn unenforced(&mut self, wanted: &Enforcement, found: &Found) -> Vec<(String, String)> {
        let now = Instant::now();
        let mut waiting = HashMap::new();
        let mut unenforced = Vec::new();
        if let Some(error) = wanted.failed.get(&NODE_INTERFACE) {
            unenforced.push((format!("{ENDPOINT}host"), format!("the node's own sockets are not enforced: {error}")));
        }
        for endpoint in &self.policy_state.read().ours {
            let key = interfaces::key(endpoint);
            let problem = match found.interfaces.get(&key) {
                Some(indices) if !went_meanwhile(wanted, indices) => {
                    unattached(wanted, indices).or_else(|| found.absent.get(&key).cloned())
                }
                // A pod without an address has not begun yet.
                None if found.failed.contains_key(&key) || endpoint.addresses.is_empty() => None,
                // The endpoint begins or ends: what says so may be on its way.
                found => {
                    let since = self.waiting.get(&key).copied().unwrap_or(now);
                    waiting.insert(key.clone(), since);
                    let is_late = now.duration_since(since) > GRACE;
                    let gone = found.and_then(|indices| unattached(wanted, indices));
                    is_late.then(|| gone.unwrap_or_else(|| missing(endpoint)))
                }
            };
            unenforced.extend(problem.map(|problem| (format!("{ENDPOINT}{key}"), problem)));
        }
        self.waiting = waiting;
        unenforced
    }
}

/// The subject of a problem with the programs of an interface, and of its endpoint where one has it.
pub(crate) fn programs_of(endpoint: Option<&str>, interface: u32) -> String {
    match endpoint {
        _ if interface == NODE_INTERFACE => format!("{PROGRAMS}the node"),
        Some(key) => format!("{PROGRAMS}{key} (interface {interface})"),
        None => format!("{PROGRAMS}interface {interface}"),
    }
}

/// Interfaces that stay closed since nothing says whose they are.
fn unowned(wanted: &Enforcement) -> Vec<(String, String)> {
    let there = wanted.unowned.iter().filter(|interface| !is_gone(**interface));
    let problem = |interface: &u32| {
        let message = "it carries programs of an earlier run, and neither the state nor the endpoints say whose it is: it is \
                       closed; give it to an endpoint, or delete it";
        (format!("{INTERFACE}{interface}"), message.to_owned())
    };
    there.map(problem).collect()
}

/// Whether one of these interfaces went after it was found.
fn went_meanwhile(wanted: &Enforcement, indices: &[u32]) -> bool {
    indices.iter().any(|index| wanted.failed.get(index).is_some_and(|why| why == GONE))
}

/// What is wrong with one of these interfaces.
fn unattached(wanted: &Enforcement, indices: &[u32]) -> Option<String> {
    let of = |index: &u32| {
        if let Some(error) = wanted.failed.get(index) {
            return Some(format!("programs could not be attached to its interface {index}: {error}"));
        }
        wanted.rowless.contains(index).then(|| {
            format!(
                "its interface {index} is closed: its row or its policy found no room; raise `limits.endpoints` or the \
                 limit that `namegate status` shows as full"
            )
        })
    };
    indices.iter().find_map(of)
}

/// An endpoint without an interface.
fn missing(endpoint: &Endpoint) -> String {
    match &endpoint.attachment {
        Some(Attachment::Interface(name)) => format!(
            "it is not enforced: the interface {name} is not there; start the endpoint, or correct `interface`: {}",
            interfaces_like(name)
        ),
        Some(Attachment::Netns(path)) => format!(
            "it is not enforced: no interface of this machine leads to the network namespace {}; start the endpoint, or \
             correct `netns`",
            path.display()
        ),
        None => {
            "it is not enforced: no interface of this machine leads to a network namespace with its address".to_owned()
        }
    }
}

/// Whether the kernel says that there is no such interface: then nothing was taken away from it.
fn is_gone(interface: u32) -> bool {
    interface != NODE_INTERFACE && matches!(links::by_index(interface), Ok(None))
}

fn text(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
