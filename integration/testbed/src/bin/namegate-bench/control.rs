//! The run of `control`: what a change of policies costs, and what DNS notices of it.
//!
//! Each row has a world and an agent of its own, and gives one JSON object. `cargo xtask bench control` puts the goals
//! beside the figures.

mod change;
mod figures;
mod greedy;
mod ground;
mod learning;
mod policies;
mod rows;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::machine::Machine;

/// How long the machine is watched before anything is measured.
const QUIET_LOOK: Duration = Duration::from_secs(1);

/// How to measure.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Row::value_variants().to_vec())]
    rows: Vec<Row>,
    /// Length of each load, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=600))]
    seconds: u64,
}

/// One situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// 100 policies, one of which changes each second.
    #[value(name = "policies-100")]
    Policies100,
    /// The same with 1,000.
    #[value(name = "policies-1000")]
    Policies1000,
    /// The same with 5,000.
    #[value(name = "policies-5000")]
    Policies5000,
    /// The same with 10,000.
    #[value(name = "policies-10000")]
    Policies10000,
    /// The same with 12,000.
    #[value(name = "policies-12000")]
    Policies12000,
    /// One pod asks for 260 names that share 1,000 addresses, beside an honest one.
    Addresses,
    /// 2,000 patterns and 10,000 learned names, one selector a second changes.
    Patterns,
    /// The agent starts again with 100 endpoints that learned 10,000 names each.
    Restart,
    /// The first start with 10,000 policies and 100,000 identities.
    Start,
    /// An agent without policies.
    Idle,
}

impl Row {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn measure(self, load: Duration) -> Result<Value> {
        match self {
            Self::Policies100 => rows::policies(100, load),
            Self::Policies1000 => rows::policies(1_000, load),
            Self::Policies5000 => rows::policies(5_000, load),
            Self::Policies10000 => rows::policies(10_000, load),
            Self::Policies12000 => rows::policies(12_000, load),
            Self::Addresses => rows::addresses(load),
            Self::Patterns => rows::patterns(load),
            Self::Restart => rows::restart(),
            Self::Start => rows::start(),
            Self::Idle => rows::idle(),
        }
    }
}

/// Measures each row and prints one JSON object. A row that fails says so, and the others go on.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let machine = Machine::look(QUIET_LOOK)?;
    let load = Duration::from_secs(arguments.seconds);
    let mut rows = Map::new();
    let mut is_whole = true;
    for row in &arguments.rows {
        anstream::eprintln!("\x1b[1m{}\x1b[0m", row.name());
        let measured = row.measure(load).unwrap_or_else(|error| {
            is_whole = false;
            json!({"trouble": format!("{error:#}")})
        });
        anstream::eprintln!("  {measured}");
        rows.insert(row.name(), measured);
    }
    let machine = json!({"cores": machine.cores, "kernel": machine.kernel, "busy_percent": machine.busy_percent});
    println!("{:#}", json!({"machine": machine, "seconds": arguments.seconds, "rows": rows}));
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
