//! What a policy object should say of itself. Pure: from what is there and what this node knows to what is to be written.
//!
//! Each node owns one entry, `status.namegate.nodes.NODE`, so no two write the same field. The conditions speak of all
//! nodes: they are written by one node, the one whose hash with the object is least among those with an entry, so that no
//! leader is needed; if two think they are it, they write the same. Its agent may be away: others may write in its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use serde_json::{Value, json};

/// Longest message of a condition in characters.
const MESSAGE_MAX: usize = 4_096;

/// What this node made of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) generation: i64,
    /// Mistakes; none where the object is accepted.
    pub(crate) mistakes: Vec<String>,
    /// Whether the kernel holds it.
    pub(crate) enforced: bool,
}

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    /// This node's entry.
    pub(crate) entry: Option<Value>,
    /// `Accepted` and `Enforced`, without times.
    pub(crate) conditions: Option<Vec<Condition>>,
    /// The same where it is another node's turn to write them.
    pub(crate) others: Option<Vec<Condition>>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) holds: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What is to be written by `node` into an object with this status. `nodes` are those of the cluster. `keeps` is false
/// where the definition of the kind drops the entries of the nodes.
pub(crate) fn wanted(
    own: &Own,
    status: &Value,
    uid: &str,
    node: &str,
    nodes: &BTreeSet<String>,
    keeps: bool,
) -> Wanted {
    let entry = json!({"generation": own.generation, "enforced": own.enforced});
    let mut entries: BTreeMap<String, Value> = status["namegate"]["nodes"]
        .as_object()
        .map(|map| map.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect())
        .unwrap_or_default();
    entries.retain(|name, _| nodes.contains(name) || name == node);
    let is_new = entries.insert(node.to_owned(), entry.clone()).as_ref() != Some(&entry);
    let writes_all = !keeps || entries.keys().min_by_key(|name| weight(uid, name)).is_some_and(|first| first == node);
    let conditions = [accepted(own), enforced(own, &entries, nodes, keeps)];
    let are_new = conditions.iter().any(|condition| !is_there(condition, &status["conditions"]));
    let conditions = are_new.then(|| Vec::from(conditions));
    let (conditions, others) = if writes_all { (conditions, None) } else { (None, conditions) };
    Wanted { entry: (is_new && keeps).then_some(entry), conditions, others }
}

fn weight(uid: &str, node: &str) -> u64 {
    // Keys of this hasher are fixed: every node comes to the same.
    let mut hasher = DefaultHasher::new();
    (uid, node).hash(&mut hasher);
    hasher.finish()
}

fn accepted(own: &Own) -> Condition {
    if own.mistakes.is_empty() {
        return Condition {
            kind: "Accepted",
            holds: "True",
            reason: "Valid",
            message: "every field is understood".into(),
        };
    }
    let mut message: String = own.mistakes.join("; ").chars().take(MESSAGE_MAX).collect();
    message.push_str("; the last form without mistakes stays in force");
    Condition { kind: "Accepted", holds: "False", reason: "Mistakes", message }
}

fn enforced(own: &Own, entries: &BTreeMap<String, Value>, nodes: &BTreeSet<String>, keeps: bool) -> Condition {
    let condition = |holds, reason, message| Condition { kind: "Enforced", holds, reason, message };
    if !keeps {
        let message = "the definition of this kind does not keep what nodes say; `namegate status` on a node tells";
        return condition("Unknown", "NodesNotKept", message.to_owned());
    }
    let holds = |entry: &&Value| entry["enforced"] == true && entry["generation"] == own.generation;
    let count = entries.values().filter(holds).count();
    let all = nodes.len().max(entries.len());
    let message = format!("enforced on {count} of {all} nodes");
    match count {
        _ if !own.mistakes.is_empty() => condition("False", "Refused", message),
        count if count == all => condition("True", "AllNodes", message),
        _ => condition("False", "SomeNodes", message),
    }
}

fn is_there(condition: &Condition, conditions: &Value) -> bool {
    let there = find(condition.kind, conditions);
    there.is_some_and(|there| {
        there["status"] == condition.holds
            && there["reason"] == condition.reason
            && there["message"] == condition.message
    })
}

fn find<'a>(kind: &str, conditions: &'a Value) -> Option<&'a Value> {
    conditions.as_array()?.iter().find(|one| one["type"] == kind)
}

/// Conditions as they are written: the time of a change stays where the status of the condition does.
pub(crate) fn written(conditions: &[Condition], status: &Value, now: &str) -> Value {
    let one = |condition: &Condition| {
        let former = find(condition.kind, &status["conditions"]).filter(|there| there["status"] == condition.holds);
        let since = former.and_then(|there| there["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": condition.kind, "status": condition.holds, "reason": condition.reason, "message": condition.message,
            "lastTransitionTime": since,
        })
    };
    conditions.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn own(generation: i64, mistakes: &[&str]) -> Own {
        Own {
            generation,
            mistakes: mistakes.iter().map(|text| (*text).to_owned()).collect(),
            enforced: mistakes.is_empty(),
        }
    }

    /// Writes what is wanted into the status.
    fn write(status: &mut Value, node: &str, wanted: Wanted) {
        if let Some(entry) = wanted.entry {
            status["namegate"]["nodes"][node] = entry;
        }
        if let Some(conditions) = wanted.conditions {
            status["conditions"] = written(&conditions, status, "2026-07-01T12:00:00Z");
        }
    }

    #[test]
    fn nodes_come_to_rest_and_count_each_other() {
        let all = nodes(&["a", "b", "c"]);
        for at in 0..20 {
            let uid = format!("uid-{at}");
            let mut status = json!({"conditions": [{"type": "Valid", "status": "True"}]});
            let mut writes = 0;
            for round in 0..4 {
                for node in &all {
                    let wanted = wanted(&own(3, &[]), &status, &uid, node, &all, true);
                    writes += usize::from(wanted.entry.is_some()) + usize::from(wanted.conditions.is_some());
                    assert!(round < 3 || wanted == Wanted::default(), "{node} still writes {wanted:?}");
                    write(&mut status, node, wanted);
                }
            }
            assert_eq!(status["conditions"][1]["message"], "enforced on 3 of 3 nodes", "{status}");
            assert_eq!(status["conditions"][1]["status"], "True");
            assert!(writes <= 9, "{writes} writes");
        }
    }

    #[test]
    fn a_node_that_lags_or_is_gone_shows() {
        let status = json!({"namegate": {"nodes": {
            "b": {"generation": 2, "enforced": true}, "gone": {"generation": 3, "enforced": true}}}});
        let entries = nodes(&["a", "b"]);
        let message = |own: &Own, node: &str| {
            let conditions = wanted(own, &status, "u", node, &entries, true).conditions;
            conditions.map(|all| (all[1].holds, all[1].reason, all[1].message.clone()))
        };
        let lags = Some(("False", "SomeNodes", "enforced on 1 of 2 nodes".to_owned()));
        let refused = Some(("False", "Refused", "enforced on 0 of 2 nodes".to_owned()));
        let who = if message(&own(3, &[]), "a").is_some() { "a" } else { "b" };
        let other = if who == "a" { "b" } else { "a" };
        assert_eq!(message(&own(3, &[]), other), None);
        assert_eq!(message(&own(3, &[]), who), lags);
        assert_eq!(message(&own(3, &["`spec`: wrong"]), who), refused);
    }

    #[test]
    fn a_node_knows_what_another_should_have_written() {
        let all = nodes(&["a", "b"]);
        // Either may be away: its entry stays as it was.
        for (away, here) in [("a", "b"), ("b", "a")] {
            let kept = json!({"generation": 1, "enforced": true});
            let mut turns = [false; 2];
            for uid in (0..20).map(|at| format!("uid-{at}")) {
                let mut status = json!({"namegate": {"nodes": {away: kept, here: kept}}});
                let found = wanted(&own(2, &[]), &status, &uid, here, &all, true);
                turns[usize::from(found.others.is_some())] = true;
                let conditions = found.conditions.or(found.others);
                write(&mut status, here, Wanted { entry: found.entry, conditions, others: None });
                assert_eq!(status["conditions"][1]["message"], "enforced on 1 of 2 nodes", "{status}");
                assert_eq!(wanted(&own(2, &[]), &status, &uid, here, &all, true), Wanted::default());
            }
            assert_eq!(turns, [true; 2], "each has its turn");
        }
    }

    #[test]
    fn without_a_place_for_entries_only_acceptance_is_told() {
        let wanted = wanted(&own(1, &["`spec.egress`: wrong"]), &Value::Null, "u", "a", &nodes(&["a"]), false);
        assert_eq!(wanted.entry, None);
        let conditions = wanted.conditions.unwrap();
        assert_eq!(conditions[0].message, "`spec.egress`: wrong; the last form without mistakes stays in force");
        assert_eq!((conditions[1].holds, conditions[1].reason), ("Unknown", "NodesNotKept"));
    }

    #[test]
    fn the_time_of_a_change_stays_while_nothing_changes() {
        let status = json!({"conditions": [
            {"type": "Accepted", "status": "True", "lastTransitionTime": "then"},
            {"type": "Enforced", "status": "False", "lastTransitionTime": "then"}]});
        let condition = |kind| Condition { kind, holds: "True", reason: "R", message: "m".into() };
        let written = written(&[condition("Accepted"), condition("Enforced")], &status, "now");
        assert_eq!(
            (&written[0]["lastTransitionTime"], &written[1]["lastTransitionTime"]),
            (&json!("then"), &json!("now"))
        );
    }
}
