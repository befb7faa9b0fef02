//! Kubernetes' endpoints on this machine: each pod of the node with its interface, and the networks of pods that are not
//! known.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use namegate_api::view::CniState;
use namegate_config::endpoints::{Attachment, Endpoint, EndpointsFile};
use namegate_kubernetes::{LocalPod, Report, Snapshot, Watch, Who};
use namegate_loader::netns::Own;
use tokio::sync::watch;

use super::{
    cluster_state::{Adopted, ClusterState},
    cni::{Entry, Outcome, Registry},
    existing_pods::Adopter,
    interfaces::{self, Found},
    own,
    reading::Reading,
    unused_selectors::Read,
};

/// Address of a resolver that each node has for its own pods (`NodeLocal` DNS cache).
const NODE_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

/// Kubernetes as a source.
pub(crate) struct Cluster {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    registry: Arc<Registry>,
    reports: watch::Sender<Arc<Vec<Report>>>,
    readings: watch::Sender<Read>,
    adopter: Adopter,
    /// Serial of the last registration that was read.
    upto: u64,
}

/// Namespace and name of an endpoint.
type Name<'a> = (&'a str, &'a str);

/// Registrations that were found to be those of pods, or of nobody known.
type Claims<'a> = HashMap<String, &'a Entry>;

impl Cluster {
    /// Nothing read yet.
    pub(crate) fn new(watch: &Watch, registry: Arc<Registry>, readings: watch::Sender<Read>) -> Self {
        let (snapshots, reports) = (watch.snapshots(), watch.reports());
        Self { snapshots, registry, reports, readings, adopter: Adopter::default(), upto: 0 }
    }

    /// Hands a reading to whoever looks at who is selected.
    pub(crate) fn has_read(&self, reading: &Arc<Reading>, snapshot: &Arc<Snapshot>) {
        self.readings.send_replace(Some((Arc::clone(reading), Arc::clone(snapshot))));
    }

    /// Says what became of the policy objects of a reading.
    pub(crate) fn report(&self, reports: Vec<Report>) {
        self.reports.send_if_modified(|last| {
            let is_new = **last != reports;
            if is_new {
                *last = Arc::new(reports);
            }
            is_new
        });
    }

    /// The last snapshot.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.borrow().clone()
    }

    /// When a reading could find more interfaces.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.adopter.again()
    }

    /// Whether a new reading would find everybody where the last one did, from the same `snapshot`.
    pub(crate) fn is_settled(&self) -> bool {
        self.adopter.again().is_none() && self.upto == self.registry.changes()
    }

    /// Why the interfaces of pods that nothing registered could not be looked for.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.adopter.failure()
    }

    /// Adds whoever Kubernetes knows to the endpoints.
    pub(crate) fn join(&mut self, snapshot: &Who, endpoints: &mut EndpointsFile, own: &Own) -> ClusterState {
        let (entries, upto) = self.registry.entries();
        self.upto = upto;
        let mut facts = ClusterState {
            local: snapshot.local.keys().cloned().collect(),
            api_servers: snapshot.api_servers.clone(),
            ..ClusterState::default()
        };
        let (pods, strangers) = claims(snapshot, &entries, &mut facts);
        self.add_pods(snapshot, &pods, endpoints, &mut facts);
        for (key, entry) in &strangers {
            endpoints.endpoints.push(Arc::new(stranger(key, entry)));
            facts.unknown.insert(format!("{}/{key}", entry.registration.namespace));
        }
        keep_to_holders(endpoints, &pods, &strangers);
        let mut resolvers = snapshot.resolvers.clone();
        if let (Some(first), true) = (resolvers.first_mut(), own.addresses.contains(&NODE_RESOLVER)) {
            first.addresses.push(NODE_RESOLVER);
        }
        facts.resolver_services = resolvers.iter().flat_map(|service| service.addresses.clone()).collect();
        let of_services: HashSet<IpAddr> = snapshot
            .services
            .iter()
            .flat_map(|service| &service.addresses)
            .chain(&facts.resolver_services)
            .copied()
            .collect();
        let is_peer =
            |address: &IpAddr| facts.resolver_services.contains(address) || facts.api_servers.contains(address);
        let fronts = snapshot.services.iter().filter(|service| !service.addresses.iter().any(is_peer));
        endpoints.services.extend(fronts.cloned());
        endpoints.endpoints.extend(resolvers.into_iter().map(Arc::new));
        endpoints.host.addresses.extend(&snapshot.topology.host.addresses);
        endpoints.host.addresses.retain(|address| !of_services.contains(address));
        endpoints.host.addresses.sort_unstable();
        let shared = own::add(endpoints, own, &of_services);
        endpoints.host.labels.extend(snapshot.topology.host.labels.clone());
        endpoints.nodes.extend(snapshot.topology.nodes.iter().cloned());
        endpoints.namespaces.extend(snapshot.topology.namespaces.iter().cloned());
        let of_nodes: HashSet<IpAddr> =
            endpoints.nodes.iter().flat_map(|node| &node.addresses).map(IpAddr::to_canonical).collect();
        facts.shared = shared.into_iter().filter(|address| !of_nodes.contains(address)).collect();
        facts
    }

    fn add_pods(&mut self, snapshot: &Who, pods: &Claims<'_>, endpoints: &mut EndpointsFile, facts: &mut ClusterState) {
        let uids = snapshot.local.values().flat_map(|pod| pod.uids.iter().map(String::as_str)).collect();
        self.adopter.begin(uids);
        let local: HashSet<Name<'_>> = snapshot.local.keys().filter_map(|key| key.split_once('/')).collect();
        for listed in &snapshot.topology.endpoints {
            let is_local = local.contains(&(&*listed.namespace, &*listed.name));
            let pod = snapshot.local.get(&interfaces::key(listed)).filter(|_| is_local);
            let found = match pod {
                Some(pod) => self.local_pod(listed, pod, pods, facts),
                None => Arc::clone(listed),
            };
            endpoints.endpoints.push(found);
        }
    }

    /// A pod of this node with its interface and the addresses that were registered for it.
    fn local_pod(
        &mut self,
        listed: &Arc<Endpoint>,
        pod: &LocalPod,
        pods: &Claims<'_>,
        facts: &mut ClusterState,
    ) -> Arc<Endpoint> {
        let mut endpoint = Endpoint::clone(listed);
        let key = interfaces::key(listed);
        if let Some(entry) = pods.get(&key) {
            endpoint.attachment = Some(Attachment::Interface(entry.registration.interface.clone()));
            for address in &entry.registration.addresses {
                let address = address.to_canonical();
                if !endpoint.addresses.contains(&address) {
                    endpoint.addresses.push(address);
                }
            }
        } else if !endpoint.addresses.is_empty() {
            let interfaces = self.adopter.interfaces(&pod.uids, &endpoint.addresses);
            endpoint.attachment = Adopter::shown(&interfaces).map(Attachment::Interface);
            facts.adopted.insert(key, Adopted { uids: pod.uids.clone(), interfaces });
        }
        Arc::new(endpoint)
    }

    /// Tells who waits how far the registrations are carried out; `guarded` are interfaces with programs.
    pub(crate) fn tell(
        &self,
        facts: &ClusterState,
        found: &Found,
        guarded: &HashSet<u32>,
        closed: &BTreeMap<String, String>,
    ) {
        let state = |key: &String| match found.interfaces.get(key) {
            None if found.failed.contains_key(key) => (CniState::Waiting, found.failed.get(key).cloned()),
            None => (CniState::Waiting, Some("its interface is not there".to_owned())),
            Some(_) if found.absent.contains_key(key) => (CniState::Waiting, found.absent.get(key).cloned()),
            Some(indices) if !indices.iter().all(|index| guarded.contains(index)) => (
                CniState::Waiting,
                Some("programs could not be attached to its interface; the log says why".to_owned()),
            ),
            Some(_) => match closed.get(key) {
                Some(why) => (CniState::Waiting, Some(why.clone())),
                None if facts.unknown.contains(key) => (CniState::UnknownPod, None),
                None => (CniState::Guarded, None),
            },
        };
        let states = facts.containers.iter().map(|(container, key)| (container.clone(), state(key))).collect();
        self.registry.tell(Outcome { upto: self.upto, states: Arc::new(states) });
        // A look-up that failed says nothing about who is there.
        let is_gone = |key: &String| !found.interfaces.contains_key(key) && !found.failed.contains_key(key);
        let is_dead = |key: &String| facts.unknown.contains(key) && is_gone(key);
        let dead = facts.containers.iter().filter(|(_, key)| is_dead(key)).map(|(container, _)| container.clone());
        self.registry.drop_dead(&dead.collect());
    }
}

/// Which registration is whose: the last one that names a pod of this node is the pod's, others are nobody's.
fn claims<'a>(
    snapshot: &Who,
    entries: &'a BTreeMap<String, Entry>,
    facts: &mut ClusterState,
) -> (Claims<'a>, Claims<'a>) {
    let (mut pods, mut strangers): (Claims<'_>, Claims<'_>) = Default::default();
    let mut ordered: Vec<(&String, &Entry)> = entries.iter().collect();
    ordered.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.serial));
    for (container, entry) in ordered {
        let told = &entry.registration;
        let key = format!("{}/{}", told.namespace, told.pod);
        let is_pod = snapshot.local.get(&key).is_some_and(|pod| pod.is_called(&told.uid));
        if is_pod && !pods.contains_key(&key) {
            facts.containers.insert(container.clone(), key.clone());
            pods.insert(key, entry);
        } else {
            let name = format!("{}~{container}", told.pod);
            facts.containers.insert(container.clone(), format!("{}/{name}", told.namespace));
            strangers.insert(name, entry);
        }
    }
    (pods, strangers)
}

fn stranger(name: &str, entry: &Entry) -> Endpoint {
    let told = &entry.registration;
    Endpoint {
        name: name.to_owned(),
        namespace: told.namespace.clone(),
        labels: BTreeMap::new(),
        service_account: None,
        attachment: Some(Attachment::Interface(told.interface.clone())),
        addresses: told.addresses.iter().map(IpAddr::to_canonical).collect(),
        named_ports: Vec::new(),
    }
}

/// A registered address belongs to whoever registered it last, whatever the API server still says of others.
fn keep_to_holders(endpoints: &mut EndpointsFile, pods: &Claims<'_>, strangers: &Claims<'_>) {
    let of_pods = pods.iter().map(|(key, entry)| (key.clone(), *entry));
    let of_strangers =
        strangers.iter().map(|(name, entry)| (format!("{}/{name}", entry.registration.namespace), *entry));
    let mut holders: HashMap<IpAddr, (u64, String)> = HashMap::new();
    for (key, entry) in of_pods.chain(of_strangers) {
        for address in &entry.registration.addresses {
            let holder = holders.entry(address.to_canonical()).or_default();
            if entry.serial > holder.0 {
                *holder = (entry.serial, key.clone());
            }
        }
    }
    if holders.is_empty() {
        return;
    }
    for endpoint in &mut endpoints.endpoints {
        if endpoint.addresses.iter().any(|address| holders.contains_key(address)) {
            let key = interfaces::key(endpoint);
            let is_held = |address: &IpAddr| holders.get(address).is_none_or(|(_, holder)| *holder == key);
            Arc::make_mut(endpoint).addresses.retain(is_held);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
