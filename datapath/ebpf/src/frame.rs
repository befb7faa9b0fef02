//! Access to the octets and the few fields of a frame. Nothing here is a pointer into it: paged and segmented data are
//! read alike.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_get_netns_cookie, bpf_sk_fullsock, bpf_skb_load_bytes},
};
use namegate_abi::{Address, Packet, Reader};

/// Octets of an Ethernet header.
pub(crate) const LINK_OCTETS: usize = 14;

/// `PACKET_HOST` (`if_packet.h`).
const PACKET_HOST: u32 = 0;

/// A frame under judgement, or a packet on its way to or from a socket: that has no link header.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Frame(*mut __sk_buff);

impl Frame {
    /// The frame of a running program.
    #[inline(always)]
    pub(crate) fn new(context: &impl EbpfContext) -> Self {
        Self(context.as_ptr().cast())
    }

    /// The kernel's view of it.
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.0
    }

    /// EtherType, host order.
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        // SAFETY: The context is valid as long as the program runs.
        u16::from_be(unsafe { (*self.0).protocol } as u16)
    }

    /// Octets, with the link header where there is one.
    #[inline(always)]
    pub(crate) fn octets(&self) -> u32 {
        // SAFETY: As above.
        unsafe { (*self.0).len }
    }

    /// Packets on the wire: the kernel carries many segments in one frame.
    #[inline(always)]
    pub(crate) fn packets(&self) -> u32 {
        // SAFETY: As above.
        match unsafe { (*self.0).gso_segs } {
            0 => 1,
            segments => segments,
        }
    }

    /// Octets of the payload of each packet on the wire, where the frame carries several; else 0.
    #[inline(always)]
    pub(crate) fn segment(&self) -> u16 {
        // SAFETY: As above.
        unsafe { (*self.0).gso_size as u16 }
    }

    /// Whether the frame has a VLAN tag, which is not among its bytes.
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        // SAFETY: As above.
        unsafe { (*self.0).vlan_present != 0 }
    }

    /// Index of the interface.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        // SAFETY: As above.
        unsafe { (*self.0).ifindex }
    }

    /// Index of the interface that the frame came in by, of one that is about to leave; 0 where this node made it.
    #[inline(always)]
    pub(crate) fn came_from(&self) -> u32 {
        // SAFETY: As above.
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Whether the link address is that of the interface that received the frame.
    #[inline(always)]
    pub(crate) fn is_to_host(&self) -> bool {
        // SAFETY: As above.
        unsafe { (*self.0).pkt_type == PACKET_HOST }
    }

    /// The mark that somebody on this node set: what comes from another namespace has none.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: As above.
        unsafe { (*self.0).mark }
    }

    /// The socket that a packet comes from or goes to; null where there is none.
    #[inline(always)]
    fn socket(&self) -> *mut bpf_sock {
        // SAFETY: As above.
        let socket = unsafe { (*self.0).__bindgen_anon_2.sk };
        if socket.is_null() {
            return socket;
        }
        // SAFETY: The socket is not null; the kernel holds it as long as the program runs.
        unsafe { bpf_sk_fullsock(socket) }
    }

    /// The mark of the socket that a packet comes from or goes to; 0 where there is none.
    #[inline(always)]
    pub(crate) fn socket_mark(&self) -> u32 {
        let socket = self.socket();
        // SAFETY: The helper has found the socket whole, and the kernel holds it as long as the program runs.
        if socket.is_null() { 0 } else { unsafe { (*socket).mark } }
    }

    /// Gives a packet that leaves the addresses and ports of its connected socket: those of the packet may have been
    /// translated since.
    #[inline(always)]
    pub(crate) fn as_sent(&self, packet: &mut Packet) {
        let socket = self.socket();
        if socket.is_null() {
            return;
        }
        // SAFETY: As for the mark. Volatile: the kernel lets these fields be read one by one.
        unsafe {
            let peer_port = (&raw const (*socket).dst_port).read_volatile();
            if peer_port == 0 {
                return;
            }
            packet.source_port = (&raw const (*socket).src_port).read_volatile() as u16;
            packet.destination_port = u16::from_be(peer_port);
            if packet.destination.is_v4() {
                packet.source = Address::from_v4((&raw const (*socket).src_ip4).read_volatile().to_ne_bytes());
                packet.destination = Address::from_v4((&raw const (*socket).dst_ip4).read_volatile().to_ne_bytes());
            } else {
                packet.source = words(&raw const (*socket).src_ip6);
                packet.destination = words(&raw const (*socket).dst_ip6);
            }
        }
    }

    /// The network namespace of the socket that a packet comes from or goes to.
    #[inline(always)]
    pub(crate) fn namespace(&self) -> u64 {
        // SAFETY: The helper takes the running program's context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// Sets the mark.
    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32) {
        // SAFETY: As above; the kernel lets a classifier write the mark.
        unsafe { (*self.0).mark = mark }
    }
}

/// An IPv6 address of a socket.
///
/// # Safety
/// The address must be that of a socket that the kernel holds.
#[inline(always)]
unsafe fn words(at: *const [u32; 4]) -> Address {
    let mut octets = [0; 16];
    let mut word = 0;
    while word < 4 {
        // SAFETY: Within the four words.
        let value = unsafe { at.cast::<u32>().add(word).read_volatile() }.to_ne_bytes();
        octets[4 * word] = value[0];
        octets[4 * word + 1] = value[1];
        octets[4 * word + 2] = value[2];
        octets[4 * word + 3] = value[3];
        word += 1;
    }
    Address(octets)
}

impl Reader for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut octets = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: The helper writes `N` octets or fails.
        let status = unsafe { bpf_skb_load_bytes(self.0.cast(), offset as u32, octets.as_mut_ptr().cast(), N as u32) };
        // SAFETY: Written whole where the helper succeeded.
        (status == 0).then(|| unsafe { octets.assume_init() })
    }
}
