//! The datapath as one thing: opened, attached to interfaces, written to, asked.

use std::path::PathBuf;

use aya::maps::RingBuf;
use aya::programs::SchedClassifier;
use namegate_abi::{Counter, Direction, FlowLosses, NODE_INTERFACE, RateValue, Reason, Settings, map_names};
use namegate_engine::{GateError, MapOp, MapWriter, Row};

use crate::bpf::Hook;
use crate::inspect::Inspector;
use crate::meters::Meters;
use crate::named_flows::NamedFlows;
use crate::pins::{LinkPins, MapPins, Replaced};
use crate::programs::Programs;
use crate::raw_maps::pinned;
use crate::spec::{self, MapLimits};
use crate::tables::Tables;
use crate::{Events, LoadError, Openings, attach, bpffs, node};

/// The first kernel with tcx, the youngest of what the programs of interfaces use.
const TCX_SINCE: (u32, u32) = (6, 6);

/// A program, and where it is attached on the host-side interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) direction: Direction,
    /// What an endpoint sends comes in on the node's side.
    pub(crate) hook: Hook,
}

pub(crate) const PROGRAMS: [Program; 2] = [
    Program { name: "from_endpoint", direction: Direction::Egress, hook: Hook::Ingress },
    Program { name: "to_endpoint", direction: Direction::Ingress, hook: Hook::Egress },
];

/// What the datapath is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder on a BPF file system for maps and links, which outlive the process.
    pub pins: PathBuf,
    /// Sizes of the maps.
    pub limits: MapLimits,
    /// What the programs are told.
    pub settings: Settings,
}

/// The directions of an endpoint's traffic that are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Directions {
    /// What it sends and what it receives.
    #[default]
    Both,
    /// What it sends. Its own flows' replies are then not seen: TCP flows count as opening all their life.
    Egress,
    /// What it receives.
    Ingress,
}

impl Directions {
    /// Whether this direction is judged.
    pub const fn include(self, direction: Direction) -> bool {
        matches!(
            (self, direction),
            (Self::Both, _) | (Self::Egress, Direction::Egress) | (Self::Ingress, Direction::Ingress)
        )
    }
}

/// Maps, programs and links. Maps and links stay when it is dropped.
pub struct Datapath {
    /// As [`PROGRAMS`].
    programs: [SchedClassifier; 2],
    tables: Tables,
    meters: Meters,
    pins: PathBuf,
    events: Option<Events>,
    openings: Option<Openings>,
    pub(crate) links: LinkPins,
    pub(crate) maps: MapPins,
    /// Numbers of [`PROGRAMS`] in the kernel.
    pub(crate) numbers: [u32; 2],
    /// Whether the node's own sockets can be guarded.
    pub(crate) node: Result<node::Ready, LoadError>,
}

impl Datapath {
    /// Loads the programs over the maps pinned in `options.pins`, making those that are missing, and puts them in the
    /// place of the programs of an earlier run at once, interface by interface and without a gap. Programs that are
    /// pinned there and the same are not loaded again.
    ///
    /// A pinned map whose size changed is replaced with its rows. One whose layout changed is an error, and the earlier
    /// programs go on enforcing.
    pub fn open(options: &Options) -> Result<Self, LoadError> {
        bpffs::check_kernel("tcx", TCX_SINCE)?;
        let links = LinkPins::below(&options.pins);
        bpffs::make_folder(links.folder())?;
        let specs = spec::maps(&options.limits);
        let replaced = Replaced::find(&options.pins, &specs)?;
        let opened = Self::load(options, &specs, links).and_then(|mut datapath| {
            replaced.saved.iter().try_for_each(|saved| datapath.tables.restore(saved))?;
            datapath.set(&options.settings)?;
            datapath.adopt()?;
            Ok(datapath)
        });
        match &opened {
            Ok(_) => replaced.finish(),
            Err(_) => replaced.put_back(),
        }
        opened
    }

    fn load(options: &Options, specs: &[spec::MapSpec], links: LinkPins) -> Result<Self, LoadError> {
        let namespace = node::namespace().map_err(|source| LoadError::File {
            action: "asking for the network namespace of",
            path: "/proc/self/ns/net".into(),
            source,
        })?;
        let mut kept = Programs::new(&options.pins, specs, namespace)?;
        let [from, to] = PROGRAMS;
        let programs = [kept.classifier(from.name)?, kept.classifier(to.name)?];
        let node = node::load(&mut kept);
        kept.forget_others();
        let tables = Tables::open(&options.pins, options.limits)?;
        let ring: RingBuf<_> = pinned(&options.pins, map_names::EVENTS)?;
        let openings: RingBuf<_> = pinned(&options.pins, map_names::OPENINGS)?;
        let maps = MapPins::open(&options.pins, specs)?;
        let numbers = [attach::number(&programs[0], from.name)?, attach::number(&programs[1], to.name)?];
        Ok(Self {
            programs,
            tables,
            meters: Meters::open(&options.pins)?,
            pins: options.pins.clone(),
            events: Some(Events::new(ring)),
            openings: Some(Openings::new(openings)),
            links,
            maps,
            numbers,
            node,
        })
    }

    /// Puts the loaded programs into every pinned link; forgets links whose interface is gone.
    fn adopt(&mut self) -> Result<(), LoadError> {
        for (interface, name) in self.links.all()? {
            if interface == NODE_INTERFACE {
                if !self.adopt_node(&name)? {
                    self.links.remove(interface, &name)?;
                }
                continue;
            }
            match PROGRAMS.into_iter().find(|program| program.name == name) {
                Some(program) if self.replace(interface, &program)? => {}
                _ => self.links.remove(interface, &name)?,
            }
        }
        Ok(())
    }

    /// The interfaces with programs, in the order of their index. Links that cannot be listed are an error.
    pub fn attached(&self) -> Result<Vec<u32>, LoadError> {
        let mut interfaces: Vec<u32> = self.links.all()?.into_iter().map(|(interface, _)| interface).collect();
        interfaces.retain(|interface| *interface != NODE_INTERFACE);
        interfaces.sort_unstable();
        interfaces.dedup();
        Ok(interfaces)
    }

    /// Looks from another thread whether everything is still attached and pinned.
    pub fn inspector(&self) -> Inspector {
        Inspector::new(self)
    }

    /// Reads from another thread what the programs count.
    pub fn meters(&self) -> Result<Meters, GateError> {
        Meters::open(&self.pins)
    }

    /// Writes which flows go on by their names, from another thread.
    pub fn named_flows(&self) -> Result<NamedFlows, GateError> {
        NamedFlows::open(&self.pins)
    }

    /// Pins maps again whose pins another tool removed or replaced; says which.
    pub fn pin_maps_again(&mut self) -> Result<Vec<&'static str>, LoadError> {
        self.maps.pin_again()
    }

    /// One of [`PROGRAMS`].
    pub(crate) fn program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        let at = PROGRAMS.iter().position(|program| program.name == name).ok_or(LoadError::Missing(name))?;
        Ok(&mut self.programs[at])
    }

    /// Writes the settings that the programs read.
    pub fn set(&mut self, settings: &Settings) -> Result<(), GateError> {
        self.tables.set(settings)
    }

    /// Packets and octets by direction and reason, since the maps were made; those without packets left out.
    pub fn counters(&self) -> Result<Vec<(Direction, Reason, Counter)>, GateError> {
        self.meters.counters()
    }

    /// Records that found the ring full, since the maps were made.
    pub fn events_lost(&self) -> Result<u64, GateError> {
        self.meters.events_lost()
    }

    /// What each endpoint had of the rings lately, and how much was kept from it since its row was made.
    pub fn rates(&self) -> Vec<(u32, RateValue)> {
        self.meters.rates()
    }

    /// Flows remembered. Counted row by row, about 0.3 us each: for a metric, not for every packet.
    pub fn flow_rows(&self) -> u64 {
        self.tables.flow_rows()
    }

    /// What its share of flows cost each endpoint, since it is here.
    pub fn flow_losses(&self) -> Result<Vec<(u32, FlowLosses)>, GateError> {
        self.meters.flow_losses()
    }

    /// Forgets every flow: packets that follow are judged anew.
    pub fn forget_flows(&mut self) -> Result<(), GateError> {
        self.tables.forget_flows()
    }

    /// The stream of records, once.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// The stream of what connections begin with, once.
    pub fn take_openings(&mut self) -> Option<Openings> {
        self.openings.take()
    }
}

impl MapWriter for Datapath {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        self.tables.write(op)
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        self.tables.rows()
    }
}

/// The name of the program that judges a direction.
pub(crate) fn program_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => PROGRAMS[0].name,
        Direction::Ingress => PROGRAMS[1].name,
    }
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Datapath").field("links", &self.links).finish_non_exhaustive()
    }
}

/// The engine's thread owns it.
const _: fn() = || {
    const fn is_send<T: Send>() {}
    is_send::<Datapath>();
    is_send::<Events>();
};
