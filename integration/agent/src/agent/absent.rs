//! Interfaces that the endpoints file names and that are not there: after a while that is a mistake in the name.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use namegate_config::{endpoints::Attachment, nearest_first};
use nix::net::if_::if_nameindex;

use super::{
    interfaces::{self, Interfaces},
    problems::{ProblemKind, Problems},
    sources::Reading,
};

/// How long an interface may take to come before that is said.
const GRACE: Duration = Duration::from_secs(5);
/// Names of interfaces in a message.
const NAMED_MAX: usize = 8;
/// Begins the subjects.
const SUBJECT: &str = "interface ";

/// Since when which interfaces are waited for, each with its endpoint.
#[derive(Debug, Default)]
pub(crate) struct Absent(BTreeMap<String, (String, Instant)>);

impl Absent {
    /// Compares what a reading names with what was found. Pods of Kubernetes wait for theirs without a word: they come and
    /// go.
    pub(crate) fn look(&mut self, reading: &Reading, found: &Interfaces, problems: &Problems) {
        let now = Instant::now();
        let mut absent = BTreeMap::new();
        for endpoint in &reading.endpoints.endpoints {
            let key = interfaces::key(endpoint);
            let is_pods = reading.facts.local.contains(&key) || reading.facts.unknown.contains(&key);
            if is_pods || found.contains_key(&key) {
                continue;
            }
            let name = match &endpoint.attachment {
                None => continue,
                Some(Attachment::Interface(name)) => format!("{SUBJECT}{name}"),
                Some(Attachment::Netns(path)) => format!("{SUBJECT}of the namespace {}", path.display()),
            };
            let since = self.0.get(&name).map_or(now, |(_, since)| *since);
            absent.insert(name, (key, since));
        }
        self.0 = absent;
        let late = self.0.iter().filter(|(_, (_, since))| since.elapsed() >= GRACE);
        let late: Vec<_> = late.map(|(subject, (key, _))| (subject.clone(), key.clone())).collect();
        let there = if late.is_empty() { Vec::new() } else { names() };
        problems.replace(
            ProblemKind::Lookup,
            SUBJECT,
            late.into_iter().map(|(subject, key)| {
                let message = message(&subject, &key, &there);
                (subject, message)
            }),
        );
    }

    /// When the next one is late.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        let left = self.0.values().map(|(_, since)| GRACE.saturating_sub(since.elapsed()));
        left.filter(|left| !left.is_zero()).min()
    }
}

fn message(subject: &str, key: &str, there: &[String]) -> String {
    let name = subject.strip_prefix(SUBJECT).unwrap_or(subject);
    let near = nearest_first(name, there.iter().map(String::as_str));
    let named: Vec<&str> = near.iter().take(NAMED_MAX).copied().collect();
    let more = match near.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "it is not there, and endpoint {key} is not enforced; correct the endpoints file, or make the interface. There are {}{more}",
        named.join(", ")
    )
}

/// Names of the interfaces of this machine.
fn names() -> Vec<String> {
    let Ok(all) = if_nameindex() else { return Vec::new() };
    all.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect()
}
