//! The hostile endpoint's connections: opened, given the beginning of a message, and left idle.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use namegate_testbed::{World, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::flood::End;
use crate::ground::{ENDPOINT, LIMITED, NAMED};

/// How long an idle connection waits to be closed by the other side.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts; five hundred a second of each kind.
const PAUSE: Duration = Duration::from_millis(2);

/// A kind of idle connection: name, where to, how many at once, and what is sent first.
struct Kind {
    name: &'static str,
    to: SocketAddr,
    most: usize,
    first: &'static [u8],
}

/// Connections of one kind.
pub(crate) struct Idle {
    pub(crate) name: &'static str,
    /// Opened so far, and refused or broken off by the other side.
    pub(crate) opened: Arc<AtomicUsize>,
    pub(crate) refused: Arc<AtomicUsize>,
}

/// How many connections all kinds together may hold: the descriptors that this process needs.
pub(crate) const MOST: usize = 200 + 200 + 2 * (1_500 + 400);

/// Starts them all.
pub(crate) fn start(world: &World, end: &End) -> Vec<Idle> {
    let pod = world.pod(ENDPOINT);
    let resolver = world.pod("kube-system/coredns-1");
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    let hello = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..];
    let kinds = [
        Kind { name: "dns-tcp-idle-v4", to: at(resolver.ipv4(), 53), most: 200, first: &[0] },
        Kind { name: "dns-tcp-idle-v6", to: at(resolver.ipv6(), 53), most: 200, first: &[1, 0, 0x5a] },
        Kind { name: "http-idle-v4", to: at(LIMITED[0], 80), most: 1_500, first: b"GET /v1 HT" },
        Kind { name: "http-idle-v6", to: at(LIMITED[1], 80), most: 1_500, first: b"" },
        Kind { name: "tls-partial-v4", to: at(NAMED[0], 443), most: 400, first: hello },
        Kind { name: "tls-partial-v6", to: at(NAMED[1], 443), most: 400, first: hello },
    ];
    kinds
        .into_iter()
        .map(|kind| {
            let idle = Idle { name: kind.name, opened: Arc::default(), refused: Arc::default() };
            let (opened, refused, end) = (idle.opened.clone(), idle.refused.clone(), end.clone());
            drop(pod.netns.spawn(async move { keep(kind, opened, refused, end).await }));
            idle
        })
        .collect()
}

/// Keeps as many connections open as the kind has.
async fn keep(kind: Kind, opened: Arc<AtomicUsize>, refused: Arc<AtomicUsize>, end: End) {
    let room = Arc::new(Semaphore::new(kind.most));
    while !end.is_set() {
        if let Ok(permit) = room.clone().try_acquire_owned() {
            let (opened, refused, end) = (opened.clone(), refused.clone(), end.clone());
            tokio::spawn(async move {
                if let Ok(mut stream) = client::connect(kind.to, PATIENCE).await {
                    opened.fetch_add(1, Ordering::Relaxed);
                    if stream.write_all(kind.first).await.is_err() || is_closed(&mut stream, &end).await {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                } else {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                drop(permit);
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for the other side's end; false where the attack ends first.
async fn is_closed(stream: &mut tokio::net::TcpStream, end: &End) -> bool {
    let mut received = [0; 256];
    while !end.is_set() {
        match tokio::time::timeout(PATIENCE, stream.read(&mut received)).await {
            Err(_) => {}
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) => return true,
        }
    }
    false
}
