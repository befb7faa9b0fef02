//! Measures an agent beside thousands of pods and 200 policies: memory, processor time, and how long a policy takes
//! from `kubectl apply` to the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{
    CNP, NAMESPACE, NODES, POD, Server, api, apply, create, install_cilium, options, populate, state, wait,
};
use futures_util::StreamExt;
use kube::Client;
use kube::api::DeleteParams;
use namegate_testbed::{Agent, Spec, World};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const TIE: &str = "empire/tiefighter";
const PODS: usize = 2_000;
const POLICIES: usize = 200;
const SAMPLES: usize = 60;
/// What the agent may take at 2,000 pods.
const MEMORY_MAX_KIB: u64 = 100 * 1024;
/// A large cluster: the agent knows each pod, and only those that rules select have an identity.
const MANY_PODS: usize = 10_000;
const MANY_MEMORY_MAX_KIB: u64 = 150 * 1024;

fn pod(at: usize) -> Value {
    json!({
        "metadata": {"name": format!("pod-{at}"), "namespace": format!("team-{}", at % 20), "labels": {
            "app": format!("app-{}", at % 100), "pod-template-hash": format!("{:08x}", at / 4), "tier": "backend",
            "app.kubernetes.io/name": format!("app-{}", at % 100), "app.kubernetes.io/version": "1.2.3"}},
        "spec": {"nodeName": "node2", "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": address(at), "podIPs": [{"ip": address(at)}]},
    })
}

fn address(at: usize) -> String {
    format!("10.128.{}.{}", at / 250, at % 250 + 1)
}

/// One of ten is about the pod of this node.
fn policy(name: &str, at: usize) -> Value {
    let class = if at.is_multiple_of(10) { "tiefighter".to_owned() } else { format!("class-{at}") };
    json!({
        "metadata": {"name": name, "namespace": "empire"},
        "spec": {"endpointSelector": {"matchLabels": {"class": class}}, "egress": [
            {"toEndpoints": [{"matchLabels": {"app": format!("app-{}", at % 100),
                "k8s:io.kubernetes.pod.namespace": format!("team-{}", at % 20)}}],
                "toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}]}]},
            {"toFQDNs": [{"matchName": format!("host-{at}.example.com")}, {"matchPattern": format!("*.zone-{at}.example.com")}]},
        ]},
    })
}

/// An API server with pods of another node, and the policies.
fn server(world: &World, pods: usize) -> Server<'_> {
    let server = Server::start(world);
    populate(&server, world, &[TIE]);
    install_cilium(&server);
    server.apply(NODES, json!({"metadata": {"name": "node2"}}));
    for team in 0..20 {
        server.apply(NAMESPACE, json!({"metadata": {"name": format!("team-{team}")}}));
    }
    server.ask(move |client| async move {
        let made = (0..pods).map(|at| {
            let client = client.clone();
            async move { create(&client, POD, &pod(at)).await }
        });
        futures_util::stream::iter(made).buffer_unordered(16).collect::<()>().await;
        for at in 0..POLICIES {
            create(&client, CNP, &policy(&format!("base-{at}"), at)).await;
        }
    });
    server
}

/// How long the agent takes until the pod of its node is guarded.
fn start<'a>(world: &'a World, server: &Server) -> (Agent<'a>, Duration) {
    let began = Instant::now();
    let agent = Agent::start(world, &options(world, server)).unwrap();
    wait("the pod to be guarded", || (state(&agent, TIE).as_deref() == Some("guarded")).then_some(()));
    (agent, began.elapsed())
}

#[test]
fn ten_thousand_pods() {
    let world = World::build(Spec::empire().unwrap().only(&[TIE])).unwrap();
    let server = server(&world, MANY_PODS);
    let (agent, took) = start(&world, &server);
    let process = process(&agent.path("namegate.yaml"));
    let socket = agent.socket();
    let samples = server.ask(move |client| async move { sample(&client, &socket, "many").await });
    let peak_kib = memory_kib(&process);
    println!("pods {MANY_PODS}, policies {POLICIES}, start to guarded {took:?}, memory {} MiB", peak_kib / 1024);
    println!("apply to enforced: p50 {:?}, p99 {:?}", at(&samples, 50), at(&samples, 99));
    assert!(peak_kib < MANY_MEMORY_MAX_KIB);
}

#[test]
fn two_thousand_pods_and_two_hundred_policies() {
    let world = World::build(Spec::empire().unwrap().only(&[TIE])).unwrap();
    let server = server(&world, PODS);
    let (agent, start) = start(&world, &server);
    let process = process(&agent.path("namegate.yaml"));
    // The statuses of the policies are written first.
    std::thread::sleep(Duration::from_secs(10));
    let (quiet, quiet_kib) = (processor(&process), memory_kib(&process));
    std::thread::sleep(Duration::from_secs(5));
    let idle = processor(&process) - quiet;

    let calm = processor(&process);
    let socket = agent.socket();
    let asleep = server.ask(move |client| async move { sample(&client, &socket, "calm").await });
    let before = processor(&process);
    let samples = u32::try_from(SAMPLES).unwrap();
    let each = (before - calm) * 1e3 / f64::from(2 * samples);
    let socket = agent.socket();
    let (took, busy) = server.ask(move |client| async move {
        let others = tokio::spawn(churn(client.clone()));
        let began = Instant::now();
        let samples = sample(&client, &socket, "busy").await;
        others.abort();
        (began.elapsed(), samples)
    });
    let spent = processor(&process) - before;
    let peak_kib = memory_kib(&process);
    println!("pods {PODS}, policies {POLICIES}, start to guarded {start:?}");
    println!("memory {} MiB at rest, {} MiB after the changes", quiet_kib / 1024, peak_kib / 1024);
    println!(
        "processor {:.1} % at rest, {:.1} % under changes",
        percent(idle, 5.0),
        percent(spent, took.as_secs_f64())
    );
    println!("processor time of a change of policies, with the reader that waits for it: {each:.1} ms");
    println!(
        "apply to enforced: p50 {:?}, p99 {:?}; beside changing pods p50 {:?}, p99 {:?}",
        at(&asleep, 50),
        at(&asleep, 99),
        at(&busy, 50),
        at(&busy, 99)
    );
    assert!(peak_kib < MEMORY_MAX_KIB);
}

/// Applies policies one after the other; how long each took until the kernel held it.
async fn sample(client: &Client, socket: &Path, prefix: &str) -> Vec<Duration> {
    let mut samples = Vec::new();
    for at in 0..SAMPLES {
        let name = format!("{prefix}-{at}");
        let object = policy(&name, at * 10);
        let began = Instant::now();
        create(client, CNP, &object).await;
        while !holds(socket, &name).await {
            assert!(began.elapsed() < Duration::from_secs(30), "{name} is not enforced");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        samples.push(began.elapsed());
        api(client, CNP, Some("empire")).delete(&name, &DeleteParams::default()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    samples.sort();
    samples
}

/// Whether a rule of the policy is in force for the pod.
async fn holds(socket: &Path, policy: &str) -> bool {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(b"GET /v1/endpoint/empire%2Ftiefighter HTTP/1.0\r\nHost: namegate\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.contains(&format!("empire/{policy} "))
}

/// Labels of pods that change, 50 a second.
async fn churn(client: Client) {
    for round in 0.. {
        let mut changed = pod(round % PODS);
        changed["metadata"]["labels"]["round"] = json!(round.to_string());
        changed.as_object_mut().unwrap().remove("status");
        apply(&client, POD, &changed).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn percent(spent: f64, of: f64) -> f64 {
    spent * 100.0 / of
}

/// The process whose command line names this file.
fn process(config: &Path) -> PathBuf {
    let config = config.to_str().unwrap();
    let named = |path: &PathBuf| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|octet| *octet == 0).any(|word| word == config.as_bytes())
    };
    fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).find(named).unwrap()
}

/// Memory of its own: pages of the program's file do not count.
fn memory_kib(process: &Path) -> u64 {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Seconds of processor time so far, of the user and the system (`proc_pid_stat(5)`).
fn processor(process: &Path) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
    f64::from(ticks) / TICKS_PER_SECOND
}
