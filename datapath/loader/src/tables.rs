//! The maps with their types, and the gate that writes and reads them row by row.

use std::path::Path;

use aya::maps::lpm_trie::{Key as TrieKey, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, CidrValue, EndpointValue, FlowKey, FlowValue, PolicyKey, PolicyValue,
    Settings, map_names,
};
use namegate_engine::{GateError, Key, MapOp, MapWriter, Row};

use crate::flow_maps::Flows;
use crate::flows::FlowTables;
use crate::raw_maps::{Raw, access, is_absent, os_error, pinned, typed};
use crate::spec::{MapLimits, setting_of};

type Endpoints = HashMap<MapData, u32, Raw<EndpointValue>>;
type Addresses = HashMap<MapData, Raw<AddressKey>, Raw<AddressValue>>;
type Cidrs = LpmTrie<MapData, Raw<CidrKey>, Raw<CidrValue>>;
type Policy = LpmTrie<MapData, Raw<PolicyKey>, Raw<PolicyValue>>;
type Resolvers = HashMap<MapData, Raw<Address>, u8>;

/// The maps of the gate.
pub(crate) struct Tables {
    endpoints: Endpoints,
    addresses: Addresses,
    cidrs: Cidrs,
    policy: Policy,
    resolvers: Resolvers,
    flows: FlowTables,
    settings: Array<MapData, Raw<Settings>>,
    /// What was written there last.
    current: Option<Settings>,
    limits: MapLimits,
}

impl Tables {
    pub(crate) fn open(pins: &Path, limits: MapLimits) -> Result<Self, GateError> {
        let mut tables = Self {
            endpoints: pinned(pins, map_names::ENDPOINTS)?,
            addresses: pinned(pins, map_names::ADDRESSES)?,
            cidrs: pinned(pins, map_names::CIDRS)?,
            policy: pinned(pins, map_names::POLICY)?,
            resolvers: pinned(pins, map_names::RESOLVERS)?,
            flows: FlowTables::open(pins, limits)?,
            settings: pinned(pins, map_names::SETTINGS)?,
            current: None,
            limits,
        };
        for row in &tables.endpoints {
            let (interface, value) = row.map_err(|error| access(map_names::ENDPOINTS, error))?;
            tables.flows.arrive(interface, &value.0);
        }
        Ok(tables)
    }

    /// Writes what a map held before it was replaced.
    pub(crate) fn restore(&mut self, saved: &Saved) -> Result<(), GateError> {
        for row in &saved.rows {
            self.put(row)?;
            if let Row::Endpoint(interface, value) = row {
                self.flows.arrive(*interface, value);
            }
        }
        self.flows.restore(&saved.flows)
    }

    /// Removes every flow.
    pub(crate) fn forget_flows(&mut self) -> Result<(), GateError> {
        self.flows.forget()
    }

    /// Writes the settings, with the share of flows that is right for the endpoints that are here.
    pub(crate) fn set(&mut self, settings: &Settings) -> Result<(), GateError> {
        let old = self.current.map(|current| current.flow_share);
        let settings = Settings { flow_share: self.flows.share(), ..*settings };
        self.settings.set(0, Raw(settings), 0).map_err(|error| access(map_names::SETTINGS, error))?;
        self.current = Some(settings);
        match old {
            // What an earlier agent left is put in order.
            None => self.flows.prune()?,
            Some(old) if old > settings.flow_share => self.flows.shrink(),
            Some(_) => {}
        }
        Ok(())
    }

    /// Brings the share of flows up to date after endpoints came or went.
    fn share(&mut self) -> Result<(), GateError> {
        match self.current {
            Some(current) if current.flow_share != self.flows.share() => self.set(&current),
            _ => Ok(()),
        }
    }

    /// Rows of the flow table, counted: about 0.3 us a row.
    pub(crate) fn flow_rows(&self) -> u64 {
        self.flows.rows()
    }

    fn put(&mut self, row: &Row) -> Result<(), GateError> {
        let limits = self.limits;
        let (map, rows_max, result) = match *row {
            Row::Endpoint(interface, value) => {
                (map_names::ENDPOINTS, limits.endpoints, self.endpoints.insert(interface, Raw(value), 0))
            }
            Row::Address(key, value) => {
                (map_names::ADDRESSES, limits.addresses, self.addresses.insert(Raw(key), Raw(value), 0))
            }
            Row::Cidr(prefix, key, value) => {
                (map_names::CIDRS, limits.cidrs, self.cidrs.insert(&TrieKey::new(prefix, Raw(key)), Raw(value), 0))
            }
            Row::Policy(prefix, key, value) => {
                let key = TrieKey::new(prefix, Raw(key));
                (map_names::POLICY, limits.policy_rows, self.policy.insert(&key, Raw(value), 0))
            }
            Row::Resolver(address) => {
                let rows_max = namegate_abi::limits::RESOLVERS_MAX;
                (map_names::RESOLVERS, rows_max, self.resolvers.insert(Raw(address), 1, 0))
            }
        };
        result.map_err(|error| match os_error(&error) {
            Some(libc::E2BIG | libc::ENOSPC) => GateError::Full { map, rows_max, setting: setting_of(map) },
            _ => access(map, error),
        })
    }

    fn delete(&mut self, key: &Key) -> Result<(), GateError> {
        let (map, result) = match *key {
            Key::Endpoint(interface) => (map_names::ENDPOINTS, self.endpoints.remove(&interface)),
            Key::Address(key) => (map_names::ADDRESSES, self.addresses.remove(&Raw(key))),
            Key::Cidr(prefix, key) => (map_names::CIDRS, self.cidrs.remove(&TrieKey::new(prefix, Raw(key)))),
            Key::Policy(prefix, key) => (map_names::POLICY, self.policy.remove(&TrieKey::new(prefix, Raw(key)))),
            Key::Resolver(address) => (map_names::RESOLVERS, self.resolvers.remove(&Raw(address))),
        };
        match result {
            Err(error) if !is_absent(&error) => Err(access(map, error)),
            _ => Ok(()),
        }
    }
}

impl MapWriter for Tables {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        match op {
            MapOp::Put(row @ Row::Endpoint(interface, value)) => {
                self.put(row)?;
                self.flows.arrive(*interface, value);
                self.share()
            }
            MapOp::Put(row) => self.put(row),
            MapOp::Delete(key @ Key::Endpoint(interface)) => {
                self.delete(key)?;
                self.flows.leave(*interface)?;
                self.share()
            }
            MapOp::Delete(key) => self.delete(key),
        }
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        let mut rows = Vec::new();
        endpoint_rows(&self.endpoints, &mut rows)?;
        address_rows(&self.addresses, &mut rows)?;
        cidr_rows(&self.cidrs, &mut rows)?;
        policy_rows(&self.policy, &mut rows)?;
        resolver_rows(&self.resolvers, &mut rows)?;
        Ok(rows)
    }
}

/// What a map held that is about to be replaced by one of another size.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    pub(crate) rows: Vec<Row>,
    pub(crate) flows: Vec<(FlowKey, FlowValue)>,
}

impl Saved {
    /// Reads the pinned map `name`. Maps that refill by themselves give nothing.
    pub(crate) fn read(name: &'static str, path: &Path) -> Result<Self, GateError> {
        let data = MapData::from_pin(path).map_err(|error| access(name, error))?;
        let mut saved = Self::default();
        let rows = &mut saved.rows;
        match name {
            map_names::ENDPOINTS => endpoint_rows(&typed(name, Map::HashMap(data))?, rows)?,
            map_names::ADDRESSES => address_rows(&typed(name, Map::HashMap(data))?, rows)?,
            map_names::CIDRS => cidr_rows(&typed(name, Map::LpmTrie(data))?, rows)?,
            map_names::POLICY => policy_rows(&typed(name, Map::LpmTrie(data))?, rows)?,
            map_names::RESOLVERS => resolver_rows(&typed(name, Map::HashMap(data))?, rows)?,
            map_names::FLOWS => {
                let flows: Flows = typed(name, Map::HashMap(data))?;
                // A flow that goes while it is read is no loss: it gave way to another.
                saved.flows = flows.iter().filter_map(Result::ok).map(|(key, value)| (key.0, value.0)).collect();
            }
            _ => {}
        }
        Ok(saved)
    }
}

fn endpoint_rows(map: &Endpoints, rows: &mut Vec<Row>) -> Result<(), GateError> {
    collect(map_names::ENDPOINTS, map.iter(), rows, |key, value| Row::Endpoint(key, value.0))
}

fn address_rows(map: &Addresses, rows: &mut Vec<Row>) -> Result<(), GateError> {
    collect(map_names::ADDRESSES, map.iter(), rows, |key, value| Row::Address(key.0, value.0))
}

fn cidr_rows(map: &Cidrs, rows: &mut Vec<Row>) -> Result<(), GateError> {
    collect(map_names::CIDRS, map.iter(), rows, |key, value| Row::Cidr(key.prefix_len(), key.data().0, value.0))
}

fn policy_rows(map: &Policy, rows: &mut Vec<Row>) -> Result<(), GateError> {
    collect(map_names::POLICY, map.iter(), rows, |key, value| Row::Policy(key.prefix_len(), key.data().0, value.0))
}

fn resolver_rows(map: &Resolvers, rows: &mut Vec<Row>) -> Result<(), GateError> {
    collect(map_names::RESOLVERS, map.iter(), rows, |key, _| Row::Resolver(key.0))
}

/// Reads every row of one map.
fn collect<K, V>(
    map: &'static str,
    found: impl Iterator<Item = Result<(K, V), MapError>>,
    rows: &mut Vec<Row>,
    row: impl Fn(K, V) -> Row,
) -> Result<(), GateError> {
    for item in found {
        let (key, value) = item.map_err(|error| access(map, error))?;
        rows.push(row(key, value));
    }
    Ok(())
}
