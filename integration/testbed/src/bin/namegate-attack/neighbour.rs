//! The hostile neighbour: frames on the bridge that it shares with an honest endpoint.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_testbed::World;
use socket2::Socket;

use crate::flood::Flood;
use crate::ground::{self, ALPHA, BETA, GATEWAY_V4, GATEWAY_V6, NEIGHBOUR};
use crate::raw::{ALL_NODES, ICMPV6, Mac, Path, UDP, arp, data_option, frame, frames_of, link_option};
use crate::tag::denied;

/// Types of Ethernet frames (IANA): the last is for experiments.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const IPV6: u16 = 0x86dd;
const EXPERIMENT: u16 = 0x88b5;
/// Every machine of the link.
const BROADCAST: Mac = [0xff; 6];
/// All nodes of IPv6 as an Ethernet address (RFC 2464).
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// Hop limit of neighbour discovery (RFC 4861).
const ND_HOPS: u8 = 255;
/// Flags of an advertisement: from a router, asked for, to be believed over what is known.
const ROUTER_SOLICITED_OVERRIDE: u8 = 0xe0;

/// What the frames are made of.
#[derive(Clone, Copy)]
struct Link {
    own: Mac,
    own_v4: Ipv4Addr,
    own_v6: Ipv6Addr,
    victim: Mac,
    victim_v4: Ipv4Addr,
    victim_v6: Ipv6Addr,
    other_v4: Ipv4Addr,
    gateway: Mac,
}

type Make = fn(&Link, u64) -> Vec<u8>;

/// What is sent: name, frames a second, the frame. Together 390 a second.
const KINDS: [(&str, u64, Make); 11] = [
    ("arp-gateway", 50, Link::arp_gateway),
    ("arp-victim", 50, Link::arp_victim),
    ("arp-data", 50, Link::arp_data),
    ("nd-gateway", 50, Link::nd_gateway),
    ("nd-victim", 50, Link::nd_victim),
    ("ra", 20, Link::router),
    ("redirect", 20, Link::redirect),
    ("as-victim", 30, Link::as_victim),
    ("as-alpha", 30, Link::as_alpha),
    ("ethertype", 20, Link::experiment),
    ("vlan", 20, Link::vlan),
];

/// Every flood of frames.
pub(crate) fn floods(world: &World) -> Result<Vec<Flood>> {
    let (pod, victim) = (world.pod(NEIGHBOUR), world.pod(BETA));
    let (own, gateway) = ground::macs(world, pod)?;
    let v4 = |address| if let IpAddr::V4(address) = address { address } else { Ipv4Addr::UNSPECIFIED };
    let v6 = |address| if let IpAddr::V6(address) = address { address } else { Ipv6Addr::UNSPECIFIED };
    let link = Link {
        own,
        own_v4: v4(pod.ipv4()),
        own_v6: v6(pod.ipv6()),
        victim: ground::macs(world, victim)?.0,
        victim_v4: v4(victim.ipv4()),
        victim_v6: v6(victim.ipv6()),
        other_v4: v4(world.pod(ALPHA).ipv4()),
        gateway,
    };
    let open = || -> Result<Socket> {
        let socket = pod.netns.call(|| frames_of("eth0", Duration::from_millis(1)));
        socket.context("opening a socket for frames in the hostile neighbour")
    };
    KINDS
        .into_iter()
        .map(|(name, rate, make)| {
            let mut socket = open()?;
            // A full queue loses the frame: floods are not exact.
            Ok(Flood::new(name, rate, move |number| drop(socket.write(&make(&link, number)))))
        })
        .collect()
}

impl Link {
    /// "The node's address is mine", to the victim.
    fn arp_gateway(&self, number: u64) -> Vec<u8> {
        let operation = if number.is_multiple_of(2) { 1 } else { 2 };
        let message = arp(operation, (self.own, GATEWAY_V4), (self.victim, self.victim_v4), &denied("neighbour:arp"));
        frame(self.victim, self.own, ARP, &message)
    }

    /// "The victim's address is mine", to everyone and to the node.
    fn arp_victim(&self, number: u64) -> Vec<u8> {
        let to = if number.is_multiple_of(2) { BROADCAST } else { self.gateway };
        let message = arp(2, (self.own, self.victim_v4), (BROADCAST, self.victim_v4), &denied("neighbour:arp"));
        frame(to, self.own, ARP, &message)
    }

    /// True addresses, and data behind the message or in place of its fields.
    fn arp_data(&self, number: u64) -> Vec<u8> {
        let data = denied("neighbour:arp-data");
        let mut message = arp(2, (self.own, self.own_v4), (self.victim, self.victim_v4), &data);
        if number % 2 == 1 {
            message[4] = 16;
        }
        frame(self.victim, self.own, ARP, &message)
    }

    fn nd_gateway(&self, _: u64) -> Vec<u8> {
        let path = Path::new(GATEWAY_V6.into(), self.victim_v6.into());
        self.advertise(path, GATEWAY_V6, self.victim)
    }

    fn nd_victim(&self, number: u64) -> Vec<u8> {
        let from: IpAddr = if number.is_multiple_of(2) { self.own_v6 } else { self.victim_v6 }.into();
        self.advertise(Path::new(from, ALL_NODES.into()), self.victim_v6, ALL_NODES_MAC)
    }

    fn advertise(&self, path: Path, target: Ipv6Addr, to: Mac) -> Vec<u8> {
        let rest = [&target.octets()[..], &link_option(2, self.own), &data_option(&denied("neighbour:na"))].concat();
        self.discovery(path, 136, [ROUTER_SOLICITED_OVERRIDE, 0, 0, 0], &rest, to)
    }

    /// A router that wants to be the default, with a prefix of the closed network.
    fn router(&self, _: u64) -> Vec<u8> {
        let mut rest = vec![0; 8];
        rest.extend(link_option(1, self.own));
        rest.extend([3, 4, 64, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        rest.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 0).octets());
        rest.extend(data_option(&denied("neighbour:ra")));
        let path = Path::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66).into(), ALL_NODES.into());
        self.discovery(path, 134, [64, 0, 0xff, 0xff], &rest, ALL_NODES_MAC)
    }

    fn redirect(&self, _: u64) -> Vec<u8> {
        let destination = Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 1);
        let target = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
        let rest = [&target.octets()[..], &destination.octets(), &data_option(&denied("neighbour:redirect"))].concat();
        let path = Path::new(GATEWAY_V6.into(), self.victim_v6.into());
        self.discovery(path, 137, [0; 4], &rest, self.victim)
    }

    fn discovery(&self, path: Path, kind: u8, word: [u8; 4], rest: &[u8], to: Mac) -> Vec<u8> {
        let packet = path.packet_with(ICMPV6, ND_HOPS, &path.icmp(kind, 0, word, rest));
        frame(to, self.own, IPV6, packet.bytes())
    }

    /// A datagram with the victim's address, to where only the victim may send.
    fn as_victim(&self, number: u64) -> Vec<u8> {
        let path = Path::new(self.victim_v4.into(), Ipv4Addr::new(203, 0, 113, 10).into());
        let port = u16::try_from(20_000 + number % 10_000).unwrap_or(20_000);
        let packet = path.packet(UDP, &path.udp(port, 7, &denied("neighbour:as-victim")));
        frame(self.gateway, self.own, IPV4, packet.bytes())
    }

    /// A datagram with another pod's address, straight to the victim.
    fn as_alpha(&self, _: u64) -> Vec<u8> {
        let path = Path::new(self.other_v4.into(), self.victim_v4.into());
        let packet = path.packet(UDP, &path.udp(8_080, 8_080, &denied("neighbour:as-alpha")));
        frame(self.victim, self.own, IPV4, packet.bytes())
    }

    fn experiment(&self, _: u64) -> Vec<u8> {
        frame(self.victim, self.own, EXPERIMENT, &denied("neighbour:ethertype"))
    }

    fn vlan(&self, _: u64) -> Vec<u8> {
        let path = Path::new(self.own_v4.into(), self.victim_v4.into());
        let packet = path.packet(UDP, &path.udp(8_080, 8_080, &denied("neighbour:vlan")));
        let tagged = [&[0, 7][..], &IPV4.to_be_bytes(), packet.bytes()].concat();
        frame(self.victim, self.own, VLAN, &tagged)
    }
}
