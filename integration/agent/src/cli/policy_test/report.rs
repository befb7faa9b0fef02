//! What came out of cases: for people, for programs, for build servers.

use std::fmt::{self, Write};

use namegate_config::{
    cases::{Case, Outcome, Seen},
    diagnostic::Diagnostic,
    reference::Verdict,
    rule::Direction,
};
use serde::Serialize;
use serde_json::json;

use crate::cli::{output, style};

/// A flow that went as expected.
const OK: &str = "ok";

/// Everything that was run.
#[derive(Default)]
pub(super) struct Report {
    pub(super) cases: Vec<Tested>,
}

/// One case.
pub(super) struct Tested {
    pub(super) name: String,
    pub(super) file: String,
    /// Where implementations differ: told, and no failure.
    doubtful: bool,
    pub(super) flows: usize,
    pub(super) failures: Vec<Line>,
    /// Every flow, where that is asked for.
    pub(super) flow_lines: Vec<Line>,
    /// Mistakes for which a policy of the case is refused; its flows are not asked then.
    pub(super) refused: Vec<Diagnostic>,
    pub(super) seconds: f64,
}

/// One flow and what became of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    step: usize,
    #[serde(skip_serializing_if = "String::is_empty")]
    title: String,
    flow: String,
    expected: String,
    got: String,
    /// `ok` or `FAILED`.
    status: &'static str,
    /// What each side said: a look-up first, egress before ingress.
    sides: Vec<Said>,
}

/// What one side said.
#[derive(Clone, Debug, Serialize)]
struct Said {
    direction: &'static str,
    verdict: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
}

impl Tested {
    pub(super) fn of(file: &str, case: &Case) -> Self {
        let errors = case.steps.iter().flat_map(|step| &step.diagnostics).filter(|found| found.is_error());
        Self {
            name: case.name.clone(),
            file: file.to_owned(),
            doubtful: case.doubtful.is_some(),
            flows: 0,
            failures: Vec::new(),
            flow_lines: Vec::new(),
            refused: errors.cloned().collect(),
            seconds: 0.0,
        }
    }

    /// Flows that were judged otherwise; a refused policy counts as one.
    fn wrong(&self) -> usize {
        self.failures.len() + usize::from(!self.refused.is_empty())
    }

    pub(super) fn failed(&self) -> usize {
        if self.doubtful { 0 } else { self.wrong() }
    }
}

impl Line {
    pub(super) fn of(case: &Case, seen: &Seen<'_>) -> Self {
        let Seen { step, check, got, sides } = seen;
        let title = case.steps.get(*step).map(|step| step.title.clone()).filter(|title| *title != case.title);
        let how = |how: Option<&str>| how.map(|how| format!(" ({how})")).unwrap_or_default();
        let expected = if check.allowed { "allow".to_owned() } else { format!("deny{}", how(check.how.as_deref())) };
        let got_text = match got {
            Outcome::Allowed => "allow".to_owned(),
            Outcome::Denied { how: seen, .. } => format!("deny{}", how(Some(seen))),
            Outcome::Impossible(why) => format!("nothing: {why}"),
            Outcome::NotJudged(why) => format!("not judged: {why}"),
        };
        Self {
            step: step + 1,
            title: title.unwrap_or_default(),
            flow: check.to_string(),
            expected,
            got: got_text,
            status: if got.is_as_wanted(check) { OK } else { "FAILED" },
            sides: sides.iter().map(Said::of).collect(),
        }
    }
}

impl Said {
    fn of((direction, verdict): &(Direction, Verdict)) -> Self {
        Self {
            direction: match direction {
                Direction::Ingress => "ingress",
                Direction::Egress => "egress",
            },
            verdict: if verdict.allowed { "allow" } else { "deny" },
            reason: verdict.reason.word(),
            rule: verdict.by.as_ref().map(ToString::to_string),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7}  {}, {}", self.direction, self.verdict, self.reason)?;
        self.rule.as_ref().map_or(Ok(()), |rule| write!(f, ": {rule}"))
    }
}

impl Report {
    /// Failures of cases that are not doubtful.
    pub(super) fn failed(&self) -> usize {
        self.cases.iter().map(Tested::failed).sum()
    }

    fn flows(&self) -> usize {
        self.cases.iter().map(|case| case.flows).sum()
    }

    /// The last line counts cases, flows and failures.
    pub(super) fn text(&self, verbose: bool) -> anyhow::Result<String> {
        let mut text = String::new();
        for case in &self.cases {
            let lines = if verbose { &case.flow_lines } else { &case.failures };
            if lines.is_empty() && case.wrong() == 0 {
                continue;
            }
            let doubtful = if case.doubtful { ", doubtful" } else { "" };
            writeln!(text, "{}{}{} ({}{doubtful})", style::HEADING, case.name, style::RESET, case.file)?;
            if !case.refused.is_empty() {
                writeln!(text, "  a policy of the case is refused")?;
                text.push_str(&output::drawn(&case.refused)?);
            }
            for line in lines {
                write_line(&mut text, line)?;
            }
        }
        let doubtful: usize = self.cases.iter().map(|case| case.wrong() - case.failed()).sum();
        if doubtful != 0 {
            writeln!(text, "{doubtful} differ in doubtful cases and do not count")?;
        }
        let failed = self.failed();
        let colour = if failed == 0 { style::GOOD } else { style::ERROR };
        let (cases, flows) = (self.cases.len(), self.flows());
        writeln!(text, "{colour}{cases} cases, {flows} flows, {failed} failed{}", style::RESET)?;
        Ok(text)
    }

    pub(super) fn json(&self, verbose: bool) -> serde_json::Value {
        let case = |case: &Tested| {
            let refused: Vec<_> = case.refused.iter().map(crate::agent::shown_diagnostic).collect();
            let mut value = json!({
                "name": case.name, "file": case.file, "doubtful": case.doubtful, "flows": case.flows,
                "failed": case.failed(), "refused": refused, "failures": case.failures,
            });
            if verbose {
                value["checks"] = json!(case.flow_lines);
            }
            value
        };
        json!({
            "cases": self.cases.iter().map(case).collect::<Vec<_>>(),
            "summary": {
                "cases": self.cases.len(), "flows": self.flows(), "failed": self.failed(),
            },
        })
    }
}

/// The flow, what was expected, what came out and what each side said.
pub(super) fn write_line(text: &mut String, line: &Line) -> fmt::Result {
    let colour = if line.status == OK { style::GOOD } else { style::ERROR };
    write!(text, "  {colour}{}{} {}", line.status, style::RESET, line.flow)?;
    match &*line.title {
        "" if line.step == 1 => {}
        "" => write!(text, " (step {})", line.step)?,
        title => write!(text, " (step {}: {title})", line.step)?,
    }
    writeln!(text, "\n    expected  {}\n    got       {}", line.expected, line.got)?;
    line.sides.iter().try_for_each(|said| writeln!(text, "    {said}"))
}
