//! Tables and JSON on standard output.

use std::io::Write;

use miette::{GraphicalReportHandler, GraphicalTheme};
use namegate_config::diagnostic::Diagnostic;
use serde::Serialize;

/// Prints the value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    anstream::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Prints text, its colours only on a terminal.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Diagnostics as drawings, each at its lines; coloured where standard output is.
pub(crate) fn drawn<'d>(diagnostics: impl IntoIterator<Item = &'d Diagnostic>) -> anyhow::Result<String> {
    let coloured = anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
    let theme = if coloured { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false);
    let mut text = String::new();
    for diagnostic in diagnostics {
        handler.render_report(&mut text, diagnostic)?;
        text.push('\n');
    }
    Ok(text)
}

/// Columns of words below their headings; the headings alone where there is no row.
pub(crate) fn table<const N: usize>(headings: &[&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = [headings.map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_headings() {
        let rows = [["a".to_owned(), "longer".to_owned()], ["bc".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["ONE", "TWO"], rows), "ONE  TWO\na    longer\nbc   x\n");
        assert_eq!(table(&["ONE", "TWO"], []), "ONE  TWO\n");
    }
}
