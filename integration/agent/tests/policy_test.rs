//! `namegate policy test` and `namegate policy trace` from outside.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn namegate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_namegate"));
    command.args(arguments).current_dir(folder).env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// The files that `docs/policy-tests.md` shows, each under the name in its first line.
fn documented() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(root().join("docs/policy-tests.md")).unwrap();
    let mut files = 0;
    for block in page.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let name = text.lines().next().unwrap().strip_prefix("# ").unwrap();
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        files += 1;
    }
    assert_eq!(files, 2);
    folder
}

/// The documented case with one word changed.
fn changed(from: &str, to: &str) -> TempDir {
    let folder = documented();
    let path = folder.path().join("tests/payments.yaml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
    folder
}

const PORT_80: &str = "port: 80, verdict: deny, how: drop";

#[test]
fn the_model_decides_every_case_as_expected() {
    let (code, out, err) = said(&namegate(&root(), &["policy", "test", "--cases", "conformance/cases"]));
    assert_eq!(last_line(&out), "325 cases, 95424 flows, 0 failed", "{out}{err}");
    assert_eq!(code, Some(0));
    assert_eq!(out.matches("FAILED").count(), 0, "{out}");
    // Only a case that says that a product may refuse its policy has one refused.
    assert!(out.contains("cilium/doc-requires (conformance/cases/cilium/doc-requires.yaml, doubtful)"), "{out}");
    assert_eq!(out.matches("a policy of the case is refused").count(), 1, "{out}");
}

/// Needs root.
#[test]
fn the_kernel_decides_every_flow_as_expected() {
    for (suite, last) in [
        ("seed", "7 cases, 73 flows, 0 failed"),
        ("cilium", "91 cases, 414 flows, 0 failed"),
        ("k8s-e2e", "48 cases, 25056 flows, 0 failed"),
        ("cnp-api", "29 cases, 317 flows, 0 failed"),
    ] {
        let cases = format!("conformance/cases/{suite}");
        let (code, out, err) =
            said(&namegate(&root(), &["policy", "test", "--datapath", "kernel", "-o", "text", "--cases", &cases]));
        assert_eq!((code, last_line(&out)), (Some(0), last), "{out}{err}");
    }
}

#[test]
fn the_documented_case_passes_in_both_datapaths() {
    let folder = documented();
    for datapath in ["model", "kernel"] {
        let arguments = ["policy", "test", "--cases", "tests/", "--datapath", datapath];
        let (code, out, err) = said(&namegate(folder.path(), &arguments));
        assert_eq!((code, &*out), (Some(0), "1 cases, 8 flows, 0 failed\n"), "{datapath}: {err}");
    }
}

#[test]
fn a_failure_shows_both_sides_and_the_rule() {
    let folder = changed(PORT_80, "port: 80, verdict: allow");
    for datapath in ["model", "kernel"] {
        let arguments = ["policy", "test", "--cases", "tests/payments.yaml", "--datapath", datapath];
        let (code, out, _) = said(&namegate(folder.path(), &arguments));
        assert_eq!(code, Some(1), "{datapath}");
        insta::assert_snapshot!("failure", out);
        let page = fs::read_to_string(root().join("docs/policy-tests.md")).unwrap();
        assert!(page.contains(out.trim_end().rsplit_once('\n').unwrap().0), "the page shows another failure");
    }
    // A flow that passes and should not names the rule that opens it.
    let folder =
        changed("'fqdn:cdn.example', port: 443, verdict: allow", "'fqdn:cdn.example', port: 443, verdict: deny");
    let (code, out, _) = said(&namegate(folder.path(), &["policy", "test", "--cases", "tests"]));
    assert_eq!(code, Some(1));
    assert!(out.contains("egress   allow, rule: shop/payments spec.egress[1]"), "{out}");
}

#[test]
fn programs_get_json_and_build_servers_junit() {
    let folder = changed(PORT_80, "port: 80, verdict: allow");
    let (code, out, _) = said(&namegate(folder.path(), &["policy", "test", "--cases", "tests", "-o", "json"]));
    assert_eq!(code, Some(1));
    insta::assert_snapshot!("json", out);
    let (code, out, _) = said(&namegate(folder.path(), &["policy", "test", "--cases", "tests", "-o", "junit"]));
    assert_eq!(code, Some(1));
    let out: String =
        out.split_inclusive("time=\"").map(|part| part.trim_start_matches(|it| "0123456789.".contains(it))).collect();
    insta::assert_snapshot!("junit", out);
}

#[test]
fn verbose_shows_every_flow() {
    let folder = documented();
    let (_, out, _) = said(&namegate(folder.path(), &["policy", "test", "--cases", "tests", "-v"]));
    assert_eq!(out.lines().filter(|line| line.starts_with("  ok ")).count(), 8, "{out}");
}

#[test]
fn a_refused_policy_is_a_failure_and_an_unreadable_case_an_error() {
    for (from, to, code, wanted) in [
        ("toFQDNs", "toFQDN", 1, "`spec.egress[1].toFQDN`: there is no such field"),
        ("world: world-shop", "world: world-gone", 2, "there is no world-gone.yaml beside it or in a folder above"),
        ("verdict: allow", "verdict: maybe", 2, "tests/payments.yaml is no case"),
        ("expect:", "expects:", 2, "tests/payments.yaml is no case"),
        ("from: shop/web", "from: shop/gone", 1, "nothing: there is no such source"),
    ] {
        let folder = changed(from, to);
        let (got, out, err) = said(&namegate(folder.path(), &["policy", "test", "--cases", "tests/payments.yaml"]));
        assert_eq!(got, Some(code), "{to}: {out}{err}");
        assert!(out.contains(wanted) || err.contains(wanted), "{to}: {out}{err}");
    }
    let folder = documented();
    for arguments in [&["--cases", "tests", "--only", "nothing"][..], &["--cases", "gone"], &[]] {
        let (code, ..) = said(&namegate(folder.path(), &[&["policy", "test"], arguments].concat()));
        assert_eq!(code, Some(2), "{arguments:?}");
    }
}

/// World and policies of the documented case, a deny rule, and the files of an agent.
fn traced() -> TempDir {
    let folder = documented();
    let case = fs::read_to_string(folder.path().join("tests/payments.yaml")).unwrap();
    let policies = case.split("policies:\n").nth(1).unwrap().split("expect:").next().unwrap();
    let policies: Vec<&str> = policies.lines().map(|line| line.get(2..).unwrap_or_default()).collect();
    let deny = "apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: no-elsewhere}
spec:
  endpointSelector: {}
  enableDefaultDeny: {egress: false}
  egressDeny: [{toCIDR: [198.51.100.0/24]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: everywhere, namespace: shop}
spec:
  podSelector: {matchLabels: {app: worker}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]
";
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("policies")).unwrap();
    fs::write(path("policies/payments.yaml"), policies.join("\n")).unwrap();
    fs::write(path("policies/deny.yaml"), deny).unwrap();
    fs::write(path("namegate.yaml"), "policies: policies\nendpoints: endpoints.yaml\ndns: {resolvers: [10.20.0.53]}\n")
        .unwrap();
    let endpoints = "endpoints:
- {name: web, namespace: shop, labels: {app: web}, interface: veth-web, addresses: [10.20.0.2]}
- {name: worker, namespace: shop, labels: {app: worker}, addresses: [10.20.0.3]}
- {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}, addresses: [10.20.0.53]}
";
    fs::write(path("endpoints.yaml"), endpoints).unwrap();
    folder
}

#[test]
fn a_trace_names_the_rules_of_both_sides() {
    let folder = traced();
    let world = ["--world", "tests/world-shop.yaml", "--policies", "policies"];
    let agent = ["--config", "namegate.yaml"];
    for (name, source, arguments, code) in [
        ("trace_name", &world[..], &["--from", "shop/web", "--to", "cdn.example", "--port", "443/TCP"][..], 0),
        ("trace_deny", &world, &["--from", "shop/worker", "--to", "198.51.100.7", "--port", "8/ICMP"], 1),
        ("trace_default", &world, &["--from", "shop/web", "--to", "shop/worker", "--port", "9000"], 1),
        ("trace_agent", &agent, &["--from", "shop/web", "--to", "API.payments.example", "--port", "443"], 0),
        ("trace_json", &agent, &["--from", "shop/worker", "--to", "198.51.100.7", "--port", "53/UDP", "-o", "json"], 1),
    ] {
        let (got, out, err) = said(&namegate(folder.path(), &[&["policy", "trace"], arguments, source].concat()));
        assert_eq!(got, Some(code), "{name}: {out}{err}");
        insta::assert_snapshot!(name, out);
    }
}

#[test]
fn what_cannot_be_traced_is_said() {
    let folder = traced();
    let world = ["--world", "tests/world-shop.yaml", "--policies", "policies"];
    for (arguments, wanted) in [
        (&["--from", "shop/gone", "--to", "192.0.2.1"][..], "there is no such source"),
        (&["--from", "shop/web", "--to", "svc:shop/gone"], "there is no such service"),
        (&["--from", "shop/web", "--to", "a b"], "is no place"),
        (&["--from", "shop/web", "--to", "a.io", "--port", "1/QUIC"], "`QUIC` is none of TCP, UDP, SCTP, ICMP, ICMPv6"),
        (&["--from", "shop/web", "--to", "a.io", "--http", "GET"], "`GET` is no request: write `GET /path`"),
    ] {
        let (code, out, err) = said(&namegate(folder.path(), &[&["policy", "trace"], arguments, &world].concat()));
        assert_eq!((code, &*out), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.contains(wanted), "{arguments:?}: {err}");
    }
}

#[test]
fn validation_tells_rules_about_nobody_where_everybody_is_known() {
    let folder = traced();
    let path = folder.path().join("policies/nobody.yaml");
    let text = fs::read_to_string(folder.path().join("policies/payments.yaml")).unwrap();
    fs::write(path, text.replace("app: web", "app: gone").replace("name: payments", "name: nobody")).unwrap();
    for (source, last, code) in [
        (&["--world", "tests/world-shop.yaml"][..], "4 documents without a mistake, 0 errors, 1 warnings", 0),
        (&["--config", "namegate.yaml", "--strict"], "4 documents without a mistake, 0 errors, 1 warnings", 1),
        (&["--strict"], "4 documents without a mistake, 0 errors, 0 warnings", 0),
    ] {
        let (got, out, err) = said(&namegate(folder.path(), &[&["policy", "validate", "policies"], source].concat()));
        assert_eq!((got, last_line(&out)), (Some(code), last), "{source:?}: {out}{err}");
    }
    let (_, out, _) =
        said(&namegate(folder.path(), &["policy", "validate", "policies", "--world", "tests/world-shop.yaml"]));
    insta::assert_snapshot!("validate", out);
}
