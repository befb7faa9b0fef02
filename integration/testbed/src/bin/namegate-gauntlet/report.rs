//! The tables.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

/// What came of a case with a server.
pub(crate) struct Outcome {
    pub(crate) server: &'static str,
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) port: u16,
    /// Whether the server saw any of it.
    pub(crate) served: bool,
    pub(crate) wrong: Vec<String>,
    /// What was sent.
    pub(crate) sent: String,
}

/// Counts of a server and a group.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Counts {
    forms: usize,
    served: usize,
    refused: usize,
    wrong: usize,
}

/// A form that went wrong.
#[derive(Serialize)]
struct Wrong<'o> {
    server: &'o str,
    group: &'o str,
    form: &'o str,
    port: u16,
    sent: &'o str,
    what: &'o [String],
}

/// What is printed at the end.
pub(crate) struct Report {
    pub(crate) servers: Vec<&'static str>,
    /// Forms of the data that were played.
    pub(crate) forms: usize,
    pub(crate) outcomes: Vec<Outcome>,
    /// What belongs to no form.
    pub(crate) stray: Vec<String>,
}

impl Report {
    /// Counts by group, in the order of the data, and server.
    fn rows(&self) -> Vec<(&str, BTreeMap<&str, Counts>)> {
        let mut rows: Vec<(&str, BTreeMap<&str, Counts>)> = Vec::new();
        for outcome in &self.outcomes {
            let at = rows.iter().position(|(group, _)| *group == outcome.group).unwrap_or_else(|| {
                rows.push((&outcome.group, BTreeMap::new()));
                rows.len() - 1
            });
            rows[at].1.entry(outcome.server).or_default().add(outcome);
        }
        rows
    }

    fn wrong(&self) -> impl Iterator<Item = Wrong<'_>> {
        self.outcomes.iter().filter(|outcome| !outcome.wrong.is_empty()).map(|outcome| Wrong {
            server: outcome.server,
            group: &outcome.group,
            form: &outcome.name,
            port: outcome.port,
            sent: &outcome.sent,
            what: &outcome.wrong,
        })
    }

    /// Prints it as `text`, `json` or `table` (Markdown).
    pub(crate) fn finish(&self, output: &str) -> ExitCode {
        match output {
            "json" => self.json(),
            "table" => self.table(),
            _ => self.text(),
        }
        if self.wrong().next().is_none() && self.stray.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn json(&self) {
        let rows: Vec<_> = self
            .rows()
            .into_iter()
            .flat_map(|(group, servers)| {
                servers.into_iter().map(
                    move |(server, counts)| serde_json::json!({"server": server, "group": group, "counts": counts}),
                )
            })
            .collect();
        let wrong: Vec<_> = self.wrong().collect();
        let all = serde_json::json!({"forms": self.forms, "exchanges": self.outcomes.len(), "servers": self.servers,
            "rows": rows, "wrong": wrong, "stray": self.stray});
        println!("{all:#}");
    }

    /// One row for each group; of each server what it served, of how many.
    fn table(&self) {
        println!("| Forms | {} |", self.servers.join(" | "));
        println!("| --- |{}", " --- |".repeat(self.servers.len()));
        for (group, servers) in self.rows() {
            let cell = |server: &&str| {
                servers.get(*server).map_or_else(String::new, |counts| {
                    let mark = if counts.wrong > 0 { format!(", {} wrong", counts.wrong) } else { String::new() };
                    format!("{} of {}{mark}", counts.served, counts.forms)
                })
            };
            println!("| {group} | {} |", self.servers.iter().map(cell).collect::<Vec<_>>().join(" | "));
        }
        println!("\n{}", self.sum());
    }

    fn text(&self) {
        for wrong in self.wrong() {
            println!("✗ {}, port {}, {}: {}", wrong.server, wrong.port, wrong.group, wrong.form);
            println!("  sent: {}", wrong.sent);
            for what in wrong.what {
                println!("  {what}");
            }
        }
        for stray in &self.stray {
            println!("✗ {stray}");
        }
        println!("{:<10} {:<20} {:>6} {:>6} {:>7} {:>5}", "Server", "Forms", "played", "served", "refused", "wrong");
        for (group, servers) in self.rows() {
            for (server, Counts { forms, served, refused, wrong }) in servers {
                println!("{server:<10} {group:<20} {forms:>6} {served:>6} {refused:>7} {wrong:>5}");
            }
        }
        println!("{}", self.sum());
    }

    fn sum(&self) -> String {
        let wrong = self.wrong().count() + self.stray.len();
        format!(
            "{} forms, {} servers, {} exchanges: {wrong} went wrong",
            self.forms,
            self.servers.len(),
            self.outcomes.len()
        )
    }
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        self.forms += 1;
        if outcome.served {
            self.served += 1;
        } else {
            self.refused += 1;
        }
        self.wrong += usize::from(!outcome.wrong.is_empty());
    }
}
