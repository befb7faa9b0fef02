//! `cargo xtask bench datapath`: iperf3, nftables, iptables and ipset from Debian, then `namegate-bench datapath` and the
//! cost of single packets.

use std::fmt::Write as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::figures::{count, machine, number, write_part};
use super::policy::median_of;
use crate::shell::{self, Tool};

/// Legs besides the bare one.
const PEERS: [&str; 4] = ["nftables", "ipset", "namegate", "stopped"];
/// Sets of rules, and for the cost of single packets their policy rows and addresses.
const SIZES: [(&str, [&str; 2]); 3] = [("few", ["10", "0"]), ("many", ["10000", "0"]), ("addresses", ["10", "100000"])];
/// Kinds of load, and the unit of their rates.
const WORKS: [(&str, &str); 3] =
    [("throughput", "Gbit/s"), ("connections", "connections/s"), ("requests", "requests/s")];
/// Costs of single packets: the field of the result and the title of its column.
const COSTS: [(&str, &str); 8] = [
    ("established", "established"),
    ("reply", "reply"),
    ("first", "first"),
    ("first_of_full_share", "first, share full"),
    ("first_again", "first, flow known"),
    ("answer", "its answer"),
    ("denied", "denied"),
    ("fragment", "fragment"),
];
const TOOLS: [Tool; 4] = [
    Tool { program: "iperf3", package: "iperf3" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "iptables", package: "iptables" },
    Tool { program: "ipset", package: "ipset" },
];
/// The program that runs the kernel's programs over single packets.
const PACKET_COST: &str = "packet_cost";
const PAGE: &str = "docs/benchmarks.md";
/// What writes the tables of the page.
const WRITER: &str = "cargo xtask bench datapath --write";

/// How to measure the path of packets.
#[derive(Args)]
pub(crate) struct Datapath {
    /// Length of each load, seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often everything is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Legs besides the bare one.
    #[arg(long, value_delimiter = ',', default_values = PEERS, value_parser = PEERS)]
    peers: Vec<String>,
    /// Sets of rules.
    #[arg(long, value_delimiter = ',', default_values = SIZES.map(|(size, _)| size), value_parser = SIZES.map(|(size, _)| size))]
    sizes: Vec<String>,
    /// Write the tables of docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl Datapath {
    pub(super) fn run(&self) -> Result<ExitCode> {
        shell::need_root("network namespaces and eBPF", "cargo xtask bench datapath")?;
        shell::install_missing(&shell::TOOLS)?;
        shell::install_missing(&TOOLS)?;
        shell::step("building the measurement (release); the first time takes minutes");
        shell::cargo(&["build", "--release", "--bins", "--package", "namegate-testbed", "--package", "namegate"])?;
        shell::cargo(&["build", "--release", "--package", "namegate-loader", "--example", PACKET_COST])?;
        // Before the measurement is a load itself.
        let machine = machine();
        shell::step("single packets");
        let packets = self.packets()?;
        shell::step("loads through a pair of virtual interfaces");
        let (loads, is_complete) = self.loads()?;
        let page = format!(
            "{machine}, median of {} rounds of {} s.\n\n{}\n{}",
            self.rounds,
            self.seconds,
            load_table(&loads),
            packet_table(&packets)
        );
        if self.output == "json" {
            println!("{:#}", json!({"machine": machine, "packets": packets, "loads": loads}));
        } else {
            println!("{page}");
        }
        if self.write {
            write_part(&shell::root().join(PAGE), WRITER, &page)?;
            shell::step(&format!("wrote the tables of {PAGE}"));
        }
        Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The cost of single packets for each set of rules, nanoseconds.
    fn packets(&self) -> Result<Vec<Value>> {
        let program = shell::target().join("release/examples").join(PACKET_COST);
        let wanted = SIZES.iter().filter(|(size, _)| self.sizes.iter().any(|given| given == size));
        let measure = |(size, arguments): &(&str, [&str; 2])| {
            let run = |_| {
                let output = Command::new(&program).args(arguments).stderr(Stdio::inherit()).output();
                let output = output.with_context(|| format!("running {}", program.display()))?;
                ensure!(output.status.success(), "measuring single packets with {size} rules failed");
                serde_json::from_slice(&output.stdout).context("the measurement prints JSON")
            };
            let rounds: Vec<Value> = (0..self.rounds).map(run).collect::<Result<_>>()?;
            let mut median = median_of(&rounds);
            median["rules"] = json!(size);
            Ok(median)
        };
        wanted.map(measure).collect()
    }

    /// What `namegate-bench datapath` measures, and whether no leg failed.
    fn loads(&self) -> Result<(Value, bool)> {
        let folder = shell::target().join("release");
        let mut bench = Command::new(folder.join("namegate-bench"));
        bench.args(["datapath", "--seconds", &self.seconds.to_string(), "--rounds", &self.rounds.to_string()]);
        bench.args(["--peers", &self.peers.join(","), "--sizes", &self.sizes.join(",")]);
        bench.env("NAMEGATE_BIN", folder.join("namegate")).stderr(Stdio::inherit());
        let output = bench.output().context("running `namegate-bench`")?;
        let loads = serde_json::from_slice(&output.stdout).context("`namegate-bench datapath` prints JSON")?;
        Ok((loads, output.status.success()))
    }
}

/// The rows of one leg under one set of rules are one row here: each rate, and its ratio to the bare one.
fn load_table(loads: &Value) -> String {
    let rows: Vec<&Value> = loads["rows"].as_array().into_iter().flatten().collect();
    let mut pairs: Vec<(&Value, &Value)> = Vec::new();
    for row in &rows {
        if !pairs.contains(&(&row["leg"], &row["rules"])) {
            pairs.push((&row["leg"], &row["rules"]));
        }
    }
    let rate = |leg: &Value, rules: Option<&Value>, work: &str| {
        let is_it = |row: &&&Value| {
            row["leg"] == *leg && row["work"] == work && rules.is_none_or(|rules| row["rules"] == *rules)
        };
        median(rows.iter().find(is_it).copied()?)
    };
    let mut text = String::from("| leg | rules |");
    for (_, unit) in WORKS {
        let _ = write!(text, " {unit} | /bare |"); // Writing to a string does not fail.
    }
    text.push_str("\n| --- | --- |");
    text.push_str(&" ---: | ---: |".repeat(WORKS.len()));
    text.push('\n');
    for (leg, rules) in pairs {
        let shown_rules = if *leg == "bare" { "none" } else { rules.as_str().unwrap_or_default() };
        let _ = write!(text, "| {} | {shown_rules} |", leg.as_str().unwrap_or_default());
        for (work, unit) in WORKS {
            let rate_here = rate(leg, Some(rules), work);
            let bare = rate(&json!("bare"), None, work);
            let ratio = rate_here.zip(bare).map_or("-".to_owned(), |(rate, bare)| format!("{:.2}", rate / bare));
            let _ = write!(text, " {} | {ratio} |", rate_here.map_or("-".to_owned(), |rate| shown(rate, unit)));
        }
        text.push('\n');
    }
    text
}

/// The middle of the rounds.
fn median(row: &Value) -> Option<f64> {
    let rates = row["rates"].as_array().filter(|rates| !rates.is_empty())?;
    Some(number(&median_of(rates)))
}

fn shown(rate: f64, unit: &str) -> String {
    if unit == "Gbit/s" { format!("{:.1}", rate / 1e9) } else { count(rate) }
}

fn packet_table(packets: &[Value]) -> String {
    let mut text = String::from("| rules |");
    for (_, title) in COSTS {
        let _ = write!(text, " {title} |"); // Writing to a string does not fail.
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: |".repeat(COSTS.len()));
    text.push('\n');
    for packet in packets {
        let _ = write!(text, "| {} |", packet["rules"].as_str().unwrap_or_default());
        for (cost, _) in COSTS {
            let _ = write!(text, " {:.0} ns |", number(&packet[cost]));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leg_is_one_row_with_its_ratios() {
        let row = |leg, rules, work, rates: &[f64]| json!({"leg": leg, "rules": rules, "work": work, "rates": rates});
        let loads = json!({"rows": [
            row("bare", "few", "throughput", &[2e10]), row("bare", "few", "connections", &[50_000.0]),
            row("bare", "few", "requests", &[9.0]), row("namegate", "many", "throughput", &[1e10, 3e10, 1.9e10]),
            row("namegate", "many", "connections", &[45_000.0]), row("namegate", "many", "requests", &[]),
        ]});
        let table = load_table(&loads);
        assert!(table.contains("\n| bare | none | 20.0 | 1.00 | 50,000 | 1.00 | 9 | 1.00 |\n"), "{table}");
        assert!(table.contains("\n| namegate | many | 19.0 | 0.95 | 45,000 | 0.90 | - | - |\n"), "{table}");
    }

    #[test]
    fn costs_are_whole_nanoseconds() {
        let table = packet_table(&[json!({"rules": "few", "established": 81.4, "first": 299.6})]);
        assert!(table.contains("| few | 81 ns | NaN ns | 300 ns |"), "{table}");
    }
}
