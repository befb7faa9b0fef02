//! Policies that select no endpoint or node. The agent checks them in the background, and reports one only when that
//! has been so for a while: policies often come before their pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use namegate_config::{
    endpoints::EndpointsFile,
    labels::{LabelSelector, Labels, RESERVED},
    rule::{PeerSelector, Peers, Rule, Subject},
};
use namegate_kubernetes::{Notes, Snapshot};
use tokio::sync::watch;

use super::reading::Reading;

/// How often is looked at most, and the pause as a multiple of what the last look took.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_FACTOR: u32 = 50;
/// How long a selector must have selected no endpoint or node.
const GRACE: Duration = Duration::from_secs(30);
/// Selectors of which is told at a time; more are left out.
const TOLD_MAX: usize = 1_024;

/// A reading and the snapshot that it was made from.
pub(crate) type Read = Option<(Arc<Reading>, Arc<Snapshot>)>;

/// Origin of an object and what is to be said of it.
type Found = BTreeSet<(String, String)>;

/// Looks again and again, and tells.
pub(crate) async fn follow(readings: watch::Receiver<Read>, notes: watch::Sender<Arc<Notes>>) -> anyhow::Result<()> {
    let mut idle = Idle::default();
    let (mut last, mut found, mut cost) = (None, Found::new(), Duration::ZERO);
    loop {
        tokio::time::sleep(LOOK.max(cost * LOOK_FACTOR)).await;
        let Some((reading, snapshot)) = readings.borrow().clone() else { continue };
        if !last.as_ref().is_some_and(|last: &Arc<Reading>| last.is_same(&reading)) {
            let (read, start) = (Arc::clone(&reading), Instant::now());
            let looking = tokio::task::spawn_blocking(move || nobody(&read.rules, &read.endpoints));
            let seen = looking.await?;
            (last, found, cost) = (Some(reading), seen, start.elapsed());
        }
        let told = idle.note(&found, &snapshot, Instant::now());
        notes.send_if_modified(|notes| {
            let is_new = **notes != told;
            if is_new {
                *notes = Arc::new(told);
            }
            is_new
        });
    }
}

/// Since when what was found has been so.
#[derive(Debug, Default)]
struct Idle(BTreeMap<(String, String), Instant>);

impl Idle {
    /// What has been so for long enough.
    fn note(&mut self, found: &Found, snapshot: &Snapshot, now: Instant) -> Notes {
        self.0.retain(|one, _| found.contains(one));
        for one in found {
            self.0.entry(one.clone()).or_insert(now);
        }
        let objects: HashMap<&str, _> =
            snapshot.policies.iter().map(|object| (&*object.origin, &object.version)).collect();
        let mut notes = Notes::new();
        let ripe = self.0.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= GRACE);
        for ((origin, text), _) in ripe.take(TOLD_MAX) {
            // Policies of files have no object to tell it of.
            let Some(version) = objects.get(&**origin) else { continue };
            let note = notes.entry(origin.as_str().into()).or_insert_with(|| ((*version).clone(), Vec::new()));
            note.1.push(text.clone());
        }
        notes
    }
}

/// Selectors that select nobody of whom is known in the whole cluster.
fn nobody(rules: &[Arc<Rule>], everybody: &EndpointsFile) -> Found {
    let endpoints: Vec<Labels> = everybody.endpoints.iter().map(|endpoint| everybody.labels(endpoint)).collect();
    let nodes = everybody.nodes.iter().map(namegate_config::endpoints::Node::labels);
    let nodes: Vec<Labels> = nodes.chain([everybody.host.labels()]).collect();
    let mut seen: HashMap<(&LabelSelector, bool), bool> = HashMap::new();
    let mut is_idle = |selector, of_nodes| {
        *seen.entry((selector, of_nodes)).or_insert_with(|| {
            let all = if of_nodes { &nodes } else { &endpoints };
            !is_special(selector) && !all.iter().any(|labels| selector.matches(labels))
        })
    };
    let mut found = Found::new();
    for rule in rules {
        let (subject, of_nodes, what) = match &rule.subject {
            Subject::Endpoints(selector) => (selector, false, "endpoint"),
            Subject::Nodes(selector) => (selector, true, "node"),
        };
        if is_idle(subject, of_nodes) {
            found.insert((origin(rule), format!("selects no {what} that is known: none matches {subject}")));
        }
        let Peers::Of(peers) = &rule.peers else { continue };
        for peer in peers {
            let PeerSelector::Labels(selector) = peer else { continue };
            if is_idle(selector, false) && is_idle(selector, true) {
                let path = &rule.origin.path;
                found.insert((origin(rule), format!("`{path}`: no peer that is known matches {selector}")));
            }
        }
    }
    found
}

/// Whether it is about more than pods and nodes: the world, the host, whoever is not known.
fn is_special(selector: &LabelSelector) -> bool {
    selector.requirements().any(|one| one.source.as_deref() == Some(RESERVED))
}

/// As objects are called in snapshots.
fn origin(rule: &Rule) -> String {
    let origin = &rule.origin;
    match &origin.namespace {
        Some(namespace) => format!("{} {namespace}/{}", origin.kind, origin.name),
        None => format!("{} {}", origin.kind, origin.name),
    }
}

#[cfg(test)]
mod tests {
    use namegate_config::{endpoints, policy};
    use namegate_kubernetes::PolicyObject;

    use super::*;

    const EVERYBODY: &str = "
host: {addresses: [192.0.2.1], labels: {rack: one}}
nodes: [{name: n2, addresses: [192.0.2.2], labels: {rack: two}}]
namespaces: [{name: shop, labels: {team: a}}, {name: empty}]
endpoints:
- {name: web, namespace: shop, labels: {app: web}, addresses: [10.20.0.2]}
- {name: db, namespace: data, labels: {app: db}, addresses: [10.20.0.3]}
";

    /// What is said of an object with this kind, place and `spec`.
    fn said(kind: &str, place: &str, spec: &str) -> Vec<String> {
        let version = if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "cilium.io/v2" };
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, {place}}}\nspec: {spec}\n");
        let parsed = policy::parse("p.yaml", &text);
        assert!(parsed.diagnostics.is_empty(), "{text}: {:?}", parsed.diagnostics);
        let everybody = endpoints::parse("e.yaml", EVERYBODY).unwrap();
        let rules = policy::translate(&parsed.documents, &everybody.catalog()).rules;
        let rules: Vec<Arc<Rule>> = rules.into_iter().map(Arc::new).collect();
        assert!(!rules.is_empty(), "{text}");
        let name = if place.is_empty() { format!("{kind} p") } else { format!("{kind} shop/p") };
        let found = nobody(&rules, &everybody);
        assert!(found.iter().all(|(origin, _)| *origin == name), "{found:?}");
        found.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn selectors_of_nobody_are_found_and_no_others() {
        const CNP: &str = "CiliumNetworkPolicy";
        const CCNP: &str = "CiliumClusterwideNetworkPolicy";
        let in_shop = "namespace: shop";
        for (kind, place, spec, want) in [
            (CNP, in_shop, "{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}", &[][..]),
            (CNP, in_shop, "{endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [world]}]}", &[]),
            (
                CNP,
                in_shop,
                "{endpointSelector: {matchLabels: {app: db}}, egress: [{toEntities: [all]}, {toCIDR: [192.0.2.0/24]}]}",
                &["selects no endpoint that is known: none matches {any:app=db, \
                   k8s:io.kubernetes.pod.namespace=shop}"],
            ),
            (
                CNP,
                in_shop,
                "{endpointSelector: {}, egress: [{toEntities: [all]}, {toEndpoints: [{matchLabels: {app: web}}, \
                 {matchLabels: {app: db}}]}]}",
                &["`spec.egress[1]`: no peer that is known matches {any:app=db, \
                   k8s:io.kubernetes.pod.namespace=shop}"],
            ),
            (
                CNP,
                in_shop,
                "{endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {'reserved:host': ''}}]}]}",
                &[],
            ),
            (CNP, in_shop, "{endpointSelector: {}, egress: [{toFQDNs: [{matchName: nobody.example}]}]}", &[]),
            (CCNP, "", "{nodeSelector: {matchLabels: {rack: two}}, ingress: [{fromEntities: [all]}]}", &[]),
            (CCNP, "", "{nodeSelector: {matchLabels: {rack: one}}, ingress: [{fromEntities: [all]}]}", &[]),
            (
                CCNP,
                "",
                "{nodeSelector: {matchLabels: {rack: three}}, ingress: [{fromEntities: [all]}]}",
                &["selects no node that is known: none matches {any:rack=three}"],
            ),
            ("NetworkPolicy", in_shop, "{podSelector: {}, ingress: [{}]}", &[]),
            (
                "NetworkPolicy",
                in_shop,
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}",
                &[],
            ),
        ] {
            assert_eq!(said(kind, place, spec), want, "{kind} {spec}");
        }
        let nobody = said(
            "NetworkPolicy",
            in_shop,
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: z}}}]}]}",
        );
        assert!(nobody.len() == 1 && nobody[0].starts_with("`spec.ingress[0]`: no peer that is known"), "{nobody:?}");
    }

    #[test]
    fn it_is_told_when_it_stays_so() {
        let object = |origin: &str, generation| PolicyObject {
            origin: origin.into(),
            document: Arc::default(),
            version: ("uid".into(), generation),
        };
        let snapshot = Snapshot { policies: [object("A x/p", 3), object("A x/q", 1)].into(), ..Snapshot::default() };
        let found = |all: &[(&str, &str)]| all.iter().map(|(at, text)| ((*at).into(), (*text).into())).collect();
        let (mut idle, start) = (Idle::default(), Instant::now());
        let mut at = |seconds, all: &[(&str, &str)]| {
            let notes = idle.note(&found(all), &snapshot, start + Duration::from_secs(seconds));
            let mut flat: Vec<String> = notes
                .iter()
                .flat_map(|(origin, ((_, generation), texts))| {
                    texts.iter().map(move |text| format!("{origin} {generation} {text}"))
                })
                .collect();
            flat.sort();
            flat
        };
        let (p, q, file) = (("A x/p", "one"), ("A x/q", "two"), ("A x/of-a-file", "three"));
        assert!(at(0, &[p, file]).is_empty());
        assert!(at(29, &[p, q, file]).is_empty());
        assert_eq!(at(30, &[p, q, file]), ["A x/p 3 one"]);
        assert_eq!(at(60, &[p, q, file]), ["A x/p 3 one", "A x/q 1 two"]);
        assert_eq!(at(61, &[q]), ["A x/q 1 two"]);
        // Who was there for a moment begins anew.
        assert_eq!(at(62, &[p, q]), ["A x/q 1 two"]);
        assert_eq!(at(92, &[p]), ["A x/p 3 one"]);
    }
}
