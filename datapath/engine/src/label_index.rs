//! Label selectors, found by one value that they ask for.

use std::collections::HashMap;

use namegate_config::labels::{LabelSelector, Labels, Operator, POD_NAMESPACE};

/// Items behind label selectors.
#[derive(Debug)]
pub(crate) struct LabelIndex<T> {
    /// Key, then value, of a requirement that must hold.
    by_value: HashMap<String, HashMap<String, Vec<(LabelSelector, T)>>>,
    /// Selectors without such a requirement.
    rest: Vec<(LabelSelector, T)>,
}

impl<T> Default for LabelIndex<T> {
    fn default() -> Self {
        Self { by_value: HashMap::new(), rest: Vec::new() }
    }
}

impl<T: Copy + PartialEq> LabelIndex<T> {
    /// Adds an item.
    pub(crate) fn insert(&mut self, selector: &LabelSelector, item: T) {
        let Some((key, values)) = telling(selector) else {
            self.rest.push((selector.clone(), item));
            return;
        };
        let by_value = self.by_value.entry(key.to_owned()).or_default();
        for value in values {
            by_value.entry(value.to_owned()).or_default().push((selector.clone(), item));
        }
    }

    /// Removes an item that was added behind the selector.
    pub(crate) fn remove(&mut self, selector: &LabelSelector, item: T) {
        let Some((key, values)) = telling(selector) else {
            take(&mut self.rest, item);
            return;
        };
        let Some(by_value) = self.by_value.get_mut(key) else { return };
        for value in values {
            if let Some(items) = by_value.get_mut(value) {
                take(items, item);
                if items.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.by_value.remove(key);
        }
    }

    /// Calls `found` for each selector that matches; at most once unless labels repeat a key under two sources.
    pub(crate) fn each_match(&self, labels: &Labels, mut found: impl FnMut(T)) {
        let by_label = labels.iter().filter_map(|label| self.by_value.get(&*label.key)?.get(&*label.value));
        for (selector, item) in by_label.flatten().chain(&self.rest) {
            if selector.matches(labels) {
                found(*item);
            }
        }
    }
}

/// The key of the requirement that tells most, and the values that it asks for; `None` where no value is asked for.
pub(crate) fn telling(selector: &LabelSelector) -> Option<(&str, impl Iterator<Item = &str> + Clone)> {
    let asked = selector.requirements().filter_map(|requirement| match &requirement.operator {
        Operator::In(values) => Some((requirement.key.as_str(), values)),
        _ => None,
    });
    // Namespaces hold many peers: another label tells more.
    let (key, values) = asked.min_by_key(|(key, values)| (*key == POD_NAMESPACE, values.len()))?;
    Some((key, values.iter().map(String::as_str)))
}

fn take<T: Copy + PartialEq>(items: &mut Vec<(LabelSelector, T)>, item: T) {
    if let Some(at) = items.iter().position(|(_, known)| *known == item) {
        items.swap_remove(at);
    }
}

#[cfg(test)]
mod tests {
    use namegate_config::labels::Requirement;

    use super::*;

    #[test]
    fn the_label_index_finds_what_matches() {
        let selectors = [
            LabelSelector::default(),
            LabelSelector::new([Requirement::equals("k8s:io.kubernetes.pod.namespace", "empire")]),
            LabelSelector::new([
                Requirement::equals("class", "xwing"),
                Requirement::equals("k8s:io.kubernetes.pod.namespace", "empire"),
            ]),
            LabelSelector::new([Requirement::new("class", Operator::DoesNotExist)]),
            LabelSelector::new([Requirement::new("class", Operator::In(["a".into(), "xwing".into()].into()))]),
        ];
        let mut index = LabelIndex::default();
        for (at, selector) in selectors.iter().enumerate() {
            index.insert(selector, at);
        }
        let found = |index: &LabelIndex<usize>, labels: &Labels| {
            let mut found = Vec::new();
            index.each_match(labels, |at| found.push(at));
            found.sort_unstable();
            found
        };
        let all = [
            Labels::pod("empire", [("class", "xwing")], [], None),
            Labels::pod("rebels", [("class", "a")], [], None),
            Labels::pod("empire", [], [], None),
            Labels::reserved("world"),
            Labels::pod("rebels", [("class", "xwing"), (POD_NAMESPACE, "empire")], [], None),
        ];
        for labels in &all {
            let want: Vec<usize> = (0..selectors.len()).filter(|at| selectors[*at].matches(labels)).collect();
            assert_eq!(found(&index, labels), want, "{labels}");
        }
        for (at, selector) in selectors.iter().enumerate() {
            index.remove(selector, at);
            for labels in &all {
                let want: Vec<usize> = (at + 1..selectors.len()).filter(|at| selectors[*at].matches(labels)).collect();
                assert_eq!(found(&index, labels), want, "{labels} without {at}");
            }
        }
        assert!(index.by_value.is_empty() && index.rest.is_empty());
    }
}
