//! What the programs count, read by threads that must not wait for the writer of the maps.

use std::path::Path;

use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuHashMap};
use namegate_abi::{Counter, Direction, FlowLosses, RateValue, Reason, counter_slot, map_names};
use namegate_engine::GateError;

use crate::raw_maps::{Raw, access, is_absent, pinned};

type Counters = PerCpuArray<MapData, Raw<Counter>>;
type Rates = HashMap<MapData, u32, Raw<RateValue>>;
type Losses = PerCpuHashMap<MapData, u32, Raw<FlowLosses>>;

/// Reads the maps of counters.
pub struct Meters {
    counters: Counters,
    rates: Rates,
    losses: Losses,
}

impl Meters {
    pub(crate) fn open(pins: &Path) -> Result<Self, GateError> {
        Ok(Self {
            counters: pinned(pins, map_names::COUNTERS)?,
            rates: pinned(pins, map_names::RATES)?,
            losses: pinned(pins, map_names::FLOW_LOSSES)?,
        })
    }

    /// Packets and octets by direction and reason, since the maps were made; those without packets left out.
    pub fn counters(&self) -> Result<Vec<(Direction, Reason, Counter)>, GateError> {
        let mut found = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for &reason in Reason::ALL {
                let counter = self.counter(counter_slot::of(direction, reason))?;
                if counter.packets != 0 {
                    found.push((direction, reason, counter));
                }
            }
        }
        Ok(found)
    }

    /// Records that found the ring full, since the maps were made.
    pub fn events_lost(&self) -> Result<u64, GateError> {
        Ok(self.counter(counter_slot::EVENTS_LOST)?.packets)
    }

    /// Copies of what connections begin with that were lost, since the maps were made.
    pub fn openings_lost(&self) -> Result<u64, GateError> {
        Ok(self.counter(counter_slot::OPENINGS_LOST)?.packets)
    }

    /// What each endpoint had of the rings lately, and how much was kept from it since its row was made. A row that goes
    /// while it is read is left out.
    pub fn rates(&self) -> Vec<(u32, RateValue)> {
        self.rates.iter().filter_map(Result::ok).map(|(endpoint, rate)| (endpoint, rate.0)).collect()
    }

    /// What its share of flows cost each endpoint, since it is here.
    pub fn flow_losses(&self) -> Result<Vec<(u32, FlowLosses)>, GateError> {
        let mut all = Vec::new();
        for endpoint in self.losses.keys() {
            let endpoint = endpoint.map_err(|error| access(map_names::FLOW_LOSSES, error))?;
            let of_cpus = match self.losses.get(&endpoint, 0) {
                Ok(of_cpus) => of_cpus,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(access(map_names::FLOW_LOSSES, error)),
            };
            let add = |sum: FlowLosses, cpu: &Raw<FlowLosses>| FlowLosses {
                evicted: sum.evicted + cpu.0.evicted,
                refused: sum.refused + cpu.0.refused,
            };
            all.push((endpoint, of_cpus.iter().fold(FlowLosses::default(), add)));
        }
        Ok(all)
    }

    /// The sum over all CPUs of one slot.
    fn counter(&self, slot: u32) -> Result<Counter, GateError> {
        let values = self.counters.get(&slot, 0).map_err(|error| access(map_names::COUNTERS, error))?;
        let add = |sum: Counter, cpu: &Raw<Counter>| Counter {
            packets: sum.packets + cpu.0.packets,
            octets: sum.octets + cpu.0.octets,
        };
        Ok(values.iter().fold(Counter::default(), add))
    }
}
