//! `cargo xtask bench policy`: how policies grow. Each point is a process of its own, so that its memory is its own.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::chart::{Chart, Line, Panel};
use super::figures::{self, count, machine, memory, number, time};
use crate::shell;

/// Sizes of a series; the other two sizes are [`REST`].
const SIZES: [u32; 4] = [10, 100, 1_000, 10_000];
const REST: u32 = 1_000;
const SERIES: [&str; 3] = ["policies", "endpoints", "identities"];
const CHART: &str = "docs/policy-scale.svg";
const PAGE: &str = "docs/benchmarks.md";
/// What writes the table of the page.
const WRITER: &str = "cargo xtask bench policy --write";

/// How to measure policies.
#[derive(Args)]
pub(crate) struct Policy {
    /// How often each point is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Write docs/policy-scale.svg and the table of docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// A figure of a point.
struct Figure {
    /// Where it stands in the object of a point (JSON pointer).
    at: &'static str,
    title: &'static str,
    show: fn(f64) -> String,
}

const FIGURES: [Figure; 9] = [
    Figure { at: "/identities_in_use", title: "in use", show: count },
    Figure { at: "/read_s", title: "read", show: time },
    Figure { at: "/compile_s", title: "compile", show: time },
    Figure { at: "/change_s", title: "one change", show: time },
    Figure { at: "/change_writes", title: "its writes", show: count },
    Figure { at: "/learn_s", title: "one answer", show: time },
    Figure { at: "/rows/ADDRESSES", title: "ADDRESSES", show: count },
    Figure { at: "/rows/POLICY", title: "POLICY", show: count },
    Figure { at: "/peak_octets", title: "memory", show: memory },
];

/// The points of the chart's panels: title, unit and what is drawn.
const PANELS: [(&str, &[(&str, &str)]); 2] = [
    ("seconds", &[("read", "/read_s"), ("compile", "/compile_s"), ("one change", "/change_s")]),
    ("rows, and MiB of memory", &[("rows", "/writes"), ("memory", "/peak_mebi")]),
];

impl Policy {
    pub(super) fn run(&self) -> Result<ExitCode> {
        shell::step("building the measurement (release); the first time takes minutes");
        shell::cargo(&["build", "--quiet", "--release", "--package", "namegate-engine", "--example", "scale"])?;
        let program = shell::target().join("release/examples/scale");
        // Before the measurement is a load itself.
        let machine = machine();
        let points = points();
        let mut measured: Vec<Vec<Value>> = vec![Vec::new(); points.len()];
        for round in 1..=self.rounds {
            shell::step(&format!("round {round} of {}", self.rounds));
            for (point, measured) in points.iter().zip(&mut measured) {
                measured.push(measure(&program, *point)?);
            }
        }
        let rows: Vec<Value> = measured.iter().map(|rounds| median_of(rounds)).collect();
        if self.output == "json" {
            let growth: Vec<Value> =
                SERIES.iter().enumerate().map(|(at, series)| growth_of(at, series, &rows)).collect();
            println!("{:#}", json!({"machine": machine, "rounds": self.rounds, "points": rows, "growth": growth}));
        } else {
            println!("{machine}, median of {} rounds\n\n{}", self.rounds, table(&rows));
        }
        if self.write {
            let root = shell::root();
            std::fs::write(root.join(CHART), chart(&rows).svg()?).with_context(|| format!("writing {CHART}"))?;
            let part = format!("{machine}, median of {} rounds.\n\n{}", self.rounds, table(&rows));
            figures::write_part(&root.join(PAGE), WRITER, &part)?;
            shell::step(&format!("wrote {CHART} and the table of {PAGE}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Every point once: one size varies, the others stay.
fn points() -> Vec<[u32; 3]> {
    let mut points = Vec::new();
    for at in 0..SERIES.len() {
        for size in SIZES {
            let mut point = [REST; 3];
            point[at] = size;
            if !points.contains(&point) {
                points.push(point);
            }
        }
    }
    points
}

fn measure(program: &Path, point: [u32; 3]) -> Result<Value> {
    let mut scale = Command::new(program);
    let output = scale.args(point.map(|size| size.to_string())).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("running {}", program.display()))?;
    ensure!(output.status.success(), "measuring {point:?} failed");
    serde_json::from_slice(&output.stdout).context("the measurement prints JSON")
}

/// One object with the median of each number.
pub(super) fn median_of(rounds: &[Value]) -> Value {
    if let Value::Object(first) = &rounds[0] {
        let field = |key: &String| median_of(&rounds.iter().map(|round| round[key].clone()).collect::<Vec<_>>());
        return Value::Object(first.keys().map(|key| (key.clone(), field(key))).collect());
    }
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|one, other| number(one).total_cmp(&number(other)));
    sorted[sorted.len() / 2].clone()
}

fn figure(row: &Value, at: &str) -> f64 {
    const MEBI: f64 = 1_048_576.0;
    match at {
        "/peak_mebi" => figure(row, "/peak_octets") / MEBI,
        _ => row.pointer(at).map_or(f64::NAN, number),
    }
}

/// The points of a series, smallest first.
fn series(at: usize, rows: &[Value]) -> Vec<&Value> {
    let is_in = |row: &&Value| (0..3).all(|other| other == at || row[SERIES[other]] == REST);
    let mut points: Vec<&Value> = rows.iter().filter(is_in).collect();
    points.sort_by_key(|row| row[SERIES[at]].as_u64());
    points
}

/// The power of the size that a figure grows with over the last step: 1 is linear.
fn exponent(points: &[&Value], at: &str, size: &str) -> Option<f64> {
    let [.., before, last] = points else { return None };
    let [small, large] = [before, last].map(|row| number(&row[size]).log10());
    let [low, high] = [before, last].map(|row| figure(row, at).log10());
    let exponent = (high - low) / (large - small);
    // Adding zero takes the sign off a rounded zero.
    exponent.is_finite().then_some((exponent * 10.0).round() / 10.0 + 0.0)
}

fn growth_of(at: usize, size: &str, rows: &[Value]) -> Value {
    let points = series(at, rows);
    let exponents = FIGURES.iter().map(|figure| (figure.at[1..].to_owned(), exponent(&points, figure.at, size).into()));
    json!({"of": size, "exponents": Value::Object(exponents.collect())})
}

/// Every series as rows of Markdown, with its growth below.
fn table(rows: &[Value]) -> String {
    let mut text = String::from("| policies | endpoints | identities |");
    for figure in &FIGURES {
        text.extend([" ", figure.title, " |"]);
    }
    text.push('\n');
    text.push_str(&"| ---: ".repeat(SERIES.len() + FIGURES.len()));
    text.push_str("|\n");
    for (at, size) in SERIES.iter().enumerate() {
        let points = series(at, rows);
        for row in &points {
            for (column, name) in SERIES.iter().enumerate() {
                let shown = count(number(&row[*name]));
                let cell = if column == at { format!("**{shown}**") } else { shown };
                text.extend(["| ", &cell, " "]);
            }
            for one in &FIGURES {
                text.extend(["| ", &(one.show)(figure(row, one.at)), " "]);
            }
            text.push_str("|\n");
        }
        let _ = write!(text, "| *growth with {size}* | | ");
        for one in &FIGURES {
            let shown = exponent(&points, one.at, size).map_or("-".to_owned(), |exponent| format!("*{exponent:.1}*"));
            text.extend(["| ", &shown, " "]);
        }
        text.push_str("|\n");
    }
    text
}

fn chart(rows: &[Value]) -> Chart {
    let panel = |(unit, lines): &(&'static str, &[(&'static str, &'static str)])| {
        SERIES
            .iter()
            .enumerate()
            .map(|(at, size)| Panel {
                x: size,
                y: unit,
                lines: lines.iter().map(|(name, pointer)| Line { name, points: drawn(at, rows, pointer) }).collect(),
            })
            .collect()
    };
    Chart { rows: PANELS.iter().map(panel).collect() }
}

fn drawn(at: usize, rows: &[Value], pointer: &str) -> Vec<(f64, f64)> {
    series(at, rows).iter().map(|row| (number(&row[SERIES[at]]), figure(row, pointer))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(policies: u32, seconds: f64) -> Value {
        json!({"policies": policies, "endpoints": REST, "identities": REST, "read_s": seconds, "rows": {"POLICY": 7}})
    }

    #[test]
    fn each_point_is_measured_once() {
        assert_eq!(points().len(), 10);
        assert!(points().contains(&[1_000, 1_000, 10_000]));
    }

    #[test]
    fn growth_is_the_power_of_the_last_step() {
        let rows = [row(100, 9.0), row(1_000, 0.5), row(10_000, 50.0)];
        let points = series(0, &rows);
        assert_eq!(points.len(), 3);
        assert!((exponent(&points, "/read_s", "policies").unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(exponent(&points, "/absent", "policies"), None);
        assert_eq!(series(1, &rows).len(), 1);
    }

    #[test]
    fn the_median_of_every_number_counts() {
        let rounds = [row(10, 3.0), row(10, 1.0), row(10, 2.0)];
        assert_eq!(median_of(&rounds), row(10, 2.0));
    }
}
