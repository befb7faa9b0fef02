//! One world with the datapath on its pod's interface. The test's thread is in the node's namespace.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use namegate_abi::{
    AddressKey, AddressValue, CidrKey, CidrValue, Direction, EndpointValue, EventRecord, PolicyKey, PolicyValue,
    Reason, STEPS_MAX, Settings, Step, Verdict, endpoint_flags, policy_verdict,
};
use namegate_engine::{Key, MapOp, MapWriter, Row};
use namegate_loader::{Datapath, Directions, Events, MapLimits, Options, links};
use namegate_testbed::{Pod, PodSpec, Spec, World};
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};

/// Where the testbed looks for what dead runs left behind.
const PINS: &str = "/sys/fs/bpf/namegate-testbed";
/// How long a dropped packet is waited for.
pub(crate) const DROPPED: Duration = Duration::from_millis(250);
/// How long an answer may take on a busy machine.
pub(crate) const ANSWERED: Duration = Duration::from_secs(5);
/// The endpoint, its policy and its scope.
pub(crate) const ENDPOINT: u32 = 7;
pub(crate) const POLICY: u32 = 70;
pub(crate) const SCOPE: u32 = 700;
/// Both directions.
pub(crate) const ENFORCED: u32 = endpoint_flags::ENFORCE_EGRESS | endpoint_flags::ENFORCE_INGRESS;
/// Ports of the world's echo servers.
pub(crate) const ECHO: u16 = namegate_testbed::ECHO_PORT;
pub(crate) const OTHER_ECHO: u16 = namegate_testbed::OTHER_ECHO_PORT;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Marks as the agent sets them.
pub(crate) const SETTINGS: Settings =
    Settings { redirect_mark: 0x200, proxy_mark: 0x100, mark_mask: 0xf00, dns_port: 0, names_port: 0, flow_share: 0 };

/// Small maps: they are made anew for each test.
pub(crate) const LIMITS: MapLimits =
    MapLimits { addresses: 64, policy_rows: 64, cidrs: 64, flows: 1_024, flows_per_endpoint: 1_024, endpoints: 8 };

pub(crate) struct Bench {
    pub(crate) datapath: RefCell<Datapath>,
    pub(crate) events: RefCell<Events>,
    pub(crate) options: Options,
    pub(crate) interface: u32,
    pub(crate) world: World,
    pub(crate) pins: Pins,
}

pub(crate) struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a test on a thread of its own, in the node's namespace of a new world.
pub(crate) fn run(test: impl FnOnce(Bench) + Send + 'static) {
    let ended = thread::spawn(move || test(Bench::new())).join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

impl Bench {
    fn new() -> Self {
        let yaml = "{name: kernel, podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48'], \
                    nodes: [{name: node, ips: [192.168.20.11, 'fd00:20::11']}]}";
        let ips = ["10.244.1.10".parse().unwrap(), "fd00:10:244:1::10".parse().unwrap()];
        let world = World::build(Spec::parse(yaml).unwrap().with(PodSpec::new("test", "pod", &ips))).unwrap();
        setns(File::open(world.node().path()).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let pins = PathBuf::from(PINS).join(world.id());
        let options = Options { pins: pins.clone(), limits: LIMITS, settings: SETTINGS };
        let pins = Pins(pins);
        let mut datapath = Datapath::open(&options).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let interface = links::index_of(&world.pod("test/pod").interface).unwrap().unwrap();
        datapath.attach(interface, Directions::Both).unwrap();
        let events = datapath.take_events().unwrap();
        Self { datapath: datapath.into(), events: events.into(), options, interface, world, pins }
    }

    pub(crate) fn pod(&self) -> &Pod {
        self.world.pod("test/pod")
    }

    /// Writes the endpoint's row and those of its own addresses.
    pub(crate) fn enforce(&self, flags: u32, revision: u32) {
        for ip in self.pod().spec.ips.clone() {
            let value = AddressValue { endpoint: ENDPOINT, ..steps(&[(0, 256)]) };
            self.put(Row::Address(AddressKey { scope: 0, address: ip.into() }, value));
        }
        self.move_peers(flags, revision, 0);
    }

    /// Writes the endpoint's row, which says since when addresses are another's.
    pub(crate) fn move_peers(&self, flags: u32, revision: u32, moved: u32) {
        let value = EndpointValue { endpoint: ENDPOINT, policy: POLICY, scope: SCOPE, revision, flags, moved };
        self.put(Row::Endpoint(self.interface, value));
    }

    pub(crate) fn put(&self, row: Row) {
        self.datapath.borrow_mut().write(&MapOp::Put(row)).unwrap();
    }

    pub(crate) fn delete(&self, key: Key) {
        self.datapath.borrow_mut().write(&MapOp::Delete(key)).unwrap();
    }

    /// An address of a name that the endpoint resolved; `expires_ns` 0 is never.
    pub(crate) fn learn(&self, ip: &str, identity: u32, expires_ns: u64) {
        let key = AddressKey { scope: SCOPE, address: address(ip).into() };
        self.put(Row::Address(key, steps(&[(expires_ns, identity)])));
    }

    pub(crate) fn cidr(&self, prefix: &str, identity: u32) {
        let (ip, length) = prefix.split_once('/').unwrap();
        let length: u32 = length.parse().unwrap();
        let length = if ip.contains(':') { length } else { 96 + length };
        self.put(Row::Cidr(length, CidrKey { address: address(ip).into() }, CidrValue { identity }));
    }

    /// Allows an identity one port, or with fewer `port_bits` a block of ports.
    pub(crate) fn allow(&self, identity: u32, protocol: u8, port: u16, port_bits: u32, rule: u32) {
        self.rule(identity, (protocol, port, port_bits), policy_verdict::ALLOW, rule, 0);
    }

    pub(crate) fn rule(&self, identity: u32, port: (u8, u16, u32), verdict: u8, rule: u32, proxy_port: u16) {
        let (protocol, port, port_bits) = port;
        let key = PolicyKey::new(POLICY, Direction::Egress, identity, protocol, port);
        let value = PolicyValue { verdict, flags: 0, proxy_port, rule };
        self.put(Row::Policy(key.prefix_len(port_bits), key, value));
    }

    /// What the programs told since the last call.
    pub(crate) fn told(&self) -> Vec<EventRecord> {
        std::iter::from_fn(|| self.events.borrow_mut().next()).collect()
    }

    /// Waits for records after a packet that nobody answers: the kernel may take its time.
    pub(crate) fn hear(&self) -> Vec<EventRecord> {
        let mut told = Vec::new();
        eventually("a record", || {
            told = self.told();
            !told.is_empty()
        });
        told
    }

    /// The records of one reason since the last call.
    pub(crate) fn told_of(&self, reason: Reason) -> Vec<EventRecord> {
        self.told().into_iter().filter(|record| record.reason == reason as u8).collect()
    }

    /// Packets by direction and reason.
    pub(crate) fn packets(&self, direction: Direction, reason: Reason) -> u64 {
        let counters: BTreeMap<_, _> = self
            .datapath
            .borrow()
            .counters()
            .unwrap()
            .into_iter()
            .map(|(direction, reason, counter)| ((direction, reason), counter.packets))
            .collect();
        counters.get(&(direction, reason)).copied().unwrap_or_default()
    }

    /// Whether a datagram comes back from an echo server.
    pub(crate) fn echoes(&self, to: &str, octets: usize, within: Duration) -> bool {
        self.pod().echo(to.parse().unwrap(), octets, within).is_ok()
    }

    /// Whether a connection comes about.
    pub(crate) fn connects(&self, to: &str, within: Duration) -> bool {
        self.pod().connect(to.parse().unwrap(), within).is_ok()
    }
}

/// The only verdict of the records, which must be there.
pub(crate) fn verdict(records: &[EventRecord]) -> Verdict {
    let first = records.first().expect("a record").verdict;
    assert!(records.iter().all(|record| record.verdict == first), "{records:?}");
    Verdict::from_octet(first)
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn socket(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

pub(crate) fn steps(given: &[(u64, u32)]) -> AddressValue {
    let mut steps = [Step::default(); STEPS_MAX];
    for (step, (expires_ns, identity)) in steps.iter_mut().zip(given) {
        *step = Step { expires_ns: *expires_ns, identity: *identity, spare: 0 };
    }
    AddressValue { steps, endpoint: 0, flags: 0 }
}

/// `CLOCK_BOOTTIME`, nanoseconds.
pub(crate) fn now_ns() -> u64 {
    Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap()).as_nanos().try_into().unwrap()
}

/// Waits until the kernel's clock has passed a moment.
pub(crate) fn wait_until(moment_ns: u64) {
    while let Some(left) = moment_ns.checked_sub(now_ns()) {
        thread::sleep(Duration::from_nanos(left + 1));
    }
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < ANSWERED, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(error) = at {
        text = format!("{text}: {error}");
        at = error.source();
    }
    text
}
