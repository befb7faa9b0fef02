//! Settings of the origin and of every proxy: fit for two cores, the same rules in each, no logs.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::generate_simple_self_signed;
use serde_json::{Value, json};

use super::loopback;
use crate::config::write;

/// Threads or processes of each program.
pub(crate) const WORKERS: usize = 2;
/// Connections that ask at any time.
pub(crate) const CONNECTIONS: u32 = 64;
/// The name in every request.
pub(crate) const NAME: &str = "a.bench.test";
/// Ports of the origin.
pub(crate) const HTTP_PORT: u16 = 8080;
pub(crate) const TLS_PORT: u16 = 8443;
/// Octets of a response's body.
pub(crate) const BODY_OCTETS: usize = 1_024;
/// A path that no rule allows.
pub(crate) const CLOSED_PATH: &str = "/api/v1/secrets/42";
/// A server name that no rule allows.
pub(crate) const CLOSED_NAME: &str = "a.closed.test";
/// There is one rule for each.
const THINGS: [&str; 10] =
    ["users", "orders", "items", "carts", "prices", "stores", "reviews", "images", "offers", "search"];

/// Paths that are asked for, one of each rule.
pub(crate) fn paths() -> Vec<String> {
    THINGS.map(|thing| format!("/api/v1/{thing}/42")).into()
}

/// Expressions for whole paths, in the words of all three programs.
pub(crate) fn path_rules() -> Vec<String> {
    THINGS.map(|thing| format!("/api/v1/{thing}/[0-9]+")).into()
}

/// Patterns of server names. The one that is asked for is the last.
pub(crate) fn name_rules() -> Vec<String> {
    let others = THINGS.iter().skip(1).map(|thing| format!("*.{thing}.test"));
    others.chain(["*.bench.test".to_owned()]).collect()
}

/// The policy of the asking pod.
pub(crate) fn policy() -> String {
    let paths: Vec<_> = path_rules().iter().map(|path| json!({"method": "GET", "path": path})).collect();
    // JSON is YAML.
    let policy = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "bench", "namespace": "empire"},
        "spec": {
            "endpointSelector": {"matchLabels": {"class": "tiefighter"}},
            "egress": [{
                "toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "bench", "app": "origin"}}],
                "toPorts": [
                    {"ports": [{"port": HTTP_PORT.to_string(), "protocol": "TCP"}], "rules": {"http": paths}},
                    {"ports": [{"port": TLS_PORT.to_string(), "protocol": "TCP"}], "serverNames": name_rules()},
                ],
            }],
        },
    });
    policy.to_string()
}

/// What each nginx starts with.
fn nginx_head(modules: &str) -> String {
    format!(
        "{modules}user root;\ndaemon off;\nworker_processes {WORKERS};\npid nginx.pid;\nerror_log stderr warn;\n\
         pcre_jit on;\nevents {{ worker_connections 4096; }}\n"
    )
}

/// What each `http` block starts with.
const NGINX_HTTP: &str = "  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 600s;\n  \
    client_body_temp_path body;\n  proxy_temp_path proxy;\n  fastcgi_temp_path fastcgi;\n  uwsgi_temp_path uwsgi;\n  \
    scgi_temp_path scgi;\n";

fn nginx(folder: &Path, text: &str) -> Result<Vec<OsString>> {
    let file = write(folder, "nginx.conf", text)?;
    Ok(vec!["-p".into(), folder.into(), "-e".into(), "stderr".into(), "-c".into(), file])
}

/// Answers every request with as many octets, on both ports.
pub(crate) fn origin(folder: &Path, address: IpAddr) -> Result<Vec<OsString>> {
    let folder = &made(folder.join("origin"))?;
    let made = generate_simple_self_signed([NAME.to_owned()]).context("making a certificate")?;
    write(folder, "cert.pem", &made.cert.pem())?;
    write(folder, "key.pem", &made.signing_key.serialize_pem())?;
    let body = "x".repeat(BODY_OCTETS);
    let text = format!(
        "{}http {{\n{NGINX_HTTP}  server {{\n    listen {address}:{HTTP_PORT} backlog=4096 reuseport;\n    \
         listen {address}:{TLS_PORT} ssl backlog=4096 reuseport;\n    ssl_certificate cert.pem;\n    \
         ssl_certificate_key key.pem;\n    ssl_session_cache off;\n    ssl_session_tickets off;\n    \
         location / {{ return 200 \"{body}\"; }}\n  }}\n}}\n",
        nginx_head("")
    );
    nginx(folder, &text)
}

/// A location for each path, with the method, and the map of server names.
pub(crate) fn nginx_proxy(folder: &Path, http: u16, tls: u16, origin: IpAddr, module: &Path) -> Result<Vec<OsString>> {
    let mut text = nginx_head(&format!("load_module {};\n", module.display()));
    let _ = write!(
        text,
        "http {{\n{NGINX_HTTP}  upstream origin {{\n    server {origin}:{HTTP_PORT};\n    keepalive {CONNECTIONS};\n    \
         keepalive_requests 1000000000;\n  }}\n  server {{\n    listen {} backlog=4096 reuseport;\n    \
         proxy_http_version 1.1;\n    proxy_set_header Connection \"\";\n    proxy_set_header Host $http_host;\n",
        loopback(http)
    );
    for path in path_rules() {
        let _ = writeln!(
            text,
            "    location ~ \"^(?:{path})$\" {{ limit_except GET {{ deny all; }} proxy_pass http://origin; }}"
        );
    }
    let _ = write!(
        text,
        "    location / {{ return 403; }}\n  }}\n}}\nstream {{\n  upstream tls {{ server {origin}:{TLS_PORT}; }}\n  \
         map $ssl_preread_server_name $to {{\n    hostnames;\n    default \"\";\n"
    );
    for name in name_rules() {
        let _ = writeln!(text, "    {name} tls;");
    }
    let _ = write!(
        text,
        "  }}\n  server {{\n    listen {} backlog=4096 reuseport;\n    ssl_preread on;\n    proxy_pass $to;\n  }}\n}}\n",
        loopback(tls)
    );
    nginx(folder, &text)
}

/// An RBAC filter with a policy for each path; a filter chain for the server names.
pub(crate) fn envoy(folder: &Path, http: u16, tls: u16, origin: IpAddr) -> Result<Vec<OsString>> {
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let filter = |name: &str, mut config: Value, at: &str| {
        config["@type"] = kind(at).into();
        json!({"name": name, "typed_config": config})
    };
    let permission = |path: &String| {
        json!({"and_rules": {"rules": [
            {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
            {"url_path": {"path": {"safe_regex": {"regex": path}}}},
        ]}})
    };
    let permissions: Vec<_> = path_rules().iter().map(permission).collect();
    let rules = json!({"action": "ALLOW", "policies": {
        "bench": {"principals": [{"any": true}], "permissions": permissions},
    }});
    let manager = json!({
        "stat_prefix": "http", "normalize_path": true, "merge_slashes": true, "generate_request_id": false,
        "http_filters": [
            filter("rbac", json!({"rules": rules}), "http.rbac.v3.RBAC"),
            filter("router", json!({}), "http.router.v3.Router"),
        ],
        "route_config": {"virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "http"}}]},
        ]},
    });
    let manager = filter("http", manager, "network.http_connection_manager.v3.HttpConnectionManager");
    let tcp = filter("tcp", json!({"stat_prefix": "tls", "cluster": "tls"}), "network.tcp_proxy.v3.TcpProxy");
    let listener = |name: &str, port: u16, chain: Value| {
        let address = address(loopback(port));
        json!({"name": name, "address": address, "tcp_backlog_size": 4096, "filter_chains": [chain]})
    };
    let mut by_name =
        listener("tls", tls, json!({"filter_chain_match": {"server_names": name_rules()}, "filters": [tcp]}));
    by_name["listener_filters"] = json!([filter("tls", json!({}), "listener.tls_inspector.v3.TlsInspector")]);
    let cluster = |name: &str, port: u16| {
        let endpoint = json!({"endpoint": {"address": address(SocketAddr::new(origin, port))}});
        json!({"name": name, "type": "STATIC", "load_assignment": {
            "cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}],
        }})
    };
    let config = json!({"static_resources": {
        "listeners": [listener("http", http, json!({"filters": [manager]})), by_name],
        "clusters": [cluster("http", HTTP_PORT), cluster("tls", TLS_PORT)],
    }});
    let file = write(folder, "envoy.json", &config.to_string())?;
    let workers = WORKERS.to_string().into();
    Ok(vec![
        "-c".into(),
        file,
        "--concurrency".into(),
        workers,
        "--disable-hot-restart".into(),
        "-l".into(),
        "error".into(),
    ])
}

fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip(), "port_value": at.port()}})
}

/// Makes a folder.
pub(crate) fn made(folder: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_gets_every_rule() {
        let folder = tempfile::tempdir().unwrap();
        let origin = IpAddr::from([192, 0, 2, 1]);
        envoy(folder.path(), 1, 2, origin).unwrap();
        nginx_proxy(folder.path(), 1, 2, origin, Path::new("/m.so")).unwrap();
        let files = ["envoy.json", "nginx.conf"].map(|name| std::fs::read_to_string(folder.path().join(name)).unwrap());
        for text in files.iter().chain([&policy()]) {
            for rule in path_rules().iter().chain(&name_rules()) {
                assert!(text.contains(rule), "{rule} is missing in {text}");
            }
        }
    }
}
