//! What the run prints: a line for each measurement on the way, then a table for each kind of work, or one JSON object.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::leg::Leg;
use super::load::{Counted, THREADS};
use super::settings::{self, BODY_OCTETS, CONNECTIONS, WORKERS};
use super::{Arguments, Work};
use crate::Output;
use crate::machine::Machine;
use crate::report::{BOLD, DIM, PLAIN, QUIET_PERCENT, RED, Spread, YELLOW, time};

/// Legs that the others are compared with.
const YARDSTICKS: [Leg; 3] = [Leg::Direct, Leg::Nginx, Leg::Envoy];

/// One measurement of a leg.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// With all connections.
    pub(crate) busy: Counted,
    /// With one connection: nothing waits.
    pub(crate) alone: Counted,
    /// Most memory of its processes after the load with all connections.
    pub(crate) memory_octets: Option<u64>,
}

struct Row {
    work: Work,
    leg: Leg,
    rounds: Vec<Measured>,
    trouble: Option<String>,
}

/// Collects the measurements and shows them.
pub(crate) struct Report {
    json: bool,
    seconds: u64,
    rounds: u32,
    works: Vec<Work>,
    failed: bool,
    machine: Value,
    legs: Vec<(Leg, Option<String>)>,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self {
            json: arguments.output == Output::Json,
            seconds: arguments.seconds,
            rounds: arguments.rounds,
            works: arguments.works.clone(),
            failed: false,
            machine: Value::Null,
            legs: Vec::new(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn leg(&mut self, leg: Leg, version: Option<String>) {
        self.legs.push((leg, version));
        self.rows.extend(self.works.iter().map(|work| Row { work: *work, leg, rounds: Vec::new(), trouble: None }));
    }

    pub(crate) fn skipped(&mut self, leg: Leg, why: &str) {
        for row in self.rows.iter_mut().filter(|row| row.leg == leg) {
            row.trouble = Some(format!("skipped: {why}"));
        }
    }

    pub(crate) fn failed(&mut self, round: u32, work: Work, leg: Leg, why: &str) {
        self.failed = true;
        self.line(&format!("  round {round}  {:<8}{:<10}{RED}failed{PLAIN}: {why}", work.name(), leg.name()));
        if let Some(row) = self.rows.iter_mut().find(|row| (row.work, row.leg) == (work, leg)) {
            row.trouble = Some(format!("failed in round {round}: {why}"));
        }
    }

    /// Says what will be measured.
    pub(crate) fn begin(&mut self, machine: &Machine) {
        self.machine = json!({
            "cores": machine.cores, "kernel": machine.kernel, "busy-percent-before": machine.busy_percent,
        });
        self.line(&format!(
            "{BOLD}Requests{PLAIN}  {} paths, {} server names, {BODY_OCTETS} octets a response; {} round(s) of 2 x {} s",
            settings::path_rules().len(),
            settings::name_rules().len(),
            self.rounds,
            self.seconds
        ));
        self.line(&format!("{DIM}wrk: {CONNECTIONS} connections, {THREADS} threads; then one connection{PLAIN}"));
        let busy = if machine.busy_percent > QUIET_PERCENT { YELLOW } else { DIM };
        self.line(&format!(
            "{DIM}{} cores, Linux {};{PLAIN} {busy}{} % of the machine used by others before the run{PLAIN}",
            machine.cores, machine.kernel, machine.busy_percent
        ));
        for (leg, version) in &self.legs {
            let version = version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
            let trouble = self.rows.iter().find(|row| row.leg == *leg).and_then(|row| row.trouble.as_deref());
            let trouble = trouble.map(|why| format!(" {YELLOW}{why}{PLAIN}")).unwrap_or_default();
            let name = format!("{}{version}", leg.name());
            self.line(&format!("  {name:<18}{DIM}{}{PLAIN}{trouble}", leg.setting()));
        }
        self.line("");
    }

    pub(crate) fn measured(&mut self, round: u32, work: Work, leg: Leg, measured: Measured) {
        let Measured { busy, alone, memory_octets } = measured;
        self.line(&format!(
            "{DIM}  round {round}  {:<8}{:<10}{:>9.0} requests/s, {} failed, p50 {} p99 {}; one connection: p50 {} p99 {}; {}{PLAIN}",
            work.name(),
            leg.name(),
            busy.rate(),
            busy.failed + alone.failed,
            time(busy.p50_us),
            time(busy.p99_us),
            time(alone.p50_us),
            time(alone.p99_us),
            memory(memory_octets),
        ));
        if let Some(row) = self.rows.iter_mut().find(|row| (row.work, row.leg) == (work, leg)) {
            row.rounds.push(measured);
        }
    }

    /// The tables, or the object. Fails if a leg failed; a leg that was skipped is no failure.
    pub(crate) fn finish(self) -> ExitCode {
        if self.json {
            println!("{:#}", self.object());
        } else {
            for work in &self.works {
                self.table(*work);
            }
            self.line(&format!(
                "{DIM}all figures: medians of the rounds; (rounds): least and most; failed: sum; +p50, +p99: what one \
                 connection waits longer than directly; memory: most of its processes{PLAIN}"
            ));
        }
        if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn table(&self, work: Work) {
        self.line(&format!("\n{BOLD}{}{PLAIN}: {}", work.name(), work.title()));
        self.line(&format!(
            "{BOLD}{:<10}{:>10}  {:<15}{:>7}{:>10}{:>10}{:>11}{:>11}{:>10}  {}{PLAIN}",
            "leg",
            "requests/s",
            "(rounds)",
            "failed",
            "p50",
            "p99",
            "+p50",
            "+p99",
            "memory",
            YARDSTICKS.map(|leg| format!("{:>8}", format!("/{}", leg.name()))).join(" "),
        ));
        for row in self.rows.iter().filter(|row| row.work == work) {
            let Some(spread) = row.rate() else {
                let why = row.trouble.as_deref().and_then(|why| why.lines().next()).unwrap_or("not measured");
                self.line(&format!("{:<10}{YELLOW}{why}{PLAIN}", row.leg.name()));
                continue;
            };
            let ratios = YARDSTICKS.map(|other| match self.ratio(row, other) {
                Some(ratio) => format!("{ratio:>8.2}"),
                None => format!("{:>8}", "-"),
            });
            let added = [|counted: &Counted| counted.p50_us, |counted: &Counted| counted.p99_us]
                .map(|part| self.added(row, part).map_or("-".to_owned(), added));
            self.line(&format!(
                "{:<10}{:>10.0}  {DIM}{:<15}{PLAIN}{:>7}{:>10}{:>10}{:>11}{:>11}{:>10}  {}",
                row.leg.name(),
                spread.median,
                format!("{:.0}-{:.0}", spread.least, spread.most),
                row.failures(),
                time(row.median(|round| round.busy.p50_us)),
                time(row.median(|round| round.busy.p99_us)),
                added[0],
                added[1],
                memory(row.memory()),
                ratios.join(" "),
            ));
        }
    }

    fn object(&self) -> Value {
        let work = |work: &Work| {
            let rows = self.rows.iter().filter(|row| row.work == *work).map(|row| self.row_object(row));
            json!({"work": work.name(), "is": work.title(), "legs": rows.collect::<Vec<_>>()})
        };
        json!({
            "machine": self.machine, "seconds": self.seconds, "rounds": self.rounds,
            "load": {"connections": CONNECTIONS, "threads": THREADS}, "body-octets": BODY_OCTETS, "workers": WORKERS,
            "works": self.works.iter().map(work).collect::<Vec<_>>(),
        })
    }

    fn row_object(&self, row: &Row) -> Value {
        let rounds = row
            .rounds
            .iter()
            .map(|round| json!({"busy": round.busy, "alone": round.alone, "memory-octets": round.memory_octets}));
        let rate =
            row.rate().map(|spread| json!({"median": spread.median, "least": spread.least, "most": spread.most}));
        let median = |part: fn(&Measured) -> f64| rate.is_some().then(|| row.median(part));
        let version = self.legs.iter().find(|(leg, _)| *leg == row.leg).and_then(|(_, version)| version.clone());
        let ratios: serde_json::Map<_, _> =
            YARDSTICKS.iter().map(|other| (other.name().to_lowercase(), json!(self.ratio(row, *other)))).collect();
        json!({
            "leg": row.leg.name(), "version": version, "setting": row.leg.setting(), "trouble": row.trouble,
            "requests-per-second": rate, "failed": row.failures(),
            "p50-us": median(|round| round.busy.p50_us), "p99-us": median(|round| round.busy.p99_us),
            "alone-p50-us": median(|round| round.alone.p50_us), "alone-p99-us": median(|round| round.alone.p99_us),
            "added-p50-us": self.added(row, |counted| counted.p50_us),
            "added-p99-us": self.added(row, |counted| counted.p99_us),
            "memory-octets": row.memory(), "ratio": ratios, "rounds": rounds.collect::<Vec<_>>(),
        })
    }

    fn other(&self, row: &Row, leg: Leg) -> Option<&Row> {
        self.rows.iter().find(|other| (other.work, other.leg) == (row.work, leg))
    }

    fn ratio(&self, row: &Row, other: Leg) -> Option<f64> {
        Some(row.rate()?.median / self.other(row, other)?.rate()?.median)
    }

    /// What one connection waits longer than directly, microseconds.
    fn added(&self, row: &Row, part: fn(&Counted) -> f64) -> Option<f64> {
        let direct =
            self.other(row, Leg::Direct).filter(|direct| !direct.rounds.is_empty() && row.leg != Leg::Direct)?;
        let added = row.median(|round| part(&round.alone)) - direct.median(|round| part(&round.alone));
        added.is_finite().then_some(added)
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
        Spread::of(self.rounds.iter().map(|round| round.busy.rate()).collect())
    }

    fn median(&self, part: impl Fn(&Measured) -> f64) -> f64 {
        Spread::of(self.rounds.iter().map(part).collect()).map_or(f64::NAN, |it| it.median)
    }

    fn failures(&self) -> u64 {
        self.rounds.iter().map(|round| round.busy.failed + round.alone.failed).sum()
    }

    /// The most of all rounds.
    fn memory(&self) -> Option<u64> {
        self.rounds.iter().filter_map(|round| round.memory_octets).max()
    }
}

/// A difference, with its sign.
fn added(microseconds: f64) -> String {
    format!("{}{}", if microseconds < 0.0 { '-' } else { '+' }, time(microseconds.abs()))
}

fn memory(octets: Option<u64>) -> String {
    octets.map_or("-".to_owned(), |octets| format!("{} MiB", octets.div_ceil(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(requests: u64, p50_us: f64) -> Measured {
        let busy = Counted { requests, duration_us: 1e6, p50_us: 9.0, p99_us: 9.0, failed: 1 };
        Measured { busy, alone: Counted { p50_us, failed: 0, ..busy }, memory_octets: Some(requests) }
    }

    #[test]
    fn legs_are_compared_within_their_work() {
        let row = |work, leg, rounds| Row { work, leg, rounds, trouble: None };
        let report = Report {
            json: false,
            seconds: 1,
            rounds: 2,
            works: vec![Work::Http, Work::Tls],
            failed: false,
            machine: Value::Null,
            legs: Vec::new(),
            rows: vec![
                row(Work::Tls, Leg::Direct, vec![measured(7, 1.0)]),
                row(Work::Http, Leg::Direct, vec![measured(400, 50.0)]),
                row(Work::Http, Leg::Namegate, vec![measured(100, 80.0), measured(300, 90.0)]),
            ],
        };
        let namegate = &report.rows[2];
        assert_eq!(report.ratio(namegate, Leg::Direct), Some(0.5));
        assert_eq!(report.ratio(namegate, Leg::Envoy), None);
        assert_eq!(report.added(namegate, |counted| counted.p50_us), Some(35.0));
        assert_eq!(report.added(&report.rows[1], |counted| counted.p50_us), None);
        assert_eq!((namegate.failures(), namegate.memory()), (2, Some(300)));
    }

    #[test]
    fn differences_have_a_sign() {
        assert_eq!([added(35.2), added(-4.0)], ["+35 us", "-4 us"]);
        assert_eq!([memory(Some(1)), memory(None)], ["1 MiB", "-"]);
    }
}
