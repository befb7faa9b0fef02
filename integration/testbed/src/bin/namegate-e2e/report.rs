//! What the run prints: a row for each thing seen, and a last line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Counts rows and shows them.
pub(crate) struct Report {
    started: Instant,
    /// When the last row was there.
    last: Instant,
    rows: usize,
    failed: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, rows: 0, failed: 0 }
    }

    pub(crate) fn chapter(title: &str) {
        anstream::println!("\n{BOLD}{title}{PLAIN}");
    }

    /// A part of the run is over.
    pub(crate) fn took(suite: &str, time: Duration) {
        Self::note(&format!("{suite} took {} s", time.as_secs()));
    }

    pub(crate) fn note(text: &str) {
        anstream::println!("  {DIM}{text}{PLAIN}");
    }

    pub(crate) fn row(&mut self, what: &str, expected: &str, seen: &str, good: bool) {
        self.rows += 1;
        let mark = if good { format!("{GREEN}✓{PLAIN}") } else { format!("{RED}✗{PLAIN}") };
        let took = match self.last.elapsed().as_secs() {
            0 => String::new(),
            seconds => format!(" {DIM}({seconds} s){PLAIN}"),
        };
        self.last = Instant::now();
        anstream::println!("  {mark} {what}{took}\n    expected {expected}{DIM} · {PLAIN}seen {seen}");
        if !good {
            self.failed += 1;
        }
    }

    /// How many rows were not as expected.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// Something that could not be tried at all.
    pub(crate) fn broken(&mut self, suite: &str, error: &anyhow::Error) {
        self.row(suite, "to run", &format!("{error:#}"), false);
    }

    /// The last line, and the exit status.
    pub(crate) fn finish(&self) -> ExitCode {
        let (rows, failed, took) = (self.rows, self.failed, self.started.elapsed().as_secs());
        let colour = if failed == 0 { GREEN } else { RED };
        let good = rows - failed;
        anstream::println!(
            "\n{colour}{BOLD}{rows} rows: {good} as expected, {failed} not{PLAIN} {DIM}({took} s){PLAIN}"
        );
        if failed == 0 && rows > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
