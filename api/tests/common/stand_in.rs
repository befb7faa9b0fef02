//! Answers with fixed views and remembers what was asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use namegate_api::{
    Backend, CacheFilter, FlowFeed, FlowHub, Instruments, Refusal, Reply,
    view::{
        CniEndpoint, CniRegistration, CniState, Direction, Endpoint, EndpointCounts, EndpointState, Enforcement, Flow,
        FlowEndpoint, FlowPeer, Forgotten, FqdnLookup, FqdnNames, FqdnSelector, Health, LookupSource, NameCounts,
        Policy, Revision, Status, Verdict,
    },
};

pub(crate) struct StandIn {
    filter: Mutex<Option<CacheFilter>>,
    ills: Mutex<Vec<String>>,
    networks: Mutex<BTreeMap<String, CniRegistration>>,
    past: Mutex<Vec<Arc<Flow>>>,
    live: FlowHub,
    instruments: Instruments,
}

impl Default for StandIn {
    fn default() -> Self {
        Self {
            filter: Mutex::default(),
            ills: Mutex::default(),
            networks: Mutex::default(),
            past: Mutex::default(),
            live: FlowHub::new(16),
            instruments: Instruments::default(),
        }
    }
}

impl StandIn {
    pub(crate) fn last_filter(&self) -> CacheFilter {
        self.filter.lock().unwrap().take().expect("no filter was asked")
    }

    pub(crate) fn fall_ill(&self, what: &str) {
        self.ills.lock().unwrap().push(what.to_owned());
    }

    pub(crate) fn tell(&self, flow: Flow) {
        let flow = Arc::new(flow);
        self.past.lock().unwrap().push(flow.clone());
        self.live.send(&flow);
    }

    pub(crate) fn readers(&self) -> usize {
        self.live.readers()
    }

    fn remember(&self, filter: CacheFilter) -> Result<CacheFilter, Refusal> {
        *self.filter.lock().unwrap() = Some(filter.clone());
        match filter.endpoint.as_deref() {
            Some(name) if !endpoint().is_called(name) => Err(Refusal::NoSuchEndpoint(name.to_owned())),
            _ => Ok(filter),
        }
    }
}

/// A flow of an endpoint in the namespace `empire`.
pub(crate) fn flow(endpoint: &str, verdict: Verdict) -> Flow {
    Flow {
        time: "2026-07-01T12:00:00.000Z".into(),
        verdict,
        direction: Direction::Egress,
        endpoint: FlowEndpoint { id: 7, namespace: "empire".into(), name: endpoint.into() },
        peer: FlowPeer { address: [142, 250, 1, 1].into(), name: None, fqdns: vec!["google.com".into()], identity: 2 },
        source: [10, 244, 1, 10].into(),
        source_port: 40_000,
        destination: [142, 250, 1, 1].into(),
        destination_port: 443,
        protocol: "TCP".into(),
        rule: None,
        reason: "default-deny".into(),
        reason_text: "no rule allows it".into(),
        tcp_flags: 2,
        length: 74,
        http: None,
        server_name: None,
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        id: 7,
        name: "tiefighter".into(),
        namespace: "empire".into(),
        labels: vec!["k8s:class=tiefighter".into()],
        addresses: vec![[10, 244, 1, 10].into()],
        interface: Some("ng-tie".into()),
        interface_index: Some(12),
        state: EndpointState::Guarded,
        ingress: Enforcement::Disabled,
        egress: Enforcement::Enabled,
        rules: vec!["empire/fqdn egress[0]".into()],
        names: 1,
    }
}

impl Backend for StandIn {
    fn fqdn_cache(&self, filter: CacheFilter) -> Reply<'_, Vec<FqdnLookup>> {
        Box::pin(async move {
            let filter = self.remember(filter)?;
            let entry = FqdnLookup {
                fqdn: "docs.cilium.io".into(),
                ips: vec![[104, 198, 14, 52].into(), "2001:db8::1".parse().unwrap()],
                ttl: 30,
                lookup_time: "2026-07-01T12:00:00.000Z".into(),
                expiration_time: "2026-07-01T12:00:30.000Z".into(),
                endpoint_id: 7,
                source: LookupSource::Lookup,
            };
            let name = entry.fqdn.parse().unwrap();
            let wanted = filter.pattern.is_none_or(|pattern| pattern.matches(&name));
            Ok(if wanted { vec![entry] } else { vec![] })
        })
    }

    fn forget(&self, filter: CacheFilter) -> Reply<'_, Forgotten> {
        Box::pin(async move { self.remember(filter).map(|_| Forgotten { names: 1, addresses: 2 }) })
    }

    fn fqdn_names(&self) -> Reply<'_, FqdnNames> {
        let selector =
            FqdnSelector { selector: "*.cilium.io".into(), rules: vec!["empire/fqdn egress[0]".into()], names: vec![] };
        Box::pin(async move { Ok(FqdnNames { selectors: vec![selector] }) })
    }

    fn endpoints(&self) -> Reply<'_, Vec<Endpoint>> {
        Box::pin(async { Ok(vec![endpoint()]) })
    }

    fn endpoint(&self, name: String) -> Reply<'_, Endpoint> {
        Box::pin(async move {
            Some(endpoint()).filter(|endpoint| endpoint.is_called(&name)).ok_or(Refusal::NoSuchEndpoint(name))
        })
    }

    fn cni(&self) -> Reply<'_, Vec<CniEndpoint>> {
        let networks = self.networks.lock().unwrap();
        let shown = |(id, registration): (&String, &CniRegistration)| CniEndpoint {
            container_id: id.clone(),
            registration: registration.clone(),
            state: CniState::Guarded,
            problem: None,
        };
        let list = networks.iter().map(shown).collect();
        Box::pin(async { Ok(list) })
    }

    fn register(&self, container: String, registration: CniRegistration) -> Reply<'_, CniEndpoint> {
        Box::pin(async move {
            if registration.pod == "lost" {
                return Err(Refusal::NotGuarded("its interface is not there".into()));
            }
            self.networks.lock().unwrap().insert(container.clone(), registration.clone());
            Ok(CniEndpoint { container_id: container, registration, state: CniState::Guarded, problem: None })
        })
    }

    fn unregister(&self, container: String) -> Reply<'_, ()> {
        self.networks.lock().unwrap().remove(&container);
        Box::pin(async { Ok(()) })
    }

    fn policy(&self) -> Reply<'_, Policy> {
        Box::pin(async {
            Ok(Policy {
                revision: Revision { wanted: 3, enforced: 3 },
                directory: "/etc/namegate/policies".into(),
                documents: vec![],
                diagnostics: vec![],
                not_enforced: vec![],
            })
        })
    }

    fn status(&self) -> Reply<'_, Status> {
        Box::pin(async {
            Ok(Status {
                problems: vec![],
                version: "0.1.0".into(),
                started: "2026-07-01T12:00:00.000Z".into(),
                audit: false,
                directions: vec![Direction::Egress, Direction::Ingress],
                revision: Revision { wanted: 3, enforced: 3 },
                endpoints: EndpointCounts { guarded: 1, waiting: 0, failed: 0 },
                names: NameCounts::default(),
                counters: vec![],
                maps: vec![],
                refused: vec![],
                dns: vec![],
                dns_answers_kept: 0,
                requests: vec![],
                name_checks: vec![],
                names_unread: vec![],
                mismatches: vec![],
                denials: vec![],
                flows: vec![],
                flows_lost: 0,
                attachments_healed: 0,
                kubernetes: None,
                diagnostics: vec![],
            })
        })
    }

    fn health(&self) -> Reply<'_, Health> {
        let problems = self.ills.lock().unwrap().clone();
        Box::pin(async move {
            let ready = problems.iter().all(|problem| problem.starts_with("bound"));
            Ok(Health { healthy: problems.is_empty(), ready, problems })
        })
    }

    fn flows(&self, _past: bool) -> Reply<'_, FlowFeed> {
        Box::pin(async { Ok(FlowFeed { recent: self.past.lock().unwrap().clone(), live: self.live.subscribe() }) })
    }

    fn instruments(&self) -> &Instruments {
        &self.instruments
    }
}
