//! Writes to the kernel's maps: rows, the order of writes, and what can go wrong.

use namegate_abi::{Address, AddressKey, AddressValue, CidrKey, CidrValue, EndpointValue, PolicyKey, PolicyValue};

/// One row of one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    /// `ENDPOINTS`.
    Endpoint(u32, EndpointValue),
    /// `ADDRESSES`.
    Address(AddressKey, AddressValue),
    /// `CIDRS`, with the prefix length (0 to 128).
    Cidr(u32, CidrKey, CidrValue),
    /// `POLICY`, with the prefix length (0 to 96).
    Policy(u32, PolicyKey, PolicyValue),
    /// `RESOLVERS`.
    Resolver(Address),
}

/// Names one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `ENDPOINTS`: interface index.
    Endpoint(u32),
    /// `ADDRESSES`.
    Address(AddressKey),
    /// `CIDRS`, with the prefix length.
    Cidr(u32, CidrKey),
    /// `POLICY`, with the prefix length.
    Policy(u32, PolicyKey),
    /// `RESOLVERS`.
    Resolver(Address),
}

impl Row {
    /// The key of the row.
    pub const fn key(&self) -> Key {
        match *self {
            Self::Endpoint(interface, _) => Key::Endpoint(interface),
            Self::Address(key, _) => Key::Address(key),
            Self::Cidr(prefix, key, _) => Key::Cidr(prefix, key),
            Self::Policy(prefix, key, _) => Key::Policy(prefix, key),
            Self::Resolver(address) => Key::Resolver(address),
        }
    }
}

/// One write. A list of writes is applied in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapOp {
    /// Writes the row, over one with the same key.
    Put(Row),
    /// Removes the row; no such row is no error.
    Delete(Key),
}

/// Writes rows to maps: those of the kernel, or a `BTreeMap` in tests.
pub trait MapWriter {
    /// Carries out one write.
    fn write(&mut self, op: &MapOp) -> Result<(), GateError>;

    /// Every row that the maps hold, in any order.
    fn rows(&self) -> Result<Vec<Row>, GateError>;
}

/// Why a row was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The map has no room. The rows in it stay.
    #[error("map `{map}` is full at {rows_max} rows; raise `{setting}` or narrow the policy")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its size.
        rows_max: u32,
        /// The setting that makes it larger.
        setting: &'static str,
    },
    /// The kernel refused.
    #[error("accessing map `{map}`")]
    Access {
        /// Name of the map.
        map: &'static str,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
}
