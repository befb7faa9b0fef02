//! The table.

use std::process::ExitCode;

use crate::program::Program;
use crate::protocol::Protocol;
use crate::trial::Cell;

const HEAD: [&str; 7] = [
    "Client",
    "Protocol",
    "The server saw",
    "enforce: allowed",
    "enforce: other",
    "observe: allowed",
    "observe: other",
];

/// A client with a protocol, and its cells in the order of the head.
pub(crate) struct Row<'p> {
    pub(crate) program: &'p Program,
    pub(crate) protocol: Protocol,
    cells: Vec<Cell>,
}

impl<'p> Row<'p> {
    /// One for each protocol that the program has.
    pub(crate) fn of(program: &'p Program) -> impl Iterator<Item = Self> {
        program.protocols.iter().map(move |&protocol| Self { program, protocol, cells: Vec::new() })
    }

    pub(crate) fn add(&mut self, cell: Cell) {
        self.cells.push(cell);
    }

    fn line(&self) -> Vec<String> {
        let saw = self.cells.iter().find_map(|cell| cell.saw.clone()).unwrap_or_default();
        let words = self.cells.iter().map(|cell| {
            let mark = if cell.objection.is_some() { "✗ " } else { "" };
            format!("{mark}{}", cell.words)
        });
        [self.program.name.clone(), self.protocol.title().to_owned(), saw].into_iter().chain(words).collect()
    }
}

/// What is printed at the end.
pub(crate) struct Report {
    lines: Vec<Vec<String>>,
    lacking: Vec<String>,
    objections: Vec<String>,
}

impl Report {
    pub(crate) fn of(rows: &[Row<'_>], programs: &[Program]) -> Self {
        let lines = rows.iter().map(Row::line).collect();
        let mut objections = Vec::new();
        for row in rows {
            for (cell, place) in row.cells.iter().zip(&HEAD[3..]) {
                let told = |why| format!("{}, {}, {place}: {why}", row.program.name, row.protocol.title());
                objections.extend(cell.objection.as_ref().map(told));
            }
        }
        let lacks = |program: &Program, protocol| !program.protocols.contains(&protocol);
        let lacking = [Protocol::MlKem, Protocol::Http2, Protocol::Http3].into_iter().filter_map(|protocol| {
            let without = programs.iter().filter(|program| lacks(program, protocol)).map(|program| &*program.name);
            let without: Vec<_> = without.collect();
            (!without.is_empty()).then(|| format!("Without {}: {}", protocol.title(), without.join(", ")))
        });
        Self { lines, lacking: lacking.collect(), objections }
    }

    /// Prints it; success is that nothing is out of place.
    pub(crate) fn finish(self) -> ExitCode {
        let head: Vec<String> = HEAD.map(str::to_owned).to_vec();
        let width = |at: usize| {
            let cells = self.lines.iter().chain([&head]).filter_map(|line| line.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        for line in [&head].into_iter().chain(&self.lines) {
            let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        for line in &self.lacking {
            println!("{line}");
        }
        for objection in &self.objections {
            println!("✗ {objection}");
        }
        println!("{} rows, {} cells out of place", self.lines.len(), self.objections.len());
        if self.objections.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
