//! Policies: from the text of Kubernetes objects to rules.
//!
//! [`parse`] reads objects one by one; one with a mistake is refused whole, and all its mistakes are reported. What is
//! not understood is refused, never skipped. [`translate`] turns the objects into rules, once the facts that they refer
//! to (services, groups of prefixes) are known.
//!
//! ```
//! use namegate_config::policy::{parse, translate, Catalog};
//! let text = "
//! apiVersion: cilium.io/v2
//! kind: CiliumNetworkPolicy
//! metadata: {name: names, namespace: empire}
//! spec:
//!   endpointSelector: {}
//!   egress:
//!   - toFQDNs: [{matchName: cilium.io}]
//! ";
//! let parsed = parse("names.yaml", text);
//! assert!(parsed.diagnostics.is_empty());
//! let rules = translate(&parsed.documents, &Catalog::default()).rules;
//! assert_eq!(rules[0].origin.to_string(), "empire/names spec.egress[0]");
//! ```

mod cidr;
mod cilium;
mod cluster_policy;
mod draft;
mod icmp;
mod layer7;
mod lint;
mod network_policy;
mod object;
mod peers;
mod ports;
mod resolvers;
mod selector;
pub(crate) mod shapes;
mod translate;

use crate::{
    diagnostic::{Diagnostic, Place, Source},
    document::{Node, read},
    reader::Value,
};

use draft::Body;
pub use draft::CidrGroup;
pub use lint::{Audience, lint};
pub use translate::{Catalog, Service, Translated, translate};

/// One object without mistakes; what it refers to is still to be looked up.
#[derive(Clone, Debug)]
pub struct Document {
    /// `kind`, as written.
    pub kind: String,
    /// `apiVersion`, as written.
    pub api_version: String,
    /// Namespace; `None` for cluster-wide kinds.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Where that stands.
    place: Place,
    body: Body,
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The objects without mistakes, in the order of the file.
    pub documents: Vec<Document>,
    /// Mistakes and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

/// Parts of the language that can be switched off; a policy that uses one that is off is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Features {
    /// `rules.http`.
    pub http: bool,
    /// `rules.dns`.
    pub dns: bool,
    /// `serverNames`.
    pub server_names: bool,
    /// `nodeSelector`.
    pub nodes: bool,
    /// `toFQDNs` and `rules.dns` under `nodeSelector`.
    pub node_names: bool,
}

impl Default for Features {
    /// Everything on.
    fn default() -> Self {
        Self { http: true, dns: true, server_names: true, nodes: true, node_names: true }
    }
}

/// Reads the objects of a file; `file_name` stands in the diagnostics.
pub fn parse(file_name: &str, text: &str) -> Parsed {
    parse_with(file_name, text, &Features::default())
}

/// The same, with parts of the language switched off.
pub fn parse_with(file_name: &str, text: &str, features: &Features) -> Parsed {
    let source = Source::new(file_name, text);
    let mut parsed = Parsed::default();
    for node in read(&source) {
        match node {
            Ok(node) => parse_node(&source, &Value::root(&node), *features, &mut parsed),
            Err(error) => parsed.diagnostics.push(error),
        }
    }
    parsed
}

/// Reads an object of an API; `name` stands in the diagnostics, which have no lines.
pub fn parse_object(name: &str, object: &serde_json::Value, features: &Features) -> Parsed {
    let node = Node::from_json(object);
    let mut parsed = Parsed::default();
    parse_node(&Source::of_object(name), &Value::root(&node), *features, &mut parsed);
    parsed
}

/// Reads one object, or each of a list, that stands somewhere in a document.
pub(crate) fn parse_node(source: &Source, value: &Value<'_>, features: Features, parsed: &mut Parsed) {
    object::read(source, value, features, parsed);
    parsed.diagnostics.sort_by_key(|found| found.span().offset());
}

impl Node {
    /// The value under a key of a mapping.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        let crate::document::Kind::Map(entries) = &self.kind else { return None };
        entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests;
