//! Tables in memory under the very decision that the kernel's programs take.

use std::collections::{BTreeSet, HashMap};

use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, Direction, FlowKey, FlowValue, FragmentKey, FragmentValue, PolicyKey,
    PolicyValue, Reader, Tables, judge, parse,
};
use namegate_engine::{GateError, Key, MapOp, MapWriter, Row};

use crate::{
    frame::LINK_OCTETS,
    judge::{Decided, Fixture, Table},
    requests::Requests,
};

/// Trials in memory.
#[derive(Debug, Default)]
pub struct Model;

impl Fixture for Model {
    fn table(&mut self) -> anyhow::Result<Box<dyn Table>> {
        Ok(Box::new(Memory::default()))
    }

    fn interface(&mut self, _: u32) -> anyhow::Result<()> {
        Ok(())
    }

    /// The reference judges them.
    fn requests(&self) -> Option<&Requests> {
        None
    }
}

/// Rows, and a clock.
#[derive(Debug, Default)]
struct Memory {
    now_ns: u64,
    rows: HashMap<Key, Row>,
    /// Lengths of prefixes that were ever written.
    cidr_lengths: BTreeSet<u32>,
}

impl MapWriter for Memory {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        match op {
            MapOp::Put(row) => {
                if let Row::Cidr(prefix, ..) = row {
                    self.cidr_lengths.insert(*prefix);
                }
                self.rows.insert(row.key(), *row);
            }
            MapOp::Delete(key) => drop(self.rows.remove(key)),
        }
        Ok(())
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        Ok(self.rows.values().copied().collect())
    }
}

impl Table for Memory {
    fn set_clock(&mut self, now_ns: u64) -> anyhow::Result<()> {
        self.now_ns = now_ns;
        Ok(())
    }

    fn judge(&mut self, interface: u32, direction: Direction, frame: &[u8]) -> anyhow::Result<Decided> {
        let Some(Row::Endpoint(_, endpoint)) = self.rows.get(&Key::Endpoint(interface)) else {
            anyhow::bail!("no endpoint is behind interface {interface}");
        };
        let ethertype = frame.get(12..LINK_OCTETS).map_or(0, |octets| u16::from_be_bytes([octets[0], octets[1]]));
        let reader = Octets(frame);
        let (reason, rule, proxy) = match parse(&reader, ethertype, LINK_OCTETS) {
            Ok(packet) => {
                let decision = judge(self, &reader, endpoint, &packet, direction);
                (decision.reason, decision.rule, decision.proxy_port)
            }
            Err(reason) => (reason, 0, 0),
        };
        Ok(Decided { passes: !reason.denies(), handed_over: proxy != 0, reason, rule })
    }

    fn judges_node(&self) -> bool {
        true
    }

    /// None is remembered.
    fn forget_flows(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

struct Octets<'f>(&'f [u8]);

impl Reader for Octets<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

impl Tables for Memory {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn address(&self, key: &AddressKey) -> Option<&AddressValue> {
        match self.rows.get(&Key::Address(*key)) {
            Some(Row::Address(_, value)) => Some(value),
            _ => None,
        }
    }

    fn cidr(&self, key: &CidrKey) -> Option<u32> {
        self.cidr_lengths.iter().rev().find_map(|&bits| {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            let masked = u128::from_be_bytes(key.address.0) & mask;
            match self.rows.get(&Key::Cidr(bits, CidrKey { address: Address(masked.to_be_bytes()) })) {
                Some(Row::Cidr(_, _, value)) => Some(value.identity),
                _ => None,
            }
        })
    }

    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
        let row = |bits: u32, key: PolicyKey| match self.rows.get(&Key::Policy(bits, key)) {
            Some(Row::Policy(_, _, value)) => Some(*value),
            _ => None,
        };
        let port = u16::from_be_bytes(key.port_be);
        let narrow = (0..=PolicyKey::PORT_BITS).rev().find_map(|bits| {
            let mask = u16::MAX.checked_shl(PolicyKey::PORT_BITS - bits).unwrap_or(0);
            row(PolicyKey::PROTOCOL_BITS + bits, PolicyKey { port_be: (port & mask).to_be_bytes(), ..*key })
        });
        narrow.or_else(|| row(PolicyKey::PEER_BITS, PolicyKey { port_be: [0; 2], protocol: 0, ..*key }))
    }

    fn flow(&self, _: &FlowKey) -> Option<FlowValue> {
        None
    }

    fn fragment(&self, _: &FragmentKey) -> Option<FragmentValue> {
        None
    }
}
