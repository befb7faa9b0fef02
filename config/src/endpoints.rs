//! The endpoints file: who is here, who else is known by labels, and which addresses they have.
//!
//! In Kubernetes the API server says so; on a plain host this file does. Parsing never looks at the machine.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use crate::{
    diagnostic::{Code, Diagnostic, Source},
    label_syntax::{key_problem, name_problem, value_problem},
    labels::Labels,
    peer::NamedPort,
    policy::Catalog,
    reader::{Object, Reader, Value},
    rule::Transport,
    services::{Service, ServicePort, Target},
    settings::one_document,
};

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
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Services with virtual addresses.
    pub services: Vec<Service>,
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
    /// What policies can refer to.
    pub fn catalog(&self) -> Catalog {
        Catalog { services: self.services.iter().map(Service::as_reference).collect(), cidr_groups: Vec::new() }
    }

    /// The labels of an endpoint, with those of its namespace.
    pub fn labels(&self, endpoint: &Endpoint) -> Labels {
        let listed = self.namespaces.iter().find(|namespace| namespace.name == endpoint.namespace);
        let of_namespace = listed.into_iter().flat_map(|namespace| pairs(&namespace.labels));
        Labels::pod(&endpoint.namespace, pairs(&endpoint.labels), of_namespace, endpoint.service_account.as_deref())
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
        let object = self.reader.object(root, &["host", "nodes", "namespaces", "endpoints", "services"])?;
        let host = object.get("host").and_then(|value| self.host(&value)).unwrap_or_default();
        let nodes = self.each(&object, "nodes", Self::node);
        let namespaces = self.each(&object, "namespaces", Self::namespace);
        let endpoints = self.each(&object, "endpoints", |file, value| file.endpoint(value).map(Arc::new));
        let services = self.each(&object, "services", Self::service);
        Some(EndpointsFile { host, nodes, namespaces, endpoints, services })
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
        Some(Host { addresses: self.addresses(&object, "this node"), labels: self.labels(&object, "labels") })
    }

    fn node(&mut self, value: &Value<'_>) -> Option<Node> {
        let object = self.reader.object(value, &["name", "addresses", "labels"])?;
        let name = self.name(&object, "name");
        let owner = format!("node {}", name.as_deref().unwrap_or("without a name"));
        self.claim(object.get("name").as_ref(), &owner, &owner);
        let (addresses, labels) = (self.addresses(&object, &owner), self.labels(&object, "labels"));
        Some(Node { name: name?, addresses, labels })
    }

    fn namespace(&mut self, value: &Value<'_>) -> Option<Namespace> {
        let object = self.reader.object(value, &["name", "labels"])?;
        let name = self.name(&object, "name");
        let labels = self.labels(&object, "labels");
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
        let labels = self.labels(&object, "labels");
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
        let object = self.reader.object(value, &["name", "port", "protocol"])?;
        let name = object.get("name").and_then(|value| self.reader.filled_text(&value));
        let port = self.reader.required(&object, "port").and_then(|value| self.number(&value));
        let protocol = self.protocol(&object)?;
        Some(NamedPort { name: name?.to_ascii_lowercase(), protocol, port: port? })
    }

    fn service(&mut self, value: &Value<'_>) -> Option<Service> {
        const KEYS: [&str; 6] = ["name", "namespace", "labels", "selector", "addresses", "ports"];
        let object = self.reader.object(value, &KEYS)?;
        let (name, namespace) = (self.name(&object, "name"), self.name(&object, "namespace"));
        let words = |text: &Option<String>| text.clone().unwrap_or_default();
        let owner = format!("service {}/{}", words(&namespace), words(&name));
        if name.is_some() && namespace.is_some() {
            self.claim(object.get("name").as_ref(), &owner, &owner);
        }
        Some(Service {
            labels: self.labels(&object, "labels"),
            selector: self.labels(&object, "selector"),
            addresses: self.addresses(&object, &owner),
            ports: self.each(&object, "ports", |file, value| file.service_port(value, &owner)),
            name: name?,
            namespace: namespace?,
        })
    }

    fn service_port(&mut self, value: &Value<'_>, owner: &str) -> Option<ServicePort> {
        let object = self.reader.object(value, &["name", "port", "protocol", "nodePort", "targets"])?;
        let name = object.get("name").and_then(|value| self.reader.filled_text(&value)).map(str::to_owned);
        let protocol = self.protocol(&object);
        let words = protocol.map_or("", Transport::as_str);
        let place = self.reader.required(&object, "port");
        let port = place.as_ref().and_then(|value| self.number(value));
        if let Some(port) = port {
            self.claim(place.as_ref(), &format!("port {port}/{words} of {owner}"), owner);
        }
        let place = object.get("nodePort");
        let node_port = place.as_ref().and_then(|value| self.number(value));
        if let Some(port) = node_port {
            self.claim(place.as_ref(), &format!("port {port}/{words} of every node"), owner);
        }
        let targets = self.each(&object, "targets", |file, value| file.target(value, port));
        Some(ServicePort { name, protocol: protocol?, port: port?, node_port, targets })
    }

    /// A target; its port is that of the service where none is given.
    fn target(&mut self, value: &Value<'_>, of_service: Option<u16>) -> Option<Target> {
        let object = self.reader.object(value, &["address", "port"])?;
        let address = self.reader.required(&object, "address");
        let address = address.and_then(|value| self.address(&value));
        let port = match object.get("port") {
            Some(value) => self.number(&value),
            None => of_service,
        };
        Some(Target { address: address?, port: port? })
    }

    /// TCP where none is given.
    fn protocol(&mut self, object: &Object<'_>) -> Option<Transport> {
        const WORDS: [(&str, Transport); 3] =
            [("TCP", Transport::Tcp), ("UDP", Transport::Udp), ("SCTP", Transport::Sctp)];
        object.get("protocol").map_or(Some(Transport::Tcp), |value| self.reader.choice(&value, &WORDS))
    }

    fn number(&mut self, value: &Value<'_>) -> Option<u16> {
        self.reader.integer(value, 1..=65_535).and_then(|number| u16::try_from(number).ok())
    }

    fn address(&mut self, value: &Value<'_>) -> Option<IpAddr> {
        let address = self.reader.parsed::<IpAddr>(value)?.to_canonical();
        if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            self.reader.wrong(value, Code::BadValue, format!("{address} cannot be the address of one peer"));
        }
        Some(address)
    }

    fn addresses(&mut self, object: &Object<'_>, owner: &str) -> Vec<IpAddr> {
        let Some(value) = object.get("addresses") else { return Vec::new() };
        let items = self.reader.list(&value).unwrap_or_default();
        let mut addresses = Vec::with_capacity(items.len());
        for item in items {
            let Some(address) = self.address(&item) else { continue };
            self.claim(Some(&item), &format!("address {address}"), owner);
            addresses.push(address);
        }
        addresses
    }

    fn labels(&mut self, object: &Object<'_>, key: &str) -> BTreeMap<String, String> {
        let Some(value) = object.get(key) else { return BTreeMap::new() };
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
    fn services_are_read() {
        let text = "
services:
- name: web
  namespace: empire
  labels: {team: navy}
  selector: {app: web}
  addresses: [10.96.0.10, 'fd00:96::10']
  ports:
  - {name: http, port: 80, nodePort: 30080, targets: [{address: 10.244.1.10, port: 8080}, {address: 'fd00:10::10'}]}
  - {port: 53, protocol: UDP}
";
        let file = parse("endpoints.yaml", text).unwrap();
        let [service] = &file.services[..] else { panic!("{file:?}") };
        assert_eq!((&*service.name, &*service.namespace, service.addresses.len()), ("web", "empire", 2));
        assert_eq!((&*service.labels["team"], &*service.selector["app"]), ("navy", "web"));
        let target = |address: &str, port| Target { address: address.parse().unwrap(), port };
        let want = [
            ServicePort {
                name: Some("http".into()),
                protocol: Transport::Tcp,
                port: 80,
                node_port: Some(30_080),
                targets: vec![target("10.244.1.10", 8080), target("fd00:10::10", 80)],
            },
            ServicePort { name: None, protocol: Transport::Udp, port: 53, node_port: None, targets: vec![] },
        ];
        assert_eq!(service.ports, want);
        assert_eq!(file.catalog().services[0].selector, service.selector);
        let text = "
endpoints: [{name: a, namespace: n, addresses: [10.0.0.1]}]
services:
- {name: s, namespace: n, addresses: [10.0.0.1], ports: [{port: 80, nodePort: 1}, {port: 80, protocol: TCP}]}
- {name: s, namespace: n, ports: [{port: 81, nodePort: 1, targets: [{address: ::1}, {port: 1}]}]}
";
        let found: Vec<String> = parse("endpoints.yaml", text).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "`services[0].addresses[0]`: address 10.0.0.1 belongs to endpoint n/a already",
                "`services[0].ports[1].port`: port 80/TCP of service n/s belongs to service n/s already",
                "`services[1].name`: service n/s is listed twice",
                "`services[1].ports[0].nodePort`: port 1/TCP of every node belongs to service n/s already",
                "`services[1].ports[0].targets[0].address`: ::1 cannot be the address of one peer",
                "`services[1].ports[0].targets[1].address`: must be given",
            ]
        );
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
