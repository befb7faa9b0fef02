//! Hands a packet to a socket of this node: `bpf_sk_assign` and a mark that policy routing delivers locally.
//!
//! The sockets are looked up in the namespace of the interface. See the kernel's
//! `tools/testing/selftests/bpf/progs/test_sk_assign.c`. Only a socket that carries the proxies' mark (`SO_MARK`, which
//! needs CAP_NET_ADMIN or CAP_NET_RAW) is a proxy's: while there is no agent, any user of the node can bind its port.
//!
//! A socket can be given to what comes in from an interface alone. So a packet that is about to leave towards an endpoint
//! and belongs to a proxy is sent back: it comes in again by the interface it was to leave by, with the proxy's port in
//! the upper half of its mark, and gets its socket there.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, BPF_F_INGRESS, bpf_sock},
    helpers::{
        bpf_get_listener_sock, bpf_redirect, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skb_change_type, bpf_skb_store_bytes, bpf_skc_lookup_tcp,
    },
};
use namegate_abi::{Address, Packet, Settings, protocol};

use crate::frame::Frame;

/// `BPF_TCP_TIME_WAIT`.
const TIME_WAIT: u32 = 6;
/// `BPF_TCP_LISTEN`.
const LISTEN: u32 = 10;
/// `BPF_TCP_NEW_SYN_RECV`: a connection whose opening the client has not acknowledged yet.
const REQUEST: u32 = 12;
/// `PACKET_HOST`: the packet's link address is this node's.
const TO_HOST: u32 = 0;
/// Bits of a mark below a port in it.
const PORT_SHIFT: u32 = 16;
/// `127.0.0.1`.
const LOOPBACK_V4: [u8; 4] = [127, 0, 0, 1];
/// `::1`.
const LOOPBACK_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// `struct bpf_sock_tuple` of one family; network order.
#[repr(C)]
struct Tuple<const N: usize> {
    source: [u8; N],
    destination: [u8; N],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// The address of slow protocols (IEEE 802.1Q §8.6.3): a bridge hands what goes there to the stack as what its port
/// received, and forwards it never.
const TO_NO_PORT: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x02];
/// The same, sent by a locally administered address (RFC 9542 §2.1) that nobody has: a bridge learns from a frame that was
/// sent back that this address, and not the sender's, is behind the port.
const FROM_NOBODY: [u8; 12] = [0x01, 0x80, 0xc2, 0, 0, 0x02, 0x02, b'n', b'a', b'm', b'e', b'g'];

/// Hands the packet to its connection with the proxy, or to the proxy's socket on the loopback address of the packet's
/// family and `port`, where that is not 0. Says whether there is one.
#[inline(always)]
pub(crate) fn to_proxy(frame: Frame, settings: &Settings, packet: &Packet, port: u16) -> bool {
    if !serve(frame, settings, packet, port, true) {
        return false;
    }
    let mark = frame.mark() & !settings.mark_mask & ((1 << PORT_SHIFT) - 1);
    frame.set_mark(mark | settings.redirect_mark);
    frame.is_to_host() || let_in(frame, &TO_NO_PORT)
}

/// Whether there is a socket for the packet: see [`to_proxy`].
#[inline(always)]
pub(crate) fn has_proxy(frame: Frame, settings: &Settings, packet: &Packet, port: u16) -> bool {
    serve(frame, settings, packet, port, false)
}

/// Sends a packet that is about to leave by its interface back in by the same; gives the program's verdict.
#[inline(always)]
pub(crate) fn back(frame: Frame, settings: &Settings, port: u16) -> i32 {
    frame.set_mark((u32::from(port) << PORT_SHIFT) | settings.redirect_mark);
    // SAFETY: The helper takes numbers.
    unsafe { bpf_redirect(frame.interface(), u64::from(BPF_F_INGRESS)) as i32 }
}

/// The port of the proxy that a packet was sent back for; 0 is none.
#[inline(always)]
pub(crate) fn sent_back(frame: Frame, settings: &Settings) -> u16 {
    let mark = frame.mark();
    if mark & settings.mark_mask == settings.redirect_mark { (mark >> PORT_SHIFT) as u16 } else { 0 }
}

/// Whether a packet carries the mark by which [`to_proxy`] sends it to a socket of this node. Such a packet leaves by no
/// interface.
#[inline(always)]
pub(crate) fn is_redirected(frame: Frame, settings: &Settings) -> bool {
    settings.redirect_mark != 0 && frame.mark() & settings.mark_mask == settings.redirect_mark
}

/// Lets a packet in that was sent back.
#[inline(always)]
pub(crate) fn let_back(frame: Frame) -> bool {
    let_in(frame, &FROM_NOBODY)
}

/// Lets a packet in whose link address is not that of the interface: one that was about to leave, or one of a port of a
/// bridge. The bridge would forward it by that address, without its socket. False where the frame can not be written.
#[inline(always)]
fn let_in<const N: usize>(frame: Frame, addresses: &'static [u8; N]) -> bool {
    // SAFETY: The helpers take the running program's context, and read as many bytes as are there.
    unsafe {
        bpf_skb_store_bytes(frame.raw().cast(), 0, addresses.as_ptr().cast(), N as u32, 0) == 0
            && bpf_skb_change_type(frame.raw().cast(), TO_HOST) == 0
    }
}

/// Whether a proxy of this node sent the packet.
#[inline(always)]
pub(crate) fn is_from_proxy(frame: Frame, settings: &Settings) -> bool {
    is_proxys(frame.mark(), settings)
}

/// Whether the mark is the proxies'.
#[inline(always)]
pub(crate) fn is_proxys(mark: u32, settings: &Settings) -> bool {
    let mark = mark & settings.mark_mask;
    mark != 0 && mark == settings.proxy_mark
}

/// Looks the socket for the packet up, and gives it the packet where `assign` says so.
#[inline(never)]
fn serve(frame: Frame, settings: &Settings, packet: &Packet, port: u16, assign: bool) -> bool {
    let socket = if packet.destination.is_v4() {
        find(frame, settings, packet, last_four(&packet.source), last_four(&packet.destination), LOOPBACK_V4, port)
    } else {
        find(frame, settings, packet, packet.source.0, packet.destination.0, LOOPBACK_V6, port)
    };
    if socket.is_null() {
        return false;
    }
    let mut status = 0;
    if assign {
        // SAFETY: The socket is held by a reference from the look-up.
        status = unsafe { bpf_sk_assign(frame.raw().cast(), socket.cast(), 0) };
    }
    // SAFETY: As above; the reference ends here.
    unsafe { bpf_sk_release(socket.cast()) };
    status == 0
}

#[inline(always)]
fn last_four(address: &Address) -> [u8; 4] {
    let octets = address.octets();
    [octets[12], octets[13], octets[14], octets[15]]
}

/// A proxy's socket for the packet, with a reference; null is none.
#[inline(always)]
fn find<const N: usize>(
    frame: Frame,
    settings: &Settings,
    packet: &Packet,
    source: [u8; N],
    destination: [u8; N],
    loopback: [u8; N],
    port: u16,
) -> *mut bpf_sock {
    let mut tuple = Tuple {
        source,
        destination,
        source_port: packet.source_port.to_be_bytes(),
        destination_port: packet.destination_port.to_be_bytes(),
    };
    if packet.protocol == protocol::UDP {
        tuple.destination = loopback;
        tuple.destination_port = port.to_be_bytes();
        return of_proxy(lookup_udp(frame, &mut tuple), settings);
    }
    if packet.protocol != protocol::TCP {
        return core::ptr::null_mut();
    }
    let own = lookup_tcp(frame, &mut tuple);
    if !own.is_null() {
        if carries(own, settings, packet.opens()) || (is_left(own) && !is_listened_to(frame, &mut tuple)) {
            return own;
        }
        // SAFETY: The reference is from the look-up and is not used after.
        unsafe { bpf_sk_release(own.cast()) };
    }
    if port == 0 {
        return core::ptr::null_mut();
    }
    tuple.destination = loopback;
    tuple.destination_port = port.to_be_bytes();
    let listener = lookup_tcp(frame, &mut tuple);
    if !listener.is_null() && !is_listener(listener) {
        // SAFETY: As above.
        unsafe { bpf_sk_release(listener.cast()) };
        return core::ptr::null_mut();
    }
    of_proxy(listener, settings)
}

/// The socket where it is a proxy's; else lets its reference go.
#[inline(always)]
fn of_proxy(socket: *mut bpf_sock, settings: &Settings) -> *mut bpf_sock {
    if !socket.is_null() && !is_marked(socket, settings) {
        // SAFETY: The reference is from the look-up and is not used after.
        unsafe { bpf_sk_release(socket.cast()) };
        return core::ptr::null_mut();
    }
    socket
}

/// Whether a socket found by both ends of a connection is a proxy's connection that takes a packet.
///
/// What is left of an ended connection (`TIME_WAIT`) has no mark that a program can read. It hands no data to anybody, but
/// the kernel would give a packet that opens a connection to any listener of the node with the same port.
#[inline(always)]
fn carries(socket: *mut bpf_sock, settings: &Settings, opens: bool) -> bool {
    // SAFETY: The socket is not null and is held by a reference from the look-up.
    match unsafe { (*socket).state } {
        LISTEN => false,
        TIME_WAIT => !opens,
        // SAFETY: As above. A listener is freed only when no program can be in it any more (RCU).
        REQUEST => bears_mark(unsafe { bpf_get_listener_sock(socket.cast()) }.cast(), settings),
        _ => is_marked(socket, settings),
    }
}

/// Whether a socket is what is left of an ended connection.
///
/// A client may use its port again while the proxy's side of its last connection is left. A listener can not take such a
/// packet, since both ends are in use: the kernel would drop it without a word for a minute. The left socket answers it with
/// an acknowledgement, the client resets that (RFC 9293 §3.10.7.3), the socket is gone, and the client's next try is taken.
#[inline(always)]
fn is_left(socket: *mut bpf_sock) -> bool {
    // SAFETY: The socket is not null and is held by a reference from the look-up.
    unsafe { (*socket).state == TIME_WAIT }
}

/// Whether a socket of the node listens at the destination: it would get what opens a connection to a left socket.
#[inline(always)]
fn is_listened_to<const N: usize>(frame: Frame, tuple: &mut Tuple<N>) -> bool {
    let source_port = core::mem::take(&mut tuple.source_port);
    let listener = lookup_tcp(frame, tuple);
    tuple.source_port = source_port;
    if listener.is_null() {
        return false;
    }
    // SAFETY: The reference is from the look-up and is not used after.
    unsafe { bpf_sk_release(listener.cast()) };
    true
}

/// Whether a socket is a proxy's.
#[inline(always)]
fn is_marked(socket: *mut bpf_sock, settings: &Settings) -> bool {
    // SAFETY: The socket is not null and is held by a reference from the look-up.
    bears_mark(unsafe { bpf_sk_fullsock(socket.cast()) }.cast(), settings)
}

/// Whether a whole socket, or null, carries the proxies' mark.
#[inline(always)]
fn bears_mark(socket: *mut bpf_sock, settings: &Settings) -> bool {
    // SAFETY: A socket that is not null is whole, and is held by the reference of the one it was read from.
    !socket.is_null() && is_proxys(unsafe { (*socket).mark }, settings)
}

#[inline(always)]
fn is_listener(socket: *mut bpf_sock) -> bool {
    // SAFETY: The socket is not null and is held by a reference from the look-up.
    unsafe { (*socket).state == LISTEN }
}

#[inline(always)]
fn lookup_udp<const N: usize>(frame: Frame, tuple: &mut Tuple<N>) -> *mut bpf_sock {
    let octets = size_of::<Tuple<N>>() as u32;
    let tuple = core::ptr::from_mut(tuple).cast();
    // SAFETY: The tuple has the layout of its family and `octets` octets.
    unsafe { bpf_sk_lookup_udp(frame.raw().cast(), tuple, octets, BPF_F_CURRENT_NETNS as i64 as u64, 0) }
}

#[inline(always)]
fn lookup_tcp<const N: usize>(frame: Frame, tuple: &mut Tuple<N>) -> *mut bpf_sock {
    let octets = size_of::<Tuple<N>>() as u32;
    let tuple = core::ptr::from_mut(tuple).cast();
    // SAFETY: As above.
    unsafe { bpf_skc_lookup_tcp(frame.raw().cast(), tuple, octets, BPF_F_CURRENT_NETNS as i64 as u64, 0) }
}
