//! From remembered objects to the parts of a snapshot. Pure.
//!
//! An address belongs to one pod: where two name it, to the one that is not being deleted, else to the younger. Pods in
//! the node's network are the node.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use namegate_config::{
    endpoints::{Endpoint, EndpointsFile, Host, Namespace, Node},
    services::Service,
    settings::Dns,
};

use crate::{
    object::Object,
    report::Observed,
    row::{self, Key, Kind, Row},
    service::Slice,
    snapshot::{LocalPod, PolicyObject, Who},
    tables::Tables,
};

/// Port of DNS.
const DNS_PORT: u16 = 53;
/// The service of the API server; its backends are the servers themselves.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// Ends the name of a peer that is a service: no object of Kubernetes has it.
const SERVICE_MARK: &str = "~service";
/// Kinds that hold policies.
const POLICIES: [Kind; 5] = [
    Kind::NetworkPolicy,
    Kind::CiliumNetworkPolicy,
    Kind::CiliumClusterwideNetworkPolicy,
    Kind::CiliumCIDRGroup,
    Kind::ClusterNetworkPolicy,
];

/// Every policy object.
pub(crate) fn policies(tables: &Tables) -> Arc<[PolicyObject]> {
    POLICIES.iter().flat_map(|kind| tables.of(*kind).filter_map(|row| policy(*kind, row))).collect()
}

/// Everybody as the node `node` sees them.
pub(crate) fn who(tables: &Tables, node: &str, dns: &Dns) -> Who {
    let mut topology = EndpointsFile {
        namespaces: tables.of(Kind::Namespace).filter_map(namespace).collect(),
        ..EndpointsFile::default()
    };
    nodes(tables, node, &mut topology);
    let local = pods(tables, node, &mut topology);
    let services: Vec<Service> = services(tables);
    let api_server = services.iter().find(|one| (&*one.namespace, &*one.name) == API_SERVER);
    let behind = |service: &Service| {
        let targets = service.ports.iter().flat_map(|port| &port.targets).map(|target| target.address);
        service.addresses.iter().copied().chain(targets).collect::<BTreeSet<IpAddr>>().into_iter().collect()
    };
    let resolvers = services.iter().filter(|service| is_resolver(service, dns));
    let resolvers = resolvers.map(|service| as_peer(service, &topology)).collect();
    let api_servers = api_server.map(behind).unwrap_or_default();
    Who { topology, local, services, resolvers, api_servers }
}

fn namespace((key, row): (&Key, &Row)) -> Option<Namespace> {
    let Row::Namespace(row) = row else { return None };
    Some(Namespace { name: key.1.to_string(), labels: row.labels.clone() })
}

fn nodes(tables: &Tables, this: &str, topology: &mut EndpointsFile) {
    for (key, row) in tables.of(Kind::Node) {
        let Row::Node(row) = row else { continue };
        let (addresses, labels) = (row.addresses.clone(), row.labels.clone());
        if &*key.1 == this {
            topology.host = Host { addresses, labels };
        } else {
            topology.nodes.push(Node { name: key.1.to_string(), addresses, labels });
        }
    }
}

/// Adds every pod with a network of its own; returns those of this node. A pod that has not changed is the same endpoint as
/// before.
fn pods(tables: &Tables, node: &str, topology: &mut EndpointsFile) -> BTreeMap<String, LocalPod> {
    let mut pods: Vec<(&Key, &row::Pod)> = Vec::new();
    for (key, row) in tables.of(Kind::Pod) {
        if let Row::Pod(pod) = row
            && !pod.host_network
        {
            pods.push((key, pod));
        }
    }
    let owners = owners(&pods);
    let mut local = BTreeMap::new();
    for (key, pod) in pods {
        let is_local = pod.node.as_deref() == Some(node);
        let is_own = |address: &IpAddr| owners.get(address).is_some_and(|(owner, _)| *owner == key);
        if is_local {
            let uids = std::iter::once(pod.uid.clone()).chain(pod.mirror.clone()).collect();
            local.insert(format!("{}/{}", key.0, key.1), LocalPod { uids });
        } else if !pod.addresses.iter().any(is_own) {
            continue;
        }
        let mut endpoint = Arc::clone(pod.endpoint.0.get_or_init(|| Arc::new(endpoint(key, pod))));
        if !pod.addresses.iter().all(is_own) {
            Arc::make_mut(&mut endpoint).addresses.retain(is_own);
        }
        topology.endpoints.push(endpoint);
    }
    local
}

/// A pod with all of its addresses.
fn endpoint(key: &Key, pod: &row::Pod) -> Endpoint {
    Endpoint {
        name: key.1.to_string(),
        namespace: key.0.to_string(),
        labels: pod.labels.clone(),
        service_account: pod.account.clone(),
        attachment: None,
        addresses: pod.addresses.clone(),
        named_ports: pod.ports.iter().filter_map(row::Port::named).collect(),
    }
}

/// Who has which address; of several the first by their ranks.
fn owners<'a>(pods: &[(&'a Key, &row::Pod)]) -> HashMap<IpAddr, (&'a Key, (bool, Reverse<i64>))> {
    let mut owners = HashMap::with_capacity(pods.len());
    for &(key, pod) in pods {
        let rank = (pod.leaving, Reverse(pod.created));
        for address in &pod.addresses {
            match owners.entry(*address) {
                Entry::Vacant(free) => _ = free.insert((key, rank)),
                Entry::Occupied(mut owned) if rank < owned.get().1 => _ = owned.insert((key, rank)),
                Entry::Occupied(_) => {}
            }
        }
    }
    owners
}

fn services(tables: &Tables) -> Vec<Service> {
    let mut slices: HashMap<(&str, &str), Vec<&Slice>> = HashMap::new();
    for (key, row) in tables.of(Kind::EndpointSlice) {
        if let Row::Slice(slice) = row {
            slices.entry((&key.0, &slice.service)).or_default().push(slice);
        }
    }
    let mut services = Vec::new();
    for (key, row) in tables.of(Kind::Service) {
        let Row::Service(row) = row else { continue };
        let behind = slices.get(&(&*key.0, &*key.1)).map_or(&[][..], Vec::as_slice);
        services.push(row.with(&key.0, &key.1, behind));
    }
    services
}

/// Whether everything behind the service is a trusted resolver.
fn is_resolver(service: &Service, dns: &Dns) -> bool {
    !dns.resolver_labels.is_empty()
        && service.namespace == dns.resolver_namespace
        && dns.resolver_labels.iter().all(|(key, value)| service.selector.get(key) == Some(value))
        && service.ports.iter().any(|port| port.port == DNS_PORT)
}

/// A service as whoever is behind it: a rule that selects every pod behind selects the service's own address.
fn as_peer(service: &Service, topology: &EndpointsFile) -> Endpoint {
    let is_behind = |pod: &&Arc<Endpoint>| {
        pod.namespace == service.namespace
            && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    let mut behind = topology.endpoints.iter().filter(is_behind);
    let first = behind.next();
    let mut labels = first.map_or_else(|| service.selector.clone(), |pod| pod.labels.clone());
    let mut account = first.and_then(|pod| pod.service_account.clone());
    for pod in behind {
        labels.retain(|key, value| pod.labels.get(key) == Some(value));
        account = account.filter(|account| pod.service_account.as_ref() == Some(account));
    }
    Endpoint {
        name: format!("{}{SERVICE_MARK}", service.name),
        namespace: service.namespace.clone(),
        labels,
        service_account: account,
        attachment: None,
        addresses: service.addresses.clone(),
        named_ports: Vec::new(),
    }
}

fn origin(kind: Kind, key: &Key) -> Arc<str> {
    let slash = if key.0.is_empty() { "" } else { "/" };
    format!("{} {}{slash}{}", kind.name(), key.0, key.1).into()
}

/// The objects and nodes as the server has them, for reports.
pub(crate) fn observed(tables: &Tables) -> Observed {
    let mut objects = HashMap::new();
    for kind in POLICIES {
        for (key, row) in tables.of(kind) {
            let Row::Policy(row) = row else { continue };
            let object = Object {
                kind,
                version: row.document["apiVersion"].as_str().unwrap_or_default().to_owned(),
                namespace: Arc::clone(&key.0),
                name: Arc::clone(&key.1),
                uid: row.uid.clone(),
                generation: row.generation,
                status: Arc::clone(&row.status),
            };
            objects.insert(origin(kind, key), object);
        }
    }
    Observed { nodes: tables.of(Kind::Node).map(|(key, _)| key.1.to_string()).collect(), objects }
}

fn policy(kind: Kind, (key, row): (&Key, &Row)) -> Option<PolicyObject> {
    let Row::Policy(row) = row else { return None };
    Some(PolicyObject {
        origin: origin(kind, key),
        document: row.document.clone(),
        version: (row.uid.clone(), row.generation),
    })
}

#[cfg(test)]
mod tests;
