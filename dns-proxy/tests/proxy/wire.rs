//! The wire cases of the conformance data, through sockets.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    cases::cases,
    support::{Gate, Recorder, Resolver, TcpClient, UdpClient, proxy},
};

/// Both ways of a client share one world: what the resolver says is the case at hand.
fn run_cases(mut ask: impl FnMut(u16, &[u8]) -> Vec<u8>) {
    let says = Arc::new(Mutex::new(Vec::new()));
    let script = Arc::clone(&says);
    let resolver = Resolver::start(move |_, _| vec![script.lock().unwrap().clone()]);
    let backend = Recorder::new(Gate::Takes);
    let proxy = proxy(resolver.address, backend.clone(), Duration::from_millis(200));
    for case in cases() {
        *says.lock().unwrap() = case.response();
        let query = case.query(0x4e47);
        let reply = ask(proxy.port(), &query);
        let opened: Vec<_> = backend.take().into_iter().flat_map(|answer| answer.addresses).collect();
        assert!(case.may_open(&opened), "{}: opened {opened:?}", case.id);
        assert!(case.may_see(&reply, &query), "{}: the client saw {reply:02x?}", case.id);
    }
    proxy.stop();
}

#[test]
fn over_udp() {
    run_cases(|port, query| UdpClient::new(port).ask(query));
}

#[test]
fn over_tcp() {
    let mut client = None;
    run_cases(|port, query| client.get_or_insert_with(|| TcpClient::new(port)).ask(query));
}
