//! The endpoints file: who is here, who else is known by labels, and which addresses they have.
//!
//! In Kubernetes the API server says so; on a plain host this file does. Parsing never looks at the machine.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use crate::{
    diagnostic::{Code, Diagnostic, Source},
    label_syntax::{key_problem, name_problem, value_problem},
    labels::Labels,
    peer::NamedPort,
    reader::{Object, Reader, Value},
    rule::Transport,
    settings::one_document,
};

/// Label that Kubernetes gives every namespace.
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Longest name of an interface in octets (`IFNAMSIZ` less the final zero).
const INTERFACE_OCTETS_MAX: usize = 15;

/// The endpoints file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsFile {
    /// This node.
    pub host: Host,
    /// Other nodes.
    pub nodes: Vec<Node>,
    /// Namespaces and their labels. One that is not listed has no labels but its name.
    pub namespaces: Vec<Namespace>,
    /// Pods and the like.
    pub endpoints: Vec<Endpoint>,
}

/// This node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A pod or the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name, unique in its namespace.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// Its service account.
    pub service_account: Option<String>,
    /// Where its packets pass; `None` where it is a peer known by its labels and not enforced here.
    pub attachment: Option<Attachment>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports it names.
    pub named_ports: Vec<NamedPort>,
}

/// Where the packets of an endpoint pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attachment {
    /// Host-side interface.
    Interface(String),
    /// Network namespace: the peer of its default interface is meant.
    Netns(PathBuf),
}

impl EndpointsFile {
    /// The labels of an endpoint, with those of its namespace.
    pub fn labels(&self, endpoint: &Endpoint) -> Labels {
        let listed = self.namespaces.iter().find(|namespace| namespace.name == endpoint.namespace);
        let of_namespace = listed.into_iter().flat_map(|namespace| pairs(&namespace.labels));
        Labels::pod(
            &endpoint.namespace,
            pairs(&endpoint.labels),
            std::iter::once((NAMESPACE_NAME, &*endpoint.namespace))
                .chain(of_namespace.filter(|(key, _)| *key != NAMESPACE_NAME)),
            endpoint.service_account.as_deref(),
        )
    }
}

impl Host {
    /// Labels of this node.
    pub fn labels(&self) -> Labels {
        Labels::node(true, pairs(&self.labels))
    }
}

impl Node {
    /// Labels of the node.
    pub fn labels(&self) -> Labels {
        Labels::node(false, pairs(&self.labels))
    }
}

fn pairs(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(key, value)| (&**key, &**value))
}

/// Reads the endpoints file; `file_name` stands in the diagnostics.
pub fn parse(file_name: &str, text: &str) -> Result<EndpointsFile, Vec<Diagnostic>> {
    let source = Source::new(file_name, text);
    let node = one_document(&source)?;
    let mut file = FileReader { reader: Reader::new(&source), owners: HashMap::new() };
    let read = file.file(&Value::root(&node)).unwrap_or_default();
    let found = file.reader.finish();
    if found.is_empty() { Ok(read) } else { Err(found) }
}

/// The file while it is read.
struct FileReader<'s> {
    reader: Reader<'s>,
    /// Who has an address, an interface, a name: each belongs to one.
    owners: HashMap<String, String>,
}

impl FileReader<'_> {
    fn file(&mut self, root: &Value<'_>) -> Option<EndpointsFile> {
        let object = self.reader.object(root, &["host", "nodes", "namespaces", "endpoints"])?;
        let host = object.get("host").and_then(|value| self.host(&value)).unwrap_or_default();
        let nodes = self.each(&object, "nodes", Self::node);
        let namespaces = self.each(&object, "namespaces", Self::namespace);
        let endpoints = self.each(&object, "endpoints", Self::endpoint);
        Some(EndpointsFile { host, nodes, namespaces, endpoints })
    }

    fn each<T>(
        &mut self,
        object: &Object<'_>,
        key: &str,
        mut one: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = object.get(key) else { return Vec::new() };
        let items = self.reader.list(&value).unwrap_or_default();
        items.iter().filter_map(|item| one(self, item)).collect()
    }

    fn host(&mut self, value: &Value<'_>) -> Option<Host> {
        let object = self.reader.object(value, &["addresses", "labels"])?;
        Some(Host { addresses: self.addresses(&object, "this node"), labels: self.labels(&object) })
    }

    fn node(&mut self, value: &Value<'_>) -> Option<Node> {
        let object = self.reader.object(value, &["name", "addresses", "labels"])?;
        let name = self.name(&object, "name");
        let owner = format!("node {}", name.as_deref().unwrap_or("without a name"));
        self.claim(object.get("name").as_ref(), &owner, &owner);
        let (addresses, labels) = (self.addresses(&object, &owner), self.labels(&object));
        Some(Node { name: name?, addresses, labels })
    }

    fn namespace(&mut self, value: &Value<'_>) -> Option<Namespace> {
        let object = self.reader.object(value, &["name", "labels"])?;
        let name = self.name(&object, "name");
        let labels = self.labels(&object);
        let owner = format!("namespace {}", name.as_deref()?);
        self.claim(object.get("name").as_ref(), &owner, &owner);
        Some(Namespace { name: name?, labels })
    }

    fn endpoint(&mut self, value: &Value<'_>) -> Option<Endpoint> {
        const KEYS: [&str; 8] =
            ["name", "namespace", "labels", "serviceAccount", "interface", "netns", "addresses", "ports"];
        let object = self.reader.object(value, &KEYS)?;
        let name = self.name(&object, "name");
        let namespace = self.name(&object, "namespace");
        let words = |text: &Option<String>| text.clone().unwrap_or_default();
        let owner = format!("endpoint {}/{}", words(&namespace), words(&name));
        if name.is_some() && namespace.is_some() {
            self.claim(object.get("name").as_ref(), &owner, &owner);
        }
        let labels = self.labels(&object);
        let service_account = object.get("serviceAccount").and_then(|value| self.reader.filled_text(&value));
        let service_account = service_account.map(str::to_owned);
        let attachment = self.attachment(&object, &owner);
        let addresses = self.addresses(&object, &owner);
        if addresses.is_empty() && object.get("addresses").is_none() {
            self.reader.required(&object, "addresses");
        }
        let named_ports = self.each(&object, "ports", Self::port);
        Some(Endpoint {
            name: name?,
            namespace: namespace?,
            labels,
            service_account,
            attachment,
            addresses,
            named_ports,
        })
    }

    fn attachment(&mut self, object: &Object<'_>, owner: &str) -> Option<Attachment> {
        let netns = object.get("netns").and_then(|value| {
            let text = self.reader.filled_text(&value)?;
            if !text.starts_with('/') {
                self.reader.wrong(&value.at_value(), Code::BadValue, "must be an absolute path");
            }
            self.claim(Some(&value), &format!("netns {text}"), owner);
            Some(Attachment::Netns(text.into()))
        });
        let Some(value) = object.get("interface") else { return netns };
        if netns.is_some() {
            self.reader.wrong(&value, Code::Conflict, "`interface` and `netns` exclude each other");
        }
        let text = self.reader.filled_text(&value)?;
        if text.len() > INTERFACE_OCTETS_MAX || text.contains(|c: char| c == '/' || c.is_whitespace()) {
            let problem = format!("`{text}` is no interface: at most {INTERFACE_OCTETS_MAX} octets, no `/`, no space");
            self.reader.wrong(&value.at_value(), Code::BadValue, problem);
        }
        self.claim(Some(&value), &format!("interface {text}"), owner);
        Some(Attachment::Interface(text.to_owned()))
    }

    /// A port; nothing where it has no name, since only names are looked up.
    fn port(&mut self, value: &Value<'_>) -> Option<NamedPort> {
        const PROTOCOLS: [(&str, Transport); 3] =
            [("TCP", Transport::Tcp), ("UDP", Transport::Udp), ("SCTP", Transport::Sctp)];
        let object = self.reader.object(value, &["name", "port", "protocol"])?;
        let name = object.get("name").and_then(|value| self.reader.filled_text(&value));
        let port = self.reader.required(&object, "port").and_then(|value| self.reader.integer(&value, 1..=65_535));
        let protocol = match object.get("protocol") {
            Some(value) => self.reader.choice(&value, &PROTOCOLS)?,
            None => Transport::Tcp,
        };
        let port = u16::try_from(port?).ok()?;
        Some(NamedPort { name: name?.to_ascii_lowercase(), protocol, port })
    }

    fn addresses(&mut self, object: &Object<'_>, owner: &str) -> Vec<IpAddr> {
        let Some(value) = object.get("addresses") else { return Vec::new() };
        let items = self.reader.list(&value).unwrap_or_default();
        let mut addresses = Vec::with_capacity(items.len());
        for item in items {
            let Some(address) = self.reader.parsed::<IpAddr>(&item) else { continue };
            let address = address.to_canonical();
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                self.reader.wrong(&item, Code::BadValue, format!("{address} cannot be the address of one peer"));
            }
            self.claim(Some(&item), &format!("address {address}"), owner);
            addresses.push(address);
        }
        addresses
    }

    fn labels(&mut self, object: &Object<'_>) -> BTreeMap<String, String> {
        let Some(value) = object.get("labels") else { return BTreeMap::new() };
        let Some(labels) = self.reader.any_object(&value) else { return BTreeMap::new() };
        let mut read = BTreeMap::new();
        for (key, value) in labels.fields() {
            if let Some(problem) = key_problem(key) {
                self.reader.wrong(value, Code::BadValue, problem);
            }
            let Some(text) = self.reader.text(value) else { continue };
            if let Some(problem) = value_problem(text) {
                self.reader.wrong(&value.at_value(), Code::BadValue, problem);
            }
            read.insert((*key).to_owned(), text.to_owned());
        }
        read
    }

    fn name(&mut self, object: &Object<'_>, key: &str) -> Option<String> {
        let value = self.reader.required(object, key)?;
        let name = self.reader.filled_text(&value)?;
        if let Some(problem) = name_problem(name) {
            self.reader.wrong(&value.at_value(), Code::BadValue, problem);
        }
        Some(name.to_owned())
    }

    /// Notes that a thing belongs to `owner`; a second owner is a mistake.
    fn claim(&mut self, place: Option<&Value<'_>>, thing: &str, owner: &str) {
        let Some(place) = place else { return };
        if let Some(other) = self.owners.insert(thing.to_owned(), owner.to_owned()) {
            let problem = if thing == owner {
                format!("{thing} is listed twice")
            } else {
                format!("{thing} belongs to {other} already")
            };
            self.reader.wrong(&place.at_value(), Code::Conflict, problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
host: {addresses: [192.168.20.11], labels: {kubernetes.io/os: linux}}
nodes: [{name: node2, labels: {rack: r1}, addresses: [192.168.20.12]}]
namespaces: [{name: empire, labels: {team: navy}}]
endpoints:
- name: tiefighter
  namespace: empire
  labels: {class: tiefighter, org: empire}
  serviceAccount: default
  interface: ng-tie
  addresses: [10.244.1.10, 'fd00:10:244:1::10']
  ports: [{name: HTTP, port: 80, protocol: TCP}, {port: 53, protocol: UDP}]
- {name: xwing, namespace: rebels, netns: /run/netns/x, addresses: [10.244.1.11]}
- {name: dns, namespace: kube-system, addresses: [10.244.1.12]}
";

    #[test]
    fn the_file_is_read() {
        let file = parse("endpoints.yaml", FILE).unwrap();
        assert_eq!(file.host.labels().to_string(), "reserved:host,node:kubernetes.io/os=linux");
        assert_eq!(file.nodes[0].labels().to_string(), "node:rack=r1,reserved:remote-node");
        let tie = &file.endpoints[0];
        assert_eq!(tie.attachment, Some(Attachment::Interface("ng-tie".into())));
        assert_eq!(tie.named_ports, [NamedPort { name: "http".into(), protocol: Transport::Tcp, port: 80 }]);
        assert_eq!(
            file.labels(tie).to_string(),
            "k8s:class=tiefighter,k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=empire,\
             k8s:io.cilium.k8s.namespace.labels.team=navy,k8s:io.cilium.k8s.policy.serviceaccount=default,\
             k8s:io.kubernetes.pod.namespace=empire,k8s:org=empire"
        );
        assert_eq!(file.endpoints[1].attachment, Some(Attachment::Netns("/run/netns/x".into())));
        assert_eq!(file.endpoints[2].attachment, None);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = "
host: {addresses: [127.0.0.1]}
endpoints:
- {name: Tie, namespace: empire, interface: a, netns: /n, addresses: [10.0.0.1]}
- {name: b, namespace: empire, interface: a, addresses: [10.0.0.1, '::ffff:10.0.0.1', 10.0.0.0/8]}
- {name: b, namespace: empire, netns: n, addresses: [], labels: {a b: c, d: 'e f', g: 1}, ports: [{port: 0}]}
- {name: c, adresses: []}
";
        let found = parse("endpoints.yaml", text).unwrap_err();
        let found: Vec<String> = found.iter().map(|f| format!("{} {f}", f.line)).collect();
        assert_eq!(
            found,
            [
                "2 `host.addresses[0]`: 127.0.0.1 cannot be the address of one peer",
                "4 `endpoints[0].name`: `Tie` is not a name: lower case letters, digits, `-` and `.`, at most 253",
                "4 `endpoints[0].interface`: `interface` and `netns` exclude each other",
                "5 `endpoints[1].interface`: interface a belongs to endpoint empire/Tie already",
                "5 `endpoints[1].addresses[0]`: address 10.0.0.1 belongs to endpoint empire/Tie already",
                "5 `endpoints[1].addresses[1]`: address 10.0.0.1 belongs to endpoint empire/b already",
                "5 `endpoints[1].addresses[2]`: `10.0.0.0/8`: invalid IP address syntax",
                "6 `endpoints[2].name`: endpoint empire/b is listed twice",
                "6 `endpoints[2].labels.a b`: ` ` cannot stand in a label key (letters, digits, `-`, `_` and `.` can)",
                "6 `endpoints[2].labels.d`: ` ` cannot stand in a label value (letters, digits, `-`, `_` and `.` can)",
                "6 `endpoints[2].labels.g`: text is wanted here, this is a number",
                "6 `endpoints[2].netns`: must be an absolute path",
                "6 `endpoints[2].ports[0].port`: 0 is not within 1 and 65535",
                "7 `endpoints[3].adresses`: there is no such field",
                "7 `endpoints[3].namespace`: must be given",
                "7 `endpoints[3].addresses`: must be given",
            ]
        );
    }
}
