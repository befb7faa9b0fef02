//! Tables and JSON on standard output.

use std::io::Write;

use miette::{GraphicalReportHandler, GraphicalTheme};
use namegate_config::{
    diagnostic::Diagnostic,
    printable::{is_control, printable},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Prints the value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = escaped_json(&serde_json::to_string_pretty(value)?);
    text.push('\n');
    anstream::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// JSON in which control characters that JSON lets stand are escapes: they can be nowhere but in its texts.
pub(crate) fn escaped_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_control(character) && character != '\n' {
            // All are below 65,536 (RFC 8259 section 7).
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// The same value with texts that steer no terminal.
pub(crate) fn shown<T: Serialize + DeserializeOwned>(value: &T) -> anyhow::Result<T> {
    Ok(serde_json::from_value(printable_texts(serde_json::to_value(value)?))?)
}

fn printable_texts(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(printable(&text).into_owned()),
        Value::Array(items) => items.into_iter().map(printable_texts).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (printable(&key).into_owned(), printable_texts(value))).collect()
        }
        other => other,
    }
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
        handler.render_report(&mut text, &diagnostic.printable())?;
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
    fn texts_steer_no_terminal() {
        let value = serde_json::json!({"path": "/\x1b[2J\u{9b}31m", "names": ["\u{202e}a\nb"], "count": 2});
        let want = serde_json::json!({"path": "/\\u{1b}[2J\\u{9b}31m", "names": ["\\u{202e}a\\nb"], "count": 2});
        assert_eq!(shown(&value).unwrap(), want);
        let json = escaped_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!json.chars().any(|character| is_control(character) && character != '\n'), "{json:?}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value);
    }

    #[test]
    fn columns_stand_below_their_headings() {
        let rows = [["a".to_owned(), "longer".to_owned()], ["bc".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["ONE", "TWO"], rows), "ONE  TWO\na    longer\nbc   x\n");
        assert_eq!(table(&["ONE", "TWO"], []), "ONE  TWO\n");
    }
}
