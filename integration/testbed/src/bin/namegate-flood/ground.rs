//! The node that is flooded: its pods, policies, and the server that the flooding endpoint calls.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Options, Spec, World};
use tokio::net::TcpListener;

/// The endpoint that floods, its server, and the endpoint that goes on.
pub(crate) const HOSTILE: &str = "hostile/endpoint";
const SERVER: &str = "hostile/server";
pub(crate) const HONEST: &str = "honest/alpha";
/// Where the honest endpoint asks.
pub(crate) const WEB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 12)), 80);
pub(crate) const TLS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 13)), 443);
pub(crate) const TLS_NAME: &str = "tls.honest.test";
/// Where the hostile endpoint's names and connections are bound.
const QUIC: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 203)), 443);
const QUIC_NAME: &str = "quic.hostile.test";
/// Paths of the hostile endpoint's server: 64 MiB, and no answer.
pub(crate) const BIG: &str = "/big";
pub(crate) const SILENT: &str = "/silent";
/// Parts of the large answer.
const PART: &[u8] = &[b'x'; 16 << 10];
const PARTS: u32 = 4 << 10;

const WORLD: &str = "
name: flood
podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']
nodes:
- {name: node1, ips: [192.168.20.11, 'fd00:20::11']}
namespaces: [{name: honest}, {name: hostile}, {name: kube-system}]
pods:
- {name: alpha, namespace: honest, ips: [10.244.1.10, 'fd00:10:244:1::10']}
- {name: endpoint, namespace: hostile, ips: [10.244.1.66, 'fd00:10:244:1::66']}
- {name: server, namespace: hostile, ips: [10.244.1.67, 'fd00:10:244:1::67'], bare: true}
- {name: coredns-1, namespace: kube-system, labels: {k8s-app: kube-dns}, ips: [10.244.2.10, 'fd00:10:244:2::10']}
dns:
  quic.hostile.test: {A: [203.0.113.203], ttl: 3600}
";

const POLICIES: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: honest, namespace: honest}
spec:
  endpointSelector: {}
  egress:
  - toCIDR: [203.0.113.12/32]
    toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /v1}]}}]
  - toCIDR: [203.0.113.13/32]
    toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [tls.honest.test]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: hostile, namespace: hostile}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, 'k8s:k8s-app': kube-dns}}]
  - toEndpoints: [{}]
    toPorts:
    - ports: [{port: '80', protocol: TCP}]
      rules: {http: [{path: '/.*'}]}
    - ports: [{port: '443', protocol: TCP}]
      serverNames: [named.hostile.test]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bound, namespace: hostile, annotations: {namegate.io/name-binding: enforce}}
spec:
  endpointSelector: {}
  egress:
  - toFQDNs: [{matchName: quic.hostile.test}]
    toPorts: [{ports: [{port: '443', protocol: ANY}]}]
";

/// Builds the world and starts the hostile endpoint's server.
pub(crate) fn world() -> Result<World> {
    let world = World::build(Spec::parse(WORLD)?)?;
    world.pod(SERVER).netns.run(serve([80, 443]))?;
    Ok(world)
}

/// The settings and policies of the agent.
pub(crate) fn options() -> Options {
    Options::default().policies(POLICIES)
}

/// Opens the address of the bound name to the hostile endpoint; gives where it may send: HTTP, TLS, QUIC.
pub(crate) fn targets(world: &World) -> Result<[SocketAddr; 3]> {
    world.pod(HOSTILE).lookup(QUIC_NAME, RecordType::A).with_context(|| format!("looking up {QUIC_NAME}"))?;
    let server = world.pod(SERVER).ipv4();
    Ok([SocketAddr::new(server, 80), SocketAddr::new(server, 443), QUIC])
}

async fn serve(ports: [u16; 2]) -> Result<()> {
    for port in ports {
        let listener =
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.context("listening in the hostile pod")?;
        tokio::spawn(async move {
            loop {
                // Without descriptors it goes on when there are some.
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
                });
            }
        });
    }
    Ok(())
}

async fn answer(request: Request<Incoming>) -> Result<Response<Either<Full<Bytes>, Parts>>, Infallible> {
    Ok(Response::new(match request.uri().path() {
        SILENT => std::future::pending().await,
        BIG => Either::Right(Parts(PARTS)),
        _ => Either::Left(Full::from("flood\n")),
    }))
}

/// A body of so many parts.
struct Parts(u32);

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.0.checked_sub(1) else { return Poll::Ready(None) };
        self.0 = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PART)))))
    }
}
