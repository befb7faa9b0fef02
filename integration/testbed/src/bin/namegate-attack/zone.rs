//! The hostile zone: answers of every bad kind, asked for by the hostile endpoint, which then sends to what they hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use namegate_testbed::dns::{Query, Reply, Transport};
use namegate_testbed::proto::rr::rdata::{A, AAAA, CNAME};
use namegate_testbed::proto::rr::{Name, RData, Record, RecordType};
use namegate_testbed::{World, client};
use tokio::net::UdpSocket;

use crate::far::NODE_PORT;
use crate::flood::End;
use crate::ground::{ALPHA, BETA, ENDPOINT};
use crate::tag::{denied, passing};

/// The domain that this zone answers for; a rule of the hostile endpoint selects it.
const DOMAIN: &str = ".zone.hostile.test";
/// Kinds of answers, asked for in turn.
const KINDS: [&str; 10] =
    ["many", "huge", "brief", "special", "tenant", "chain", "loop", "truncated", "garbage", "stray"];
/// Between two questions: forty a second.
const PAUSE: Duration = Duration::from_millis(25);
/// Waiting time for one answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// After this a TTL of nothing has ended, whatever `dns.minTtl` makes of it.
const OVER: Duration = Duration::from_secs(4);
/// Addresses of one answer that are tried.
const TRIED: usize = 8;

/// How many questions were asked, and how many answered.
#[derive(Clone, Default)]
pub(crate) struct Zone {
    pub(crate) asked: Arc<AtomicU64>,
    pub(crate) answered: Arc<AtomicU64>,
}

/// Puts the zone into the world's resolvers, and starts the endpoint's questions.
pub(crate) fn start(world: &World, end: &End) -> Zone {
    let tenants = world.pods().iter().filter(|pod| [ALPHA, BETA].contains(&pod.spec.key().as_str()));
    let tenants: Vec<IpAddr> = tenants.flat_map(|pod| pod.spec.ips.clone()).collect();
    let nodes = world.spec().nodes.iter().flat_map(|node| node.ips.clone());
    let others: Vec<IpAddr> = tenants.into_iter().chain(nodes).collect();
    let counter = AtomicU64::new(0);
    world.zone().script(move |query| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        query.name.ends_with(DOMAIN).then(|| answer(query, &others, number))
    });
    let zone = Zone::default();
    let pod = world.pod(ENDPOINT);
    let (shared, end) = (zone.clone(), end.clone());
    drop(pod.spawn(pod.client(), move |client| async move { ask(&client, &shared, &end).await }));
    zone
}

fn answer(query: &Query, others: &[IpAddr], number: u64) -> Reply {
    let kind = query.name.split(['-', '.']).next().unwrap_or_default();
    match kind {
        "huge" if query.transport == Transport::Udp => Reply::truncated(query),
        "huge" => Reply::records(query, addresses(query, 3_000, number, 60)),
        "many" => Reply::records(query, addresses(query, 12, number, 3_600)),
        "brief" => Reply::records(query, addresses(query, 1, number, 0)),
        "special" => Reply::records(query, listed(query, &special())),
        "tenant" => Reply::records(query, listed(query, others)),
        "chain" => Reply::records(query, chain(query, 64)),
        "loop" => Reply::records(query, chain(query, 2)),
        "truncated" => Reply::truncated(query),
        "stray" => Reply { keeps_id: true, ..Reply::records(query, addresses(query, 2, number, 60)) },
        _ => Reply::octets(query.name.bytes().cycle().take(300).collect::<Vec<_>>()),
    }
}

fn addresses(query: &Query, count: u64, number: u64, ttl: u32) -> Vec<Record> {
    let base = u128::from(number) << 16;
    let data = (0..count).map(|at| match query.record_type {
        RecordType::A => RData::A(A(Ipv4Addr::from(0xc633_0000 | u32::try_from((number + at) & 0xffff).unwrap_or(0)))),
        _ => RData::AAAA(AAAA(Ipv6Addr::from((0x2001_0db8_b000_u128 << 80) | base | u128::from(at)))),
    });
    records(query, ttl, data.collect())
}

fn listed(query: &Query, addresses: &[IpAddr]) -> Vec<Record> {
    let data = addresses.iter().filter_map(|address| match (address, query.record_type) {
        (IpAddr::V4(address), RecordType::A) => Some(RData::A(A(*address))),
        (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA(AAAA(*address))),
        _ => None,
    });
    records(query, 600, data.collect())
}

fn records(query: &Query, ttl: u32, data: Vec<RData>) -> Vec<Record> {
    let Ok(owner) = Name::from_ascii(format!("{}.", query.name)) else { return Vec::new() };
    data.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl, data)).collect()
}

/// Aliases one behind the other, the last of them back to the first.
fn chain(query: &Query, links: usize) -> Vec<Record> {
    let name = |at: usize| match at % links {
        0 => query.name.clone(),
        at => format!("link{at}.elsewhere.test"),
    };
    (0..links)
        .filter_map(|at| {
            let owner = Name::from_ascii(format!("{}.", name(at))).ok()?;
            let target = Name::from_ascii(format!("{}.", name(at + 1))).ok()?;
            Some(Record::from_rdata(owner, 60, RData::CNAME(CNAME(target))))
        })
        .collect()
}

/// Addresses that no name may open.
fn special() -> Vec<IpAddr> {
    let texts = [
        "169.254.169.254",
        "169.254.1.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "127.0.0.1",
        "fe80::1",
        "ff02::1",
        "::ffff:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "64:ff9b::a9fe:a9fe",
        "fd00:ec2::254",
        "::1",
    ];
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

async fn ask(client: &client::Client, zone: &Zone, end: &End) {
    // Addresses whose TTL was nothing, with the moment of their answer.
    let mut brief: Vec<(Instant, IpAddr)> = Vec::new();
    for number in 0_u64.. {
        if end.is_set() {
            return;
        }
        let kind = KINDS[usize::try_from(number).unwrap_or_default() % KINDS.len()];
        let record_type = if number / 10 % 2 == 0 { RecordType::A } else { RecordType::AAAA };
        let mut client = client.clone();
        (client.dns_within, client.edns) = (PATIENCE, Some(1_232));
        zone.asked.fetch_add(1, Ordering::Relaxed);
        if let Ok(found) = client.lookup_type(&format!("{kind}-{number}{DOMAIN}"), record_type).await {
            zone.answered.fetch_add(1, Ordering::Relaxed);
            let tried = found.addresses.iter().copied().take(TRIED);
            match kind {
                "special" | "tenant" => send(found.addresses, &denied(&format!("zone:{kind}"))).await,
                // The address is not used until its time has passed. IPv4 ones come again, so they prove nothing.
                "brief" => brief.extend(tried.filter(IpAddr::is_ipv6).map(|address| (found.received, address))),
                _ => send(tried.collect(), &passing("zone:open")).await,
            }
        }
        while brief.first().is_some_and(|(since, _)| since.elapsed() > OVER) {
            let (_, address) = brief.remove(0);
            send(vec![address], &denied("zone:ended-ttl")).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn send(to: Vec<IpAddr>, payload: &[u8]) {
    for address in to {
        let own = client::any_of(SocketAddr::new(address, NODE_PORT));
        if let Ok(socket) = UdpSocket::bind(SocketAddr::new(own, 0)).await {
            // Addresses such as 0.0.0.0 can't be sent to at all.
            let _ = socket.send_to(payload, SocketAddr::new(address, NODE_PORT)).await;
        }
    }
}
