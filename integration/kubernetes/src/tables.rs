//! Every object that is remembered, by kind and name. Pure.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use crate::row::{Key, Kind, Row};

/// Objects of one kind.
type Table = BTreeMap<Key, Row>;

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Changed {
    /// Nothing that matters.
    Nothing,
    /// What others have written into the status of a policy.
    Status,
    /// What is enforced.
    Facts,
}

/// The objects of every kind.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    rows: BTreeMap<Kind, Table>,
    /// Listings that are under way: they take the place of the table when they end.
    listings: BTreeMap<Kind, Table>,
    /// Kinds that the server has listed once, or does not have.
    ready: BTreeSet<Kind>,
}

impl Tables {
    /// Objects of an earlier run; no kind is ready yet.
    pub(crate) fn restore(saved: Vec<(Kind, Key, Row)>) -> Self {
        let mut tables = Self::default();
        for (kind, key, row) in saved {
            tables.rows.entry(kind).or_default().insert(key, row);
        }
        tables
    }

    /// Every object.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Kind, &Key, &Row)> {
        self.rows.iter().flat_map(|(kind, table)| table.iter().map(|(key, row)| (*kind, key, row)))
    }

    /// The objects of a kind, by namespace and name.
    pub(crate) fn of(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.get(&kind).into_iter().flatten()
    }

    /// Whether every kind has been listed.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.len() == Kind::ALL.len()
    }

    /// Whether any object is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.values().all(BTreeMap::is_empty)
    }

    /// A listing begins.
    pub(crate) fn begin(&mut self, kind: Kind) {
        self.listings.insert(kind, Table::new());
    }

    /// One object of the listing.
    pub(crate) fn list(&mut self, kind: Kind, key: Key, row: Option<Row>) {
        if let Some(row) = row {
            self.listings.entry(kind).or_default().insert(key, row);
        }
    }

    /// The listing is complete: what it does not hold is gone.
    pub(crate) fn end(&mut self, kind: Kind) -> Changed {
        let first = self.ready.insert(kind);
        let listed = self.listings.remove(&kind).unwrap_or_default();
        let former = self.rows.insert(kind, listed).unwrap_or_default();
        let listed = &self.rows[&kind];
        let same = former.len() == listed.len()
            && former.iter().all(|(key, old)| listed.get(key).is_some_and(|new| compare(old, new) != Changed::Facts));
        if same && !first { Changed::Status } else { Changed::Facts }
    }

    /// The server does not have this kind.
    pub(crate) fn absent(&mut self, kind: Kind) -> Changed {
        self.listings.remove(&kind);
        let first = self.ready.insert(kind);
        let had = self.rows.remove(&kind).is_some_and(|table| !table.is_empty());
        if first || had { Changed::Facts } else { Changed::Nothing }
    }

    /// One object is new or changed; `None` where it is as good as gone.
    pub(crate) fn put(&mut self, kind: Kind, key: Key, row: Option<Row>) -> Changed {
        let Some(row) = row else { return self.remove(kind, &key) };
        match self.rows.entry(kind).or_default().entry(key) {
            Entry::Vacant(place) => {
                place.insert(row);
                Changed::Facts
            }
            Entry::Occupied(mut place) => {
                let changed = compare(place.get(), &row);
                place.insert(row);
                changed
            }
        }
    }

    /// One object is gone.
    pub(crate) fn remove(&mut self, kind: Kind, key: &Key) -> Changed {
        let gone = self.rows.get_mut(&kind).and_then(|table| table.remove(key));
        if gone.is_some() { Changed::Facts } else { Changed::Nothing }
    }
}

fn compare(old: &Row, new: &Row) -> Changed {
    match (old, new) {
        _ if old == new => Changed::Nothing,
        (Row::Policy(old), Row::Policy(new)) if old.document == new.document && old.uid == new.uid => Changed::Status,
        _ => Changed::Facts,
    }
}
