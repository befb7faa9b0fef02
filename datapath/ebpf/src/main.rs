//! The programs of an endpoint's interface, and of the node's own sockets: read the headers, ask
//! [`namegate_abi::judge`], count, tell, act.
//!
//! Seen from the node, `from_endpoint` sits on the ingress of the host-side interface and `to_endpoint` on its egress.
//! An interface without a row in `ENDPOINTS` is closed: every frame of it is denied. `from_node` and `to_node` sit at the root of the control
//! groups. The decision itself is in `namegate-abi`, where the host tests it.
#![no_std]
#![no_main]

mod flows;
mod frame;
mod gate;
mod maps;
mod neighbour;
mod node;
mod opening;
mod redirect;
mod report;

use aya_ebpf::{
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use namegate_abi::Direction;

/// Judges what an endpoint sends.
#[classifier]
fn from_endpoint(context: TcContext) -> i32 {
    gate::judge(&context, Direction::Egress)
}

/// Judges what an endpoint receives.
#[classifier]
fn to_endpoint(context: TcContext) -> i32 {
    gate::judge(&context, Direction::Ingress)
}

/// Judges what a socket of the node sends.
#[cgroup_skb(egress)]
fn from_node(context: SkBuffContext) -> i32 {
    node::judge(&context, Direction::Egress)
}

/// Judges what a socket of the node receives.
#[cgroup_skb(ingress)]
fn to_node(context: SkBuffContext) -> i32 {
    node::judge(&context, Direction::Ingress)
}

/// No helper in use asks for the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

/// The programs hold no path to a panic: an index out of bounds would show as a loop that the verifier refuses.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
