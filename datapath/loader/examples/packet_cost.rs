//! What one packet costs in the programs of an interface, by `BPF_PROG_TEST_RUN`: no wire and no other program is part of
//! it. Prints one JSON object with nanoseconds. Needs root; `cargo xtask bench datapath` calls it.
//!
//! Arguments: policy rows, and addresses of the node's scope.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::error::Error;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, CidrValue, Direction, EndpointValue, PolicyKey, PolicyValue, STEPS_MAX,
    Settings, Step, endpoint_flags, policy_verdict, protocol,
};
use namegate_engine::{MapOp, MapWriter, Row};
use namegate_loader::{Datapath, MapLimits, Options, trial};
use nix::sched::{CloneFlags, unshare};

/// The endpoint's interface, and one without an endpoint.
const INTERFACE: u32 = 10;
const NO_ENDPOINT: u32 = INTERFACE + 1;
const ENDPOINT: u32 = 7;
const POLICY: u32 = 70;
/// Its address.
const OWN: [u8; 4] = [10, 244, 1, 10];
/// The first of the addresses that rules name.
const PEERS: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// The first of the addresses that the node's scope has besides its own.
const PODS: u32 = u32::from_be_bytes([20, 0, 0, 0]);
/// The identity of these.
const POD: u32 = 300;
/// The first identity of [`PEERS`].
const PEER: u32 = 1_000;
/// Ports of each peer, where there are rows for more than one.
const PORTS: u32 = 100;
/// The first port; the ports between them have no row, so that no two share one.
const FIRST_PORT: u16 = 7_001;
/// A port without a row.
const DENIED_PORT: u16 = 7_002;
/// Runs over a frame whose cost stays the same.
const RUNS: u32 = 200_000;
/// Flows that the endpoint has room for.
const SHARE: u32 = 32_768;
/// Ports of flows that leave most of that room free, of those that fill it, and of others.
const FEW: RangeInclusive<u16> = 1..=8_000;
const FILL: RangeInclusive<u16> = 8_001..=50_000;
const MORE: RangeInclusive<u16> = 50_001..=60_000;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const LIMITS: MapLimits = MapLimits {
    addresses: 262_144,
    policy_rows: 262_144,
    cidrs: 65_536,
    flows: 524_288,
    flows_per_endpoint: SHARE,
    endpoints: 64,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The folder of the pinned maps, which is removed in the end.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The programs with their tables.
struct Bench {
    datapath: Datapath,
    peer: Ipv4Addr,
    port: u16,
    /// Nanoseconds that timing a single run adds.
    overhead: f64,
}

fn main() -> Outcome<()> {
    let mut sizes = std::env::args().skip(1).map(|size| size.parse::<u32>());
    let rows = sizes.next().ok_or("give the number of policy rows")??;
    let addresses = sizes.next().ok_or("give the number of addresses")??;
    unshare(CloneFlags::CLONE_NEWNET)?;
    trial::loopback_up()?;
    trial::add_pair(INTERFACE)?;
    let pins = Pins(PathBuf::from(format!("/sys/fs/bpf/namegate-packet-cost-{}", std::process::id())));
    let mut bench = Bench::open(&pins.0, rows, addresses)?;
    let measured = bench.measure()?;
    let shown: Vec<String> = measured.iter().map(|(what, ns)| format!("\"{what}\": {ns:.1}")).collect();
    println!("{{\"rows\": {rows}, \"addresses\": {addresses}, {}}}", shown.join(", "));
    Ok(())
}

impl Bench {
    fn open(pins: &Path, rows: u32, addresses: u32) -> Outcome<Self> {
        let options = Options { pins: pins.to_owned(), limits: LIMITS, settings: Settings::default() };
        let mut datapath = Datapath::open(&options)?;
        let mut put = |row| datapath.write(&MapOp::Put(row));
        let flags = endpoint_flags::ENFORCE_EGRESS | endpoint_flags::ENFORCE_INGRESS | endpoint_flags::OBSERVE_DNS;
        let endpoint = EndpointValue { endpoint: ENDPOINT, policy: POLICY, scope: 700, revision: 1, flags, moved: 0 };
        put(Row::Endpoint(INTERFACE, endpoint))?;
        put(of_node(OWN.into(), 256, ENDPOINT))?;
        for number in 0..addresses {
            put(of_node(Ipv4Addr::from(PODS + number), POD, 0))?;
        }
        let peers = rows.div_ceil(PORTS).max(1);
        for peer in 0..peers {
            let prefix = CidrKey { address: mapped(Ipv4Addr::from(PEERS + peer)) };
            put(Row::Cidr(128, prefix, CidrValue { identity: PEER + peer }))?;
        }
        for row in 0..rows {
            put(allowed(PEER + row % peers, protocol::TCP, port(row / peers)?))?;
        }
        let middle = port(rows / peers / 2)?;
        put(allowed(POD, protocol::TCP, middle))?;
        for peer in [POD, PEER + peers / 2] {
            put(allowed(peer, protocol::UDP, middle))?;
        }
        let peer = if addresses > 0 { PODS + addresses / 2 } else { PEERS + peers / 2 };
        Ok(Self { datapath, peer: peer.into(), port: middle, overhead: 0.0 })
    }

    fn measure(&mut self) -> Outcome<Vec<(&'static str, f64)>> {
        self.overhead = self.single_run_overhead()?;
        let first = self.each(FEW, Direction::Egress, SYN)?;
        let answer = self.each(FEW, Direction::Ingress, SYN | ACK)?;
        let established = self.mean(Direction::Egress, &self.segment(Direction::Egress, 1, ACK))?;
        let reply = self.mean(Direction::Ingress, &self.segment(Direction::Ingress, 1, ACK))?;
        let again = self.mean(Direction::Egress, &self.segment(Direction::Egress, 1, SYN))?;
        let denied = self.mean(Direction::Egress, &tcp((OWN.into(), 1), (self.peer, DENIED_PORT), SYN))?;
        self.run(Direction::Egress, &fragment(self.peer, self.port, true), 1)?;
        let later = self.mean(Direction::Egress, &fragment(self.peer, self.port, false))?;
        // Connections that ended a moment ago hold every slot.
        for port in FILL {
            self.each(port..=port, Direction::Egress, SYN)?;
            self.each(port..=port, Direction::Egress, RST)?;
        }
        let full = self.each(MORE, Direction::Egress, SYN)?;
        Ok(vec![
            ("established", established),
            ("reply", reply),
            ("first", first),
            ("first_of_full_share", full),
            ("first_again", again),
            ("answer", answer),
            ("denied", denied),
            ("fragment", later),
            ("overhead", self.overhead),
        ])
    }

    /// Nanoseconds of a run, of so many over the same frame.
    fn run(&mut self, direction: Direction, frame: &[u8], runs: u32) -> Outcome<f64> {
        Ok(self.datapath.time_packet(direction, INTERFACE, frame, runs)?.as_secs_f64() * 1e9)
    }

    fn mean(&mut self, direction: Direction, frame: &[u8]) -> Outcome<f64> {
        self.run(direction, frame, RUNS)
    }

    /// The median of one packet of each flow, by the ports of the endpoint.
    fn each(&mut self, ports: RangeInclusive<u16>, direction: Direction, flags: u8) -> Outcome<f64> {
        let mut single = Vec::new();
        for port in ports {
            single.push(self.run(direction, &self.segment(direction, port, flags), 1)?);
        }
        Ok((median(single) - self.overhead).max(0.0))
    }

    /// How much longer one run takes alone than as one of many: the kernel reads its clock before and after.
    fn single_run_overhead(&mut self) -> Outcome<f64> {
        let frame = self.segment(Direction::Egress, 1, SYN);
        let mut single = Vec::new();
        for _ in FEW {
            single.push(self.datapath.time_packet(Direction::Egress, NO_ENDPOINT, &frame, 1)?.as_secs_f64() * 1e9);
        }
        let many = self.datapath.time_packet(Direction::Egress, NO_ENDPOINT, &frame, RUNS)?;
        Ok((median(single) - many.as_secs_f64() * 1e9).max(0.0))
    }

    /// A segment of a connection that the endpoint opened from a port.
    fn segment(&self, direction: Direction, port: u16, flags: u8) -> Vec<u8> {
        let (own, peer) = ((OWN.into(), port), (self.peer, self.port));
        match direction {
            Direction::Egress => tcp(own, peer, flags),
            Direction::Ingress => tcp(peer, own, flags),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mapped(address: Ipv4Addr) -> Address {
    Address::from_v4(address.octets())
}

/// The port of a row of a peer.
fn port(row: u32) -> Outcome<u16> {
    Ok(FIRST_PORT + 2 * u16::try_from(row)?)
}

fn of_node(address: Ipv4Addr, identity: u32, endpoint: u32) -> Row {
    let mut steps = [Step::default(); STEPS_MAX];
    steps[0].identity = identity;
    let key = AddressKey { scope: 0, address: mapped(address) };
    Row::Address(key, AddressValue { steps, endpoint, flags: 0 })
}

fn allowed(identity: u32, protocol: u8, port: u16) -> Row {
    let key = PolicyKey::new(POLICY, Direction::Egress, identity, protocol, port);
    let value = PolicyValue { verdict: policy_verdict::ALLOW, flags: 0, proxy_port: 0, rule: 1 };
    Row::Policy(key.prefix_len(PolicyKey::PORT_BITS), key, value)
}

/// An IPv4 packet in a frame, without checksums: no program looks at one.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, fragment: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 7, fragment[0], fragment[1], 64, protocol, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(payload);
    frame
}

fn tcp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut header = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    header.extend([0; 8]);
    header.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    packet(source.0, destination.0, protocol::TCP, [0, 0], &header)
}

/// The first part of a datagram, or a later one.
fn fragment(peer: Ipv4Addr, port: u16, is_first: bool) -> Vec<u8> {
    let mut header = [FIRST_PORT.to_be_bytes(), port.to_be_bytes()].concat();
    header.extend([0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet(OWN.into(), peer, protocol::UDP, if is_first { [0x20, 0] } else { [0, 2] }, &header)
}
