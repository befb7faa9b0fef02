//! What label keys and values look like (Kubernetes: `metav1.LabelSelector`, `validation.IsQualifiedName`).

/// Longest name part of a key, and longest value, in octets.
const PART_MAX: usize = 63;
/// Longest prefix of a key, in octets: a DNS name.
const PREFIX_MAX: usize = 253;

/// What is wrong with a label's value, if anything.
pub(crate) fn value_problem(value: &str) -> Option<String> {
    if value.is_empty() { None } else { part_problem("a label value", value) }
}

/// What is wrong with a label's key (without a source), if anything.
pub(crate) fn key_problem(key: &str) -> Option<String> {
    // The labels that a pod has from its namespace carry the whole key of another label.
    let key = key.strip_prefix(crate::labels::NAMESPACE_LABELS).unwrap_or(key);
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            if prefix.is_empty() || prefix.len() > PREFIX_MAX || !prefix.split('.').all(is_dns_label) {
                return Some(format!("`{prefix}` before the `/` is not a DNS name of at most {PREFIX_MAX} characters"));
            }
            name
        }
        None => key,
    };
    part_problem("a label key", name)
}

fn part_problem(what: &str, part: &str) -> Option<String> {
    if part.is_empty() || part.len() > PART_MAX {
        return Some(format!("{what} has 1 to {PART_MAX} characters, this one has {}", part.len()));
    }
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(c) = part.chars().find(|&c| !is_inner(c)) {
        return Some(format!("`{c}` cannot stand in {what} (letters, digits, `-`, `_` and `.` can)"));
    }
    let ends = [part.chars().next(), part.chars().next_back()];
    if ends.into_iter().flatten().all(|c| c.is_ascii_alphanumeric()) {
        None
    } else {
        Some(format!("{what} starts and ends with a letter or digit"))
    }
}

fn is_dns_label(label: &str) -> bool {
    let is_inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    !label.is_empty()
        && label.len() <= PART_MAX
        && label.bytes().all(is_inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// What is wrong with a name of an object or namespace, if anything (RFC 1123 subdomain).
pub(crate) fn name_problem(name: &str) -> Option<String> {
    let fits = name.len() <= PREFIX_MAX && name.split('.').all(is_dns_label);
    (!fits).then(|| format!("`{name}` is not a name: lower case letters, digits, `-` and `.`, at most {PREFIX_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_values_and_names_follow_kubernetes() {
        let long = "a".repeat(64);
        for (key, want) in [
            ("app", true),
            ("app.kubernetes.io/name", true),
            ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", true),
            ("a_b.c-D9", true),
            ("", false),
            ("/x", false),
            ("Up.io/x", false),
            ("a/b/c", false),
            ("-a", false),
            ("a b", false),
            (&long, false),
        ] {
            assert_eq!(key_problem(key).is_none(), want, "{key}");
        }
        for (value, want) in [("", true), ("v1.2", true), ("a b", false), ("a-", false), (&long, false)] {
            assert_eq!(value_problem(value).is_none(), want, "{value}");
        }
        for (name, want) in [("empire", true), ("a.b-c", true), ("Empire", false), ("", false), ("a..b", false)] {
            assert_eq!(name_problem(name).is_none(), want, "{name}");
        }
    }
}
