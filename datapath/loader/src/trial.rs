//! Trials: a loaded program runs over one frame that never was on a wire (`BPF_PROG_TEST_RUN`, the kernel's
//! `Documentation/bpf/bpf_prog_run.rst`), on interfaces that are there for it alone.

use std::io;
use std::time::Duration;

use aya::programs::{TestRun, TestRunOptions, TestRunResult};
use namegate_abi::Direction;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use crate::datapath::{Datapath, program_of};
use crate::{LoadError, netlink::ask, node};

/// `TCX_DROP`: every other answer passes the packet on.
const DROP: u32 = 2;
/// Index of the loopback interface.
const LOOPBACK: u32 = 1;
/// What a program of a control group answers where the packet goes on.
const PASS_TO_SOCKET: u32 = 1;
/// Octets of `__sk_buff` up to and with `ifindex`; the rest reads as zero.
const CONTEXT_OCTETS: usize = 44;
/// Where `ifindex` stands in `__sk_buff`.
const IFINDEX_AT: usize = 40;

impl Datapath {
    /// Says whether a packet passes that the endpoint behind an interface sends (egress) or is about to receive
    /// (ingress). `frame` is an Ethernet frame; the interface must be in the network namespace of the calling thread.
    ///
    /// All is as for a packet on the wire: it is counted, told of, and its flow remembered.
    pub fn try_packet(&mut self, direction: Direction, ifindex: u32, frame: &[u8]) -> Result<bool, LoadError> {
        let wanted = program_of(direction);
        Ok(run(self.program(wanted)?, wanted, (ifindex, frame), 1)?.return_value != DROP)
    }

    /// Runs a program as [`Self::try_packet`] does, so many times over the same frame, and gives the mean time of a run as
    /// the kernel measures it.
    pub fn time_packet(
        &mut self,
        direction: Direction,
        ifindex: u32,
        frame: &[u8],
        runs: u32,
    ) -> Result<Duration, LoadError> {
        let wanted = program_of(direction);
        Ok(run(self.program(wanted)?, wanted, (ifindex, frame), runs)?.duration)
    }

    /// The same for a packet that a socket of the node sends or is about to receive, by way of an interface.
    pub fn try_node_packet(&mut self, direction: Direction, ifindex: u32, frame: &[u8]) -> Result<bool, LoadError> {
        let wanted = node::program_of(direction);
        Ok(run(self.node_program(wanted)?, wanted, (ifindex, frame), 1)?.return_value == PASS_TO_SOCKET)
    }
}

/// What a program answers to a frame of an interface, and how long a run takes.
fn run<P>(
    program: &P,
    name: &'static str,
    (ifindex, frame): (u32, &[u8]),
    runs: u32,
) -> Result<TestRunResult, LoadError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut context = [0; CONTEXT_OCTETS];
    context[IFINDEX_AT..].copy_from_slice(&ifindex.to_ne_bytes());
    let options =
        TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat: runs, ..TestRunOptions::new() };
    let result = program.test_run(options);
    result.map_err(|source| LoadError::Trial { program: name, interface: ifindex, source: Box::new(source) })
}

/// Switches the loopback interface of the calling thread's network namespace on.
pub fn loopback_up() -> io::Result<()> {
    let mut request = LinkMessage::default();
    request.header.index = LOOPBACK;
    request.header.flags = LinkFlags::Up;
    request.header.change_mask = LinkFlags::Up;
    ask(RouteNetlinkMessage::SetLink(request), NLM_F_ACK).map(drop)
}

/// Adds a pair of interfaces to the network namespace of the calling thread; the first has `index`, the second the one
/// after.
pub fn add_pair(index: u32) -> io::Result<()> {
    let numbered = |index: u32| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfName(format!("trial{index}")));
        link
    };
    let mut request = numbered(index);
    let peer = InfoData::Veth(InfoVeth::Peer(numbered(index + 1)));
    request.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]));
    ask(RouteNetlinkMessage::NewLink(request), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
}
