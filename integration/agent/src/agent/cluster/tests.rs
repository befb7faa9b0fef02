//! Who joins the endpoints, and which networks are enforced.

use namegate_api::view::CniRegistration;
use namegate_config::endpoints;

use super::*;

/// A cluster whose snapshots a test sends, with no network registered.
pub(crate) fn cluster(state: &std::path::Path) -> (Cluster, watch::Sender<Option<Arc<Snapshot>>>) {
    let (snapshots, received) = watch::channel(None);
    let cluster = Cluster {
        snapshots: received,
        registry: Arc::new(Registry::open(state, 64).unwrap()),
        reports: watch::Sender::default(),
        readings: watch::Sender::default(),
        adopter: Adopter::default(),
        upto: 0,
    };
    (cluster, snapshots)
}

/// The pods of an endpoints file, of which those without addresses are of this node.
pub(crate) fn who(text: &str) -> Who {
    let topology = endpoints::parse("e.yaml", text).unwrap();
    let local = topology.endpoints.iter().filter(|one| one.addresses.is_empty());
    let local = local.map(|one| (interfaces::key(one), LocalPod { uids: vec![format!("uid-{}", one.name)] }));
    Who { local: local.collect(), topology, ..Who::default() }
}

const PODS: &str = "endpoints:\n\
    - {name: web, namespace: shop, labels: {app: web}, addresses: []}\n\
    - {name: db, namespace: shop, addresses: [10.20.0.3, 10.20.0.4]}\n";

fn registration(pod: &str, uid: &str, address: &str) -> CniRegistration {
    CniRegistration {
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        uid: uid.to_owned(),
        interface: format!("veth-{pod}"),
        addresses: vec![address.parse().unwrap()],
        netns: None,
    }
}

/// Name, interface and addresses of each endpoint.
fn lines(file: &EndpointsFile) -> Vec<String> {
    let line = |one: &Arc<Endpoint>| {
        let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        let interface = match &one.attachment {
            Some(Attachment::Interface(name)) => name,
            _ => "-",
        };
        format!("{} {interface} {}", one.name, addresses.join(","))
    };
    file.endpoints.iter().map(line).collect()
}

#[test]
fn a_registration_gives_a_pod_its_interface_and_an_unknown_one_stands_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, _) = cluster(folder.path());
    let who = who(PODS);
    let join = |cluster: &mut Cluster| {
        let mut file = EndpointsFile::default();
        let facts = cluster.join(&who, &mut file, &Own::default());
        (lines(&file), facts)
    };
    let (before, facts) = join(&mut cluster);
    assert_eq!(before, ["web - ", "db - 10.20.0.3,10.20.0.4"]);
    assert!(facts.local.contains("shop/web") && facts.unknown.is_empty() && cluster.is_settled());

    cluster.registry.put("c1", registration("web", "uid-web", "10.20.0.2")).unwrap();
    cluster.registry.put("c2", registration("web", "another", "10.20.0.9")).unwrap();
    assert!(!cluster.is_settled(), "registrations are new");
    let (after, facts) = join(&mut cluster);
    assert_eq!(after, ["web veth-web 10.20.0.2", "db - 10.20.0.3,10.20.0.4", "web~c2 veth-web 10.20.0.9"]);
    assert_eq!(facts.unknown.iter().collect::<Vec<_>>(), ["shop/web~c2"]);
    assert_eq!(facts.containers["c1"], "shop/web");
    assert!(cluster.is_settled());
}

#[test]
fn an_address_belongs_to_the_pod_that_registered_it_last() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, _) = cluster(folder.path());
    cluster.registry.put("c1", registration("web", "uid-web", "10.20.0.3")).unwrap();
    let mut file = EndpointsFile::default();
    cluster.join(&who(PODS), &mut file, &Own::default());
    assert_eq!(lines(&file), ["web veth-web 10.20.0.3", "db - 10.20.0.4"]);
}

#[test]
fn a_network_is_guarded_when_its_interface_is_and_nothing_closes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, _) = cluster(folder.path());
    cluster.registry.put("c1", registration("web", "uid-web", "10.20.0.2")).unwrap();
    let facts = cluster.join(&who(PODS), &mut EndpointsFile::default(), &Own::default());
    let there = Found { interfaces: [("shop/web".to_owned(), vec![7])].into(), ..Found::default() };
    let state = |found: &Found, guarded: &[u32], closed: &[(&str, &str)]| {
        let closed = closed.iter().map(|(key, why)| ((*key).to_owned(), (*why).to_owned())).collect();
        cluster.tell(&facts, found, &guarded.iter().copied().collect(), &closed);
        let network = cluster.registry.list().remove(0);
        (network.state, network.problem.unwrap_or_default())
    };
    assert_eq!(state(&Found::default(), &[], &[]).1, "its interface is not there");
    assert_eq!(state(&there, &[], &[]).0, CniState::Waiting);
    assert_eq!(state(&there, &[7], &[("shop/web", "no room")]), (CniState::Waiting, "no room".to_owned()));
    assert_eq!(state(&there, &[7], &[]), (CniState::Guarded, String::new()));
}

#[test]
fn the_same_reports_are_sent_once() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _) = cluster(folder.path());
    let mut received = cluster.reports.subscribe();
    let report = |enforced| Report {
        origin: "NetworkPolicy shop/p".into(),
        version: ("uid".to_owned(), 1),
        mistakes: Vec::new(),
        warnings: Vec::new(),
        enforced,
    };
    for (enforced, is_new) in [(false, true), (false, false), (true, true)] {
        cluster.report(vec![report(enforced)]);
        assert_eq!(received.has_changed().unwrap(), is_new, "{enforced}");
        received.mark_unchanged();
    }
}
