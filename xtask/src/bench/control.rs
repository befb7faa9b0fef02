//! `cargo xtask bench control`: runs `namegate-bench control` and puts the goals beside its figures.

use std::fmt::Write as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use super::chart::{Chart, Line, Panel};
use super::figures::{self, count, machine, memory, number, time};
use crate::shell;

const PAGE: &str = "docs/benchmarks.md";
const CHART: &str = "docs/control-scale.svg";
const WRITER: &str = "cargo xtask bench control --write";
/// Rows that differ by the number of policies.
const SIZES: [u32; 5] = [100, 1_000, 5_000, 10_000, 12_000];
/// The others, with what they are about.
const OTHERS: [(&str, &str); 5] = [
    ("addresses", "260 names of 1,000 addresses beside an honest pod"),
    ("patterns", "2,000 patterns, 10,000 learned names"),
    ("restart", "restart, 100 endpoints with 10,000 names each"),
    ("start", "start, 10,000 policies, 100,000 identities"),
    ("idle", "no policies"),
];
/// Names of `--rows`.
const ROWS: [&str; 10] = [
    "policies-100",
    "policies-1000",
    "policies-5000",
    "policies-10000",
    "policies-12000",
    "addresses",
    "patterns",
    "restart",
    "start",
    "idle",
];

/// How to measure the control plane.
#[derive(Args)]
pub(crate) struct Control {
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_values = ROWS, value_parser = ROWS)]
    rows: Vec<String>,
    /// Length of each load, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=600))]
    seconds: u64,
    /// Write docs/control-scale.svg and the part of docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Control {
    pub(super) fn run(&self) -> Result<ExitCode> {
        shell::need_root("network namespaces and eBPF", "cargo xtask bench control")?;
        shell::install_missing(&shell::TOOLS)?;
        shell::step("building the measurement (release); the first time takes minutes");
        shell::cargo(&["build", "--release", "--bins", "--package", "namegate-testbed", "--package", "namegate"])?;
        // Before the measurement is a load itself.
        let machine = machine();
        let folder = shell::target().join("release");
        let mut bench = Command::new(folder.join("namegate-bench"));
        bench.args(["control", "--rows", &self.rows.join(","), "--seconds", &self.seconds.to_string()]);
        bench.env("NAMEGATE_BIN", folder.join("namegate")).stderr(Stdio::inherit());
        let output = bench.output().context("running namegate-bench")?;
        let measured: Value = serde_json::from_slice(&output.stdout).context("the measurement prints JSON")?;
        let report = format!("{machine}, {} s a load.\n\n{}", self.seconds, report(&measured["rows"]));
        if self.output == "json" {
            println!("{measured:#}");
        } else {
            println!("{report}");
        }
        if self.write {
            write(&measured["rows"], &report)?;
            shell::step(&format!("wrote the part of {PAGE}"));
        }
        Ok(ExitCode::from(output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }
}

/// Writes the part of the page, with the chart where every size was measured.
fn write(rows: &Value, report: &str) -> Result<()> {
    let root = shell::root();
    let Some(chart) = chart(rows) else { return figures::write_part(&root.join(PAGE), WRITER, report) };
    std::fs::write(root.join(CHART), chart.svg()?).with_context(|| format!("writing {CHART}"))?;
    let part = format!(
        "{report}\n![Time until a change is enforced, and p99 of DNS beside changes, for 100 to 12,000 policies, on \
         logarithmic axes](control-scale.svg)\n\nThe dashed line is linear growth.\n"
    );
    figures::write_part(&root.join(PAGE), WRITER, &part)
}

/// Both tables, as Markdown.
fn report(rows: &Value) -> String {
    [goals_table(rows), table(rows)].join("\n")
}

/// What must hold, what was measured, and whether it does; `None` where it was not measured.
struct Goal {
    what: String,
    bound: String,
    measured: String,
    is_met: Option<bool>,
}

impl Goal {
    fn below(what: &str, bound: f64, measured: f64, show: fn(f64) -> String) -> Self {
        let is_known = measured.is_finite();
        Self {
            what: what.to_owned(),
            bound: format!("< {}", show(bound)),
            measured: if is_known { show(measured) } else { String::new() },
            is_met: is_known.then_some(measured < bound),
        }
    }

    fn none(what: &str, measured: f64) -> Self {
        Self { bound: "0".to_owned(), ..Self::below(what, 0.5, measured, count) }
    }
}

fn goals(rows: &Value) -> Vec<Goal> {
    let at = |pointer: &str| rows.pointer(pointer).map_or(f64::NAN, number);
    let micro = |pointer: &str| at(pointer) / 1e6;
    let ratio = at("/policies-12000/changing/p99-us") / at("/policies-12000/quiet/p99-us");
    let mut goals = vec![
        Goal::below("p99 of DNS with changes by p99 without, 12,000 policies", 1.5, ratio, factor),
        Goal::none("SERVFAIL, all sizes", sum(rows, "/changing/servfail")),
        Goal::below("a change enforced, p50, 10,000 policies", 0.010, micro("/policies-10000/enforced/p50_us"), time),
        Goal::below("its growth from 100 to 10,000 policies (exponent)", 0.3, growth(rows), factor),
        Goal::below("memory, 12,000 policies", 300e6, at("/policies-12000/agent/memory_bytes"), memory),
        Goal::below("memory, no policies", 30e6, at("/idle/agent/memory_bytes"), memory),
        Goal::below("start, 10,000 policies and 100,000 identities", 3.0, at("/start/start_s"), time),
        Goal::below("GET /v1/status, the slowest row", 0.020, slowest_status(rows), time),
    ];
    for (row, what) in &OTHERS[..2] {
        let p99 = micro(&format!("/{row}/changing/p99-us"));
        goals.push(Goal::below(&format!("p99 of DNS: {what}"), 0.020, p99, time));
        goals.push(Goal::none(&format!("SERVFAIL: {what}"), at(&format!("/{row}/changing/servfail"))));
    }
    goals.push(Goal::below("DNS answers again after a restart", 2.0, at("/restart/answers_s"), time));
    goals
}

fn sum(rows: &Value, pointer: &str) -> f64 {
    let found = SIZES.iter().filter_map(|size| rows[format!("policies-{size}")].pointer(pointer)).map(number);
    found.reduce(|one, other| one + other).unwrap_or(f64::NAN)
}

fn slowest_status(rows: &Value) -> f64 {
    let found = rows.as_object().into_iter().flat_map(|rows| rows.values());
    found.filter_map(|row| row.pointer("/agent/status_s")).map(number).fold(f64::NAN, f64::max)
}

/// The power of the number of policies that the time of a change grows with.
fn growth(rows: &Value) -> f64 {
    let [small, large] = [100, 10_000]
        .map(|size: u32| rows[format!("policies-{size}")].pointer("/enforced/p50_us").map_or(f64::NAN, number).log10());
    (large - small) / 2.0
}

fn goals_table(rows: &Value) -> String {
    let mut text = String::from("| goal | bound | measured | met |\n| --- | ---: | ---: | --- |\n");
    for Goal { what, bound, measured, is_met } in goals(rows) {
        let met = match is_met {
            None => "not measured",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        let _ = writeln!(text, "| {what} | {bound} | {measured} | {met} |");
    }
    text
}

fn table(rows: &Value) -> String {
    const TITLES: [&str; 13] = [
        "row",
        "start",
        "p50",
        "p99",
        "max",
        "p50, changes",
        "p99, changes",
        "max, changes",
        "SERVFAIL",
        "enforced p50",
        "enforced p99",
        "memory (peak)",
        "journal",
    ];
    let mut text = format!("| {} |\n| --- {}|\n", TITLES.join(" | "), "| ---: ".repeat(TITLES.len() - 1));
    let sizes = SIZES.iter().map(|size| (format!("policies-{size}"), format!("{} policies", count((*size).into()))));
    let others = OTHERS.iter().map(|(row, what)| ((*row).to_owned(), (*what).to_owned()));
    for (row, what) in sizes.chain(others) {
        let Some(measured) = rows.get(&row) else { continue };
        let _ = writeln!(text, "| {what} | {} |", cells(measured).join(" | "));
    }
    text
}

fn cells(row: &Value) -> Vec<String> {
    if let Some(trouble) = row["trouble"].as_str() {
        return vec![trouble.replace(['\n', '|'], " ")];
    }
    let cell =
        |pointer: &str, show: &dyn Fn(f64) -> String| row.pointer(pointer).map(number).map_or(String::new(), show);
    let micro = |value: f64| time(value / 1e6);
    let start = row.get("answers_s").or(row.get("start_s")).map(number).map_or(String::new(), time);
    let mut cells = vec![start];
    for load in ["quiet", "changing"] {
        cells.extend(["p50-us", "p99-us", "max-us"].map(|figure| cell(&format!("/{load}/{figure}"), &micro)));
    }
    cells.push(cell("/changing/servfail", &count));
    cells.extend(["p50_us", "p99_us"].map(|figure| cell(&format!("/enforced/{figure}"), &micro)));
    let [now, peak] = ["memory", "peak"].map(|which| cell(&format!("/agent/{which}_bytes"), &memory));
    cells.push(format!("{now} ({peak})"));
    cells.push(cell("/agent/journal_bytes", &memory));
    cells
}

/// How a change and the answers beside it grow; `None` where a size was not measured.
fn chart(rows: &Value) -> Option<Chart> {
    let line = |name, pointer: &str| {
        let point = |size: &u32| {
            let micro = rows[format!("policies-{size}")].pointer(pointer).map(number)?;
            Some((f64::from(*size), micro / 1e6))
        };
        SIZES.iter().map(point).collect::<Option<Vec<_>>>().map(|points| Line { name, points })
    };
    let lines =
        vec![line("a change enforced, p50", "/enforced/p50_us")?, line("DNS beside changes, p99", "/changing/p99-us")?];
    Some(Chart { rows: vec![vec![Panel { x: "policies", y: "seconds", lines }]] })
}

fn factor(value: f64) -> String {
    format!("{value:.2}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn goals_are_met_missed_or_not_measured() {
        let rows = json!({
            "policies-100": {"enforced": {"p50_us": 2_000}, "changing": {"servfail": 0}, "agent": {"status_s": 0.001}},
            "policies-10000": {"enforced": {"p50_us": 20_000}, "changing": {"servfail": 3}, "agent": {"status_s": 0.03}},
        });
        let goals = goals(&rows);
        let met = |what: &str| goals.iter().find(|goal| goal.what.starts_with(what)).unwrap().is_met;
        for (what, want) in [
            ("p99 of DNS with changes", None),
            ("SERVFAIL, all sizes", Some(false)),
            ("a change enforced", Some(false)),
            ("its growth", Some(false)),
            ("GET /v1/status", Some(false)),
            ("memory, no policies", None),
        ] {
            assert_eq!(met(what), want, "{what}");
        }
        assert!((growth(&rows) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_row_that_failed_says_why() {
        let text = table(&json!({"idle": {"trouble": "no | agent\nat all"}}));
        assert!(text.ends_with("| no policies | no   agent at all |\n"), "{text}");
    }

    #[test]
    fn the_chart_needs_every_size() {
        let row = |micro: u32| json!({"enforced": {"p50_us": micro}, "changing": {"p99-us": 2 * micro}});
        let mut rows: Value = SIZES.iter().map(|size| (format!("policies-{size}"), row(*size))).collect();
        let drawn = chart(&rows).unwrap();
        let [enforced, dns] = &*drawn.rows[0][0].lines else { panic!("two lines") };
        assert_eq!(enforced.points.first(), Some(&(100.0, 0.000_1)));
        assert_eq!(dns.points.last(), Some(&(12_000.0, 0.024)));
        rows["policies-5000"] = json!({"trouble": "no agent"});
        assert!(chart(&rows).is_none());
    }
}
