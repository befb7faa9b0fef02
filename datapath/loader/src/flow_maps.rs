//! The maps of flows and of the slots that they hold.

use std::path::Path;

use aya::maps::{HashMap, MapData, MapError};
use namegate_abi::{FlowKey, FlowSlot, FlowValue, map_names};
use namegate_engine::GateError;

use crate::raw_maps::{Raw, access, is_absent, pinned};

pub(crate) type Flows = HashMap<MapData, Raw<FlowKey>, Raw<FlowValue>>;

/// The tables of flows and of their slots.
pub(crate) struct FlowMaps {
    pub(crate) flows: Flows,
    pub(crate) slots: HashMap<MapData, Raw<FlowSlot>, Raw<FlowKey>>,
    pub(crate) rows_max: u32,
}

impl FlowMaps {
    pub(crate) fn open(pins: &Path, rows_max: u32) -> Result<Self, GateError> {
        Ok(Self { flows: pinned(pins, map_names::FLOWS)?, slots: pinned(pins, map_names::FLOW_SLOTS)?, rows_max })
    }

    /// Empties a slot, and forgets its flow.
    pub(crate) fn free(&mut self, slot: Raw<FlowSlot>) -> Result<(), GateError> {
        let key: Raw<FlowKey> = match self.slots.get(&slot, 0) {
            Ok(key) => key,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(access(map_names::FLOW_SLOTS, error)),
        };
        removed(map_names::FLOW_SLOTS, self.slots.remove(&slot))?;
        removed(map_names::FLOWS, self.flows.remove(&key))
    }
}

/// The result of a removal; a row that is not there is no error.
pub(crate) fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), GateError> {
    match result {
        Err(error) if !is_absent(&error) => Err(access(map, error)),
        _ => Ok(()),
    }
}
