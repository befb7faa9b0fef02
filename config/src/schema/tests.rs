//! Reader and schema side by side: every table, field by field, and every text.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::policy::{parse, shapes::text};

/// Where a value is: keys and places in lists.
type Path = Vec<Step>;

#[derive(Clone, Debug)]
enum Step {
    Key(&'static str),
    First,
}

/// Fields without which others are of no use, given in every sample.
const COMPANIONS: [&str; 6] = [
    "NamedService.namespace",
    "IngressPorts.ports",
    "EgressPorts.ports",
    "EndpointExpression.values",
    "LabelExpression.values",
    "Port.protocol",
];

/// A value that is right by itself.
fn sample(value: &Type) -> Value {
    match value {
        Type::Text(text) => text_sample(text),
        Type::Flag => json!(true),
        Type::Integer(bounds) | Type::IntegerOrText(bounds, _) => json!(bounds.1),
        Type::List(list) => json!([match &list.of {
            Item::Text(text) => text_sample(text),
            Item::Object(shape) => object_sample(shape, None),
            Item::Anything => json!({}),
        }]),
        Type::Object(shape) => object_sample(shape, None),
        Type::Labels { .. } => json!({ "app": "web" }),
        Type::Anything => json!({}),
    }
}

fn text_sample(text: &Text) -> Value {
    if let (None, Some(word)) = (text.pattern, text.words.first()) {
        return json!(word);
    }
    let matches = |candidate: &&str| text.pattern.is_none_or(|pattern| is_match(pattern, candidate));
    json!(["80", "app", "10.0.0.0/8"].iter().find(|candidate| matches(candidate)).unwrap())
}

fn is_match(pattern: &str, text: &str) -> bool {
    regex::Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(text)
}

/// The smallest object that is right and has this field.
fn object_sample(shape: &'static Shape, with: Option<&str>) -> Value {
    let mut names: Vec<&str> = shape.fields.iter().filter(|field| field.is_required).map(|field| field.name).collect();
    names.extend(with);
    let companions = COMPANIONS.iter().filter_map(|name| name.strip_prefix(shape.name)?.strip_prefix('.'));
    names.extend(companions);
    for choice in shape.choices {
        match choice {
            Choice::One(any) | Choice::Some(any) | Choice::SomeFilled(any)
                if !any.iter().any(|name| names.contains(name)) =>
            {
                names.push(any[0]);
            }
            Choice::Needs(one, other) if names.contains(one) => names.push(other),
            _ => {}
        }
    }
    let fields = shape.fields.iter().filter(|field| names.contains(&field.name));
    Value::Object(fields.map(|field| (field.name.to_owned(), sample(&field.value))).collect())
}

/// Every place where a shape stands, by the way that leads there from the object.
fn walk(shape: &'static Shape, path: &Path, see: &mut impl FnMut(&'static Shape, &Path)) {
    see(shape, path);
    for field in shape.fields {
        let mut below = path.clone();
        below.push(Step::Key(field.name));
        match &field.value {
            Type::Object(shape) => walk(shape, &below, see),
            Type::List(List { of: Item::Object(shape), .. }) => {
                below.push(Step::First);
                walk(shape, &below, see);
            }
            _ => {}
        }
    }
}

/// An object with `inner` at the end of a path.
fn around(shape: &'static Shape, path: &[Step], inner: Value) -> Value {
    let Some((Step::Key(key), rest)) = path.split_first() else { return inner };
    let mut object = object_sample(shape, Some(key));
    object[*key] = match &shape.field(key).unwrap().value {
        Type::Object(shape) => around(shape, rest, inner),
        Type::List(List { of: Item::Object(shape), .. }) => json!([around(shape, &rest[1..], inner)]),
        _ => inner,
    };
    object
}

/// What the reader finds wrong.
fn mistakes(object: &Value) -> Vec<String> {
    let parsed = parse("x.json", &object.to_string());
    parsed.diagnostics.iter().filter(|found| found.is_error()).map(ToString::to_string).collect()
}

/// Validators of every kind, by name.
fn validators() -> BTreeMap<&'static str, jsonschema::Validator> {
    kinds().map(|kind| (kind, jsonschema::draft202012::new(&of_kind(kind).unwrap()).unwrap())).collect()
}

thread_local! {
    /// Made once: proptest asks often.
    static VALIDATORS: BTreeMap<&'static str, jsonschema::Validator> = validators();
}

/// Calls `check` with every shape, and with what makes an object of something put there.
fn everywhere(mut check: impl FnMut(&jsonschema::Validator, &'static Shape, &str, &dyn Fn(Value) -> Value)) {
    let validators = validators();
    for entry in &KINDS {
        walk(entry.shape, &Vec::new(), &mut |shape, path| {
            let place = format!("{} {path:?}", entry.name);
            check(&validators[entry.name], shape, &place, &|inner| around(entry.shape, path, inner));
        });
    }
}

#[test]
fn every_field_of_the_tables_is_read_by_both() {
    let mut fields = 0;
    everywhere(|schema, shape, place, around| {
        for field in shape.fields {
            fields += 1;
            let place = format!("{place} {}", field.name);
            let object = around(object_sample(shape, Some(field.name)));
            assert_eq!(mistakes(&object), [""; 0], "{place}: {object}");
            assert!(schema.is_valid(&object), "{place}: {object}");
        }
    });
    assert!(fields > 500, "{fields}");
}

#[test]
fn values_of_another_type_are_refused_by_both() {
    everywhere(|schema, shape, place, around| {
        for field in shape.fields.iter().filter(|field| !matches!(field.value, Type::Anything)) {
            let mut inner = object_sample(shape, Some(field.name));
            inner[field.name] = json!(0.5);
            let object = around(inner);
            assert!(!mistakes(&object).is_empty(), "the reader takes {place} {}: {object}", field.name);
            assert!(!schema.is_valid(&object), "the schema takes {place} {}: {object}", field.name);
        }
    });
}

#[test]
fn what_must_be_given_is_asked_for_by_both() {
    everywhere(|schema, shape, place, around| {
        for field in shape.fields.iter().filter(|field| field.is_required) {
            let mut inner = object_sample(shape, None);
            inner.as_object_mut().unwrap().remove(field.name);
            let object = around(inner);
            assert!(!mistakes(&object).is_empty(), "the reader misses not {place} {}: {object}", field.name);
            assert!(!schema.is_valid(&object), "the schema misses not {place} {}: {object}", field.name);
        }
        for choice in shape.choices {
            let (Choice::One(names) | Choice::Some(names) | Choice::SomeFilled(names)) = choice else { continue };
            let mut inner = object_sample(shape, None);
            inner.as_object_mut().unwrap().retain(|key, _| !names.contains(&&**key));
            let object = around(inner);
            assert!(!mistakes(&object).is_empty(), "the reader misses not {place} {names:?}: {object}");
            assert!(!schema.is_valid(&object), "the schema misses not {place} {names:?}: {object}");
        }
    });
}

#[test]
fn what_excludes_each_other_is_refused_by_both() {
    everywhere(|schema, shape, place, around| {
        for choice in shape.choices {
            let (Choice::One(names) | Choice::AtMostOne(names) | Choice::AtMostOneFilled(names)) = choice else {
                continue;
            };
            for (one, other) in pairs(names) {
                let mut inner = object_sample(shape, Some(one));
                inner[other] = sample(&shape.field(other).unwrap().value);
                let object = around(inner);
                assert!(!mistakes(&object).is_empty(), "the reader takes {place} {one} {other}: {object}");
                assert!(!schema.is_valid(&object), "the schema takes {place} {one} {other}: {object}");
            }
        }
    });
}

#[test]
fn unknown_and_refused_fields_are_refused_by_both() {
    everywhere(|schema, shape, place, around| {
        let refused = shape.refused.iter().map(|refused| refused.name);
        for name in refused.chain(["fieldOfNobody"]) {
            assert!(shape.field(name).is_none(), "{place} {name} is refused and known");
            let mut inner = object_sample(shape, None);
            inner[name] = json!({});
            let object = around(inner);
            assert!(!mistakes(&object).is_empty(), "the reader takes {place} {name}: {object}");
            assert!(!schema.is_valid(&object), "the schema takes {place} {name}: {object}");
        }
    });
}

proptest! {
    /// Fields that the table does not have, of any name.
    #[test]
    fn no_other_name_is_a_field(name in "[A-Za-z][A-Za-z0-9]{0,12}", which in any::<prop::sample::Index>()) {
        let mut places: Vec<(&'static str, &'static Shape, &'static Shape, Path)> = Vec::new();
        for entry in &KINDS {
            walk(entry.shape, &Vec::new(), &mut |shape, path| places.push((entry.name, entry.shape, shape, path.clone())));
        }
        let (kind, root, shape, path) = which.get(&places);
        prop_assume!(!shape.names(&name));
        let mut inner = object_sample(shape, None);
        inner[&name] = json!("x");
        let object = around(root, path, inner);
        prop_assert!(!mistakes(&object).is_empty(), "{}", object);
        prop_assert!(!VALIDATORS.with(|all| all[kind].is_valid(&object)), "{}", object);
    }
}

/// The object with a text at one place, for each kind of text.
fn with_text(kind: &str, text: &str) -> Value {
    let element = match kind {
        "name" => json!({ "toFQDNs": [{ "matchName": text }] }),
        "pattern" => json!({ "toFQDNs": [{ "matchPattern": text }] }),
        "port" => json!({ "toPorts": [{ "ports": [{ "port": text }] }] }),
        "prefix" => json!({ "toCIDRSet": [{ "cidr": text }] }),
        "address" => json!({ "toCIDR": [text] }),
        "key" => json!({ "toEndpoints": [{ "matchExpressions": [{ "key": text, "operator": "Exists" }] }] }),
        "value" => json!({ "toEndpoints": [{ "matchLabels": { "app": text } }] }),
        "header" => json!({ "toPorts": [{ "ports": [{ "port": "80", "protocol": "TCP" }],
            "rules": { "http": [{ "headers": [text] }] } }] }),
        "icmp" => json!({ "icmps": [{ "fields": [{ "type": text }] }] }),
        _ => json!({}),
    };
    let name = if kind == "object" { text } else { "p" };
    let log = if kind == "log" { text } else { "" };
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": { "name": name },
        "spec": { "endpointSelector": {}, "egress": [element], "log": { "value": log } },
    })
}

/// Texts that the schema takes and the reader does not, by kind: what a pattern cannot count or know.
fn is_beyond_patterns(kind: &str, text: &str) -> bool {
    match kind {
        // IPv6 has many forms, and `::ffff:0:0/96` is refused; reserved labels are few; prefixes of keys are DNS names.
        "prefix" | "address" => text.contains(':'),
        "key" => text.starts_with("reserved:") || text.contains('/') || text.starts_with("io.cilium"),
        // Names of the other family.
        "icmp" => text.contains(char::is_alphabetic),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The patterns say what the reader says.
    #[test]
    fn texts_are_judged_alike(
        kind in prop::sample::select(&["name", "pattern", "port", "prefix", "address", "key", "value", "header", "icmp",
            "object", "log"][..]),
        text in prop_oneof![
            "[-a-zA-Z0-9_.*:/ ]{0,8}", "[0-9]{1,6}", "[0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,3})?", "[a-f0-9:]{1,9}/[0-9]{1,3}",
            "(k8s|any|reserved|node|fqdn):[a-z./]{1,6}", "[a-z-]{10,20}", "[A-Z][a-z]{0,9}: ?[ -~]{0,4}", "[ -~\u{fc}]{0,4}", "[a-z.]{50,70}",
        ],
    ) {
        let object = with_text(kind, &text);
        let reader = mistakes(&object);
        let schema = VALIDATORS.with(|all| all["CiliumNetworkPolicy"].is_valid(&object));
        if reader.is_empty() {
            prop_assert!(schema, "the schema refuses {} {:?}", kind, text);
        } else if !is_beyond_patterns(kind, &text) {
            prop_assert!(!schema, "the schema takes {} {:?}: {:?}", kind, text, reader);
        }
    }
}

#[test]
fn domain_names_are_judged_alike() {
    for name in ["a.io", "*.a.io", "a.*.io", "**.a.io", "*", "*.", "", ".", "a..io", "a.io.", "a b"] {
        let object = json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": { "name": "p" },
            "spec": { "tier": "Admin", "priority": 1, "subject": { "namespaces": {} },
                "egress": [{ "action": "Accept", "to": [{ "domainNames": [name] }] }] },
        });
        let pattern = text::DOMAIN_NAME.pattern.unwrap();
        assert_eq!(mistakes(&object).is_empty(), is_match(pattern, name), "{name:?}: {:?}", mistakes(&object));
    }
}

#[test]
fn one_name_stands_for_one_shape() {
    let mut seen: BTreeMap<&str, Value> = BTreeMap::new();
    everywhere(|_, shape, place, _| {
        let body = Writer::new(Form::Draft).body(shape);
        assert_eq!(*seen.entry(shape.name).or_insert_with(|| body.clone()), body, "{place}");
    });
}

#[test]
fn the_schemas_keep_to_the_draft() {
    for schema in kinds().map(|kind| of_kind(kind).unwrap()).chain([all()]) {
        jsonschema::meta::validate(&schema).unwrap();
    }
}

/// What a structural schema may not have (Kubernetes: "Specifying a structural schema").
fn assert_structural(schema: &Value, is_condition: bool, place: &str) {
    for (key, value) in schema.as_object().unwrap() {
        let place = format!("{place}.{key}");
        match key.as_str() {
            "properties" => value.as_object().unwrap().iter().for_each(|(name, below)| {
                assert!(!is_condition || below == &json!({ "minItems": 1 }), "{place}");
                assert_structural(below, is_condition, &format!("{place}.{name}"));
            }),
            "items" | "additionalProperties" => {
                assert!(!is_condition && value.is_object(), "{place}");
                assert_structural(value, false, &place);
            }
            "anyOf" if schema.get("x-kubernetes-int-or-string").is_some() => {
                assert_eq!(value, &json!([{ "type": "integer" }, { "type": "string" }]));
            }
            "allOf" | "anyOf" | "oneOf" => {
                value.as_array().unwrap().iter().for_each(|below| assert_structural(below, true, &place));
            }
            "not" => assert_structural(value, true, &place),
            "type" | "description" | "enum" | "pattern" | "minimum" | "maximum" | "minLength" | "maxLength"
            | "format" => {
                assert!(!is_condition, "{place}");
            }
            "required" | "minItems" | "maxItems" => {}
            key => assert!(key.starts_with("x-kubernetes-") && !is_condition, "{place}"),
        }
    }
    let is_typed = schema.get("type").is_some() || schema.get("x-kubernetes-int-or-string").is_some();
    assert!(is_typed || is_condition, "{place} has no type");
}

#[test]
fn definitions_for_an_api_server_are_structural() {
    for crd in crds() {
        for version in crd.object["spec"]["versions"].as_array().unwrap() {
            let root = &version["schema"]["openAPIV3Schema"];
            assert_structural(root, false, &crd.name);
            assert!(root.get("allOf").is_none(), "none beside a status subresource");
        }
    }
    assert_eq!(crds().len(), 4);
}

#[test]
fn the_files_of_the_definitions_are_those_that_are_printed() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration/deploy/crds");
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let mut want = Vec::new();
    for crd in crds() {
        let text = crd.yaml().unwrap();
        let name = format!("{}.yaml", crd.name);
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, crd.object, "{name} says what the object says");
        let file = std::fs::read_to_string(folder.join(&name)).unwrap();
        assert!(file == text, "run `namegate policy crds --directory integration/deploy/crds`: {name} differs");
        want.push(std::ffi::OsString::from(name));
    }
    want.sort();
    assert_eq!(names, want);
}
