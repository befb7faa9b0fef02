//! Colours. `anstream` takes them away where the output is no terminal or `NO_COLOR` is set.

use anstyle::{AnsiColor, Reset, Style};

/// Errors and denials.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// What passes.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What deserves a look.
pub(crate) const NOTE: Style = AnsiColor::Yellow.on_default();
/// Headings.
pub(crate) const HEADING: Style = Style::new().bold();
/// Back to normal.
pub(crate) const RESET: Reset = Reset;
