//! Settings of every program that is measured: fit for two cores, each question forwarded, nothing answered from a cache.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::names::{self, ZONE};

/// Threads, processes or listeners of each program that can have more than one.
pub(crate) const WORKERS: usize = 2;
/// The set that dnsmasq writes to, as `nft` names it.
pub(crate) const NFT_SET: [&str; 3] = ["inet", "bench", "names"];

/// The policy of the asking pod: it may ask cluster DNS, and go to every name of the zone. Each answer is installed.
pub(crate) const POLICY: &str = r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: bench
  namespace: empire
spec:
  endpointSelector:
    matchLabels:
      class: tiefighter
  egress:
  - toEndpoints:
    - matchLabels:
        "k8s:io.kubernetes.pod.namespace": kube-system
        "k8s:k8s-app": kube-dns
    toPorts:
    - ports:
      - port: "53"
        protocol: ANY
  - toFQDNs:
    - matchPattern: "*.bench.test"
"#;

/// Writes the zone and the settings of the authoritative server; gives its arguments.
pub(crate) fn nsd(folder: &Path, listen: SocketAddr) -> Result<Vec<OsString>> {
    write(folder, "bench.zone", &names::zone())?;
    let at = folder.display();
    let text = format!(
        r#"server:
  ip-address: {address}@{port}
  server-count: {WORKERS}
  reuseport: yes
  username: root
  zonesdir: "{at}"
  database: ""
  pidfile: ""
  xfrdfile: "{at}/nsd.xfrd"
  xfrdir: "{at}"
  zonelistfile: "{at}/nsd.zones"
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: bench.zone
"#,
        address = listen.ip(),
        port = listen.port(),
    );
    Ok(["-d", "-c"].map(Into::into).into_iter().chain([write(folder, "nsd.conf", &text)?]).collect())
}

/// One listener and one connection to the upstream for each worker; there is no packet cache unless asked for.
pub(crate) fn dnsdist(folder: &Path, listen: SocketAddr, upstream: SocketAddr) -> Result<Vec<OsString>> {
    let listeners = format!("addLocal('{listen}', {{reusePort=true}})\n").repeat(WORKERS);
    let servers = format!("newServer({{address='{upstream}', checkName='{ZONE}.'}})\n").repeat(WORKERS);
    let text =
        format!("setACL('0.0.0.0/0')\nsetSecurityPollSuffix('')\nsetMaxUDPOutstanding(65535)\n{listeners}{servers}");
    let file = write(folder, "dnsdist.conf", &text)?;
    Ok(["--supervised", "--disable-syslog", "-C"].map(Into::into).into_iter().chain([file]).collect())
}

/// One listener for each worker; no cache plugin.
pub(crate) fn coredns(folder: &Path, listen: SocketAddr, upstream: SocketAddr) -> Result<Vec<OsString>> {
    let (address, port) = (listen.ip(), listen.port());
    let text = format!(
        ".:{port} {{\n    bind {address}\n    multisocket {WORKERS}\n    forward . {upstream} {{\n        prefer_udp\n    }}\n}}\n"
    );
    Ok(vec!["-conf".into(), write(folder, "Corefile", &text)?])
}

/// One thread, as it always has; the cache is off, each answer's addresses go to the set.
pub(crate) fn dnsmasq(listen: SocketAddr, upstream: SocketAddr) -> Vec<OsString> {
    let [family, table, set] = NFT_SET;
    [
        "--keep-in-foreground".to_owned(),
        "--log-facility=-".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--pid-file=".to_owned(),
        "--user=root".to_owned(),
        "--no-resolv".to_owned(),
        "--no-hosts".to_owned(),
        "--bind-interfaces".to_owned(),
        "--cache-size=0".to_owned(),
        "--dns-forward-max=10000".to_owned(),
        format!("--listen-address={}", listen.ip()),
        format!("--port={}", listen.port()),
        format!("--server={}#{}", upstream.ip(), upstream.port()),
        format!("--nftset=/{ZONE}/4#{family}#{table}#{set}"),
    ]
    .map(Into::into)
    .into()
}

/// What `nft -f -` reads to make the set anew, empty.
pub(crate) fn nft_table() -> String {
    let [family, table, set] = NFT_SET;
    let add = format!("add table {family} {table}\n");
    format!("{add}delete table {family} {table}\n{add}add set {family} {table} {set} {{ type ipv4_addr; }}\n")
}

/// One thread for each worker; answers of the upstream are not kept.
pub(crate) fn unbound(folder: &Path, listen: SocketAddr, upstream: SocketAddr) -> Result<Vec<OsString>> {
    let text = format!(
        r#"server:
  interface: {address}@{port}
  num-threads: {WORKERS}
  so-reuseport: yes
  access-control: 0.0.0.0/0 allow
  module-config: "iterator"
  outgoing-range: 8192
  num-queries-per-thread: 4096
  local-zone: "test." nodefault
  username: ""
  chroot: ""
  directory: "{at}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: {upstream_address}@{upstream_port}
  forward-no-cache: yes
"#,
        address = listen.ip(),
        port = listen.port(),
        at = folder.display(),
        upstream_address = upstream.ip(),
        upstream_port = upstream.port(),
    );
    Ok(["-d", "-p", "-c"].map(Into::into).into_iter().chain([write(folder, "unbound.conf", &text)?]).collect())
}

/// Writes a file into the folder and gives its path, as an argument.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<OsString> {
    let file = folder.join(name);
    std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file.into())
}
