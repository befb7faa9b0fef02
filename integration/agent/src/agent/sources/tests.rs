//! Sources together: files, objects of Kubernetes and the machine, and what is read of them when one changes.

use std::{fs, sync::Arc};

use namegate_config::settings;
use namegate_kubernetes::PolicyObject;
use tokio::sync::watch;

use super::*;
use crate::agent::{
    FEATURES,
    cluster::tests::{cluster, who},
    touched::Cause,
};

const ENDPOINTS: &str = "endpoints: [{name: web, namespace: shop, labels: {app: web}, addresses: [192.0.2.1]}]\n";

fn policy(entity: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{endpointSelector: {{}}, egress: [{{toEntities: [{entity}]}}]}}\n"
    )
}

fn object(entity: &str) -> PolicyObject {
    let document = serde_json::json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "o", "namespace": "shop"},
        "spec": {"endpointSelector": {}, "egress": [{"toEntities": [entity]}]},
    });
    let origin = "CiliumNetworkPolicy shop/o".into();
    PolicyObject { origin, document: Arc::new(document), version: ("uid".to_owned(), 1) }
}

fn sources(folder: &Path, cluster: Option<Cluster>) -> Sources {
    let mut settings = settings::parse("namegate.yaml", "policies: p\nendpoints: e.yaml\n").unwrap();
    settings.policies = Some(folder.join("policies"));
    settings.endpoints = Some(folder.join("endpoints.yaml"));
    settings.state = folder.join("state");
    fs::create_dir_all(folder.join("policies")).unwrap();
    Sources::new(&settings, FEATURES, cluster, &Arc::default())
}

fn touched(causes: &[Cause]) -> Touched {
    let mut touched = Touched::default();
    causes.iter().cloned().for_each(|cause| touched.add(cause));
    touched
}

fn read(sources: &mut Sources, causes: &[Cause]) -> Reading {
    sources.read(&touched(causes)).unwrap().unwrap()
}

/// How much later revisions of rules and of the topology are.
fn steps(before: &Reading, after: &Reading) -> (u64, u64) {
    (after.rules_revision - before.rules_revision, after.topology_revision - before.topology_revision)
}

#[test]
fn what_has_not_changed_keeps_its_revision_and_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies/p.yaml");
    fs::write(folder.path().join("endpoints.yaml"), ENDPOINTS).unwrap();
    let mut sources = sources(folder.path(), None);
    fs::write(&file, policy("world")).unwrap();
    let first = read(&mut sources, &[Cause::Everything]);
    assert_eq!((first.rules.len(), first.endpoints.endpoints.len()), (1, 1));
    assert!(first.is_same(&read(&mut sources, &[Cause::Everything])));
    assert!(first.is_same(&read(&mut sources, &[Cause::Kernel])));

    fs::write(&file, policy("host")).unwrap();
    let second = read(&mut sources, &[Cause::Policy("p.yaml".to_owned())]);
    assert_eq!(steps(&first, &second), (1, 0));
    assert!(Arc::ptr_eq(&first.endpoints, &second.endpoints));

    let more = ENDPOINTS.replace("192.0.2.1", "192.0.2.2");
    fs::write(folder.path().join("endpoints.yaml"), more).unwrap();
    let third = read(&mut sources, &[Cause::Endpoints]);
    assert_eq!(steps(&second, &third), (0, 1));
    assert!(Arc::ptr_eq(&second.rules, &third.rules));
}

#[test]
fn a_service_of_the_endpoints_file_changes_the_rules_that_refer_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let with = |address: &str| {
        let service = format!(
            "services: [{{name: db, namespace: shop, addresses: [10.96.0.1], ports: [{{port: 1, targets: [{{address: {address}}}]}}]}}]\n"
        );
        fs::write(folder.path().join("endpoints.yaml"), ENDPOINTS.to_owned() + &service).unwrap();
    };
    with("192.0.2.7");
    let mut sources = sources(folder.path(), None);
    let refers = policy("world")
        .replace("toEntities: [world]", "toServices: [{k8sService: {serviceName: db, namespace: shop}}]");
    fs::write(folder.path().join("policies/p.yaml"), refers).unwrap();
    let first = read(&mut sources, &[Cause::Everything]);
    assert!(first.said.found.is_empty(), "{:?}", first.said.found);
    with("192.0.2.8");
    let second = read(&mut sources, &[Cause::Endpoints]);
    assert_eq!(steps(&first, &second), (1, 1));
}

#[test]
fn what_is_not_known_leaves_all_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = sources(folder.path(), None);
    let endpoints = folder.path().join("endpoints.yaml");
    std::os::unix::fs::symlink(&endpoints, &endpoints).unwrap();
    assert!(sources.read(&Touched::everything()).unwrap_err().contains("endpoints.yaml"));
    fs::write(folder.path().join("policies/p.yaml"), policy("world")).unwrap();
    let causes = touched(&[Cause::Policy("p.yaml".to_owned())]);
    assert!(sources.read(&causes).is_err(), "who is there is not known yet");
    fs::remove_file(&endpoints).unwrap();
    fs::write(&endpoints, ENDPOINTS).unwrap();
    assert_eq!(read(&mut sources, &[Cause::Everything]).rules.len(), 1);
}

#[test]
fn kubernetes_is_read_by_its_revisions() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, snapshots): (_, watch::Sender<_>) = cluster(folder.path());
    let mut sources = sources(folder.path(), Some(cluster));
    assert!(sources.read(&Touched::everything()).unwrap().is_none(), "nothing is known yet");
    let send = |policies_revision, entity: &str, who_revision, address: &str| {
        let pods = format!("endpoints: [{{name: web, namespace: shop, addresses: [{address}]}}]");
        snapshots.send_replace(Some(Arc::new(Snapshot {
            policies: [object(entity)].into(),
            policies_revision,
            who: Arc::new(who(&pods)),
            who_revision,
            saved: false,
        })));
    };
    send(1, "world", 1, "10.20.0.2");
    let first = read(&mut sources, &[Cause::Everything]);
    assert_eq!(first.rules.len(), 1);
    send(2, "host", 1, "10.20.0.2");
    let second = read(&mut sources, &[Cause::Cluster]);
    assert_eq!(steps(&first, &second), (1, 0));
    send(2, "host", 2, "10.20.0.3");
    let third = read(&mut sources, &[Cause::Cluster]);
    assert_eq!(steps(&second, &third), (0, 1));
    assert!(third.is_same(&read(&mut sources, &[Cause::Everything])));
}
