//! From the endpoints file to who is where: interfaces that the file names become indices, where they are there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use namegate_config::{
    endpoints::{Attachment, Endpoint, EndpointsFile, Namespace},
    labels::Labels,
};
use namegate_engine::{Topology, TopologyEndpoint, TopologyNode};
use namegate_loader::links::{self, Links};

use super::{
    absent::interfaces_like,
    cluster_state::{Adopted, ClusterState, Interfaces, UNKNOWN},
};

/// What a search for interfaces brought.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Those that are to be enforced.
    pub(crate) interfaces: Interfaces,
    /// Endpoints whose look-up failed, and why. What was enforced for them stays so.
    pub(crate) failed: BTreeMap<String, String>,
    /// Endpoints with an interface that is not where it should be, and stays enforced.
    pub(crate) displaced: BTreeMap<String, String>,
    /// Endpoints whose interface is named anew and is not there under that name. The former one stays enforced.
    pub(crate) absent: BTreeMap<String, String>,
}

/// By what an endpoint's interface is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claim {
    Listed(Attachment),
    Adopted(Vec<String>),
    /// It was in the kernel's rows when the agent started.
    Kernel,
}

/// The kernel's answer about one interface.
type LookUp<T> = std::io::Result<Option<T>>;

/// How interfaces are asked for; tests have their own.
pub(crate) trait Kernel {
    /// Index of an interface by its name.
    fn by_name(&mut self, name: &str) -> LookUp<u32>;
    /// Name of an interface by its index.
    fn by_index(&mut self, index: u32) -> LookUp<String>;
    /// Interfaces that lead to a network namespace.
    fn leading_to(&mut self, netns: &Path) -> LookUp<Vec<u32>>;
}

/// The machine itself. All links are read once for a search, where namespaces are asked for.
#[derive(Default)]
pub(crate) struct Machine(Option<Links>);

impl Kernel for Machine {
    fn by_name(&mut self, name: &str) -> LookUp<u32> {
        links::index_of(name)
    }

    fn by_index(&mut self, index: u32) -> LookUp<String> {
        Ok(links::by_index(index)?.map(|link| link.name))
    }

    fn leading_to(&mut self, netns: &Path) -> LookUp<Vec<u32>> {
        let links = match self.0.take() {
            Some(links) => links,
            None => Links::read()?,
        };
        self.0.insert(links).leading_to(netns)
    }
}

/// Finds interfaces and remembers them: the last one of an endpoint stays its own as long as it lives, whatever happens to
/// its name, and to what is on its other side. It is let go where the file names another one that is there, where another
/// endpoint has it, or where the file leaves the endpoint out.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    last: HashMap<String, (Claim, Vec<u32>)>,
}

impl Finder {
    /// What the kernel's rows say of each endpoint's interfaces at the start.
    pub(crate) fn begin(&mut self, known: Interfaces) {
        self.last = known.into_iter().map(|(key, interfaces)| (key, (Claim::Kernel, interfaces))).collect();
    }

    /// Looks for the interfaces of every endpoint of the file.
    pub(crate) fn find(
        &mut self,
        kernel: &mut impl Kernel,
        file: &EndpointsFile,
        adopted: &BTreeMap<String, Adopted>,
    ) -> Found {
        let mut found = Found::default();
        let mut answers: Vec<(String, Claim, Vec<u32>)> = Vec::new();
        for endpoint in &file.endpoints {
            let key = key(endpoint);
            let claim = match (adopted.get(&key), &endpoint.attachment) {
                (Some(adopted), _) => Claim::Adopted(adopted.uids.clone()),
                (None, Some(attachment)) => Claim::Listed(attachment.clone()),
                (None, None) => continue,
            };
            let indices = look_up(kernel, &claim, adopted.get(&key)).unwrap_or_else(|error| {
                found.failed.insert(key.clone(), error);
                Vec::new()
            });
            answers.push((key, claim, indices));
        }
        let mut taken: HashSet<u32> = answers.iter().flat_map(|(_, _, indices)| indices).copied().collect();
        let mut last = HashMap::with_capacity(answers.len());
        for (key, claim, indices) in answers {
            let kept = self.kept(kernel, &key, &claim, &indices, &taken, &mut found);
            taken.extend(&kept);
            // One that was first stays first: its row is replaced and not moved.
            let former = self.last.get(&key).and_then(|(_, former)| former.first()).copied();
            let mut interfaces: Vec<u32> = indices.into_iter().chain(kept).collect();
            interfaces.sort_unstable_by_key(|index| (Some(*index) != former, *index));
            if !interfaces.is_empty() {
                // After a failure it is not known yet whether the file means another interface, and one that is not there
                // yet takes the place of the former one as soon as it is.
                let is_former = found.failed.contains_key(&key) || found.absent.contains_key(&key);
                let former = self.last.get(&key).map(|(former, _)| former.clone());
                let claim = former.filter(|_| is_former).unwrap_or(claim);
                found.interfaces.insert(key.clone(), interfaces.clone());
                last.insert(key, (claim, interfaces));
            }
        }
        self.last = last;
        found
    }

    /// Interfaces of the last search that this one does not name, and that live.
    fn kept(
        &self,
        kernel: &mut impl Kernel,
        key: &str,
        claim: &Claim,
        indices: &[u32],
        taken: &HashSet<u32>,
        found: &mut Found,
    ) -> Vec<u32> {
        let Some((former, last)) = self.last.get(key) else { return Vec::new() };
        let has_failed = found.failed.contains_key(key);
        if former != claim && !indices.is_empty() {
            return Vec::new(); // The file names another one, which is there: that is meant so.
        }
        let is_renamed = former != claim && *former != Claim::Kernel;
        let mut kept = Vec::new();
        for index in last.iter().copied().filter(|index| !taken.contains(index)) {
            match kernel.by_index(index) {
                Ok(None) => {}
                Ok(Some(name)) => {
                    kept.push(index);
                    if is_renamed && !has_failed {
                        found.absent.insert(key.to_owned(), absent(claim, &name, index));
                    } else if !has_failed {
                        found.displaced.insert(key.to_owned(), displaced(claim, &name, index));
                    }
                }
                Err(error) => {
                    kept.push(index);
                    found
                        .failed
                        .insert(key.to_owned(), format!("looking for the interface with index {index}: {error}"));
                }
            }
        }
        kept
    }
}

fn look_up(kernel: &mut impl Kernel, claim: &Claim, adopted: Option<&Adopted>) -> Result<Vec<u32>, String> {
    match (claim, adopted) {
        (Claim::Listed(Attachment::Interface(name)), _) => kernel
            .by_name(name)
            .map(|index| index.into_iter().collect())
            .map_err(|error| format!("looking for the interface {name}: {error}")),
        (Claim::Listed(Attachment::Netns(path)), _) => kernel
            .leading_to(path)
            .map(Option::unwrap_or_default)
            .map_err(|error| format!("looking for the interfaces that lead to {}: {error}", path.display())),
        (_, Some(adopted)) => adopted.interfaces.clone(),
        _ => Ok(Vec::new()),
    }
}

fn displaced(claim: &Claim, name: &str, index: u32) -> String {
    match claim {
        Claim::Listed(Attachment::Interface(wanted)) => format!(
            "its interface {wanted} is called {name} (index {index}) by now and stays enforced; give it its name back, or \
             name {name} in the endpoints file"
        ),
        Claim::Listed(Attachment::Netns(path)) => format!(
            "its interface {name} (index {index}) does not lead to {} any more and stays enforced; move its other side \
             back, or delete it",
            path.display()
        ),
        _ => format!(
            "its interface {name} (index {index}) does not lead to a namespace of the pod any more and stays enforced; \
             delete the pod if it should go"
        ),
    }
}

/// What is said of an endpoint whose interface is named anew and is not there.
fn absent(claim: &Claim, name: &str, index: u32) -> String {
    let kept = format!("its former interface {name} (index {index}) stays enforced meanwhile");
    match claim {
        Claim::Listed(Attachment::Interface(wanted)) => format!(
            "the interface {wanted} is not there, and {kept}; start the endpoint, or correct `interface`: {}",
            interfaces_like(wanted)
        ),
        Claim::Listed(Attachment::Netns(path)) => format!(
            "no interface of this machine leads to the network namespace {}, and {kept}; start the endpoint, or correct \
             `netns`",
            path.display()
        ),
        _ => format!(
            "no interface of this machine leads to a network namespace of the new pod, and {kept}; delete the interface \
             if its pod is gone"
        ),
    }
}

/// `namespace/name`.
pub(crate) fn key(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.namespace, endpoint.name)
}

/// What the engine was told last: an endpoint that is the same again is told again as it was.
#[derive(Default)]
pub(crate) struct Told {
    /// By where the endpoint lies in memory: it lies there as long as it is held here.
    endpoints: HashMap<usize, (Arc<Endpoint>, Arc<TopologyEndpoint>)>,
    namespaces: Vec<Namespace>,
}

impl Told {
    /// The endpoints of the file for the engine.
    fn endpoints(
        &mut self,
        file: &EndpointsFile,
        facts: &ClusterState,
        interfaces: &Interfaces,
    ) -> Vec<Arc<TopologyEndpoint>> {
        if self.namespaces != file.namespaces {
            self.endpoints.clear();
            self.namespaces.clone_from(&file.namespaces);
        }
        let mut now = HashMap::with_capacity(file.endpoints.len());
        let mut told = Vec::with_capacity(file.endpoints.len());
        for endpoint in &file.endpoints {
            let place = Arc::as_ptr(endpoint).addr();
            let former = self.endpoints.remove(&place).map(|(_, former)| former);
            let former = former.filter(|former| former.interface == first(interfaces, &former.key));
            let one = former.unwrap_or_else(|| Arc::new(one(file, endpoint, facts, interfaces)));
            told.push(Arc::clone(&one));
            now.insert(place, (Arc::clone(endpoint), one));
        }
        self.endpoints = now;
        told
    }
}

fn first(interfaces: &Interfaces, key: &str) -> Option<u32> {
    interfaces.get(key).and_then(|indices| indices.first()).copied()
}

fn one(file: &EndpointsFile, endpoint: &Endpoint, facts: &ClusterState, interfaces: &Interfaces) -> TopologyEndpoint {
    let key = key(endpoint);
    let labels = if facts.unknown.contains(&key) { Labels::reserved(UNKNOWN) } else { file.labels(endpoint) };
    TopologyEndpoint {
        labels: Arc::new(labels),
        addresses: endpoint.addresses.clone(),
        named_ports: endpoint.named_ports.clone(),
        interface: first(interfaces, &key),
        key: key.into(),
    }
}

/// What the engine is told.
pub(crate) fn topology(
    file: &EndpointsFile,
    facts: &ClusterState,
    interfaces: &Interfaces,
    told: &mut Told,
) -> Topology {
    let host = TopologyNode {
        name: "host".to_owned(),
        labels: file.host.labels(),
        addresses: file.host.addresses.clone(),
        local: true,
    };
    let others = file.nodes.iter().map(|node| TopologyNode {
        name: node.name.clone(),
        labels: node.labels(),
        addresses: node.addresses.clone(),
        local: false,
    });
    // An address that many machines have is a known one, and nobody's: no name opens it, and no packet from it is the node's.
    let shared = (!facts.shared.is_empty()).then(|| TopologyNode {
        name: "host-networks".to_owned(),
        labels: Labels::reserved("shared"),
        addresses: facts.shared.clone(),
        local: false,
    });
    let mut topology = Topology {
        endpoints: told.endpoints(file, facts, interfaces),
        nodes: std::iter::once(host).chain(others).chain(shared).collect(),
        resolver_services: facts.resolver_services.clone(),
        services: file.services.clone(),
        more_interfaces: interfaces
            .iter()
            .filter(|(_, indices)| indices.len() > 1)
            .map(|(key, indices)| (key.as_str().into(), indices[1..].to_vec()))
            .collect(),
    };
    mark_api_servers(&mut topology, &facts.api_servers);
    topology
}

/// Labels the nodes of the API server; its addresses beside them are those of a peer outside.
fn mark_api_servers(topology: &mut Topology, addresses: &[IpAddr]) {
    const NAME: &str = "kube-apiserver";
    let mut rest: Vec<IpAddr> = addresses.to_vec();
    for node in &mut topology.nodes {
        if node.addresses.iter().any(|address| rest.contains(address)) {
            rest.retain(|address| !node.addresses.contains(address));
            node.labels.reserve(NAME);
        }
    }
    if !rest.is_empty() {
        let mut labels = Labels::reserved("world");
        labels.reserve(NAME);
        topology.endpoints.push(Arc::new(TopologyEndpoint {
            key: "default/kubernetes~service".into(),
            labels: Arc::new(labels),
            addresses: rest,
            named_ports: Vec::new(),
            interface: None,
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use nix::errno::Errno;

    use super::*;

    /// Names by index, what leads to namespaces, and an error in place of every answer.
    #[derive(Default)]
    struct Fake {
        names: BTreeMap<u32, &'static str>,
        leading: BTreeMap<&'static str, Vec<u32>>,
        error: Option<i32>,
    }

    impl Fake {
        fn answer<T>(&self, answer: Option<T>) -> LookUp<T> {
            self.error.map_or(Ok(answer), |error| Err(io::Error::from_raw_os_error(error)))
        }
    }

    impl Kernel for Fake {
        fn by_name(&mut self, name: &str) -> LookUp<u32> {
            self.answer(self.names.iter().find(|(_, known)| **known == name).map(|(index, _)| *index))
        }

        fn by_index(&mut self, index: u32) -> LookUp<String> {
            self.answer(self.names.get(&index).map(|name| (*name).to_owned()))
        }

        fn leading_to(&mut self, netns: &Path) -> LookUp<Vec<u32>> {
            self.answer(netns.to_str().and_then(|path| self.leading.get(path)).cloned())
        }
    }

    fn file(interface_of_a: &str) -> EndpointsFile {
        let text = format!(
            "endpoints:\n- {{name: a, namespace: default, interface: {interface_of_a}, addresses: [192.0.2.1]}}\n\
             - {{name: b, namespace: default, netns: /run/netns/b, addresses: [192.0.2.2]}}\n"
        );
        namegate_config::endpoints::parse("endpoints.yaml", &text).unwrap()
    }

    /// The same where a test calls its own file `file`.
    fn other_file(interface_of_a: &str) -> EndpointsFile {
        file(interface_of_a)
    }

    fn find(finder: &mut Finder, fake: &mut Fake, file: &EndpointsFile) -> (Vec<u32>, Vec<u32>, Found) {
        let found = finder.find(fake, file, &BTreeMap::new());
        let of = |key: &str| found.interfaces.get(key).cloned().unwrap_or_default();
        (of("default/a"), of("default/b"), found)
    }

    fn fake() -> Fake {
        let names = BTreeMap::from([(7, "veth-a"), (8, "veth-b"), (9, "veth-c")]);
        Fake { names, leading: BTreeMap::from([("/run/netns/b", vec![8, 9])]), error: None }
    }

    #[test]
    fn a_look_up_that_fails_leaves_what_was_found() {
        let (mut finder, mut fake, file) = (Finder::default(), fake(), file("veth-a"));
        assert!(matches!(find(&mut finder, &mut fake, &file), (a, b, _) if a == [7] && b == [8, 9]));
        for error in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EACCES, Errno::EINTR, Errno::ENOBUFS]
            .map(|it| it as i32)
        {
            fake.error = Some(error);
            let (a, b, found) = find(&mut finder, &mut fake, &file);
            assert_eq!((a, b, found.failed.len()), (vec![7], vec![8, 9], 2), "{error}");
            // Also where the file names another interface meanwhile.
            let other = other_file("veth-other");
            let (a, _, found) = find(&mut finder, &mut fake, &other);
            assert_eq!((a, found.failed.len()), (vec![7], 2), "{error}");
            fake.error = None;
            assert!(matches!(find(&mut finder, &mut fake, &file), (a, b, found)
                if a == [7] && b == [8, 9] && found.failed.is_empty()));
        }
        fake.names.clear();
        fake.leading.clear();
        assert!(matches!(find(&mut finder, &mut fake, &file), (a, b, _) if a.is_empty() && b.is_empty()));
    }

    #[test]
    fn an_interface_stays_its_endpoints_as_long_as_it_lives() {
        let (mut finder, mut fake, file) = (Finder::default(), fake(), file("veth-a"));
        find(&mut finder, &mut fake, &file);
        fake.names.insert(7, "renamed");
        fake.leading.insert("/run/netns/b", vec![9]);
        let (a, b, found) = find(&mut finder, &mut fake, &file);
        assert_eq!((a, b), (vec![7], vec![8, 9]));
        assert_eq!(found.displaced.keys().collect::<Vec<_>>(), ["default/a", "default/b"]);
        // One of the same name is another, and is enforced beside it; the old one goes when it goes.
        fake.names.insert(70, "veth-a");
        assert_eq!(find(&mut finder, &mut fake, &file).0, [7, 70]);
        fake.names.remove(&7);
        fake.names.remove(&8);
        let (a, b, found) = find(&mut finder, &mut fake, &file);
        assert_eq!((a, b, found.displaced.len()), (vec![70], vec![9], 0));
        // What another endpoint has by now is no longer this one's.
        fake.names.insert(9, "veth-b");
        fake.leading.clear();
        let other = other_file("veth-b");
        let (a, b, _) = find(&mut finder, &mut fake, &other);
        assert_eq!((a, b), (vec![9], vec![]));
    }

    #[test]
    fn what_the_file_names_anew_lets_the_old_one_go() {
        let (mut finder, mut fake) = (Finder::default(), fake());
        find(&mut finder, &mut fake, &file("veth-a"));
        fake.leading.clear();
        assert_eq!(find(&mut finder, &mut fake, &file("veth-c")).0, [9]);
        // One that is not there takes nothing away, until it comes.
        for _ in 0..2 {
            let (a, _, found) = find(&mut finder, &mut fake, &file("no-such"));
            assert_eq!((a, found.displaced.get("default/a")), (vec![9], None));
            let message = &found.absent["default/a"];
            assert!(message.contains("no-such") && message.contains("veth-c (index 9)"), "{message}");
        }
        fake.names.insert(70, "no-such");
        let (a, _, found) = find(&mut finder, &mut fake, &file("no-such"));
        assert_eq!((a, found.absent.len()), (vec![70], 0));
    }

    #[test]
    fn a_network_namespace_that_is_not_there_takes_nothing_away() {
        let by_netns = |path: &str| {
            let text = format!(
                "endpoints:\n- {{name: a, namespace: default, netns: {path}, addresses: [192.0.2.1]}}\n\
                 - {{name: b, namespace: default, netns: /run/netns/b, addresses: [192.0.2.2]}}\n"
            );
            namegate_config::endpoints::parse("endpoints.yaml", &text).unwrap()
        };
        let (mut finder, mut fake) = (Finder::default(), fake());
        find(&mut finder, &mut fake, &file("veth-a"));
        let (a, _, found) = find(&mut finder, &mut fake, &by_netns("/run/netns/a"));
        assert_eq!(a, [7]);
        assert!(found.absent["default/a"].contains("/run/netns/a"), "{:?}", found.absent);
        // Neither does a look-up that fails, nor a return to the former name.
        fake.error = Some(Errno::EMFILE as i32);
        assert_eq!(find(&mut finder, &mut fake, &by_netns("/run/netns/a")).0, [7]);
        fake.error = None;
        let (a, _, found) = find(&mut finder, &mut fake, &file("veth-a"));
        assert_eq!((a, found.absent.len(), found.displaced.len()), (vec![7], 0, 0));
        find(&mut finder, &mut fake, &by_netns("/run/netns/a"));
        fake.leading.insert("/run/netns/a", vec![70]);
        assert_eq!(find(&mut finder, &mut fake, &by_netns("/run/netns/a")).0, [70]);
    }

    #[test]
    fn an_interface_that_another_endpoint_takes_is_let_go() {
        let (mut finder, mut fake) = (Finder::default(), fake());
        find(&mut finder, &mut fake, &file("veth-a"));
        fake.leading.insert("/run/netns/b", vec![7]);
        let (a, b, found) = find(&mut finder, &mut fake, &file("no-such"));
        assert_eq!((a, b, found.absent.len()), (vec![], vec![8, 7, 9], 0));
    }

    #[test]
    fn a_start_knows_what_the_kernel_holds() {
        let (mut finder, mut fake) = (Finder::default(), fake());
        finder.begin(Interfaces::from([("default/a".to_owned(), vec![9]), ("default/b".to_owned(), vec![5])]));
        fake.leading.clear();
        let (a, b, found) = find(&mut finder, &mut fake, &file("no-such"));
        assert_eq!((a, b), (vec![9], vec![]), "one lives, and the other does not");
        assert_eq!(found.displaced.len(), 1);
        let mut finder = Finder::default();
        finder.begin(Interfaces::from([("default/a".to_owned(), vec![9])]));
        assert_eq!(find(&mut finder, &mut fake, &file("veth-a")).0, [7], "the file names one that is there");
    }

    #[test]
    fn a_pod_that_nothing_registered_keeps_its_interface() {
        let (mut finder, mut fake, file) = (Finder::default(), fake(), file("veth-a"));
        let adopted = |uid: &str, interfaces: Result<Vec<u32>, String>| {
            BTreeMap::from([("default/b".to_owned(), Adopted { uids: vec![uid.to_owned()], interfaces })])
        };
        let mut find = |adopted| finder.find(&mut fake, &file, &adopted).interfaces.get("default/b").cloned();
        assert_eq!(find(adopted("1", Ok(vec![8]))), Some(vec![8]));
        assert_eq!(find(adopted("1", Ok(vec![]))), Some(vec![8]), "its address is gone, it is not");
        assert_eq!(find(adopted("2", Err("EMFILE".to_owned()))), Some(vec![8]));
        assert_eq!(find(adopted("3", Ok(vec![]))), Some(vec![8]), "another pod of the same name is not there yet");
        assert_eq!(find(adopted("3", Ok(vec![9]))), Some(vec![9]));
    }
}
