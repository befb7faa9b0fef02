//! Hands a packet to a socket of this node: `bpf_sk_assign` and a mark that policy routing delivers locally.
//!
//! The sockets are looked up in the namespace of the interface. See the kernel's
//! `tools/testing/selftests/bpf/progs/test_sk_assign.c`.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock},
    helpers::{bpf_sk_assign, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use namegate_abi::{Address, Packet, Settings, protocol};

use crate::frame::Frame;

/// `BPF_TCP_LISTEN`.
const LISTEN: u32 = 10;
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

/// Hands the packet to its connection with the proxy, or to the proxy's socket on the loopback address of the packet's
/// family and `port`. Says whether there is one.
#[inline(always)]
pub(crate) fn to_proxy(frame: Frame, settings: &Settings, packet: &Packet, port: u16) -> bool {
    let socket = if packet.destination.is_v4() {
        find(frame, packet, last_four(&packet.source), last_four(&packet.destination), LOOPBACK_V4, port)
    } else {
        find(frame, packet, packet.source.0, packet.destination.0, LOOPBACK_V6, port)
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: The socket is held by a reference from the look-up.
    let status = unsafe { bpf_sk_assign(frame.raw().cast(), socket.cast(), 0) };
    // SAFETY: As above; the reference ends here.
    unsafe { bpf_sk_release(socket.cast()) };
    if status != 0 {
        return false;
    }
    frame.mark(settings.redirect_mark, settings.mark_mask);
    true
}

#[inline(always)]
fn last_four(address: &Address) -> [u8; 4] {
    let octets = address.octets();
    [octets[12], octets[13], octets[14], octets[15]]
}

#[inline(always)]
fn find<const N: usize>(
    frame: Frame,
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
        return lookup_udp(frame, &mut tuple);
    }
    if packet.protocol != protocol::TCP {
        return core::ptr::null_mut();
    }
    let own = lookup_tcp(frame, &mut tuple);
    if !own.is_null() {
        if !is_listener(own) {
            return own;
        }
        // SAFETY: The reference is from the look-up and is not used after.
        unsafe { bpf_sk_release(own.cast()) };
    }
    tuple.destination = loopback;
    tuple.destination_port = port.to_be_bytes();
    let listener = lookup_tcp(frame, &mut tuple);
    if !listener.is_null() && !is_listener(listener) {
        // SAFETY: As above.
        unsafe { bpf_sk_release(listener.cast()) };
        return core::ptr::null_mut();
    }
    listener
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
