//! The agent dies, is stopped and comes back: the kernel goes on, and nothing opens or closes in between.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{ALLOWED_TEST, SILENT, TEST_NETS, TIE, WITHIN, cached_names, echo, egress, flow, ip, opens, world};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Failure, Options, Pod, Task, Visit, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Open by name, open by prefix, never open.
const NAMED: &str = "192.0.2.70";
const PREFIX: &str = "198.51.100.70";
const DENIED: &str = "192.0.2.71";
/// Open by a name that is asked for while there is no agent.
const LATER: &str = "192.0.2.72";

fn options() -> Options {
    Options::default().policies(&egress(&format!("{ALLOWED_TEST}{TEST_NETS}")))
}

/// Connects to one address again and again.
struct Watch {
    done: Arc<AtomicBool>,
    task: Task<Vec<Result<(), Failure>>>,
}

impl Watch {
    fn start(pod: &Pod, to: SocketAddr, within: Duration) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let task = pod.netns.spawn(async move {
            let mut outcomes = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                outcomes.push(client::connect(to, within).await.map(drop));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            outcomes
        });
        Self { done, task }
    }

    /// What every connection came to.
    fn end(self) -> Vec<Result<(), Failure>> {
        self.done.store(true, Ordering::Relaxed);
        self.task.wait()
    }
}

/// Ends the agent by `end` and starts it again, while connections are made all the time.
fn without_a_gap(end: impl Fn(&mut Agent<'_>)) {
    let world = world(&[TIE]);
    world.zone().set_addresses("api.allowed.test", 600, &[ip(NAMED)]);
    world.zone().set_addresses("later.allowed.test", 600, &[ip(LATER)]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    tiefighter.lookup("api.allowed.test", RecordType::A).unwrap();
    let conversation = tiefighter.open(echo(NAMED), WITHIN).unwrap();

    let never = Watch::start(tiefighter, echo(DENIED), Duration::from_millis(50));
    let by_prefix = Watch::start(tiefighter, echo(PREFIX), WITHIN);
    let by_name = Watch::start(tiefighter, echo(NAMED), WITHIN);
    for _ in 0..2 {
        end(&mut agent);
        conversation.say(b"without an agent", WITHIN).unwrap();
        let answer = tiefighter.lookup("later.allowed.test", RecordType::A).expect("DNS goes on");
        assert_eq!(answer.addresses, [ip(LATER)]);
        assert!(!opens(tiefighter, echo(LATER)), "an answer that nobody heard opens nothing");
        agent.run().unwrap();
        conversation.say(b"with the next one", WITHIN).unwrap();
    }
    let opened = never.end().into_iter().flatten().count();
    assert_eq!(opened, 0, "connections to a denied address");
    for (watch, what) in [(by_prefix, "prefix"), (by_name, "name")] {
        let outcomes = watch.end();
        let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.is_err()).collect();
        assert!(failed.is_empty(), "open by {what}: {failed:?} of {}", outcomes.len());
        assert!(outcomes.len() > 20, "open by {what}: only {} connections", outcomes.len());
    }
    // A dropped first packet is sent again and passes: the flows tell of it.
    let denied = agent.denials(tiefighter).unwrap();
    let to_allowed = denied.iter().filter(|flow| flow["destination"] == NAMED || flow["destination"] == PREFIX);
    assert_eq!(to_allowed.count(), 0, "{denied:?}");

    assert_eq!(cached_names(&agent, ""), ["api.allowed.test"], "the names come back from the journal");
    tiefighter.lookup("later.allowed.test", RecordType::A).unwrap();
    assert!(opens(tiefighter, echo(LATER)), "the proxy is back");
}

#[test]
fn a_killed_agent_leaves_no_gap() {
    without_a_gap(|agent| agent.kill().unwrap());
}

#[test]
fn an_agent_that_is_asked_to_end_leaves_no_gap() {
    without_a_gap(|agent| agent.terminate().unwrap());
}

/// Open by prefix, for one path alone.
const LIMITED: &str = "192.0.2.73";
const LIMITED_RULE: &str = "  - toCIDR: [192.0.2.73/32]\n    toPorts:\n    - ports: [{port: '80', protocol: TCP}]\n      \
                            rules: {http: [{method: GET, path: /v1}]}\n";
/// Names, and connections to each of them; as many connections go by prefix.
const NAMES: u8 = 8;
const EACH: usize = 4;
/// Octets said at a time, and the pause after them.
const SAID_OCTETS: u64 = 1_024;
const BETWEEN: Duration = Duration::from_millis(3);

/// A connection to an echo server that octets go along both ways all the time.
struct Stream {
    done: Arc<AtomicBool>,
    heard: Arc<AtomicU64>,
    /// Octets said and heard, all of them in their places.
    task: Task<std::io::Result<(u64, u64)>>,
}

impl Stream {
    fn open(pod: &Pod, to: SocketAddr) -> Self {
        let place = |at: u64| u8::try_from(at % 251).unwrap();
        let (done, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut stream = pod.netns.run(async move { client::connect(to, WITHIN).await }).unwrap();
        let (ends, counts) = (done.clone(), heard.clone());
        let task = pod.netns.spawn(async move {
            let (mut read, mut write) = stream.split();
            let say = async {
                let mut said = 0;
                while !ends.load(Ordering::Relaxed) {
                    let octets: Vec<u8> = (said..said + SAID_OCTETS).map(place).collect();
                    write.write_all(&octets).await?;
                    said += SAID_OCTETS;
                    tokio::time::sleep(BETWEEN).await;
                }
                write.shutdown().await?;
                Ok(said)
            };
            let hear = async {
                let (mut count, mut octets) = (0, [0; 4_096]);
                loop {
                    let length = read.read(&mut octets).await?;
                    for octet in &octets[..length] {
                        if *octet != place(count) {
                            return Err(std::io::Error::other(format!("octet {count} differs")));
                        }
                        count += 1;
                    }
                    counts.store(count, Ordering::Relaxed);
                    if length == 0 {
                        return Ok(count);
                    }
                }
            };
            tokio::try_join!(say, hear)
        });
        Self { done, heard, task }
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn end(self) -> std::io::Result<(u64, u64)> {
        self.done.store(true, Ordering::Relaxed);
        self.task.wait()
    }
}

fn get(pod: &Pod, path: &str, within: Duration) -> Visit {
    let (mut client, url) = (pod.client(), format!("http://{LIMITED}{path}"));
    client.within = within;
    pod.run(client, move |client| async move { client.get(&url).await })
}

/// Asks for a path that no rule allows, again and again, and keeps the status codes of the answers.
struct Trespasser {
    done: Arc<AtomicBool>,
    codes: Arc<Mutex<Vec<Option<u16>>>>,
    task: Task<()>,
}

impl Trespasser {
    fn start(pod: &Pod) -> Self {
        let mut client = pod.client();
        client.within = Duration::from_millis(50);
        let done = Arc::<AtomicBool>::default();
        let codes = Arc::<Mutex<Vec<_>>>::default();
        let ends = Arc::clone(&done);
        let noted = Arc::clone(&codes);
        let task = pod.spawn(client, move |client| async move {
            while !ends.load(Ordering::Relaxed) {
                let code = client.get(&format!("http://{LIMITED}/secrets")).await.status();
                noted.lock().unwrap().push(code);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { done, codes, task }
    }

    /// Waits for an answer with this code, or for none, from now on.
    fn await_code(&self, code: Option<u16>) {
        let from = self.codes.lock().unwrap().len();
        let deadline = Instant::now() + WITHIN;
        while !self.codes.lock().unwrap()[from..].contains(&code) {
            assert!(Instant::now() < deadline, "{code:?} does not come");
            std::thread::sleep(common::PAUSE);
        }
    }

    fn end(self) -> Vec<Option<u16>> {
        self.done.store(true, Ordering::Relaxed);
        self.task.wait();
        std::mem::take(&mut self.codes.lock().unwrap())
    }
}

#[test]
fn connections_that_no_limit_reads_outlast_agents() {
    let world = world(&[TIE]);
    let named = |at: u8| ip(&format!("192.0.2.{}", 80 + at));
    for at in 0..NAMES {
        world.zone().set_addresses(&format!("n{at}.allowed.test"), 600, &[named(at)]);
    }
    let policies = egress(&format!("{ALLOWED_TEST}{TEST_NETS}{LIMITED_RULE}"));
    let mut agent = Agent::start(&world, &Options::default().policies(&policies)).unwrap();
    let tiefighter = world.pod(TIE);
    let mut streams = Vec::new();
    for at in 0..NAMES {
        tiefighter.lookup(&format!("n{at}.allowed.test"), RecordType::A).unwrap();
        streams.extend((0..EACH).map(|_| Stream::open(tiefighter, SocketAddr::new(named(at), echo(NAMED).port()))));
        streams.extend((0..EACH).map(|_| Stream::open(tiefighter, echo(PREFIX))));
    }
    let passes = || (get(tiefighter, "/v1", WITHIN).status(), get(tiefighter, "/secrets", WITHIN).status());
    assert_eq!(passes(), (Some(200), Some(403)));
    let trespasser = Trespasser::start(tiefighter);
    trespasser.await_code(Some(403));

    for _ in 0..3 {
        let killed = Instant::now();
        agent.kill().unwrap();
        agent.run().unwrap();
        println!("{} ms from `kill -9` until the next agent is ready", killed.elapsed().as_millis());
        assert_eq!(passes(), (Some(200), Some(403)), "limited requests, with the next agent");
    }
    agent.kill().unwrap();
    trespasser.await_code(None);
    let served = world.outside_log().count(ip(LIMITED));
    let before: Vec<u64> = streams.iter().map(Stream::heard).collect();
    assert!(get(tiefighter, "/v1", SILENT).timed_out(), "limited requests need the proxy");
    assert_eq!(world.outside_log().count(ip(LIMITED)), served, "nothing came past the proxy");
    assert!(opens(tiefighter, echo(PREFIX)) && opens(tiefighter, SocketAddr::new(named(0), echo(NAMED).port())));
    for (stream, before) in streams.iter().zip(before) {
        let deadline = Instant::now() + WITHIN;
        while stream.heard() == before {
            assert!(Instant::now() < deadline && !stream.task.is_finished(), "a connection stands still");
            std::thread::sleep(common::PAUSE);
        }
    }
    agent.run().unwrap();
    assert_eq!(passes(), (Some(200), Some(403)));

    trespasser.await_code(Some(403));
    let codes = trespasser.end();
    assert!(codes.iter().all(|code| matches!(code, None | Some(403))), "{codes:?}");
    let count = streams.len();
    let ends: Vec<_> = streams.into_iter().map(Stream::end).collect();
    let whole = |end: &std::io::Result<(u64, u64)>| end.as_ref().is_ok_and(|(said, heard)| said == heard);
    let lost: Vec<_> = ends.iter().filter(|end| !whole(end)).collect();
    assert!(lost.is_empty(), "{} of {count} connections: {lost:?}", lost.len());
    let octets: u64 = ends.iter().flatten().map(|(said, _)| said).sum();
    println!("{count} connections, {octets} octets each way, none lost");
}

#[test]
fn a_ttl_that_ends_while_the_agent_is_away_stays_ended() {
    let world = world(&[TIE]);
    world.zone().set_addresses("short.allowed.test", 1, &[ip(NAMED)]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let lookup = tiefighter.lookup("short.allowed.test", RecordType::A).unwrap();
    agent.kill().unwrap();
    common::first_drop(tiefighter, echo(NAMED));
    assert!(lookup.received.elapsed() > Duration::from_millis(800));
    agent.run().unwrap();
    assert!(!opens(tiefighter, echo(NAMED)));
    assert!(cached_names(&agent, "").is_empty());
}

#[test]
fn a_policy_that_broke_while_the_agent_was_away_holds_in_its_last_good_form() {
    let world = world(&[TIE]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    agent.kill().unwrap();
    std::fs::write(agent.path("policies/policies.yaml"), "apiVersion: cilium.io/v2\nkind: [\n").unwrap();
    agent.run().unwrap();
    let policy = agent.policy().unwrap();
    let documents = policy["documents"].as_array().unwrap();
    assert!(!documents.is_empty(), "{policy:#}");
    assert!(documents.iter().all(|document| document["state"] == "kept-former"), "{policy:#}");
    assert!(policy["diagnostics"].as_array().unwrap().iter().any(|found| found["severity"] == "error"), "{policy:#}");
    assert!(opens(tiefighter, echo(PREFIX)));
    assert!(!opens(tiefighter, echo(DENIED)));
}

#[test]
fn a_policy_that_changed_while_the_agent_was_away_holds_when_it_is_back() {
    let world = world(&[TIE]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let conversation = tiefighter.open(echo(PREFIX), WITHIN).unwrap();
    agent.kill().unwrap();
    std::fs::write(agent.path("policies/policies.yaml"), egress("  - toCIDR: [192.0.2.71/32]\n")).unwrap();
    conversation.say(b"the old rules hold", WITHIN).unwrap();
    agent.run().unwrap();
    assert!(opens(tiefighter, echo(DENIED)), "open by the new rules");
    assert!(!opens(tiefighter, echo(PREFIX)));
    assert_eq!(conversation.say(b"denied now", SILENT), Err(Failure::Timeout));
}

#[test]
fn a_second_agent_is_refused_and_disturbs_nothing() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let settings = agent.path("namegate.yaml");
    let second = agent.cli(&["agent", "--config", settings.to_str().unwrap()]).unwrap();
    assert!(!matches!(second.status.code(), Some(0 | 124)), "it must end, and not well: {second:?}");
    let tiefighter = world.pod(TIE);
    assert!(opens(tiefighter, echo(PREFIX)) && !opens(tiefighter, echo(DENIED)));
    assert_eq!(agent.get("/v1/healthz").unwrap().status, 200);
}

#[test]
fn records_of_flows_wait_for_an_agent_that_is_held() {
    use nix::sys::signal::Signal;
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    agent.signal(Signal::SIGSTOP).unwrap();
    assert!(!opens(tiefighter, echo(DENIED)));
    let held = Instant::now();
    agent.signal(Signal::SIGCONT).unwrap();
    let told = flow(&agent, tiefighter, ip(DENIED), "denied");
    assert_eq!(told["reason"], "default-deny", "{told} after {:?}", held.elapsed());
}
