//! The enforcer on a table in memory: what goes first, what readers see, and what becomes of a kernel that refuses.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use namegate_config::{reference::Flow, reference::Limits, rule::Direction, settings::Settings};
use namegate_enforcer::{Enforcement, EnforcerHandle, FaultKind, GONE, NotDone, NotInstalled, ProgramError, Stall};
use namegate_engine::{Change, EndpointId, GateError, Key, MapOp, Row, Topology, TopologyEndpoint};

use common::{Bench, Done, INTERFACE, OTHER, OWN, SECOND, answer, change, ip, rules, topology};

const WEB: Flow = Flow { protocol: 6, port: 443 };
const ADDRESS: &str = "192.0.2.1";

fn now() -> u64 {
    100 * SECOND
}

/// Waits for a future on this thread.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn web(handle: &EnforcerHandle) -> EndpointId {
    handle.reader().view().endpoint_by_address(ip(OWN)).expect("the pod is known")
}

/// Whether names that are learned let the pod reach the address on the port, as readers see it.
fn may_reach(handle: &EnforcerHandle, port: u16) -> bool {
    let limits =
        handle.reader().view().limits().limits(ip(OWN), ip(ADDRESS), Direction::Egress, Flow { port, ..WEB }, now());
    limits == Limits::Free
}

fn refused(map: &'static str) -> GateError {
    GateError::Access { map, source: std::io::Error::from_raw_os_error(5) }
}

fn learned_row(op: &MapOp) -> Option<std::net::IpAddr> {
    match op {
        MapOp::Put(Row::Address(key, _)) if key.scope != 0 => Some(key.address.to_ip()),
        _ => None,
    }
}

/// An enforcer whose kernel holds rules for these names and port 443.
fn enforcing(names: &[&str]) -> (Bench, EnforcerHandle) {
    let bench = Bench::new(now);
    let handle = bench.running.handle();
    handle.apply(change(names, 443)).wait().unwrap();
    (bench, handle)
}

#[test]
fn a_reader_does_not_wait_for_a_writer_that_is_busy() {
    let (bench, handle) = enforcing(&["a.io"]);
    assert_eq!(wait(handle.learn(vec![answer(web(&handle), "a.io", ADDRESS)])), [Ok(())]);

    bench.table.block();
    let second = handle.apply(Change { rules: Some(rules(&["a.io"], 80)), topology: None });
    bench.table.wait_until_blocked();
    let before = handle.reader().changes();
    assert!(may_reach(&handle, 443) && !may_reach(&handle, 80), "readers see what held before");
    let view = handle.reader().view();
    assert_eq!(view.endpoints().len(), 2);
    assert_eq!(view.names_of(web(&handle), ip(ADDRESS), now()).len(), 1);
    assert_eq!(handle.reader().names().count_all(now()).names, 1);
    assert_eq!(handle.reader().enforcement().judged.len(), 2);
    assert!(!handle.reader().figures().rows.is_empty());
    drop(view);

    bench.table.release();
    second.wait().unwrap();
    assert_eq!(handle.reader().changes(), before + 1);
    assert!(!may_reach(&handle, 443) && may_reach(&handle, 80));
    handle.apply(Change { rules: None, topology: None }).wait().unwrap();
    assert_eq!(handle.reader().changes(), before + 1, "nothing is another");
}

#[test]
fn what_a_reader_sees_is_never_newer_than_the_kernel() {
    let (bench, handle) = enforcing(&["a.io"]);
    let endpoint = web(&handle);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (reader, noted) = (handle.reader().clone(), Arc::clone(&seen));
    bench.table.judge(move |_| {
        let names = reader.view().names_of(endpoint, ip(ADDRESS), now()).len();
        noted.lock().unwrap().push((reader.changes(), names));
        Ok(())
    });
    wait(handle.learn(vec![answer(endpoint, "a.io", ADDRESS)]));
    let before = handle.reader().changes();
    let of_answer = std::mem::take(&mut *seen.lock().unwrap());
    assert!(!of_answer.is_empty() && of_answer.iter().all(|seen| *seen == (before, 0)), "{of_answer:?}");

    handle.apply(Change { rules: Some(rules(&["b.io"], 80)), topology: None }).wait().unwrap();
    let of_change = std::mem::take(&mut *seen.lock().unwrap());
    assert!(!of_change.is_empty() && of_change.iter().all(|seen| *seen == (before, 1)), "{of_change:?}");
    assert_eq!(handle.reader().changes(), before + 1, "published once");
}

#[test]
fn whoever_has_loaded_a_view_goes_on_with_that() {
    let (_bench, handle) = enforcing(&["a.io"]);
    let old = handle.reader().view();
    let mut alone = topology();
    alone.endpoints.remove(1);
    handle.apply(Change { rules: Some(vec![]), topology: Some(alone) }).wait().unwrap();
    let new = handle.reader().view();
    let shown = |view: &namegate_enforcer::View<'_>| {
        let rules = view.endpoints().iter().map(|endpoint| endpoint.rules.len()).collect::<Vec<_>>();
        (view.endpoint_by_address(ip(OTHER)).is_some(), rules, view.name_selectors().len())
    };
    assert_eq!(shown(&old), (true, vec![1, 1], 1));
    assert_eq!(shown(&new), (false, vec![0], 0));
}

#[test]
fn answers_go_before_a_change_that_waits_longer() {
    let (bench, handle) = enforcing(&["*.io"]);
    let endpoint = web(&handle);
    bench.table.block();
    let first = handle.apply(Change { rules: Some(rules(&["*.io"], 80)), topology: None });
    bench.table.wait_until_blocked();
    bench.table.take_done();
    let second = handle.apply(Change { rules: Some(rules(&["*.io"], 81)), topology: None });
    let mut answers = pin!(handle.learn(vec![answer(endpoint, "a.io", ADDRESS)]));
    assert_eq!(answers.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    bench.table.release();
    assert_eq!(wait(answers), [Ok(())]);
    first.wait().unwrap();
    second.wait().unwrap();

    let done = bench.table.take_done();
    let ports_of = |port: u16| {
        done.iter().position(|done| match done {
            Done::Wrote(MapOp::Put(Row::Policy(_, key, _))) => key.port_be == port.to_be_bytes(),
            _ => false,
        })
    };
    let learned = done.iter().position(|done| matches!(done, Done::Wrote(op) if learned_row(op).is_some()));
    assert!(ports_of(80) < learned && learned < ports_of(81), "{done:?}");
}

#[test]
fn answers_are_installed_between_two_pieces_of_a_change() {
    let (bench, handle) = enforcing(&["*.io"]);
    let endpoint = web(&handle);
    let mut more = topology();
    more.endpoints.extend((0..2_000).map(|number| {
        let address = format!("10.1.{}.{}", number / 250, number % 250 + 1);
        Arc::new(TopologyEndpoint {
            interface: None,
            ..TopologyEndpoint::clone(&common::pod(&format!("far{number}"), &address, 0))
        })
    }));
    bench.table.take_done();
    bench.table.block();
    let moved = handle.apply(Change { rules: None, topology: Some(more) });
    bench.table.wait_until_blocked();
    let mut answers = pin!(handle.learn(vec![answer(endpoint, "a.io", ADDRESS)]));
    assert_eq!(answers.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    bench.table.release();
    moved.wait().unwrap();
    let done = bench.table.take_done();
    let is_far = |done: &Done| matches!(done, Done::Wrote(MapOp::Put(Row::Address(key, _))) if key.scope == 0);
    let learned = done.iter().position(|done| matches!(done, Done::Wrote(op) if learned_row(op).is_some()));
    let (before, after) = done.split_at(learned.expect("the answer is installed"));
    assert!(before.iter().any(is_far) && after.iter().any(is_far), "{learned:?} of {}", done.len());
    assert_eq!(wait(answers), [Ok(())]);
}

#[test]
fn answers_are_installed_between_two_attachments() {
    let (bench, handle) = enforcing(&["*.io"]);
    let endpoint = web(&handle);
    let mut more = topology();
    more.endpoints.extend(
        (20..24).map(|interface| common::pod(&format!("p{interface}"), &format!("10.0.1.{interface}"), interface)),
    );
    bench.table.break_interface(20, Some(ProgramError { message: "no".to_owned(), is_gone: false }));
    bench.table.take_done();
    // The writer stops at its first write. Until it goes on the answer waits.
    bench.table.block();
    let moved = handle.apply(Change { rules: None, topology: Some(more) });
    bench.table.wait_until_blocked();
    let mut answers = pin!(handle.learn(vec![answer(endpoint, "a.io", ADDRESS)]));
    assert_eq!(answers.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    bench.table.release();
    moved.wait().unwrap();
    let done = bench.table.take_done();
    let learned = done.iter().position(|done| matches!(done, Done::Wrote(op) if learned_row(op).is_some()));
    let last = done.iter().position(|done| *done == Done::Attached(23));
    assert!(learned.is_some() && learned < last, "{done:?}");
    assert_eq!(wait(answers), [Ok(())]);
}

#[test]
fn rows_come_before_programs_and_programs_go_before_rows() {
    let (bench, handle) = enforcing(&["a.io"]);
    let done = bench.table.take_done();
    let row = |interface| {
        done.iter().position(|done| matches!(done, Done::Wrote(MapOp::Put(Row::Endpoint(at, _))) if *at == interface))
    };
    let program = |interface| done.iter().position(|done| *done == Done::Attached(interface));
    assert!(row(INTERFACE).is_some() && row(INTERFACE) < program(INTERFACE) && row(11) < program(11), "{done:?}");

    let mut alone = topology();
    alone.endpoints.remove(1);
    handle.apply(Change { rules: None, topology: Some(alone) }).wait().unwrap();
    let done = bench.table.take_done();
    let detached = done.iter().position(|done| *done == Done::Detached(11));
    let deleted = done.iter().position(|done| *done == Done::Wrote(MapOp::Delete(Key::Endpoint(11))));
    assert!(detached.is_some() && detached < deleted, "{done:?}");
}

#[test]
fn programs_that_cannot_be_attached_are_said_and_tried_again() {
    let bench = Bench::new(now);
    let handle = bench.running.handle();
    let broken = |message: &str, is_gone| Some(ProgramError { message: message.to_owned(), is_gone });
    bench.table.break_interface(INTERFACE, broken("EPERM", false));
    bench.table.break_interface(11, broken("ENODEV", true));
    let enforcement = handle.apply(change(&["a.io"], 443)).wait().unwrap();
    let failed: Vec<(u32, &str)> = enforcement.failed.iter().map(|(at, why)| (*at, why.as_str())).collect();
    assert_eq!(failed, [(INTERFACE, "EPERM"), (11, GONE)]);
    assert!(enforcement.judged.is_empty(), "nobody is said to be judged");

    bench.table.break_interface(INTERFACE, None);
    handle.attach_again().wait().unwrap();
    let enforcement = handle.reader().enforcement();
    assert_eq!(enforcement.failed.keys().collect::<Vec<_>>(), [&11]);
    assert_eq!(enforcement.judged.iter().collect::<Vec<_>>(), [&INTERFACE]);
}

#[test]
fn answers_of_a_full_map_are_refused_and_reported() {
    let (bench, handle) = enforcing(&["a.io"]);
    bench.table.judge(|op| match learned_row(op) {
        Some(_) => Err(GateError::Full { map: "ADDRESSES", rows_max: 1, setting: "limits.addresses" }),
        None => Ok(()),
    });
    let endpoint = web(&handle);
    assert_eq!(wait(handle.learn(vec![answer(endpoint, "a.io", ADDRESS)])), [Err(NotInstalled::Full)]);
    // The list is renewed once in a while: a change renews it.
    let enforcement = handle.apply(Change::default()).wait().unwrap();
    assert!(!enforcement.unenforced.is_empty());
    let is_of_maps = |(kind, _): &(FaultKind, String)| *kind == FaultKind::MapRow;
    assert!(bench.reports.faults().iter().any(is_of_maps), "{:?}", bench.reports.faults());
}

#[test]
fn a_change_that_is_carried_out_in_part_closes_what_it_concerns_until_it_is_whole() {
    static CLOCK: AtomicU64 = AtomicU64::new(100 * SECOND);
    fn clock() -> u64 {
        CLOCK.load(Ordering::Relaxed)
    }
    let bench = Bench::new(clock);
    let handle = bench.running.handle();
    handle.apply(change(&["a.io", "b.io"], 443)).wait().unwrap();
    let endpoint = web(&handle);
    wait(handle.learn(vec![answer(endpoint, "a.io", ADDRESS), answer(endpoint, "b.io", "192.0.2.2")]));
    let before = handle.reader().changes();
    // Rows of policies are refused from the second one on.
    bench.table.take_done();
    let written = AtomicU64::new(0);
    bench.table.judge(move |op| match op {
        MapOp::Put(Row::Policy(..)) if written.fetch_add(1, Ordering::Relaxed) > 0 => Err(refused("POLICY")),
        _ => Ok(()),
    });
    let enforcement =
        handle.apply(Change { rules: Some(rules(&["a.io", "b.io"], 80)), topology: None }).wait().unwrap();
    let done = bench.table.take_done();
    assert!(done.iter().any(|done| matches!(done, Done::Wrote(MapOp::Put(Row::Policy(..))))), "{done:?}");
    assert!(!enforcement.unenforced.is_empty(), "nothing is said to be enforced that is not");
    assert!(!enforcement.closed.is_empty(), "{enforcement:?}");
    assert!(bench.table.is_closed(INTERFACE), "the kernel denies everything");
    let closed = |handle: &EnforcerHandle| handle.reader().view().endpoints()[0].is_closed;
    assert!(closed(&handle) && !may_reach(&handle, 80) && !may_reach(&handle, 443), "and so do the proxies");
    assert_eq!(handle.reader().changes(), before + 1, "connections are judged again");

    bench.table.obey();
    while closed(&handle) {
        // What is due is done with the next piece of work.
        CLOCK.fetch_add(SECOND, Ordering::Relaxed);
        handle.attach_again().wait().unwrap();
    }
    assert!(!bench.table.is_closed(INTERFACE) && may_reach(&handle, 80));
    assert!(handle.apply(Change::default()).wait().unwrap().unenforced.is_empty());
    assert_eq!(bench.reports.faults(), []);
}

#[test]
fn the_end_of_the_thread_refuses_all_that_wait_and_readers_go_on() {
    let (bench, handle) = enforcing(&["a.io"]);
    let endpoint = web(&handle);
    bench.table.block();
    bench.table.judge(|_| panic!("a fault of the enforcer"));
    let change = handle.apply(Change { rules: Some(rules(&["a.io"], 80)), topology: None });
    bench.table.wait_until_blocked();
    let forgotten = handle.forget(|_| true);
    let mut answers = pin!(handle.learn(vec![answer(endpoint, "a.io", ADDRESS); 2]));
    assert_eq!(answers.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    bench.table.release();
    assert_eq!(change.wait().unwrap_err(), NotDone::Stopped);
    assert_eq!(forgotten.wait(), Err(NotDone::Stopped));
    assert_eq!(wait(answers), [Err(NotInstalled::Stopped); 2]);

    let late = handle.apply(Change::default()).wait();
    assert_eq!(late.unwrap_err().to_string(), "the enforcer has stopped; the log says why");
    assert_eq!(wait(handle.learn(vec![answer(endpoint, "a.io", ADDRESS)])), [Err(NotInstalled::Stopped)]);
    assert_eq!(handle.reader().stall(now()), Some(Stall::Stopped));
    wait(handle.reader().stopped());
    assert_eq!(handle.reader().view().endpoints().len(), 2);
}

#[test]
fn a_flood_of_one_endpoint_delays_another_by_one_turn_and_is_refused_at_its_share() {
    let (bench, handle) = enforcing(&["*.io"]);
    let hostile = web(&handle);
    let honest = handle.reader().view().endpoint_by_address(ip(OTHER)).unwrap();
    bench.table.block();
    let busy = handle.apply(Change { rules: Some(rules(&["*.io"], 80)), topology: None });
    bench.table.wait_until_blocked();
    let mut context = Context::from_waker(Waker::noop());
    let address = |number: usize| format!("198.18.{}.{}", number / 250, number % 250 + 1);
    let mut flood: Vec<_> =
        (0..5_000).map(|number| Box::pin(handle.learn(vec![answer(hostile, "a.io", &address(number))]))).collect();
    let refused = flood.iter_mut().map(|one| usize::from(one.as_mut().poll(&mut context).is_ready())).sum::<usize>();
    assert!(refused > 1_000, "{refused}");
    assert_eq!(bench.reports.refused.lock().unwrap().len(), refused);
    let mut answers = pin!(handle.learn(vec![answer(honest, "b.io", ADDRESS)]));
    assert_eq!(answers.as_mut().poll(&mut context), Poll::Pending);
    bench.table.take_done();
    bench.table.release();
    assert_eq!(wait(answers), [Ok(())]);
    busy.wait().unwrap();
    let opened: Vec<_> = bench
        .table
        .take_done()
        .iter()
        .filter_map(|done| if let Done::Wrote(op) = done { learned_row(op) } else { None })
        .collect();
    let place = opened.iter().position(|address| *address == ip(ADDRESS));
    assert!(place <= Some(1), "{place:?}");
}

#[test]
fn a_restart_knows_names_before_the_first_change() {
    let (bench, handle) = enforcing(&["a.io"]);
    let endpoint = web(&handle);
    wait(handle.learn(vec![answer(endpoint, "a.io", ADDRESS)]));
    let Bench { table, running, folder, .. } = bench;
    running.stop();
    let rows = table.sorted();

    let bench = Bench::with(&common::settings(), table, folder, now);
    let handle = bench.running.handle();
    assert_eq!(handle.reader().names().count(endpoint, now()).names, 1);
    assert_eq!(handle.reader().view().endpoint_by_address(ip(OWN)), None, "nobody is known yet");
    bench.table.take_done();
    handle.apply(change(&["a.io"], 443)).wait().unwrap();
    let wrote = bench.table.take_done().into_iter().filter(|done| matches!(done, Done::Wrote(_))).count();
    assert_eq!((wrote, bench.table.sorted()), (0, rows), "nothing is written anew");
    assert!(may_reach(&handle, 443));
}

#[test]
fn names_are_forgotten_in_the_kernel_first() {
    let (bench, handle) = enforcing(&["*.io"]);
    let endpoint = web(&handle);
    wait(handle.learn(vec![answer(endpoint, "a.io", ADDRESS), answer(endpoint, "b.io", "192.0.2.2")]));
    let (reader, seen) = (handle.reader().clone(), Arc::new(AtomicU64::new(0)));
    let noted = Arc::clone(&seen);
    bench.table.judge(move |_| {
        noted.store(reader.names().count_all(now()).names as u64, Ordering::Relaxed);
        Ok(())
    });
    let gone = handle.forget(|lookup| lookup.name.as_str() == "a.io").wait().unwrap();
    assert_eq!((gone.names, gone.addresses), (1, 1));
    assert_eq!(seen.load(Ordering::Relaxed), 2, "readers knew it until its row was gone");
    let mut left = Vec::new();
    handle.reader().names().for_each(Some(endpoint), now(), |lookup| left.push(lookup.name.to_string()));
    assert_eq!(left, ["b.io"]);
    assert!(handle.reader().view().names_of(endpoint, ip(ADDRESS), now()).is_empty());
}

/// Pods of which `web` has no interface that could be found.
fn without_web() -> Topology {
    let web = TopologyEndpoint { interface: None, ..TopologyEndpoint::clone(&topology().endpoints[0]) };
    Topology { endpoints: vec![Arc::new(web), common::pod("db", OTHER, 11)], ..Topology::default() }
}

/// Carries out a change of endpoints, with all rules.
fn place(handle: &EnforcerHandle, topology: Topology) -> Arc<Enforcement> {
    handle.apply(Change { rules: Some(rules(&["a.io"], 443)), topology: Some(topology) }).wait().unwrap()
}

/// An enforcer whose two pods were enforced by another one, and that starts with the journal of that or with none.
fn restarted(settings: &Settings, is_journal_lost: bool) -> Bench {
    let bench = Bench::new(now);
    place(&bench.running.handle(), topology());
    let Bench { table, running, folder, .. } = bench;
    running.stop();
    table.take_done();
    let folder = if is_journal_lost { tempfile::tempdir().unwrap() } else { folder };
    Bench::with(settings, table, folder, now)
}

#[test]
fn an_interface_whose_endpoint_a_lost_journal_knew_stays_closed_until_it_is_taken() {
    let mut bench = restarted(&common::settings(), true);
    // The second start finds neither its row nor a journal that knows it.
    for _ in 0..2 {
        let enforcement = place(&bench.running.handle(), without_web());
        assert_eq!(enforcement.unowned.iter().collect::<Vec<_>>(), [&INTERFACE]);
        assert!(enforcement.wanted.contains(&INTERFACE) && enforcement.rowless.contains(&INTERFACE));
        assert_eq!(enforcement.judged.iter().collect::<Vec<_>>(), [&11]);
        assert_eq!(bench.table.row(&Key::Endpoint(INTERFACE)), None, "programs without a row let nothing pass");
        let Bench { table, running, folder, .. } = bench;
        running.stop();
        bench = Bench::with(&common::settings(), table, folder, now);
    }
    let handle = bench.running.handle();
    place(&handle, without_web());
    let done = bench.table.take_done();
    assert!(!done.contains(&Done::Detached(INTERFACE)) && !done.contains(&Done::Detached(11)), "{done:?}");

    let enforcement = place(&handle, topology());
    assert!(enforcement.unowned.is_empty() && enforcement.judged.contains(&INTERFACE));
    assert!(!bench.table.is_closed(INTERFACE));
    // From now on it is an endpoint's, and goes with it.
    let enforcement = place(&handle, without_web());
    assert!(enforcement.unowned.is_empty());
    assert!(bench.table.take_done().contains(&Done::Detached(INTERFACE)));
}

#[test]
fn an_interface_that_no_endpoint_has_is_forgotten_when_it_is_gone() {
    let bench = restarted(&common::settings(), true);
    let handle = bench.running.handle();
    place(&handle, without_web());
    bench.table.break_interface(INTERFACE, Some(ProgramError { message: "ENODEV".to_owned(), is_gone: true }));
    let enforcement = place(&handle, without_web());
    assert!(enforcement.unowned.is_empty() && enforcement.failed.is_empty(), "{enforcement:?}");
    assert!(!enforcement.wanted.contains(&INTERFACE));
    // What is left of its links is cleared away with the next change.
    place(&handle, without_web());
    assert!(bench.table.take_done().contains(&Done::Detached(INTERFACE)));
}

#[test]
fn an_interface_of_a_known_endpoint_and_every_one_of_an_audit_is_let_go_at_a_start() {
    let audit = Settings { audit: true, ..common::settings() };
    for bench in [restarted(&common::settings(), false), restarted(&audit, true)] {
        let enforcement = place(&bench.running.handle(), without_web());
        assert!(enforcement.unowned.is_empty());
        assert!(bench.table.take_done().contains(&Done::Detached(INTERFACE)));
    }
}
