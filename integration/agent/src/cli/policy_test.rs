//! `namegate policy test`: unit tests for policies, in the form of `conformance/README.md`.

mod find;
mod junit;
mod report;

use std::{
    io::{IsTerminal, Write},
    time::Instant,
};

use anyhow::anyhow;
use namegate_config::cases::{NotJudged, Outcome as Became, run_each};
use namegate_policy_test::{Kernel, Model, Trial};

use self::{
    find::{Found, Suite},
    report::{Line, Report, Tested},
};
use super::{
    Outcome,
    args::{DatapathKind, TestArgs, TestOutput},
    output,
};

pub(crate) fn run(args: &TestArgs) -> anyhow::Result<Outcome> {
    let suite = Suite::read(&args.cases, args.only.as_deref())?;
    anyhow::ensure!(!suite.cases.is_empty(), "there is no case: one names its `world`, see docs/policy-tests.md");
    let report = match args.datapath {
        DatapathKind::Model => all(&suite, Trial::new(Box::new(Model)), args)?,
        // The thread moves into a network namespace, which ends with it.
        DatapathKind::Kernel => std::thread::scope(|scope| {
            let run = || all(&suite, Trial::new(Box::new(Kernel::new()?)), args);
            scope.spawn(run).join().unwrap_or_else(|_| Err(anyhow!("the thread of the trials panicked")))
        })?,
    };
    match args.output {
        TestOutput::Text => output::text(&report.text(args.verbose)?)?,
        TestOutput::Json => output::json(&report.json(args.verbose))?,
        TestOutput::Junit => output::text(&junit::xml(&report)?)?,
    }
    Ok(if report.failed() == 0 { Outcome::Good } else { Outcome::Bad })
}

fn all(suite: &Suite, mut trial: Trial, args: &TestArgs) -> anyhow::Result<Report> {
    let mut progress = Progress::new(suite.cases.len());
    let mut report = Report::default();
    for found in &suite.cases {
        progress.show(&found.case.name);
        report.cases.push(one(suite, found, &mut trial, args.verbose)?);
    }
    Ok(report)
}

fn one(suite: &Suite, found: &Found, trial: &mut Trial, verbose: bool) -> anyhow::Result<Tested> {
    let since = Instant::now();
    let case = &found.case;
    let mut tested = Tested::of(&found.file, case);
    if tested.refused.is_empty() {
        trial.begin()?;
        let mut broken = None;
        run_each(case, &suite.worlds[&found.world], trial, &mut |seen| {
            tested.flows += 1;
            match seen.got {
                Became::NotJudged(NotJudged(problem)) => {
                    broken.get_or_insert_with(|| format!("{}: {}: {problem}", case.name, seen.check));
                }
                got if !got.is_as_wanted(seen.check) => tested.failures.push(Line::of(case, &seen)),
                _ => {}
            }
            if verbose {
                tested.flow_lines.push(Line::of(case, &seen));
            }
        });
        if let Some(problem) = broken {
            return Err(anyhow!(problem));
        }
    }
    tested.seconds = since.elapsed().as_secs_f64();
    Ok(tested)
}

/// Which case is under way, on a terminal.
struct Progress {
    all: usize,
    done: usize,
    shown: bool,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self { all, done: 0, shown: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, name: &str) {
        self.done += 1;
        if self.shown {
            // Its loss is no loss.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}/{} {name}", self.done, self.all);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            // As above.
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
