//! What is wrong right now: one list that every part of the agent writes and that health, status and metrics read.
//!
//! A part that finds something wrong raises a problem and clears it once it has seen that it is right again. Each change is
//! one log line, so a part need not log by itself.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use namegate_api::{rfc3339, view};

/// Problems of one kind that are listed at most; the rest is counted in one more line.
const LISTED_MAX: usize = 64;

/// What a problem is about. The word is part of the API and of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ProblemKind {
    /// Programs are not attached where they should be.
    Attachment,
    /// A row of the kernel's maps was refused, or there is no room for it.
    MapRow,
    /// A bound of the settings is reached.
    Bound,
    /// A look-up of an interface, a namespace, a link or a file failed.
    Lookup,
    /// The state on disk can't be written or read.
    State,
    /// Another program changed something that enforcement needs.
    Interference,
    /// A source of policies or endpoints can't be read.
    Source,
}

impl ProblemKind {
    /// The word in JSON and metrics.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Attachment => "attachment",
            Self::MapRow => "map-row",
            Self::Bound => "bound",
            Self::Lookup => "lookup",
            Self::State => "state",
            Self::Interference => "interference",
            Self::Source => "source",
        }
    }
}

/// Kinds that keep a policy from being enforced everywhere on this node.
const OF_ENFORCEMENT: [ProblemKind; 3] = [ProblemKind::Attachment, ProblemKind::MapRow, ProblemKind::Lookup];

/// What is wrong with one subject.
#[derive(Clone, Debug)]
struct Problem {
    message: String,
    since: SystemTime,
}

type Key = (ProblemKind, String);

/// Everything that is wrong right now.
#[derive(Debug, Default)]
pub(crate) struct Problems(Mutex<BTreeMap<Key, Problem>>);

impl Problems {
    /// Notes that something is wrong with `subject` (an endpoint, a map, a file, a setting). The message says what happened
    /// and what to do next.
    pub(crate) fn raise(&self, kind: ProblemKind, subject: &str, message: impl Into<String>) {
        raise(&mut self.lock(), kind, subject, message.into());
    }

    /// Notes that `subject` is right again.
    pub(crate) fn clear(&self, kind: ProblemKind, subject: &str) {
        clear(&mut self.lock(), (kind, subject.to_owned()));
    }

    /// Replaces all problems of a kind whose subjects begin with `prefix`: what is not listed is right again.
    pub(crate) fn replace(&self, kind: ProblemKind, prefix: &str, now: impl IntoIterator<Item = (String, String)>) {
        let now: BTreeMap<String, String> = now.into_iter().collect();
        let mut held = self.lock();
        let gone: Vec<Key> = held
            .keys()
            .filter(|(of, subject)| *of == kind && subject.starts_with(prefix) && !now.contains_key(subject))
            .cloned()
            .collect();
        for key in gone {
            clear(&mut held, key);
        }
        for (subject, message) in now {
            raise(&mut held, kind, &subject, message);
        }
    }

    /// Whether something is wrong with `subject`.
    pub(crate) fn is_raised(&self, kind: ProblemKind, subject: &str) -> bool {
        self.lock().contains_key(&(kind, subject.to_owned()))
    }

    /// Whether something keeps policies from being enforced everywhere on this node.
    pub(crate) fn hinder_enforcement(&self) -> bool {
        self.lock().keys().any(|(kind, _)| OF_ENFORCEMENT.contains(kind))
    }

    /// The problems as the API shows them, by kind and subject. A kind with very many is cut short, and says so.
    pub(crate) fn list(&self) -> Vec<view::Problem> {
        let held = self.lock();
        let mut shown = Vec::new();
        let mut counts: BTreeMap<ProblemKind, usize> = BTreeMap::new();
        for ((kind, subject), problem) in &*held {
            let count = counts.entry(*kind).or_default();
            *count += 1;
            if *count <= LISTED_MAX {
                shown.push(view::Problem {
                    kind: kind.text().to_owned(),
                    subject: subject.clone(),
                    message: problem.message.clone(),
                    since: rfc3339(problem.since),
                });
            }
        }
        let more = counts.into_iter().filter(|(_, count)| *count > LISTED_MAX);
        shown.extend(more.map(|(kind, count)| view::Problem {
            kind: kind.text().to_owned(),
            subject: String::new(),
            message: format!("{} more of this kind", count - LISTED_MAX),
            since: rfc3339(SystemTime::now()),
        }));
        shown
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Problem>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn raise(held: &mut BTreeMap<Key, Problem>, kind: ProblemKind, subject: &str, message: String) {
    let problem = held.entry((kind, subject.to_owned()));
    let is_new = matches!(problem, std::collections::btree_map::Entry::Vacant(_));
    let problem = problem.or_insert_with(|| Problem { message: String::new(), since: SystemTime::now() });
    if problem.message != message {
        if is_new {
            tracing::error!(kind = kind.text(), subject, "{message}");
        } else {
            tracing::debug!(kind = kind.text(), subject, "{message}");
        }
        problem.message = message;
    }
}

fn clear(held: &mut BTreeMap<Key, Problem>, key: Key) {
    if let Some(problem) = held.remove(&key) {
        let (kind, subject) = key;
        tracing::info!(kind = kind.text(), subject, "no longer: {}", problem.message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(problems: &Problems) -> Vec<(String, String)> {
        problems.list().into_iter().map(|problem| (problem.subject, problem.message)).collect()
    }

    #[test]
    fn a_problem_stays_until_it_is_cleared() {
        let problems = Problems::default();
        problems.raise(ProblemKind::Attachment, "shop/web", "no programs");
        problems.raise(ProblemKind::Attachment, "shop/web", "still no programs");
        assert_eq!(shown(&problems), [("shop/web".to_owned(), "still no programs".to_owned())]);
        problems.clear(ProblemKind::MapRow, "shop/web");
        assert_eq!(shown(&problems).len(), 1, "another kind is another problem");
        problems.clear(ProblemKind::Attachment, "shop/web");
        assert_eq!(shown(&problems), []);
    }

    #[test]
    fn what_keeps_policies_from_being_enforced_is_known() {
        for (kind, hinders) in [
            (ProblemKind::Attachment, true),
            (ProblemKind::MapRow, true),
            (ProblemKind::Lookup, true),
            (ProblemKind::Bound, false),
            (ProblemKind::State, false),
            (ProblemKind::Interference, false),
            (ProblemKind::Source, false),
        ] {
            let problems = Problems::default();
            problems.raise(kind, "x", "y");
            assert_eq!(problems.hinder_enforcement(), hinders, "{kind:?}");
            problems.clear(kind, "x");
            assert!(!problems.hinder_enforcement());
        }
    }

    #[test]
    fn replacing_leaves_other_kinds_and_prefixes_alone() {
        let problems = Problems::default();
        problems.raise(ProblemKind::MapRow, "POLICY", "full");
        problems.raise(ProblemKind::Lookup, "interface a", "no descriptor");
        problems.raise(ProblemKind::Lookup, "file b", "no permission");
        problems.replace(ProblemKind::Lookup, "interface ", [("interface c".to_owned(), "late".to_owned())]);
        let subjects: Vec<String> = shown(&problems).into_iter().map(|(subject, _)| subject).collect();
        assert_eq!(subjects, ["POLICY", "file b", "interface c"]);
    }

    #[test]
    fn very_many_problems_of_a_kind_are_counted() {
        let problems = Problems::default();
        for at in 0..LISTED_MAX + 3 {
            problems.raise(ProblemKind::Attachment, &format!("pod-{at:03}"), "no programs");
        }
        let list = shown(&problems);
        assert_eq!(list.len(), LISTED_MAX + 1);
        assert_eq!(list[LISTED_MAX].1, "3 more of this kind");
    }
}
