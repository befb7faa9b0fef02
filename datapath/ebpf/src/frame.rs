//! Access to the octets and the few fields of a frame. Nothing here is a pointer into it: paged and segmented data are
//! read alike.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_get_netns_cookie, bpf_sk_fullsock, bpf_skb_load_bytes},
};
use namegate_abi::Reader;

/// Octets of an Ethernet header.
pub(crate) const LINK_OCTETS: usize = 14;

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

    /// Index of the interface.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        // SAFETY: As above.
        unsafe { (*self.0).ifindex }
    }

    /// The mark that somebody on this node set: what comes from another namespace has none.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: As above.
        unsafe { (*self.0).mark }
    }

    /// The mark of the socket that a packet comes from or goes to; 0 where there is none.
    #[inline(always)]
    pub(crate) fn socket_mark(&self) -> u32 {
        // SAFETY: As above.
        let socket = unsafe { (*self.0).__bindgen_anon_2.sk };
        if socket.is_null() {
            return 0;
        }
        // SAFETY: The socket is not null; the kernel holds it as long as the program runs.
        let socket = unsafe { bpf_sk_fullsock(socket) };
        // SAFETY: As above, where the helper has found it whole.
        if socket.is_null() { 0 } else { unsafe { (*socket).mark } }
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
