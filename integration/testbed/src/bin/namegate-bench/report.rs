//! What the run prints: a line for each measurement on the way, then one table, or one JSON object.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::WORKERS;
use crate::leg::{Leg, Written};
use crate::load::{CLIENTS, Counted, OUTSTANDING, THREADS, TIMEOUT_S};
use crate::machine::Machine;
use crate::names::{NAMES, TTL_S};
use crate::probe::{Latency, RATE};
use crate::{Dns, Output};

pub(crate) const BOLD: &str = "\x1b[1m";
pub(crate) const DIM: &str = "\x1b[2m";
pub(crate) const RED: &str = "\x1b[31m";
pub(crate) const YELLOW: &str = "\x1b[33m";
pub(crate) const PLAIN: &str = "\x1b[0m";
/// From here on others disturb the run.
pub(crate) const QUIET_PERCENT: u64 = 10;
/// Legs that the others are compared with.
const YARDSTICKS: [Leg; 3] = [Leg::Coredns, Leg::Dnsdist, Leg::Direct];

/// One measurement of a leg.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// What dnsperf counted.
    pub(crate) counted: Counted,
    /// What the probe saw.
    pub(crate) latency: Latency,
    /// What is in the kernel afterwards, for legs that write to it.
    pub(crate) written: Option<Written>,
}

struct Row {
    leg: Leg,
    version: Option<String>,
    rounds: Vec<Measured>,
    trouble: Option<String>,
}

/// Collects the measurements and shows them.
pub(crate) struct Report {
    json: bool,
    seconds: u64,
    rounds: u32,
    failed: bool,
    machine: Value,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(arguments: &Dns) -> Self {
        let json = arguments.output == Output::Json;
        Self {
            json,
            seconds: arguments.seconds,
            rounds: arguments.rounds,
            failed: false,
            machine: Value::Null,
            rows: Vec::new(),
        }
    }

    pub(crate) fn leg(&mut self, leg: Leg, version: Option<String>) {
        self.rows.push(Row { leg, version, rounds: Vec::new(), trouble: None });
    }

    pub(crate) fn skipped(&mut self, leg: Leg, why: &str) {
        self.trouble(leg, format!("skipped: {why}"));
    }

    pub(crate) fn failed(&mut self, round: u32, leg: Leg, why: &str) {
        self.failed = true;
        self.line(&format!("  round {round}  {:<10}{RED}failed{PLAIN}: {why}", leg.name()));
        self.trouble(leg, format!("failed in round {round}: {why}"));
    }

    /// Says what will be measured.
    pub(crate) fn begin(&mut self, machine: &Machine) {
        self.machine = json!({
            "cores": machine.cores, "kernel": machine.kernel, "busy-percent-before": machine.busy_percent,
        });
        self.line(&format!(
            "{BOLD}DNS{PLAIN}  {NAMES} names with one address each, TTL {TTL_S} s; {} round(s) of {} s a leg",
            self.rounds, self.seconds
        ));
        self.line(&format!(
            "{DIM}dnsperf: {CLIENTS} sockets, {THREADS} threads, {OUTSTANDING} questions on the way; probe: {RATE} questions/s{PLAIN}"
        ));
        let busy = if machine.busy_percent > QUIET_PERCENT { YELLOW } else { DIM };
        self.line(&format!(
            "{DIM}{} cores, Linux {};{PLAIN} {busy}{} % of the machine used by others before the run{PLAIN}",
            machine.cores, machine.kernel, machine.busy_percent
        ));
        for row in &self.rows {
            let version = row.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
            let trouble = row.trouble.as_deref().map(|why| format!(" {YELLOW}{why}{PLAIN}")).unwrap_or_default();
            let name = format!("{}{version}", row.leg.name());
            self.line(&format!("  {name:<18}{DIM}{}{PLAIN}{trouble}", row.leg.setting()));
        }
        self.line("");
    }

    pub(crate) fn measured(&mut self, round: u32, leg: Leg, measured: Measured) {
        let Measured { counted, latency, written } = measured;
        let written = written.map(|it| format!(", {} addresses in the kernel", it.addresses)).unwrap_or_default();
        self.line(&format!(
            "{DIM}  round {round}  {:<10}{:>9.0} queries/s, {} lost, {} refused, p50 {} p99 {} ({} lost){written}{PLAIN}",
            leg.name(),
            counted.queries_per_second,
            counted.lost,
            counted.refused,
            time(latency.p50_us),
            time(latency.p99_us),
            latency.failed,
        ));
        if let Some(row) = self.rows.iter_mut().find(|row| row.leg == leg) {
            row.rounds.push(measured);
        }
    }

    /// The table, or the object. Fails if a leg failed; a leg that was skipped is no failure.
    pub(crate) fn finish(self) -> ExitCode {
        if self.json {
            println!("{:#}", self.object());
        } else {
            self.table();
        }
        if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn table(&self) {
        self.line(&format!(
            "\n{BOLD}{:<10}{:>10}  {:<17}{:>7}{:>9}{:>10}{:>10}   {}{PLAIN}",
            "leg",
            "queries/s",
            "(rounds)",
            "lost",
            "refused",
            "p50",
            "p99",
            YARDSTICKS.map(|leg| format!("{:>8}", format!("/{}", leg.name()))).join(" "),
        ));
        for row in &self.rows {
            let Some(spread) = row.rate() else {
                let why = row.trouble.as_deref().and_then(|why| why.lines().next()).unwrap_or("not measured");
                self.line(&format!("{:<10}{YELLOW}{why}{PLAIN}", row.leg.name()));
                continue;
            };
            let ratios = YARDSTICKS.map(|other| match self.ratio(row, other) {
                Some(ratio) => format!("{ratio:>8.2}"),
                None => format!("{:>8}", "-"),
            });
            self.line(&format!(
                "{:<10}{:>10.0}  {DIM}{:<17}{PLAIN}{:>7}{:>9}{:>10}{:>10}   {}",
                row.leg.name(),
                spread.median,
                format!("{:.0}-{:.0}", spread.least, spread.most),
                row.sum(|counted| counted.lost),
                row.sum(|counted| counted.refused),
                time(row.latency(|latency| latency.p50_us)),
                time(row.latency(|latency| latency.p99_us)),
                ratios.join(" "),
            ));
        }
        self.line(&format!(
            "{DIM}queries/s, p50, p99: medians of the rounds; (rounds): least and most; lost, refused: sums{PLAIN}"
        ));
    }

    fn object(&self) -> Value {
        let legs: Vec<_> = self.rows.iter().map(|row| self.row_object(row)).collect();
        json!({
            "machine": self.machine,
            "names": NAMES, "ttl-s": TTL_S, "seconds": self.seconds, "rounds": self.rounds,
            "load": {"sockets": CLIENTS, "threads": THREADS, "outstanding": OUTSTANDING, "timeout-s": TIMEOUT_S},
            "probe": {"queries-per-second": RATE}, "workers": WORKERS,
            "legs": legs,
        })
    }

    fn row_object(&self, row: &Row) -> Value {
        let rounds = row
            .rounds
            .iter()
            .map(|round| json!({"load": round.counted, "probe": round.latency, "written": round.written}));
        let rate =
            row.rate().map(|spread| json!({"median": spread.median, "least": spread.least, "most": spread.most}));
        let measured = rate.is_some();
        let ratios: serde_json::Map<_, _> =
            YARDSTICKS.iter().map(|other| (other.name().to_lowercase(), json!(self.ratio(row, *other)))).collect();
        json!({
            "leg": row.leg.name(), "version": row.version, "setting": row.leg.setting(), "trouble": row.trouble,
            "queries-per-second": rate, "lost": row.sum(|counted| counted.lost),
            "refused": row.sum(|counted| counted.refused),
            "p50-us": measured.then(|| row.latency(|latency| latency.p50_us)),
            "p99-us": measured.then(|| row.latency(|latency| latency.p99_us)),
            "ratio": ratios, "rounds": rounds.collect::<Vec<_>>(),
        })
    }

    fn ratio(&self, row: &Row, other: Leg) -> Option<f64> {
        let other = self.rows.iter().find(|row| row.leg == other)?;
        Some(row.rate()?.median / other.rate()?.median)
    }

    fn trouble(&mut self, leg: Leg, why: String) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.leg == leg) {
            row.trouble = Some(why);
        }
    }

    fn line(&self, text: &str) {
        if self.json {
            anstream::eprintln!("{text}");
        } else {
            anstream::println!("{text}");
        }
    }
}

impl Row {
    fn rate(&self) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(|round| round.counted.queries_per_second).collect())
    }

    fn latency(&self, part: impl Fn(&Latency) -> f64) -> f64 {
        Spread::of(self.rounds.iter().map(|round| part(&round.latency)).collect()).map_or(f64::NAN, |it| it.median)
    }

    fn sum(&self, part: impl Fn(&Counted) -> u64) -> u64 {
        self.rounds.iter().map(|round| part(&round.counted)).sum()
    }
}

/// The middle of some values, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { least, median, most })
    }
}

pub(crate) fn time(microseconds: f64) -> String {
    if microseconds < 1_000.0 { format!("{microseconds:.0} us") } else { format!("{:.2} ms", microseconds / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        let of = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(of(&[3.0, 1.0, 9.0]), Some(Spread { least: 1.0, median: 3.0, most: 9.0 }));
        assert_eq!(of(&[4.0, 2.0]), Some(Spread { least: 2.0, median: 3.0, most: 4.0 }));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn times_are_told_in_a_unit_that_fits() {
        assert_eq!([time(12.4), time(999.0), time(1_234.0)], ["12 us", "999 us", "1.23 ms"]);
    }
}
