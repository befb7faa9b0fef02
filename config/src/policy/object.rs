//! What every object has: kind, version, metadata. Hands the rest to the reader of its kind.

use super::{
    CidrGroup, Document, Features, Parsed, cidr, cilium, cluster_policy,
    draft::{Body, Draft},
    network_policy,
    shapes::{self, KINDS, LISTS},
};
use crate::{
    diagnostic::{Code, Place, Source},
    label_syntax::name_problem,
    language::Type,
    question::QueryType,
    reader::{Object, Reader, Value},
    rule::{Binding, Origin, PortSet},
};

/// The kinds that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
    CiliumCidrGroup,
    NetworkPolicy,
    ClusterNetworkPolicy,
}

/// What everything below an object is read with.
pub(super) struct Context<'s> {
    pub(super) reader: Reader<'s>,
    pub(super) features: Features,
    pub(super) kind: Kind,
    /// Namespace of the object; `None` for cluster-wide kinds.
    pub(super) namespace: Option<String>,
    /// What the annotation [`QUERY_TYPES`] says.
    pub(super) query_types: Option<Vec<QueryType>>,
    /// What the annotation [`BINDING`] says.
    pub(super) binding: Option<Binding>,
    /// What the annotation [`NAMED_PORTS`] says.
    pub(super) named_only: Option<PortSet>,
    kind_name: String,
    name: String,
    /// Path of the object in its document, with a final dot where it is not the whole of it.
    base: String,
}

impl Context<'_> {
    /// Where an element stands in its object.
    pub(super) fn origin(&self, path: &str) -> Origin {
        Origin {
            kind: self.kind_name.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            path: path.strip_prefix(&self.base).unwrap_or(path).to_owned(),
        }
    }

    /// Refuses a part of the language that is switched off.
    pub(super) fn enforced(&mut self, value: &Value<'_>, on: bool, what: &str) {
        if !on {
            self.reader.wrong(value, Code::Unsupported, format!("{what} is not enforced yet"));
        }
    }

    /// Refuses names in a policy for nodes where nobody hears what a node itself asks.
    pub(super) fn enforced_for_node(&mut self, value: &Value<'_>, of_node: bool, what: &str) {
        if of_node && !self.features.node_names {
            let problem = format!("{what} is not enforced for the node: what it asks itself is not heard");
            self.reader.wrong(value, Code::Unsupported, problem).help =
                Some("name prefixes with `toCIDR`, or peers by `toEntities` and `toEndpoints`".to_owned());
        }
    }

    /// Whether the object is of a kind of the whole cluster.
    pub(super) fn is_cluster_wide(&self) -> bool {
        self.namespace.is_none()
    }
}

/// Reads one object or a list of them.
pub(super) fn read(source: &Source, value: &Value<'_>, features: Features, parsed: &mut Parsed) {
    let kind = value.node.field("kind").map(|node| &node.kind);
    if matches!(kind, Some(crate::document::Kind::Text(text)) if LISTS.contains(&&**text)) {
        let mut reader = Reader::new(source);
        let object = reader.shaped(value, &shapes::LIST);
        let items = object.and_then(|object| reader.required(&object, "items"));
        let items = items.and_then(|items| reader.list(&items)).unwrap_or_default();
        parsed.diagnostics.extend(reader.finish());
        for item in &items {
            one(source, item, features, parsed);
        }
        return;
    }
    one(source, value, features, parsed);
}

fn one(source: &Source, value: &Value<'_>, features: Features, parsed: &mut Parsed) {
    let mut context = Context {
        reader: Reader::new(source),
        features,
        kind: Kind::CiliumNetworkPolicy,
        namespace: None,
        query_types: None,
        binding: None,
        named_only: None,
        kind_name: String::new(),
        name: String::new(),
        base: if value.path.is_empty() { String::new() } else { format!("{}.", value.path) },
    };
    let document = document(&mut context, value).filter(|_| !context.reader.has_errors());
    parsed.documents.extend(document);
    parsed.diagnostics.extend(context.reader.finish());
}

fn document(context: &mut Context<'_>, value: &Value<'_>) -> Option<Document> {
    let object = context.reader.any_object(value)?;
    let version = context.reader.required(&object, "apiVersion");
    let version = version.and_then(|version| context.reader.filled_text(&version)).map(str::to_owned);
    let (kind, kind_name) = kind(&mut context.reader, &object)?;
    if let Some(version) = &version {
        check_version(&mut context.reader, &object, kind, kind_name, version);
    }
    context.kind = kind;
    kind_name.clone_into(&mut context.kind_name);
    let object = context.reader.in_shape(object, shapes::entry(kind).shape);

    let metadata = metadata(&mut context.reader, &object, kind);
    if shapes::entry(kind).is_namespaced {
        context.namespace = Some(metadata.namespace.unwrap_or_else(|| "default".to_owned()));
    }
    context.name = metadata.name.clone().unwrap_or_default();
    let types = annotation(&object, QUERY_TYPES);
    context.query_types = types.as_ref().and_then(|value| query_types(&mut context.reader, value));
    context.binding = metadata.binding;
    context.named_only = metadata.named_only;
    let body = match kind {
        Kind::CiliumCidrGroup => Body::CidrGroup(CidrGroup {
            name: context.name.clone(),
            labels: metadata.labels.into_iter().collect(),
            cidrs: cidr::group(context, &object),
        }),
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            Body::Rules(cilium::policy(context, &object))
        }
        Kind::NetworkPolicy => Body::Rules(with_spec(context, &object, network_policy::policy)),
        Kind::ClusterNetworkPolicy => Body::Rules(with_spec(context, &object, cluster_policy::policy)),
    };
    if let Some(value) = types.filter(|_| !body.limits_questions() && !context.reader.has_errors()) {
        let problem = "the object has no `rules.dns` whose questions this could limit";
        context.reader.warn(&value, Code::MatchesNothing, problem);
    }
    Some(Document {
        kind: kind_name.to_owned(),
        api_version: version?,
        namespace: context.namespace.clone(),
        name: metadata.name?,
        place: name_place(context, &object, value),
        body,
    })
}

/// Where the object says its name.
fn name_place(context: &Context<'_>, object: &Object<'_>, value: &Value<'_>) -> Place {
    let metadata = object.get("metadata");
    let name = metadata.as_ref().and_then(|metadata| Some((metadata.path.clone(), metadata.node.field("name")?)));
    match name {
        Some((path, node)) => context.reader.place(&Value { path: format!("{path}.name"), mark: node.mark(), node }),
        None => context.reader.place(value),
    }
}

fn with_spec(
    context: &mut Context<'_>,
    object: &Object<'_>,
    read: fn(&mut Context<'_>, &Value<'_>) -> Option<Vec<Draft>>,
) -> Vec<Draft> {
    let spec = context.reader.required(object, "spec");
    spec.and_then(|spec| read(context, &spec)).unwrap_or_default()
}

fn kind(reader: &mut Reader<'_>, header: &Object<'_>) -> Option<(Kind, &'static str)> {
    let value = reader.required(header, "kind")?;
    let text = reader.filled_text(&value)?;
    if let Some(entry) = KINDS.iter().find(|entry| entry.name == text) {
        return Some((entry.kind, entry.name));
    }
    let known: Vec<&str> = KINDS.iter().map(|entry| entry.name).collect();
    let mut help = format!("the kinds are {}, and List", known.join(", "));
    if let Some(near) = crate::reader::nearest(text, &known) {
        help = format!("did you mean `{near}`? T{}", &help[1..]);
    }
    let found = reader.wrong(&value.at_value(), Code::Unsupported, format!("objects of kind `{text}` are not read"));
    found.help = Some(help);
    None
}

fn check_version(reader: &mut Reader<'_>, header: &Object<'_>, kind: Kind, kind_name: &str, version: &str) {
    let versions = shapes::entry(kind).versions;
    if versions.contains(&version) {
        return;
    }
    let Some(value) = header.get("apiVersion") else { return };
    let problem = format!("`{version}` is not a version of {kind_name} that is read");
    let found = reader.wrong(&value.at_value(), Code::Unsupported, problem);
    found.help = Some(format!("write `apiVersion: {}`", versions.join("` or `")));
}

/// Annotation that limits the record types that all `rules.dns` of the object let be asked for.
const QUERY_TYPES: &str = "namegate.io/dns-types";

/// An annotation of the object. Those of others are theirs to check.
fn annotation<'n>(object: &Object<'n>, key: &str) -> Option<Value<'n>> {
    let metadata = object.get("metadata")?;
    let node = metadata.node.field("annotations")?.field(key)?;
    Some(Value { path: format!("{}.annotations.{key}", metadata.path), mark: node.mark(), node })
}

/// Words with commas between them.
fn query_types(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Vec<QueryType>> {
    let text = reader.filled_text(value)?;
    let mut types = Vec::new();
    for word in text.split(',').map(str::trim) {
        match word.parse() {
            Ok(kind) => types.push(kind),
            Err(error) => {
                let found = reader.wrong(&value.at_value(), Code::BadValue, format!("`{word}`: {error}"));
                found.help = Some("leave the annotation out to let every type be asked for".to_owned());
            }
        }
    }
    types.sort_unstable();
    types.dedup();
    Some(types)
}

#[derive(Default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    labels: Vec<(String, String)>,
    binding: Option<Binding>,
    named_only: Option<PortSet>,
}

/// Annotation with the ports where bound connections must ask for a name, in place of the setting `dns.namedPorts`.
const NAMED_PORTS: &str = "namegate.io/named-ports";
/// Annotation that binds names of the policy to connections, in place of the setting `dns.nameBinding`.
const BINDING: &str = "namegate.io/name-binding";

fn metadata(reader: &mut Reader<'_>, object: &Object<'_>, kind: Kind) -> Metadata {
    let Some(value) = reader.required(object, "metadata") else { return Metadata::default() };
    let shape = object.shape().and_then(|shape| shape.field("metadata")).map(|field| field.value);
    let Some(Type::Object(shape)) = shape else { return Metadata::default() };
    let Some(metadata) = reader.shaped(&value, shape) else { return Metadata::default() };
    let mut checked_name = |value: &Value<'_>| {
        let name = reader.filled_text(value)?;
        if let Some(problem) = name_problem(name) {
            reader.wrong(&value.at_value(), Code::BadValue, problem);
        }
        Some(name.to_owned())
    };
    let namespace = metadata.get("namespace").as_ref().and_then(&mut checked_name);
    let name = metadata.get("name").and_then(|value| checked_name(&value));
    if metadata.get("name").is_none() {
        reader.required(&metadata, "name");
    }
    let labels = metadata.get("labels").map(|value| reader.text_map(&value)).unwrap_or_default();
    let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let annotations = metadata.get("annotations");
    if let Some(annotations) = &annotations {
        check_annotations(reader, annotations, kind);
    }
    let annotations = annotations.filter(|_| kind != Kind::CiliumCidrGroup);
    let own = |key| {
        let node = annotations.as_ref()?.node.field(key)?;
        Some(Value { path: format!("{}.{key}", annotations.as_ref()?.path), mark: node.mark(), node })
    };
    let binding = own(BINDING).and_then(|value| reader.choice(&value, &Binding::WORDS));
    let named_only = own(NAMED_PORTS).and_then(|value| reader.parsed(&value));
    Metadata { name, namespace, labels, binding, named_only }
}

/// Begins the annotations that are read here. Those of others are theirs to check.
const OWN: &str = "namegate.io/";
/// Annotations of policies.
const ANNOTATIONS: [&str; 3] = [BINDING, NAMED_PORTS, QUERY_TYPES];

/// Refuses annotations that begin as Namegate's do and are none: a limit that is spelled wrongly would limit nothing.
fn check_annotations(reader: &mut Reader<'_>, annotations: &Value<'_>, kind: Kind) {
    let crate::document::Kind::Map(entries) = &annotations.node.kind else { return };
    let mut seen = std::collections::HashSet::new();
    for (key, node) in entries {
        let is_own = key.text.get(..OWN.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(OWN));
        if !is_own {
            continue;
        }
        let place = Value { path: format!("{}.{}", annotations.path, key.text), mark: key.span, node };
        if !seen.insert(&key.text) {
            reader.wrong(&place, Code::DuplicateKey, "the annotation stands twice");
        } else if !ANNOTATIONS.contains(&&*key.text) {
            let known = ANNOTATIONS.join("`, `");
            let near = crate::reader::nearest(&key.text, &ANNOTATIONS);
            let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            reader.wrong(&place, Code::UnknownField, "there is no such annotation").help =
                Some(format!("{near}The annotations of Namegate are `{known}`"));
        } else if kind == Kind::CiliumCidrGroup && [BINDING, NAMED_PORTS].contains(&&*key.text) {
            let problem = "the object has no names that this could bind";
            reader.warn(&place, Code::MatchesNothing, problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        l7::L7,
        policy::{Catalog, parse, translate},
    };

    /// An object with the annotation, and the rule that it is about.
    fn typed(types: &str, limits: &str) -> String {
        format!(
            "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p, namespace: empire, annotations: {{other.io/dns-types: 7, namegate.io/dns-types: {types}}}}}
spec:
  endpointSelector: {{}}
  egress:
  - toEntities: [world]
    toPorts: [{{ports: [{{port: '53', protocol: ANY}}]{limits}}}]
"
        )
    }

    #[test]
    fn an_annotation_says_on_which_ports_a_name_is_needed() {
        let object = |ports: &str| {
            typed("A", ", rules: {dns: [{matchPattern: '*.io'}]}")
                .replace("dns-types: A", &format!("named-ports: {ports}"))
        };
        for (ports, needed, free) in [("'443,8000-8999'", [443, 8_080], [80, 9_000]), ("none", [0, 0], [443, 80])] {
            let parsed = parse("p.yaml", &object(ports));
            assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
            let rules = translate(&parsed.documents, &Catalog::default()).rules;
            let found = rules[0].named_only.clone().unwrap();
            assert!(needed.iter().all(|port| *port == 0 || found.contains(*port)), "{found}");
            assert!(!free.iter().any(|port| found.contains(*port)), "{found}");
        }
        for ports in ["'0'", "'80,'", "9-8", "'65536'", "all", "''"] {
            let found = parse("p.yaml", &object(ports)).diagnostics;
            let text = found.iter().map(ToString::to_string).collect::<String>();
            assert!(text.contains("named-ports`: `"), "{ports}: {text}");
        }
    }

    #[test]
    fn an_annotation_limits_the_types_of_questions() {
        let limits = ", rules: {dns: [{matchPattern: '*.io'}]}";
        for (types, want) in [("'A, aaaa,A'", &[1, 28][..]), ("HTTPS", &[65]), ("TYPE300", &[300])] {
            let parsed = parse("p.yaml", &typed(types, limits));
            assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
            let rules = translate(&parsed.documents, &Catalog::default()).rules;
            let Some(L7::Dns(questions)) = rules[0].l7.as_deref() else { panic!("{rules:?}") };
            let numbers: Vec<u16> = questions.types.iter().flatten().map(|kind| kind.0).collect();
            assert_eq!(numbers, want, "{types}");
        }
        for (types, limits, want) in [
            (
                "'A,AAAAA'",
                limits,
                "3:100 `metadata.annotations.namegate.io/dns-types`: `AAAAA`: there is no record type",
            ),
            ("'A,'", limits, "3:100 `metadata.annotations.namegate.io/dns-types`: ``: there is no record type"),
            ("''", limits, "3:100 `metadata.annotations.namegate.io/dns-types`: must not be empty"),
            ("[A]", limits, "3:100 `metadata.annotations.namegate.io/dns-types`: text is wanted here"),
            ("A", "", "3:100 `metadata.annotations.namegate.io/dns-types`: the object has no `rules.dns`"),
        ] {
            let found = parse("p.yaml", &typed(types, limits)).diagnostics;
            let shown: Vec<String> = found.iter().map(|at| format!("{}:{} {at}", at.line, at.column)).collect();
            assert!(shown.len() == 1 && shown[0].starts_with(want), "{types}: {shown:?}");
        }
    }

    #[test]
    fn an_annotation_that_begins_as_ours_and_is_none_is_a_mistake() {
        let object = |version: &str, kind: &str, annotation: &str| {
            let (namespace, spec) = match kind {
                "NetworkPolicy" => ("namespace: empire, ", "{podSelector: {}}"),
                "CiliumNetworkPolicy" => ("namespace: empire, ", "{endpointSelector: {}, egress: [{}]}"),
                "CiliumClusterwideNetworkPolicy" => ("", "{endpointSelector: {}, egress: [{}]}"),
                "CiliumCIDRGroup" => ("", "{externalCIDRs: [192.0.2.0/24]}"),
                _ => ("", "{tier: Admin, priority: 1, subject: {namespaces: {}}}"),
            };
            format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, {namespace}annotations: \
                 {{other.io/x: y, {annotation}: enforce}}}}\nspec: {spec}\n"
            )
        };
        let all = "The annotations of Namegate are `namegate.io/name-binding`, `namegate.io/named-ports`, \
                   `namegate.io/dns-types`";
        for (version, kind) in [
            ("cilium.io/v2", "CiliumNetworkPolicy"),
            ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
            ("cilium.io/v2", "CiliumCIDRGroup"),
            ("networking.k8s.io/v1", "NetworkPolicy"),
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
        ] {
            for (annotation, near) in [
                ("namegate.io/name-bindng", "did you mean `namegate.io/name-binding`? "),
                ("Namegate.io/name-binding", "did you mean `namegate.io/name-binding`? "),
                ("namegate.io/nothing-like-it", ""),
            ] {
                let parsed = parse("p.yaml", &object(version, kind, annotation));
                let found = parsed.diagnostics.iter().find(|found| found.problem == "there is no such annotation");
                let found = found.unwrap_or_else(|| panic!("{kind} {annotation}: {:?}", parsed.diagnostics));
                assert!(found.is_error() && parsed.documents.is_empty(), "{kind} {annotation}");
                assert_eq!(found.field, format!("metadata.annotations.{annotation}"));
                assert_eq!(found.help.as_deref(), Some(&*format!("{near}{all}")));
            }
        }
    }
}
