//! The log: one line for each event, in which nothing that others wrote steers a terminal or begins another line.

use namegate_config::printable::printable;
use tracing_subscriber::{
    field::MakeExt,
    fmt::format::{FormatFields, Writer, debug_fn},
};

/// Field that holds what an event says.
const MESSAGE: &str = "message";

/// Writes the log to standard error; `NAMEGATE_LOG` says how much.
pub(crate) fn start() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NAMEGATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .fmt_fields(fields())
        .with_writer(std::io::stderr)
        .init();
}

/// Fields as `name=value`, each without control characters.
fn fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field, value| {
        let text = format!("{value:?}");
        let shown = printable(&text);
        if field.name() == MESSAGE { write!(writer, "{shown}") } else { write!(writer, "{field}={shown}") }
    })
    .delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(octets);
            Ok(octets.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_others_wrote_stays_in_its_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .fmt_fields(fields())
            .with_writer(move || writer.clone())
            .finish();
        let name = "x\x1b[2J\u{9b}31m\u{202e}\nERROR forged";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(file = %name, quoted = name, count = 2, "reading {name}");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(!text.trim_end().chars().any(namegate_config::printable::is_control), "{text:?}");
        assert!(text.contains("reading x\\u{1b}[2J\\u{9b}31m\\u{202e}\\nERROR forged file=x\\u{1b}[2J"), "{text:?}");
        assert!(text.trim_end().ends_with("count=2"), "{text:?}");
    }
}
