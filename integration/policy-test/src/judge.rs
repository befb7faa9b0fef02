//! The judge of cases: an engine for each node, the rows it wants in a table, and frames judged by that table.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use namegate_abi::{Direction, NODE_INTERFACE, Reason as Why};
use namegate_config::{
    cases::{Answer, Judge, NotJudged, Place, Question, World},
    l7::Request,
    reference::{Reason, Verdict, verdict_l7},
    rule::{self, Rule, Subject},
    settings::{self, Settings},
};
use namegate_engine::{Change, EndpointId, Engine, MapOp, MapWriter, PolicyView, Proxies};

use crate::{frame, requests::Requests, topology};

const SECOND_NS: u64 = 1_000_000_000;
/// The clock between two steps moves by more than any TTL: what one step learned is over in the next.
const STEP_NS: u64 = 30 * 86_400 * SECOND_NS;
/// Index of the first interface; 1 is the loopback interface of every namespace.
pub(super) const FIRST_INTERFACE: u32 = 10;
/// Lowest source port of trial packets.
const FIRST_PORT: u16 = 1_024;
/// Ports by which flows that go through a proxy are told: nobody listens there.
const PROXIES: Proxies = Proxies { dns: 1, l7: 1 };

/// Policies for nodes where these cannot be judged.
const NO_NODES: &str = "this kernel cannot guard the sockets of a node: that needs Linux 6.15";

/// Where rows lie and frames are judged.
pub trait Table: MapWriter {
    /// Frames that follow come at this time, in nanoseconds.
    fn set_clock(&mut self, now_ns: u64) -> anyhow::Result<()>;

    /// Judges a frame that the endpoint behind an interface, or a socket of the node, sends or receives.
    fn judge(&mut self, interface: u32, direction: Direction, frame: &[u8]) -> anyhow::Result<Decided>;

    /// Whether it judges frames of sockets of the node.
    fn judges_node(&self) -> bool;

    /// Forgets the flows of frames that passed.
    fn forget_flows(&mut self) -> anyhow::Result<()>;
}

/// What tables are made from.
pub trait Fixture {
    /// An empty table.
    fn table(&mut self) -> anyhow::Result<Box<dyn Table>>;

    /// Makes sure that there is an interface with this index.
    fn interface(&mut self, index: u32) -> anyhow::Result<()>;

    /// The proxies that flows are handed to; without them the reference judges what is asked inside a flow.
    fn requests(&self) -> Option<&Requests>;
}

/// What became of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// It goes on, to where it is sent or to a proxy.
    pub passes: bool,
    /// A proxy judges what is asked inside the flow.
    pub handed_over: bool,
    /// In the datapath's words.
    pub reason: Why,
    /// Number of the rule; 0 is none.
    pub rule: u32,
}

/// Judges cases over tables.
pub struct Trial {
    ground: Box<dyn Fixture>,
    /// Of each node, kept from case to case.
    tables: Vec<Box<dyn Table>>,
    /// Nodes of the case, at the place of their table.
    nodes: Vec<Node>,
    interfaces: HashMap<String, u32>,
    settings: Settings,
    rules: Vec<Rule>,
    step_ns: u64,
    own_port: u16,
    /// Names of the nodes that have addresses.
    hosts: HashMap<IpAddr, String>,
}

/// What one node knows.
struct Node {
    /// Its name; pods may be on no node.
    name: Option<String>,
    engine: Engine,
    endpoints: HashMap<String, (EndpointId, u32)>,
}

impl Trial {
    /// A judge without a case yet.
    pub fn new(ground: Box<dyn Fixture>) -> Self {
        Self {
            ground,
            tables: Vec::new(),
            nodes: Vec::new(),
            interfaces: HashMap::new(),
            settings: settings(),
            rules: Vec::new(),
            step_ns: 0,
            own_port: FIRST_PORT,
            hosts: HashMap::new(),
        }
    }

    /// Forgets the case before; within a case the steps change what is enforced as a running agent would.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        self.nodes.clear();
        self.interfaces.clear();
        for table in &mut self.tables {
            for row in table.rows()? {
                table.write(&MapOp::Delete(row.key()))?;
            }
            table.forget_flows()?;
        }
        Ok(())
    }

    fn stage(&mut self, world: &World, rules: &[Rule]) -> anyhow::Result<()> {
        self.step_ns += STEP_NS;
        self.rules = rules.to_vec();
        self.hosts = world.nodes.iter().flat_map(|node| node.ips.iter().map(|ip| (*ip, node.name.clone()))).collect();
        let pods = world.pods.iter().filter(|pod| !pod.host_network).map(|pod| pod.node.clone());
        let for_nodes = rules.iter().any(|rule| matches!(rule.subject, Subject::Nodes(_)));
        let hosts = world.nodes.iter().filter(|_| for_nodes).map(|node| Some(node.name.clone()));
        for name in pods.chain(hosts) {
            if !self.nodes.iter().any(|node| node.name == name) {
                let mut engine = Engine::new(&self.settings);
                engine.set_proxies(PROXIES);
                self.nodes.push(Node { name, engine, endpoints: HashMap::new() });
            }
        }
        if for_nodes {
            // Frames of the node's sockets go by an interface too.
            interface(&mut self.interfaces, "");
            self.ground.interface(FIRST_INTERFACE)?;
        }
        while self.tables.len() < self.nodes.len() {
            self.tables.push(self.ground.table()?);
        }
        for (node, table) in self.nodes.iter_mut().zip(&mut self.tables) {
            let interfaces = &mut self.interfaces;
            let topology = topology::of(world, node.name.as_deref(), |key| interface(interfaces, key));
            for endpoint in &topology.endpoints {
                endpoint.interface.map_or(Ok(()), |index| self.ground.interface(index))?;
            }
            table.set_clock(self.step_ns)?;
            let change =
                Change { rules: Some(rules.iter().cloned().map(Arc::new).collect()), topology: Some(topology) };
            write(&mut **table, &node.engine.update(change, self.step_ns))?;
            let views = node.engine.endpoints();
            node.endpoints = views.iter().map(|view| (view.key.to_string(), (view.id, view.interface))).collect();
        }
        Ok(())
    }

    fn learn(&mut self, answer: &Answer) -> anyhow::Result<()> {
        for (node, table) in self.nodes.iter_mut().zip(&mut self.tables) {
            let endpoint = match &answer.by {
                Place::Pod(key) => node.endpoints.get(key).map(|(endpoint, _)| *endpoint),
                Place::Host(name) if node.name.as_ref() == Some(name) => node.engine.node_id(),
                _ => None,
            };
            let Some(endpoint) = endpoint else { continue };
            let ttl_s = u32::try_from(answer.ttl_s).unwrap_or(u32::MAX);
            let addresses = answer.addresses.iter().map(|address| (*address, ttl_s)).collect();
            let answer_ns = self.step_ns + answer.at_s.saturating_mul(SECOND_NS);
            let answer = namegate_engine::Answer { endpoint, names: answer.names.clone(), addresses };
            let mut ops = Vec::new();
            // A case has few names: its maps have room.
            let _ = node.engine.learn(&answer, answer_ns, &mut ops);
            write(&mut **table, &ops)?;
        }
        Ok(())
    }

    /// Protocol, port and peer: by the table of the subject's node. Says also whether a proxy judges the rest.
    fn flow(&mut self, question: &Question<'_>) -> anyhow::Result<(Verdict, bool)> {
        let is_node = question.subject.is_node;
        let host = self.hosts.get(&question.address);
        let found = self.nodes.iter().zip(&mut self.tables).find_map(|(node, table)| match question.place {
            _ if is_node => (host.is_some() && node.name.as_ref() == host).then_some((node, table, NODE_INTERFACE)),
            Place::Pod(key) => node.endpoints.get(key).map(|(_, interface)| (node, table, *interface)),
            _ => None,
        });
        let (node, table, interface) = match found {
            // A node that no rule selects is no endpoint.
            None if is_node => return Ok((NO_POLICY, false)),
            Some((node, ..)) if is_node && node.engine.node_id().is_none() => return Ok((NO_POLICY, false)),
            Some(found) => found,
            None => anyhow::bail!("{} is on no node", question.place),
        };
        anyhow::ensure!(!is_node || table.judges_node(), NO_NODES);
        let at_ns = self.step_ns + question.now_s.saturating_mul(SECOND_NS);
        let decided = decided(&mut **table, question, interface, self.own_port, at_ns)?;
        self.own_port = self.own_port.checked_add(1).unwrap_or(FIRST_PORT);
        if self.own_port == FIRST_PORT || !frame::has_ports(question.flow) {
            table.forget_flows()?;
        }
        Ok((said(decided, node)?, decided.handed_over))
    }

    /// What is asked inside a flow that passes: made to the proxy that the flow is handed to, under the limits that the
    /// engine tells it of.
    fn request(&self, question: &Question<'_>, flow: Verdict, handed_over: bool) -> anyhow::Result<Verdict> {
        let Some(request) = question.request.filter(|_| flow.allowed) else { return Ok(flow) };
        let Question { subject, peer, direction, address, .. } = question;
        let Some(requests) = self.ground.requests().filter(|_| !subject.is_node) else {
            let limits = verdict_l7(&self.rules, subject, peer, *direction, question.flow, request);
            return Ok(if limits.reason == Reason::L7 { limits } else { flow });
        };
        if !handed_over {
            return Ok(flow);
        }
        let Some(node) = self.nodes.iter().find(|node| node.engine.endpoint_by_address(*address).is_some()) else {
            anyhow::bail!("{address} is no endpoint's");
        };
        let limits = if let Request::Dns { .. } = request {
            node.engine.policy_view(&PolicyView::default()).dns_limits(*address, peer.address, question.flow)
        } else {
            let now_ns = self.step_ns + question.now_s.saturating_mul(SECOND_NS);
            node.engine.requests().limits(*address, peer.address, *direction, question.flow, now_ns)
        };
        requests.make(request, *direction, limits)
    }
}

const NO_POLICY: Verdict = Verdict { allowed: true, by: None, reason: Reason::NoPolicy };

/// What becomes of the first packet of the flow.
fn decided(
    table: &mut dyn Table,
    question: &Question<'_>,
    interface: u32,
    own_port: u16,
    at_ns: u64,
) -> anyhow::Result<Decided> {
    let (direction, source, destination) = match question.direction {
        rule::Direction::Egress => (Direction::Egress, question.address, question.peer.address),
        rule::Direction::Ingress => (Direction::Ingress, question.peer.address, question.address),
    };
    let Some(frame) = frame::first(source, destination, question.flow, own_port) else {
        anyhow::bail!("{source} and {destination} are of two families");
    };
    table.set_clock(at_ns)?;
    table.judge(interface, direction, &frame)
}

/// The same as a verdict.
fn said(decided: Decided, node: &Node) -> anyhow::Result<Verdict> {
    let by = node.engine.origin(decided.rule).cloned();
    let reason = match decided.reason {
        Why::Rule | Why::ProxyAbsent if decided.rule != 0 => Reason::Rule,
        // Policies select the endpoint, and none of them denies by default.
        Why::Rule | Why::NoPolicy => Reason::NoPolicy,
        Why::LocalHost => Reason::LocalHost,
        Why::DenyRule => Reason::DenyRule,
        Why::DefaultDeny | Why::NameExpired => Reason::DefaultDeny,
        other => anyhow::bail!("the packet was not judged as the first of a flow: {}", other.text()),
    };
    Ok(Verdict { allowed: decided.passes, by, reason })
}

/// Whether a rule is about the subject and matches peer, protocol and port.
pub(crate) fn is_matching(rule: &Rule, question: &Question<'_>) -> bool {
    let Question { subject, peer, direction, flow, .. } = question;
    let named = match direction {
        rule::Direction::Ingress => subject.named_ports,
        rule::Direction::Egress => &peer.named_ports,
    };
    rule.direction == *direction
        && subject.is_selected(&rule.subject)
        && rule.peers.matches(peer)
        && rule.ports.matches(*flow, named)
}

impl Judge for Trial {
    fn load(&mut self, world: &World, rules: &[Rule]) -> Result<(), NotJudged> {
        self.stage(world, rules).map_err(broken)
    }

    fn hear(&mut self, answer: &Answer, _: u64) -> Result<(), NotJudged> {
        self.learn(answer).map_err(broken)
    }

    fn verdict(&mut self, question: &Question<'_>) -> Result<Verdict, NotJudged> {
        let (flow, handed_over) = self.flow(question).map_err(broken)?;
        self.request(question, flow, handed_over).map_err(broken)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn broken(error: anyhow::Error) -> NotJudged {
    NotJudged(format!("{error:#}"))
}

fn write(table: &mut dyn Table, ops: &[MapOp]) -> anyhow::Result<()> {
    Ok(ops.iter().try_for_each(|op| table.write(op))?)
}

/// The interface of an endpoint: the same as long as the case lasts.
fn interface(interfaces: &mut HashMap<String, u32>, key: &str) -> u32 {
    let next = FIRST_INTERFACE + u32::try_from(interfaces.len()).unwrap_or(u32::MAX - FIRST_INTERFACE);
    *interfaces.entry(key.to_owned()).or_insert(next)
}

/// Those of an agent that enforces everything and takes TTLs as they come.
fn settings() -> Settings {
    let dns = settings::Dns { min_ttl_s: 0, ..settings::Dns::default() };
    Settings {
        policies: None,
        endpoints: None,
        kubernetes: None,
        socket: "namegate.sock".into(),
        state: "state".into(),
        pins: "pins".into(),
        directions: vec![rule::Direction::Egress, rule::Direction::Ingress],
        audit: false,
        metrics: settings::Metrics::default(),
        dns,
        limits: settings::Limits::default(),
    }
}
