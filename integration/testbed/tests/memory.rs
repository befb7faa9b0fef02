//! Memory of the real agent: what one pod does not read or does not finish has a bound, goes back to the system, and leaves
//! others alone.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{TIE, WITHIN, XWING, egress, ip, world};
use namegate_testbed::http2::{HEADERS, WHOLE_REQUEST, frame, get, hello};
use namegate_testbed::{Agent, Options, Pod, client};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const LIMITED: &str = "142.250.74.78";
const MEBIBYTE: u64 = 1 << 20;
/// What a pod may have the agent keep, with what the allocator adds.
const GROWN_MAX: u64 = 160 * MEBIBYTE;
/// What the allocator may keep of it.
const LEFT_MAX: u64 = 24 * MEBIBYTE;

fn limited() -> String {
    egress(&format!(
        "  - toCIDR: [{LIMITED}/32]\n    toPorts:\n    - ports: [{{port: '80', protocol: TCP}}]\n      rules: {{http: \
         [{{path: '/.*'}}]}}\n"
    ))
}

/// The agent's memory in use (`RssAnon`, `proc_pid_status(5)`), bytes.
fn resident(agent: &Agent<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Opens connections, sends the same on each, and reads nothing.
fn hold(pod: &Pod, count: usize, first: Vec<u8>) -> Vec<TcpStream> {
    let to = SocketAddr::new(ip(LIMITED), 80);
    pod.netns.run(async move {
        let mut held = Vec::new();
        for _ in 0..count {
            let Ok(mut stream) = client::connect(to, WITHIN).await else { continue };
            // The agent may have closed it.
            let _ = stream.write_all(&first).await;
            held.push(stream);
        }
        held
    })
}

fn get_page(pod: &Pod) -> Option<u16> {
    let mut client = pod.client();
    client.within = WITHIN;
    let url = format!("http://{LIMITED}/");
    pod.run(client, move |client| async move { client.get(&url).await }).status()
}

/// Runs a pod's worst while another asks, and waits for the memory afterwards.
fn bounded(count: usize, first: &[u8], gives_way: bool) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let world = world(&[TIE, XWING]);
    let agent = Agent::start(&world, &Options::default().policies(&limited())).unwrap();
    let (hostile, honest) = (world.pod(TIE), world.pod(XWING));
    assert_eq!(get_page(honest), Some(200));
    let before = resident(&agent);
    let held = hold(hostile, count, first.to_vec());
    for _ in 0..20 {
        assert_eq!(get_page(honest), Some(200));
        let grown = resident(&agent).saturating_sub(before);
        assert!(grown < GROWN_MAX, "{} MiB for {count} connections", grown / MEBIBYTE);
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{} MiB for {count} connections", resident(&agent).saturating_sub(before) / MEBIBYTE);
    if gives_way {
        let status = agent.json("/v1/status").unwrap();
        let rows = status["refused"].as_array().unwrap().iter();
        let row = rows.clone().find(|row| row["bound"] == "bytes of requests").unwrap();
        assert_eq!(row["endpoint"], TIE, "{status:#}");
    }
    drop(held);
    let back = |agent: &Agent<'_>| Ok((resident(agent) <= before + LEFT_MAX).then_some(()));
    let is_back = agent.wait_for("the memory", back).is_ok();
    let left = resident(&agent).saturating_sub(before) / MEBIBYTE;
    assert!(
        is_back,
        "{left} MiB are left of {} MiB before: {:#}",
        before / MEBIBYTE,
        agent.json("/v1/status").unwrap()["requests"]
    );
    println!("{left} MiB are left of {count} connections");
}

#[test]
fn streams_that_are_not_read_have_a_bound() {
    let streams = (0..100).flat_map(|at| frame(HEADERS, WHOLE_REQUEST, 2 * at + 1, &get("/big")));
    bounded(40, &hello().into_iter().chain(streams).collect::<Vec<_>>(), true);
}

#[test]
fn responses_that_are_not_read_have_a_bound() {
    // More of them fill the kernel's memory for TCP.
    bounded(100, b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n", false);
}

#[test]
fn heads_that_never_end_have_a_bound() {
    let head = [&b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Slow: "[..], &vec![b'a'; 65_000]].concat();
    bounded(2_000, &head, true);
}

#[test]
fn idle_connections_of_http2_have_a_bound() {
    let one = [hello(), frame(HEADERS, WHOLE_REQUEST, 1, &get("/"))].concat();
    bounded(2_000, &one, false);
}
