//! What arrives at the far side: captures of whole frames outside and in honest pods, and a listener on the node.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_testbed::{Netns, World};

use crate::ground::{ALPHA, BETA};
use crate::{raw, tag};

/// How often a capture sees whether it is to end.
const PATIENCE: Duration = Duration::from_millis(200);
/// The longest frame.
const FRAME_BYTES: usize = 65_536;
/// Payload of Ethernet.
const HEADER_BYTES: usize = 14;
/// A port of the node that nobody may reach.
pub(crate) const NODE_PORT: u16 = 9;

/// Frames by mark and place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// What policy denies.
    pub(crate) denied: BTreeMap<String, u64>,
    /// What it lets pass.
    pub(crate) passed: BTreeMap<String, u64>,
    /// Frames of any kind.
    pub(crate) frames: u64,
}

/// The running captures.
pub(crate) struct Far {
    counts: Arc<Mutex<Counts>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Far {
    /// Begins to capture.
    pub(crate) fn start(world: &World) -> Result<Self> {
        let (counts, ended) = (Arc::new(Mutex::new(Counts::default())), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        let own: Vec<IpAddr> = world.pods().iter().flat_map(|pod| pod.spec.ips.clone()).collect();
        let node = world.spec().nodes[0].ips.clone();
        let places: [(&str, &Netns); 3] =
            [("outside", world.outside()), ("alpha", &world.pod(ALPHA).netns), ("beta", &world.pod(BETA).netns)];
        for (place, netns) in places {
            let socket = netns.call(|| raw::frames_of("eth0", PATIENCE));
            let mut socket = socket.with_context(|| format!("capturing at {place}"))?;
            let cluster = Cluster { own: own.clone(), node: node.clone(), is_outside: place == "outside" };
            let (counts, ended) = (counts.clone(), ended.clone());
            threads.push(std::thread::spawn(move || {
                let mut frame = vec![0; FRAME_BYTES];
                while !ended.load(Ordering::Relaxed) {
                    if let Ok(length) = socket.read(&mut frame) {
                        note(&counts, place, &cluster, &frame[..length]);
                    }
                }
            }));
        }
        listen(world, &counts)?;
        Ok(Self { counts, ended, threads })
    }

    /// What was seen so far.
    pub(crate) fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // A panic was shown when it happened.
        }
    }
}

/// Counts marked datagrams that reach the node itself.
fn listen(world: &World, counts: &Arc<Mutex<Counts>>) -> Result<()> {
    let counts = counts.clone();
    world.node().run(async move {
        let socket = tokio::net::UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, NODE_PORT))).await?;
        tokio::spawn(async move {
            let mut datagram = vec![0; FRAME_BYTES];
            while let Ok(length) = socket.recv(&mut datagram).await {
                if let Some((true, what)) = tag::find(&datagram[..length]) {
                    add(&mut lock(&counts).denied, format!("{what} at the node"));
                }
            }
        });
        Ok::<_, std::io::Error>(())
    })?;
    Ok(())
}

fn note(counts: &Mutex<Counts>, place: &str, cluster: &Cluster, frame: &[u8]) {
    let mark = tag::find(frame);
    let strange = cluster.strange(frame);
    let mut counts = lock(counts);
    counts.frames += 1;
    match mark {
        Some((true, what)) => add(&mut counts.denied, format!("{what} at {place}")),
        Some((false, what)) => add(&mut counts.passed, format!("{what} at {place}")),
        None => {}
    }
    if let Some(what) = strange {
        add(&mut counts.denied, format!("{what} at {place}"));
    }
}

fn add(counts: &mut BTreeMap<String, u64>, what: String) {
    *counts.entry(what).or_default() += 1;
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who may send to the outside.
struct Cluster {
    own: Vec<IpAddr>,
    node: Vec<IpAddr>,
    is_outside: bool,
}

impl Cluster {
    /// What is wrong with the addresses of a frame that comes from the node, if something is.
    fn strange(&self, frame: &[u8]) -> Option<String> {
        if !self.is_outside {
            return None;
        }
        let (from, to, protocol) = addresses(frame)?;
        let knows = |address: &IpAddr| self.own.contains(address) || self.node.contains(address);
        // Frames of the outside itself go to the cluster.
        if knows(&to) || is_link(to) && is_link(from) {
            return None;
        }
        if is_closed(to) {
            return Some(format!("to {}: protocol {protocol}", place_of(to)));
        }
        let goes_back = !knows(&from) && !is_link(from);
        (goes_back && is_made_up(from)).then(|| format!("spoofed source: protocol {protocol}"))
    }
}

/// Networks that no policy opens to anyone, by address or by name.
fn is_closed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[0] == 198 && address.octets()[1] & 0xfe == 18,
        IpAddr::V6(address) => address.segments()[..3] == [0x2001, 0xdb8, 0xdead],
    }
}

fn place_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "198.18.0.0/15" } else { "2001:db8:dead::/48" }
}

/// Networks that only forged packets are sent from.
fn is_made_up(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[0] == 100,
        IpAddr::V6(address) => address.segments()[..3] == [0x2001, 0xdb8, 0xbad],
    }
}

fn is_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_multicast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast() || address.is_unspecified(),
    }
}

/// Source, destination and protocol of a frame with IP in it.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8)> {
    let (kind, ip) = (frame.get(12..HEADER_BYTES)?, frame.get(HEADER_BYTES..)?);
    let v4 = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?)));
    let v6 = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?)));
    match kind {
        [8, 0] => Some((v4(12)?, v4(16)?, *ip.get(9)?)),
        [0x86, 0xdd] => Some((v6(8)?, v6(24)?, *ip.get(6)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::{Path, UDP, frame};

    #[test]
    fn what_must_not_arrive_is_seen_without_a_mark() {
        let pod: IpAddr = [10, 244, 1, 66].into();
        let cluster = Cluster { own: vec![pod], node: Vec::new(), is_outside: true };
        let strange = |from: &str, to: &str| {
            let path = Path::new(from.parse().unwrap(), to.parse().unwrap());
            let kind = if path.to.is_ipv4() { 0x0800 } else { 0x86dd };
            cluster.strange(&frame([0; 6], [0; 6], kind, path.packet(UDP, b"").bytes())).is_some()
        };
        assert!(strange("10.244.1.66", "198.18.0.1") && strange("fd00:10:244:1::66", "2001:db8:dead::1"));
        assert!(strange("100.64.0.1", "203.0.113.200") && strange("2001:db8:bad::1", "2001:db8:200::1"));
        assert!(!strange("10.244.1.66", "203.0.113.200") && !strange("203.0.113.200", "10.244.1.66"));
        assert!(!strange("fe80::1", "ff02::1"));
    }
}
