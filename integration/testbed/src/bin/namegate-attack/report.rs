//! What the run prints: a progress line while it runs, a table at its end, or one JSON object.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";
/// Width of the first column.
const COLUMN: usize = 44;

/// One thing that must be so.
struct Row {
    what: String,
    expected: String,
    seen: String,
    /// `None` is only reported.
    good: Option<bool>,
}

/// Collects rows.
pub(crate) struct Report {
    json: bool,
    live: bool,
    started: Instant,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        let live = std::io::stderr().is_terminal();
        Self { json, live, started: Instant::now(), rows: Vec::new(), notes: Vec::new() }
    }

    /// One line on standard error; on a terminal the next takes its place.
    pub(crate) fn progress(&self, text: &str) {
        let passed = self.started.elapsed().as_secs();
        if self.live {
            anstream::eprint!("\r\x1b[2K{DIM}{passed:>4} s{PLAIN}  {text}");
            let _ = std::io::stderr().flush(); // Only cosmetics.
        } else if passed.is_multiple_of(10) {
            anstream::eprintln!("{passed:>4} s  {text}");
        }
    }

    /// Something that must be so.
    pub(crate) fn row(&mut self, what: &str, expected: &str, seen: &str, good: bool) {
        self.push(what, expected, seen, Some(good));
    }

    /// Something that is measured, without a bound.
    pub(crate) fn value(&mut self, what: &str, seen: &str) {
        self.push(what, "", seen, None);
    }

    /// A detail below the table.
    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    fn push(&mut self, what: &str, expected: &str, seen: &str, good: Option<bool>) {
        self.rows.push(Row { what: what.to_owned(), expected: expected.to_owned(), seen: seen.to_owned(), good });
    }

    /// Prints everything, and gives the exit status.
    pub(crate) fn finish(&self) -> ExitCode {
        if self.live {
            anstream::eprint!("\r\x1b[2K");
        }
        let failed = self.rows.iter().filter(|row| row.good == Some(false)).count();
        let took = self.started.elapsed().as_secs_f64();
        if self.json {
            let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
            let whole = json!({"rows": rows, "notes": self.notes, "failed": failed, "seconds": took});
            anstream::println!("{whole:#}");
        } else {
            self.rows.iter().for_each(Row::print);
            for note in &self.notes {
                anstream::println!("  {DIM}{note}{PLAIN}");
            }
            let judged = self.rows.iter().filter(|row| row.good.is_some()).count();
            let colour = if failed == 0 { GREEN } else { RED };
            let good = judged - failed;
            anstream::println!(
                "\n{colour}{BOLD}{judged} rows: {good} as expected, {failed} not{PLAIN} {DIM}({took:.0} s){PLAIN}"
            );
        }
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl Row {
    fn json(&self) -> Value {
        json!({"what": self.what, "expected": self.expected, "seen": self.seen, "good": self.good})
    }

    fn print(&self) {
        let (mark, colour) = match self.good {
            Some(true) => ("✓", GREEN),
            Some(false) => ("✗", RED),
            None => ("·", DIM),
        };
        let expected = if self.expected.is_empty() { String::new() } else { format!(" (expected {})", self.expected) };
        anstream::println!("{colour}{mark}{PLAIN} {:<COLUMN$} {}{DIM}{expected}{PLAIN}", self.what, self.seen);
    }
}
