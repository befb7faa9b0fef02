//! Questions to a resolver and connections under a rule with a proxy reach the node's sockets, and answers come back.

use std::io::{IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use namegate_abi::{
    Direction, EventRecord, PolicyKey, PolicyValue, Reason, Settings, Verdict, endpoint_flags, policy_flags,
    policy_verdict,
};
use namegate_engine::Row;
use namegate_loader::routes;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bench::{
    ANSWERED, Bench, DROPPED, ENFORCED, POLICY, SETTINGS, TCP, UDP, address, eventually, run, socket, verdict,
};

const OBSERVED: u32 = ENFORCED | endpoint_flags::OBSERVE_DNS;
const DNS: u16 = 53;
const RESOLVERS: [&str; 2] = ["198.51.100.53", "2001:db8:53::53"];
const LOOPBACKS: [&str; 2] = ["127.0.0.1", "::1"];
/// A connection that takes a second try of its client, which comes after a second.
const AGAIN: Duration = Duration::from_secs(5);

impl Bench {
    /// Opens every resolver and sends questions to `port` on the loopback addresses.
    fn observe(&self, port: u16) {
        routes::set_up(&SETTINGS).unwrap();
        self.enforce(OBSERVED, 1);
        self.datapath.borrow_mut().set(&Settings { dns_port: port, ..SETTINGS }).unwrap();
        for resolver in RESOLVERS {
            self.put(Row::Resolver(address(resolver).into()));
        }
        self.allow(0, UDP, DNS, 16, 1);
        self.allow(0, TCP, DNS, 16, 1);
    }
}

/// A socket of a proxy: it carries the mark, and may have addresses that are not the node's.
fn transparent(ip: IpAddr, kind: Type, protocol: Protocol) -> Socket {
    let socket = Socket::new(if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }, kind, Some(protocol)).unwrap();
    if ip.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        socket.set_ip_transparent_v6(true).unwrap();
    }
    socket.set_mark(SETTINGS.proxy_mark).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_read_timeout(Some(ANSWERED)).unwrap();
    socket
}

/// The user and group that own nothing.
const NOBODY: libc::c_long = 65_534;

/// Opens something as a user without any right, in the namespace of the calling thread.
fn as_user<T: Send + 'static>(open: impl FnOnce() -> T + Send + 'static) -> T {
    let user = std::thread::spawn(move || {
        // SAFETY: The call takes numbers, and changes the user of this thread alone.
        let status = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        open()
    });
    user.join().unwrap()
}

/// The port of a proxy that has ended, where another user of the node listens by UDP and TCP.
fn squat(loopback: &str) -> (u16, UdpSocket, TcpListener) {
    let ip = address(loopback);
    as_user(move || {
        let udp = UdpSocket::bind(socket(ip, 0)).unwrap();
        let tcp = TcpListener::bind(udp.local_addr().unwrap()).unwrap();
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        (udp.local_addr().unwrap().port(), udp, tcp)
    })
}

/// Nothing has reached the sockets of another user.
fn assert_untouched(udp: &UdpSocket, tcp: &TcpListener) {
    let received = udp.recv(&mut [0; 64]).map_err(|error| error.kind());
    assert_eq!(received, Err(std::io::ErrorKind::WouldBlock), "a datagram for a socket that is not the agent's");
    let accepted = tcp.accept().map(|(_, peer)| peer).map_err(|error| error.kind());
    assert_eq!(accepted, Err(std::io::ErrorKind::WouldBlock), "a connection for a socket that is not the agent's");
}

fn proxy_udp(ip: IpAddr) -> UdpSocket {
    let proxy = transparent(ip, Type::DGRAM, Protocol::UDP);
    if ip.is_ipv4() {
        setsockopt(&proxy, sockopt::Ipv4OrigDstAddr, &true).unwrap();
    } else {
        setsockopt(&proxy, sockopt::Ipv6OrigDstAddr, &true).unwrap();
    }
    proxy.bind(&socket(ip, 0).into()).unwrap();
    proxy.into()
}

fn proxy_tcp(ip: IpAddr) -> TcpListener {
    let proxy = transparent(ip, Type::STREAM, Protocol::TCP);
    proxy.bind(&socket(ip, 0).into()).unwrap();
    proxy.listen(16).unwrap();
    proxy.into()
}

/// A datagram with who sent it and to whom.
fn receive(proxy: &UdpSocket) -> (Vec<u8>, SocketAddr, SocketAddr) {
    let mut octets = vec![0; 1_500];
    let mut space = nix::cmsg_space!(libc::sockaddr_in6);
    let mut slices = [IoSliceMut::new(&mut octets)];
    let message =
        recvmsg::<SockaddrStorage>(proxy.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
    let to = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            let to = SockaddrIn::from(to);
            Some(SocketAddr::from((to.ip(), to.port())))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            let to = SockaddrIn6::from(to);
            Some(SocketAddr::from((to.ip(), to.port())))
        }
        _ => None,
    });
    let (from, length) = (std_address(&message.address.unwrap()), message.bytes);
    octets.truncate(length);
    (octets, from, to.expect("the original destination"))
}

fn std_address(storage: &SockaddrStorage) -> SocketAddr {
    if let Some(v4) = storage.as_sockaddr_in() {
        return SocketAddr::from((v4.ip(), v4.port()));
    }
    let v6 = storage.as_sockaddr_in6().unwrap();
    SocketAddr::from((v6.ip(), v6.port()))
}

#[test]
fn a_question_over_udp_reaches_the_proxy_and_its_answer_the_pod() {
    run(|bench| {
        for (resolver, loopback) in RESOLVERS.into_iter().zip(LOOPBACKS) {
            let proxy = proxy_udp(address(loopback));
            bench.observe(proxy.local_addr().unwrap().port());
            let to = socket(address(resolver), DNS);
            for question in 0..3_u8 {
                let asked = bench.world.pod("test/pod").netns.spawn(async move {
                    let pod = tokio::net::UdpSocket::bind(SocketAddr::new(namegate_testbed::client::any_of(to), 0));
                    let pod = pod.await.unwrap();
                    pod.connect(to).await.unwrap();
                    pod.send(&[question; 40]).await.unwrap();
                    let mut answer = [0; 64];
                    let length = tokio::time::timeout(ANSWERED, pod.recv(&mut answer)).await.unwrap().unwrap();
                    answer[..length].to_vec()
                });
                let (octets, from, asked_of) = receive(&proxy);
                assert_eq!((octets.as_slice(), asked_of), ([question; 40].as_slice(), to));
                let answering = transparent(to.ip(), Type::DGRAM, Protocol::UDP);
                answering.bind(&to.into()).unwrap();
                answering.send_to(b"answer", &from.into()).unwrap();
                assert_eq!(asked.wait(), b"answer");
            }
            assert_eq!(verdict(&bench.told()), Verdict::Redirected);
        }
        assert_eq!(bench.packets(Direction::Ingress, Reason::Reply), 6);
    });
}

#[test]
fn a_question_over_tcp_keeps_its_connection_with_the_proxy() {
    run(|bench| {
        for (resolver, loopback) in RESOLVERS.into_iter().zip(LOOPBACKS) {
            let proxy = proxy_tcp(address(loopback));
            bench.observe(proxy.local_addr().unwrap().port());
            let to = socket(address(resolver), DNS);
            converse(&bench, &proxy, to);
            assert_eq!(verdict(&bench.told()), Verdict::Redirected);
        }
    });
}

/// Opens a connection from the pod, and talks over it with the proxy.
fn converse(bench: &Bench, proxy: &TcpListener, to: SocketAddr) -> TcpStream {
    let opened = bench.world.pod("test/pod").netns.spawn(namegate_testbed::client::connect(to, ANSWERED));
    let (mut stream, peer) = proxy.accept().unwrap();
    stream.set_read_timeout(Some(ANSWERED)).unwrap();
    assert_eq!(stream.local_addr().unwrap(), to, "the proxy sees whom the pod meant");
    assert!(bench.pod().spec.ips.contains(&peer.ip()), "{peer}");
    let pod = opened.wait().unwrap();
    let talk = bench.world.pod("test/pod").netns.spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut pod = pod;
        let mut heard = Vec::new();
        for _ in 0..3 {
            pod.write_all(&[7; 3_000]).await.unwrap();
            let mut octets = [0; 5];
            tokio::time::timeout(ANSWERED, pod.read_exact(&mut octets)).await.unwrap().unwrap();
            heard.extend(octets);
        }
        heard
    });
    for _ in 0..3 {
        let mut octets = [0; 3_000];
        stream.read_exact(&mut octets).unwrap();
        stream.write_all(b"heard").unwrap();
    }
    assert_eq!(talk.wait(), b"heardheardheard");
    stream
}

#[test]
fn without_a_proxy_questions_pass_to_the_resolver() {
    run(|bench| {
        let closed = proxy_udp(address("127.0.0.1")).local_addr().unwrap().port();
        bench.observe(closed);
        for resolver in RESOLVERS {
            let server = socket(address(resolver), DNS);
            let mut client = bench.pod().client();
            (client.resolver, client.dns_within) = (server, ANSWERED);
            let answer = bench
                .pod()
                .run(client, |client| async move { client.lookup_type("no-such-name.example", RecordType::A).await });
            assert!(!matches!(answer, Err(namegate_testbed::dns::DnsFailure::Timeout)), "{server}: {answer:?}");
            assert!(bench.connects(&server.to_string(), ANSWERED), "{server}");
        }
        assert_eq!(verdict(&bench.told_of(Reason::Rule)), Verdict::Allowed);
    });
}

#[test]
fn questions_pass_a_socket_that_is_not_the_agents() {
    run(|bench| {
        for (resolver, loopback) in RESOLVERS.into_iter().zip(LOOPBACKS) {
            let (port, udp, tcp) = squat(loopback);
            bench.observe(port);
            let server = socket(address(resolver), DNS);
            let mut client = bench.pod().client();
            (client.resolver, client.dns_within) = (server, ANSWERED);
            let answer = bench
                .pod()
                .run(client, |client| async move { client.lookup_type("no-such-name.example", RecordType::A).await });
            assert_untouched(&udp, &tcp);
            assert!(!matches!(answer, Err(namegate_testbed::dns::DnsFailure::Timeout)), "{server}: {answer:?}");
            assert!(bench.connects(&server.to_string(), ANSWERED), "{server}");
            assert_untouched(&udp, &tcp);
        }
        assert_eq!(verdict(&bench.told_of(Reason::Rule)), Verdict::Allowed);
    });
}

#[test]
fn limited_connections_do_not_reach_a_socket_that_is_not_the_agents() {
    run(|bench| {
        routes::set_up(&SETTINGS).unwrap();
        bench.enforce(ENFORCED, 1);
        for (ip, loopback) in [("198.51.100.7", "127.0.0.1"), ("2001:db8:7::7", "::1")] {
            let to = socket(address(ip), 80);
            let (port, udp, tcp) = squat(loopback);
            bench.rule(0, (TCP, 80, 16), policy_verdict::REDIRECT, 4, port);
            assert!(!bench.connects(&to.to_string(), DROPPED), "{to} by way of another user's socket");
            assert_untouched(&udp, &tcp);
            let told = bench.hear();
            assert!(told.iter().all(|record| record.reason == Reason::ProxyAbsent as u8), "{told:?}");
        }
        assert_eq!(bench.world.outside_log().all().len(), 0, "nothing came past the proxy");
    });
}

#[test]
fn a_limit_holds_for_connections_that_a_server_of_the_node_has_already() {
    run(|bench| {
        routes::set_up(&SETTINGS).unwrap();
        for (at, ip) in ["192.168.20.11", "fd00:20::11"].into_iter().enumerate() {
            let revision = 2 * u32::try_from(at).unwrap() + 1;
            bench.enforce(ENFORCED, revision);
            bench.allow(0, TCP, 0, 0, 1);
            let server = as_user(move || TcpListener::bind(socket(address(ip), 0)).unwrap());
            let to = server.local_addr().unwrap();
            let opened = bench.world.pod("test/pod").netns.spawn(namegate_testbed::client::connect(to, ANSWERED));
            let (stream, _) = server.accept().unwrap();
            let mut pod = opened.wait().unwrap();
            bench.enforce(ENFORCED, revision + 1);
            bench.rule(0, (TCP, to.port(), 16), policy_verdict::REDIRECT, 4, 9);
            bench.told();
            bench.pod().netns.run(async move {
                use tokio::io::AsyncWriteExt;
                pod.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
                pod
            });
            let mut told = Vec::new();
            eventually("a denial", || {
                told.extend(bench.told());
                told.iter().any(|record| record.reason == Reason::ProxyAbsent as u8)
            });
            stream.set_nonblocking(true).unwrap();
            let read = (&stream).read(&mut [0; 64]).map_err(|error| error.kind());
            assert_eq!(read, Err(std::io::ErrorKind::WouldBlock), "{to} past the limit");
        }
    });
}

#[test]
fn what_is_left_of_a_proxied_connection_leads_to_no_other_listener() {
    run(|bench| {
        routes::set_up(&SETTINGS).unwrap();
        bench.enforce(ENFORCED, 1);
        for (at, (ip, loopback)) in [("192.168.20.11", "127.0.0.1"), ("fd00:20::11", "::1")].into_iter().enumerate() {
            let server = as_user(move || TcpListener::bind(socket(address(ip), 0)).unwrap());
            server.set_nonblocking(true).unwrap();
            let to = server.local_addr().unwrap();
            let port = 40_000 + u16::try_from(at).unwrap();
            let connect = || {
                bench.pod().netns.spawn(async move {
                    let v4 = to.is_ipv4();
                    let pod = if v4 { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
                    let pod = pod.unwrap();
                    pod.set_reuseaddr(true).unwrap();
                    pod.bind(socket(namegate_testbed::client::any_of(to), port)).unwrap();
                    let mut pod = tokio::time::timeout(ANSWERED / 4, pod.connect(to)).await.ok()?.ok()?;
                    let mut octets = [0; 8];
                    let read = tokio::io::AsyncReadExt::read(&mut pod, &mut octets);
                    tokio::time::timeout(ANSWERED / 4, read).await.ok()?.ok()
                })
            };
            let proxy = proxy_tcp(address(loopback));
            bench.rule(0, (TCP, to.port(), 16), policy_verdict::REDIRECT, 4, proxy.local_addr().unwrap().port());
            let opened = connect();
            // The proxy's side ends first, and is remembered.
            drop(proxy.accept().unwrap());
            assert_eq!(opened.wait(), Some(0));
            drop(proxy);
            assert_eq!(connect().wait(), None, "{to} past the limit");
            let accepted = server.accept().map(|(_, peer)| peer).map_err(|error| error.kind());
            assert_eq!(accepted, Err(std::io::ErrorKind::WouldBlock), "{to} past the limit");
        }
    });
}

#[test]
fn datagrams_do_not_wait_for_a_socket_that_is_not_the_agents() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        for (ip, loopback) in [("198.51.100.7", "127.0.0.1"), ("2001:db8:7::7", "::1")] {
            let (port, udp, tcp) = squat(loopback);
            bench.datapath.borrow_mut().set(&Settings { names_port: port, ..SETTINGS }).unwrap();
            let key = PolicyKey::new(POLICY, Direction::Egress, 0, UDP, 443);
            let value =
                PolicyValue { verdict: policy_verdict::ALLOW, flags: policy_flags::HOLD_NAME, proxy_port: 0, rule: 5 };
            bench.put(Row::Policy(key.prefix_len(16), key, value));
            let to = socket(address(ip), 443);
            let initial = [0xc0, 0, 0, 0, 1, 0, 0, 0];
            bench.pod().netns.call(move || {
                let pod = UdpSocket::bind(socket(namegate_testbed::client::any_of(to), 0)).unwrap();
                pod.send_to(&initial, to).unwrap()
            });
            let told = bench.hear();
            assert!(told.iter().all(|record| record.reason == Reason::ProxyAbsent as u8), "{told:?}");
            assert_untouched(&udp, &tcp);
        }
    });
}

#[test]
fn only_questions_to_resolvers_go_to_the_proxy() {
    run(|bench| {
        let proxy = proxy_udp(address("127.0.0.1"));
        bench.observe(proxy.local_addr().unwrap().port());
        proxy.set_nonblocking(true).unwrap();
        bench.allow(0, UDP, 7, 16, 1);
        assert!(bench.echoes(&format!("{}:7", RESOLVERS[0]), 10, ANSWERED), "another port");
        let other: SocketAddr = "198.51.100.54:53".parse().unwrap();
        bench.pod().netns.call(move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[0; 12], other).unwrap());
        bench.enforce(ENFORCED, 1);
        let resolver = socket(address(RESOLVERS[0]), DNS);
        bench.pod().netns.call(move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[0; 12], resolver).unwrap());
        let mut told = Vec::new();
        eventually("three records", || {
            told.extend(bench.told());
            told.len() == 3
        });
        assert_eq!(verdict(&told), Verdict::Allowed);
        assert_eq!(proxy.recv(&mut [0; 64]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        bench.enforce(OBSERVED, 1);
        bench.pod().netns.call(move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[0; 12], resolver).unwrap());
        proxy.set_nonblocking(false).unwrap();
        assert_eq!(proxy.recv(&mut [0; 64]).unwrap(), 12, "the proxy does hear this endpoint");
    });
}

#[test]
fn a_rule_with_a_proxy_holds_for_the_whole_connection_and_fails_closed() {
    run(|bench| {
        routes::set_up(&SETTINGS).unwrap();
        bench.enforce(ENFORCED, 1);
        for (ip, loopback) in [("198.51.100.7", "127.0.0.1"), ("2001:db8:7::7", "::1")] {
            let to = socket(address(ip), 80);
            let proxy = proxy_tcp(address(loopback));
            let port = proxy.local_addr().unwrap().port();
            bench.rule(0, (TCP, 80, 16), policy_verdict::REDIRECT, 4, port);
            drop(converse(&bench, &proxy, to));
            let told = bench.told();
            assert_eq!((verdict(&told), told[0].rule), (Verdict::Redirected, 4));
            drop(proxy);
            assert!(!bench.connects(&to.to_string(), DROPPED), "{to} past the proxy");
            let told = bench.told();
            assert!(told.iter().all(|record| record.reason == Reason::ProxyAbsent as u8), "{told:?}");
            assert_eq!((verdict(&told), told[0].rule), (Verdict::Denied, 4));
        }
        assert_eq!(bench.world.outside_log().all().len(), 0, "nothing came past the proxy");
    });
}

/// A connection from a port of the pod that the proxy ends first: its side of the connection is left for a minute.
fn end_first(bench: &Bench, proxy: &TcpListener, port: u16, to: SocketAddr) {
    use tokio::io::AsyncReadExt;
    let opened = bench.pod().netns.spawn(namegate_testbed::client::connect_from(port, to, AGAIN));
    let (stream, _) = proxy.accept().unwrap();
    let mut pod = opened.wait().unwrap();
    drop(stream);
    let read = bench.pod().netns.run(async move { pod.read(&mut [0; 8]).await.map_err(|error| error.kind()) });
    assert_eq!(read, Ok(0), "the proxy's end");
}

#[test]
fn a_client_may_use_its_port_again_after_the_proxy_has_ended_the_connection() {
    run(|bench| {
        routes::set_up(&SETTINGS).unwrap();
        bench.enforce(ENFORCED, 1);
        for (ip, loopback) in [("198.51.100.7", "127.0.0.1"), ("2001:db8:7::7", "::1")] {
            let to = socket(address(ip), 80);
            let proxy = proxy_tcp(address(loopback));
            bench.rule(0, (TCP, 80, 16), policy_verdict::REDIRECT, 4, proxy.local_addr().unwrap().port());
            end_first(&bench, &proxy, 40_000, to);
            let opened = bench.pod().netns.spawn(namegate_testbed::client::connect_from(40_000, to, AGAIN));
            assert!(opened.wait().is_ok(), "{to}: the same port again");
            let (stream, client) = proxy.accept().unwrap();
            assert_eq!((stream.local_addr().unwrap(), client.port()), (to, 40_000));
        }
        assert_eq!(bench.world.outside_log().all().len(), 0, "nothing came past the proxy");
    });
}

#[test]
fn a_connection_through_a_dead_proxy_does_not_go_on_past_it() {
    run(|bench| {
        routes::set_up(&SETTINGS).unwrap();
        bench.enforce(ENFORCED, 1);
        let to = socket(address("198.51.100.7"), 80);
        let proxy = proxy_tcp(address("127.0.0.1"));
        bench.rule(0, (TCP, 80, 16), policy_verdict::REDIRECT, 4, proxy.local_addr().unwrap().port());
        let opened = bench.world.pod("test/pod").netns.spawn(namegate_testbed::client::connect(to, ANSWERED));
        let (stream, _) = proxy.accept().unwrap();
        let pod = opened.wait().unwrap();
        // Gone without a word, as after a crash of the node's agent with its sockets' resets lost.
        let socket = Socket::from(stream);
        setsockopt(&socket, RepairMode, &1).unwrap();
        drop((socket, proxy));
        bench.pod().netns.run(async move {
            use tokio::io::AsyncWriteExt;
            let mut pod = pod;
            pod.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            pod
        });
        let is_absent = |record: &EventRecord| record.reason == Reason::ProxyAbsent as u8;
        let mut told = Vec::new();
        eventually("a denial", || {
            told.extend(bench.told().into_iter().filter(is_absent));
            !told.is_empty()
        });
        assert_eq!(verdict(&told), Verdict::Denied);
        assert_eq!(bench.world.outside_log().all().len(), 0);
    });
}

/// `TCP_REPAIR`: a socket in repair closes without sending anything.
#[derive(Clone, Copy, Debug)]
struct RepairMode;

impl nix::sys::socket::SetSockOpt for RepairMode {
    type Val = libc::c_int;

    fn set<F: std::os::fd::AsFd>(&self, socket: &F, value: &libc::c_int) -> nix::Result<()> {
        // SAFETY: The option is an int, and `value` lives through the call.
        let status = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_REPAIR,
                std::ptr::from_ref(value).cast(),
                4,
            )
        };
        nix::errno::Errno::result(status).map(drop)
    }
}
