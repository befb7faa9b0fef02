//! What the demo prints: a block for each policy and a row for each command, or one JSON object.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use namegate_testbed::Applied;
use namegate_testbed::seed::{Chapter, Row, Verdict};
use serde_json::{Value, json};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Collects what happened and shows it on the way.
pub(crate) struct Report {
    json: bool,
    live: bool,
    started: Instant,
    rows: Vec<Value>,
    policies: Vec<Value>,
    failed: usize,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        let live = !json && std::io::stdout().is_terminal();
        Self { json, live, started: Instant::now(), rows: Vec::new(), policies: Vec::new(), failed: 0 }
    }

    pub(crate) fn world(&self, pods: usize, took: Duration) {
        self.line(&format!(
            "{BOLD}World{PLAIN}   {pods} pods, cluster DNS and the Internet {DIM}({}){PLAIN}",
            ms(took)
        ));
    }

    pub(crate) fn agent(&self, took: Duration) {
        self.line(&format!(
            "{BOLD}Agent{PLAIN}   ready, programs attached to every pod's link {DIM}({}){PLAIN}",
            ms(took)
        ));
    }

    pub(crate) fn open(&self, commands: usize) {
        self.line(&format!("{BOLD}Before{PLAIN}  no policy: all {commands} commands of the article get an answer"));
    }

    pub(crate) fn policy(&mut self, number: usize, chapter: &Chapter, applied: &Applied) {
        self.line(&format!("\n{BOLD}Policy {number} of 4{PLAIN}  {}", chapter.title));
        self.line(&format!(
            "  {DIM}enforced {} after it was written, revision {}{PLAIN}",
            ms(applied.took),
            applied.revision
        ));
        self.policies.push(json!({
            "policy": number, "title": chapter.title, "revision": applied.revision,
            "enforced-ms": milliseconds(applied.took),
        }));
    }

    /// Shows what is under way; gone when the row comes.
    pub(crate) fn begin(&self, command: &str) {
        if self.live {
            anstream::print!("  {DIM}… {command}{PLAIN}");
            let _ = std::io::stdout().flush(); // Only cosmetics.
        }
    }

    pub(crate) fn row(&mut self, policy: usize, row: &Row) {
        let expected = if row.test.allowed { "allowed" } else { "denied" };
        let why = why(row);
        let (mark, word) = match row.verdict {
            Verdict::AsSaid => (format!("{GREEN}✓{PLAIN}"), "as-said"),
            Verdict::Differs => (format!("{RED}✗{PLAIN}"), "differs"),
        };
        if self.live {
            anstream::print!("\r\x1b[2K");
        }
        self.line(&format!("  {mark} {BOLD}{}{PLAIN}", row.test.command));
        let mut parts = vec![format!("expected {expected}"), format!("seen {}", row.seen), why.clone()];
        parts.extend(row.answer_to_enforced.map(|took| format!("open {} after the DNS answer", ms(took))));
        self.line(&format!("    {}", parts.join(&format!("{DIM} · {PLAIN}"))));
        self.rows.push(json!({
            "policy": policy, "command": row.test.command, "expected": expected, "seen": row.seen, "verdict": word,
            "why": why, "flow": row.flow, "dns-answer-to-enforced-ms": row.answer_to_enforced.map(milliseconds),
        }));
    }

    pub(crate) fn failed(&mut self) {
        self.failed += 1;
    }

    /// The last line, and the exit status.
    pub(crate) fn finish(self) -> ExitCode {
        let (rows, failed) = (self.rows.len(), self.failed);
        if self.json {
            let summary = json!({
                "policies": self.policies, "rows": self.rows, "failed": failed,
                "seconds": self.started.elapsed().as_secs_f64(),
            });
            anstream::println!("{summary:#}");
        } else {
            let colour = if failed == 0 { GREEN } else { RED };
            let good = rows - failed;
            let took = self.started.elapsed().as_secs_f64();
            self.line(&format!(
                "\n{colour}{BOLD}{rows} rows: {good} as the article says, {failed} not{PLAIN} {DIM}({took:.1} s){PLAIN}"
            ));
        }
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn line(&self, text: &str) {
        if !self.json {
            anstream::println!("{text}");
        }
    }
}

/// The deciding rule and reason in words, from the agent's record of the flow.
fn why(row: &Row) -> String {
    let Some(flow) = &row.flow else { return "the agent has no record of it".to_owned() };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let subject = format!("{}/{}", text(&flow["endpoint"]["namespace"]), text(&flow["endpoint"]["name"]));
    let rule = flow["rule"].as_str().map(|rule| format!(" ({rule})")).unwrap_or_default();
    let names: Vec<_> = flow["peer"]["fqdns"].as_array().into_iter().flatten().map(text).collect();
    let names = if names.is_empty() { String::new() } else { format!(" for {}", names.join(", ")) };
    let port = format!("{}/{}", flow["destination-port"], text(&flow["protocol"]));
    format!("{} of {subject}, port {port}: {}{names}{rule}", text(&flow["direction"]), text(&flow["reason-text"]))
}

fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

fn ms(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}
