//! The kernel's maps under the loaded programs: each frame is run through them in a network namespace made for it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use namegate_abi::{AddressKey, AddressValue, Direction, NODE_INTERFACE, Reason, Verdict};
use namegate_engine::{GateError, Key, MapOp, MapWriter, Row};
use namegate_loader::{Datapath, Events, MapLimits, Options, trial};
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};

use crate::{
    judge::{Decided, FIRST_INTERFACE, Fixture, Table},
    requests::Requests,
};

/// Where the maps of trials are pinned: a folder for each process.
const PINS: &str = "/sys/fs/bpf";
/// Its name, with the number of the process.
const FOLDER: &str = "namegate-trial-";
/// Sizes of the maps.
const LIMITS: MapLimits = MapLimits {
    addresses: 8_192,
    policy_rows: 65_536,
    cidrs: 4_096,
    flows: 65_536,
    flows_per_endpoint: 8_192,
    endpoints: 1_024,
};
/// Rows with a TTL are written anew where the machine's clock has gone on for longer than this.
const DRIFT_NS: u64 = 50_000_000;

/// Trials in the kernel.
pub struct Kernel {
    pins: Pins,
    tables: usize,
    requests: Requests,
    /// Interfaces are there below this index, from the first one asked for.
    interfaces: Option<(u32, u32)>,
}

/// A folder of pins, removed with all in it.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Kernel {
    /// Moves the calling thread into a network namespace of its own: trials are to be run on it.
    pub fn new() -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("making a network namespace for `--datapath kernel`; it needs root (CAP_SYS_ADMIN)")?;
        trial::loopback_up().context("switching the loopback interface on")?;
        remove_left_over();
        let pins = Pins(Path::new(PINS).join(format!("{FOLDER}{}", std::process::id())));
        Ok(Self { pins, tables: 0, requests: Requests::start()?, interfaces: None })
    }
}

/// Removes pins of trials that were killed.
fn remove_left_over() {
    for entry in fs::read_dir(PINS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(FOLDER)).and_then(|id| id.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
            drop(Pins(entry.path()));
        }
    }
}

impl Fixture for Kernel {
    fn table(&mut self) -> anyhow::Result<Box<dyn Table>> {
        let pins = self.pins.0.join(self.tables.to_string());
        self.tables += 1;
        let options = Options { pins, limits: LIMITS, settings: namegate_abi::Settings::default() };
        let mut datapath = Datapath::open(&options).context("opening a datapath for trials")?;
        let events = datapath.take_events().context("the datapath tells of nothing")?;
        Ok(Box::new(Maps { datapath, events, ending: BTreeMap::new(), now_ns: 0, written_ns: 0 }))
    }

    fn interface(&mut self, index: u32) -> anyhow::Result<()> {
        let (first, mut end) = self.interfaces.unwrap_or((index, index));
        anyhow::ensure!(index >= first, "interface {index} is below the first one");
        while end <= index {
            trial::add_pair(end).with_context(|| format!("adding interface {end}"))?;
            end += 2;
        }
        self.interfaces = Some((first, end));
        Ok(())
    }

    fn requests(&self) -> Option<&Requests> {
        Some(&self.requests)
    }
}

/// One set of maps with its programs.
///
/// The clock of a trial is not the machine's: ends of TTLs are written as far from the machine's time as they are from
/// the trial's.
struct Maps {
    datapath: Datapath,
    events: Events,
    /// Rows with a TTL, in the trial's time.
    ending: BTreeMap<AddressKey, AddressValue>,
    /// The trial's time.
    now_ns: u64,
    /// The machine's time when the rows with a TTL were written.
    written_ns: u64,
}

impl Maps {
    fn write_anew(&mut self) -> anyhow::Result<()> {
        self.written_ns = boot_ns()?;
        for (key, value) in &self.ending {
            let row = Row::Address(*key, moved(*value, self.now_ns, self.written_ns));
            self.datapath.write(&MapOp::Put(row))?;
        }
        Ok(())
    }
}

impl MapWriter for Maps {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        let op = match *op {
            MapOp::Put(Row::Address(key, value)) if value.steps.iter().any(|step| step.expires_ns != 0) => {
                self.ending.insert(key, value);
                MapOp::Put(Row::Address(key, moved(value, self.now_ns, self.written_ns)))
            }
            MapOp::Put(Row::Address(key, _)) | MapOp::Delete(Key::Address(key)) => {
                self.ending.remove(&key);
                *op
            }
            op => op,
        };
        self.datapath.write(&op)
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        self.datapath.rows()
    }
}

impl Table for Maps {
    fn set_clock(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let drift_ns = boot_ns()?.saturating_sub(self.written_ns);
        if now_ns != self.now_ns || drift_ns > DRIFT_NS {
            self.now_ns = now_ns;
            self.write_anew()?;
        }
        Ok(())
    }

    fn judge(&mut self, interface: u32, direction: Direction, frame: &[u8]) -> anyhow::Result<Decided> {
        while self.events.next().is_some() {}
        let passes = match interface {
            NODE_INTERFACE => self.datapath.try_node_packet(direction, FIRST_INTERFACE, frame)?,
            interface => self.datapath.try_packet(direction, interface, frame)?,
        };
        let record = self.events.next().context("the programs told of no verdict: the flow was known, or nobody's")?;
        anyhow::ensure!(
            passes == (Verdict::from_octet(record.verdict) != Verdict::Denied),
            "what the program did is not what it told of"
        );
        let reason = Reason::from_octet(record.reason).context("the programs gave a reason that is not known")?;
        // The port of a trial's proxies is nobody's: a flow that a rule hands over is told of as one without its proxy.
        let handed_over = reason == Reason::ProxyAbsent || Verdict::from_octet(record.verdict) == Verdict::Redirected;
        Ok(Decided { passes: passes || handed_over, handed_over, reason, rule: record.rule })
    }

    fn judges_node(&self) -> bool {
        self.datapath.node_refusal().is_none()
    }

    fn forget_flows(&mut self) -> anyhow::Result<()> {
        Ok(self.datapath.forget_flows()?)
    }
}

/// The row with its ends as far from `to_ns` as they were from `from_ns`. One in the past stays there; 0 is never.
fn moved(mut value: AddressValue, from_ns: u64, to_ns: u64) -> AddressValue {
    for step in value.steps.iter_mut().filter(|step| step.expires_ns != 0) {
        let end = i128::from(step.expires_ns) - i128::from(from_ns) + i128::from(to_ns);
        step.expires_ns = u64::try_from(end.max(1)).unwrap_or(u64::MAX);
    }
    value
}

/// `CLOCK_BOOTTIME`, nanoseconds: what the programs read.
fn boot_ns() -> anyhow::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(u64::try_from(std::time::Duration::from(now).as_nanos())?)
}
