//! Many patterns, found by the names that they match: a tree of labels from the right.
//!
//! A look-up costs the labels of the name, whatever the number of patterns: at each node one label is looked up as it
//! is, and among the label patterns with stars by the fixed text before the first star and behind the last one.

use std::collections::{BTreeMap, HashMap};

use super::{Fqdn, NamePattern, Shape, label_matches};

/// Items behind name patterns.
#[derive(Clone, Debug)]
pub struct NameIndex<T> {
    exact: HashMap<String, Vec<T>>,
    everything: Vec<T>,
    root: Node<T>,
}

/// What stands left of a row of labels.
#[derive(Clone, Debug)]
struct Node<T> {
    /// Patterns that end here: the name has no further label.
    whole: Vec<T>,
    /// Patterns that go on with one or more labels, whatever they are.
    open: Vec<T>,
    fixed: HashMap<String, Node<T>>,
    starred: Starred<T>,
}

/// Nodes behind label patterns with stars: by the length and text of the fixed beginning, then of the fixed end.
#[derive(Clone, Debug)]
struct Starred<T>(BTreeMap<usize, HashMap<String, BTreeMap<usize, Ends<T>>>>);

/// Nodes by the fixed end of their label pattern, then by all of it.
type Ends<T> = HashMap<String, BTreeMap<String, Node<T>>>;

impl<T> Default for NameIndex<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), everything: Vec::new(), root: Node::default() }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { whole: Vec::new(), open: Vec::new(), fixed: HashMap::new(), starred: Starred(BTreeMap::new()) }
    }
}

impl<T: Copy + PartialEq> NameIndex<T> {
    /// Adds an item behind a pattern.
    pub fn insert(&mut self, pattern: &NamePattern, item: T) {
        match &pattern.shape {
            Shape::Everything => self.everything.push(item),
            Shape::Exact => self.exact.entry(pattern.as_str().to_owned()).or_default().push(item),
            Shape::Labels(labels) => self.root.insert(labels, |node| node.whole.push(item)),
            Shape::AnyLabelsThen(labels) => self.root.insert(labels, |node| node.open.push(item)),
        }
    }

    /// Removes an item that was added behind the pattern.
    pub fn remove(&mut self, pattern: &NamePattern, item: T) {
        let remove = |items: &mut Vec<T>| items.retain(|known| *known != item);
        match &pattern.shape {
            Shape::Everything => remove(&mut self.everything),
            Shape::Exact => {
                if let Some(items) = self.exact.get_mut(pattern.as_str()) {
                    remove(items);
                    if items.is_empty() {
                        self.exact.remove(pattern.as_str());
                    }
                }
            }
            Shape::Labels(labels) => self.root.remove(labels, |node| remove(&mut node.whole)),
            Shape::AnyLabelsThen(labels) => self.root.remove(labels, |node| remove(&mut node.open)),
        }
    }

    /// Calls `found` for each item whose pattern matches the name.
    pub fn each_match(&self, name: &Fqdn, mut found: impl FnMut(T)) {
        self.everything.iter().for_each(|item| found(*item));
        self.exact.get(name.as_str()).into_iter().flatten().for_each(|item| found(*item));
        let labels: Vec<&str> = name.labels().collect();
        self.root.each_match(&labels, &mut found);
    }
}

impl<T: Copy> Node<T> {
    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.open.is_empty() && self.fixed.is_empty() && self.starred.0.is_empty()
    }

    fn insert(&mut self, labels: &[String], add: impl FnOnce(&mut Self)) {
        let Some((label, rest)) = labels.split_last() else { return add(self) };
        let next = match Fixed::of(label) {
            Some(fixed) => self.starred.entry(label, &fixed),
            None => self.fixed.entry(label.clone()).or_default(),
        };
        next.insert(rest, add);
    }

    fn remove(&mut self, labels: &[String], remove: impl FnOnce(&mut Self)) {
        let Some((label, rest)) = labels.split_last() else { return remove(self) };
        if let Some(fixed) = Fixed::of(label) {
            return self.starred.remove(label, &fixed, |node| node.remove(rest, remove));
        }
        if let Some(next) = self.fixed.get_mut(label) {
            next.remove(rest, remove);
            if next.is_empty() {
                self.fixed.remove(label);
            }
        }
    }

    fn each_match(&self, labels: &[&str], found: &mut impl FnMut(T)) {
        let Some((label, rest)) = labels.split_last() else {
            return self.whole.iter().for_each(|item| found(*item));
        };
        self.open.iter().for_each(|item| found(*item));
        if let Some(next) = self.fixed.get(*label) {
            next.each_match(rest, found);
        }
        self.starred.each_match(label, &mut |node| node.each_match(rest, found));
    }
}

/// What a label pattern with stars begins and ends with.
struct Fixed<'a> {
    start: &'a str,
    end: &'a str,
}

impl<'a> Fixed<'a> {
    /// `None` where the label has no star.
    fn of(label: &'a str) -> Option<Self> {
        let (start, _) = label.split_once('*')?;
        let (_, end) = label.rsplit_once('*')?;
        Some(Self { start, end })
    }
}

impl<T: Copy> Starred<T> {
    fn entry(&mut self, label: &str, fixed: &Fixed<'_>) -> &mut Node<T> {
        let starts = self.0.entry(fixed.start.len()).or_default();
        let by_length = starts.entry(fixed.start.to_owned()).or_default();
        let ends = by_length.entry(fixed.end.len()).or_default();
        ends.entry(fixed.end.to_owned()).or_default().entry(label.to_owned()).or_default()
    }

    fn remove(&mut self, label: &str, fixed: &Fixed<'_>, remove: impl FnOnce(&mut Node<T>)) {
        let Some(starts) = self.0.get_mut(&fixed.start.len()) else { return };
        let Some(by_length) = starts.get_mut(fixed.start) else { return };
        let Some(ends) = by_length.get_mut(&fixed.end.len()) else { return };
        let Some(labels) = ends.get_mut(fixed.end) else { return };
        let Some(node) = labels.get_mut(label) else { return };
        remove(node);
        if node.is_empty() {
            labels.remove(label);
        }
        if labels.is_empty() {
            ends.remove(fixed.end);
        }
        if ends.is_empty() {
            by_length.remove(&fixed.end.len());
        }
        if by_length.is_empty() {
            starts.remove(fixed.start);
        }
        if starts.is_empty() {
            self.0.remove(&fixed.start.len());
        }
    }

    fn each_match(&self, label: &str, found: &mut impl FnMut(&Node<T>)) {
        for (length, starts) in self.0.range(..=label.len()) {
            let Some(by_length) = starts.get(&label[..*length]) else { continue };
            for (end_length, ends) in by_length.range(..=label.len() - length) {
                let labels = ends.get(&label[label.len() - end_length..]);
                let matching = labels.into_iter().flatten().filter(|(pattern, _)| label_matches(pattern, label));
                matching.for_each(|(_, node)| found(node));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Label patterns and labels of few letters, so that they often meet.
    fn label_pattern() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[ab*]{1,4}").unwrap()
    }

    fn patterns() -> impl Strategy<Value = Vec<NamePattern>> {
        let pattern = proptest::collection::vec(label_pattern(), 1..4)
            .prop_map(|labels| NamePattern::pattern(&labels.join(".")).unwrap());
        proptest::collection::vec(pattern, 0..40)
    }

    fn names() -> impl Strategy<Value = Vec<Fqdn>> {
        let label = proptest::string::string_regex("[ab]{1,4}").unwrap();
        let name = proptest::collection::vec(label, 0..5)
            .prop_map(|labels| if labels.is_empty() { ".".parse() } else { labels.join(".").parse() });
        proptest::collection::vec(name.prop_map(Result::unwrap), 1..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The slow matcher says which patterns match; some are removed again.
        #[test]
        fn the_index_finds_what_the_matcher_matches(patterns in patterns(), names in names(), removed in any::<u64>()) {
            let mut index = NameIndex::default();
            for (at, pattern) in patterns.iter().enumerate() {
                index.insert(pattern, at);
            }
            let is_removed = |at: usize| removed >> (at % 64) & 1 == 1;
            for (at, pattern) in patterns.iter().enumerate().filter(|(at, _)| is_removed(*at)) {
                index.remove(pattern, at);
            }
            for name in &names {
                let mut got = Vec::new();
                index.each_match(name, |at| got.push(at));
                got.sort_unstable();
                let want: Vec<usize> =
                    (0..patterns.len()).filter(|at| !is_removed(*at) && patterns[*at].matches(name)).collect();
                prop_assert_eq!(got, want, "{}", name);
            }
            for (at, pattern) in patterns.iter().enumerate() {
                index.remove(pattern, at);
            }
            prop_assert!(index.root.is_empty() && index.exact.is_empty() && index.everything.is_empty());
        }

        /// Every name that a pattern matches ends with the labels that the pattern ends with.
        #[test]
        fn matching_names_end_with_the_fixed_labels(patterns in patterns(), names in names()) {
            for pattern in &patterns {
                let fixed = pattern.fixed_labels();
                for name in names.iter().filter(|name| pattern.matches(name)) {
                    let end = format!(".{}", name.as_str());
                    prop_assert!(fixed.is_empty() || end.ends_with(&format!(".{fixed}")), "{} {}", pattern, name);
                }
            }
        }
    }
}
