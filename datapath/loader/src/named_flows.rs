//! Flows with connections that were let pass by their names, as the programs know them.

use std::path::Path;

use aya::maps::{HashMap, MapData};
use namegate_abi::{FlowKey, NamedFlow, map_names};
use namegate_engine::GateError;

use crate::flow_maps::{Flows, removed};
use crate::raw_maps::{Raw, access, is_absent, pinned};

/// Writes the map of named flows, and sees which of them the programs remember.
pub struct NamedFlows {
    rows: HashMap<MapData, Raw<FlowKey>, Raw<NamedFlow>>,
    flows: Flows,
}

impl NamedFlows {
    pub(crate) fn open(pins: &Path) -> Result<Self, GateError> {
        Ok(Self { rows: pinned(pins, map_names::NAMED_FLOWS)?, flows: pinned(pins, map_names::FLOWS)? })
    }

    /// The row of a flow.
    pub fn get(&self, flow: &FlowKey) -> Result<Option<NamedFlow>, GateError> {
        match self.rows.get(&Raw(*flow), 0) {
            Ok(row) => Ok(Some(row.0)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(access(map_names::NAMED_FLOWS, error)),
        }
    }

    /// Writes the row of a flow.
    pub fn put(&mut self, flow: &FlowKey, row: &NamedFlow) -> Result<(), GateError> {
        self.rows.insert(Raw(*flow), Raw(*row), 0).map_err(|error| access(map_names::NAMED_FLOWS, error))
    }

    /// Removes the row of a flow; one that is not there is no error.
    pub fn remove(&mut self, flow: &FlowKey) -> Result<(), GateError> {
        removed(map_names::NAMED_FLOWS, self.rows.remove(&Raw(*flow)))
    }

    /// Every flow that has a row.
    pub fn keys(&self) -> Vec<FlowKey> {
        self.rows.keys().filter_map(Result::ok).map(|key| key.0).collect()
    }

    /// Whether the programs remember a flow at `now_ns`, in nanoseconds since the boot.
    pub fn is_remembered(&self, flow: &FlowKey, now_ns: u64) -> Result<bool, GateError> {
        match self.flows.get(&Raw(*flow), 0) {
            Ok(value) => Ok(value.0.is_alive(flow.protocol, now_ns)),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(access(map_names::FLOWS, error)),
        }
    }
}
