//! Definitions of the kinds for an API server (apiextensions.k8s.io/v1): structural schemas, status, columns.
//!
//! Names, scopes and versions are those of the projects that the kinds come from, so that objects are the same ones. A
//! cluster that has the kinds already needs none of this.

use serde_json::{Value, json};

use super::{Form, Writer, merge};
use crate::policy::shapes::{KINDS, KindEntry};

/// How people and the API server call a kind.
struct Names {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    /// Groups of Kubernetes itself want to know whether a definition is theirs.
    approval: Option<&'static str>,
    /// Columns before those that every kind has.
    columns: &'static [(&'static str, &'static str)],
}

const NAMES: [Names; 4] = [
    Names {
        kind: "CiliumNetworkPolicy",
        plural: "ciliumnetworkpolicies",
        singular: "ciliumnetworkpolicy",
        short: &["cnp", "ciliumnp"],
        categories: &["cilium", "ciliumpolicy"],
        approval: None,
        columns: &[],
    },
    Names {
        kind: "CiliumClusterwideNetworkPolicy",
        plural: "ciliumclusterwidenetworkpolicies",
        singular: "ciliumclusterwidenetworkpolicy",
        short: &["ccnp"],
        categories: &["cilium", "ciliumpolicy"],
        approval: None,
        columns: &[],
    },
    Names {
        kind: "CiliumCIDRGroup",
        plural: "ciliumcidrgroups",
        singular: "ciliumcidrgroup",
        short: &["ccg"],
        categories: &["cilium"],
        approval: None,
        columns: &[],
    },
    Names {
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
        singular: "clusternetworkpolicy",
        // Upstream it is `cnp`, which is CiliumNetworkPolicy's too.
        short: &[],
        categories: &[],
        approval: Some("unapproved, a narrower form of kubernetes-sigs/network-policy-api"),
        columns: &[("Tier", ".spec.tier"), ("Priority", ".spec.priority")],
    },
];

/// What stands at the top of each file.
const HEADER: &str = "\
# Written by `namegate policy crds`. Not for clusters that have this kind already.
# Unknown fields are kept (x-kubernetes-preserve-unknown-fields) for the agent to refuse: left to itself the API server
# removes them from what most clients send, and a rule without one of its fields may be a wider rule.
";

/// The definition of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Crd {
    /// Its name, as in `ciliumnetworkpolicies.cilium.io`.
    pub name: String,
    /// The object.
    pub object: Value,
}

impl Crd {
    /// The object as a YAML document. Fails for no definition there is; a test sees to that.
    pub fn yaml(&self) -> Result<String, serde_saphyr::SerializeError> {
        Ok(format!("{HEADER}{}", serde_saphyr::to_string(&self.object)?))
    }
}

/// The definitions of every kind that Kubernetes does not have itself.
pub fn crds() -> Vec<Crd> {
    let entry = |names: &Names| KINDS.iter().find(|entry| entry.name == names.kind);
    NAMES.iter().filter_map(|names| Some(crd(names, entry(names)?))).collect()
}

fn crd(names: &Names, entry: &KindEntry) -> Crd {
    let group = entry.versions[0].split('/').next().unwrap_or_default();
    let name = format!("{}.{group}", names.plural);
    let mut metadata = json!({ "name": name });
    if let Some(approval) = names.approval {
        metadata["annotations"] = json!({ "api-approved.kubernetes.io": approval });
    }
    let version = |(at, version): (usize, &&str)| {
        json!({
            "name": version.split('/').next_back(),
            "served": true,
            "storage": at == 0,
            "subresources": { "status": {} },
            "additionalPrinterColumns": columns(names),
            "schema": { "openAPIV3Schema": schema(entry) },
        })
    };
    let mut called = json!({
        "kind": entry.name,
        "listKind": format!("{}List", entry.name),
        "plural": names.plural,
        "singular": names.singular,
    });
    for (key, words) in [("shortNames", names.short), ("categories", names.categories)] {
        if !words.is_empty() {
            called[key] = json!(words);
        }
    }
    let object = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {
            "group": group,
            "names": called,
            "scope": if entry.is_namespaced { "Namespaced" } else { "Cluster" },
            "versions": entry.versions.iter().enumerate().map(version).collect::<Vec<_>>(),
        },
    });
    Crd { name, object }
}

/// The object: what an API server looks after itself is left to it.
fn schema(entry: &KindEntry) -> Value {
    let mut schema = Writer::new(Form::Crd).body(entry.shape);
    for key in ["apiVersion", "kind"] {
        schema["properties"][key] = json!({ "type": "string" });
    }
    schema["properties"]["metadata"] = json!({ "type": "object" });
    schema["properties"]["status"] = status();
    if let Value::Object(fields) = &mut schema {
        // Beside a status nothing like it may stand at the root: `spec` or `specs` is for the reader to ask for.
        fields.remove("allOf");
        fields.remove("required");
        if entry.shape.field("spec").is_some_and(|spec| spec.is_required) {
            fields.insert("required".to_owned(), json!(["spec"]));
        }
    }
    schema
}

/// Conditions, as `metav1.Condition` has them. Others may write more.
fn status() -> Value {
    let text = |max: usize| json!({ "type": "string", "maxLength": max });
    let mut reason = text(1024);
    merge(&mut reason, json!({ "minLength": 1, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$" }));
    json!({
        "description": "Written by the agent",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": { "conditions": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["type", "status", "lastTransitionTime"],
                "properties": {
                    "type": text(316),
                    "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                    "reason": reason,
                    "message": text(32_768),
                    "lastTransitionTime": { "type": "string", "format": "date-time" },
                    "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                },
            },
        }},
    })
}

/// What `kubectl get` shows.
fn columns(names: &Names) -> Value {
    let condition = |kind: &str, field: &str| format!(".status.conditions[?(@.type=='{kind}')].{field}");
    let own = names.columns.iter().map(|(name, path)| (*name, "string", (*path).to_owned()));
    let all = own.chain([
        ("Accepted", "string", condition("Accepted", "status")),
        ("Enforced", "string", condition("Enforced", "message")),
        ("Age", "date", ".metadata.creationTimestamp".to_owned()),
    ]);
    all.map(|(name, kind, path)| json!({ "name": name, "type": kind, "jsonPath": path })).collect()
}
