//! The log: one line for each event, in which nothing that others wrote steers a terminal or begins another line. Clients
//! cause events too, some of them inside libraries, so each place in the code writes a bounded number of lines.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use namegate_config::printable::printable;
use tracing::{Event, Level, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    Layer,
    field::MakeExt,
    fmt::format::{FormatFields, Writer, debug_fn},
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

/// Field that holds what an event says.
const MESSAGE: &str = "message";
/// Lines of one place in the code within [`WINDOW`].
const LINES_MAX: u64 = 100;
/// The time for which lines are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// Writes the log to standard error; `NAMEGATE_LOG` says how much.
pub(crate) fn start() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NAMEGATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .fmt_fields(fields())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(Bounded::new(std::io::stderr)).with(lines).init();
}

/// Leaves out lines of a place in the code that has written [`LINES_MAX`] within [`WINDOW`], and writes how many.
struct Bounded<W> {
    written: Mutex<HashMap<Identifier, Written>>,
    writer: W,
}

/// The lines of one place since a time.
struct Written {
    since: Instant,
    lines: u64,
}

impl<W> Bounded<W> {
    fn new(writer: W) -> Self {
        Self { written: Mutex::default(), writer }
    }

    /// Whether a place may write another line at this time, and how many it left out in the window that has ended.
    fn take(&self, place: Identifier, now: Instant) -> (bool, u64) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let place = written.entry(place).or_insert(Written { since: now, lines: 0 });
        let mut left_out = 0;
        if now.duration_since(place.since) >= WINDOW {
            left_out = place.lines.saturating_sub(LINES_MAX);
            *place = Written { since: now, lines: 0 };
        }
        place.lines += 1;
        (place.lines <= LINES_MAX, left_out)
    }
}

impl<S, O, W> Layer<S> for Bounded<W>
where
    S: Subscriber,
    O: Write,
    W: Fn() -> O + Send + Sync + 'static,
{
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let place = event.metadata();
        // An administrator who asks for finer levels wants all lines.
        if *place.level() > Level::INFO {
            return true;
        }
        let (is_written, left_out) = self.take(place.callsite(), Instant::now());
        if left_out > 0 {
            let (level, target) = (place.level(), place.target());
            // A log that cannot be written has nowhere to say so.
            let _ = writeln!((self.writer)(), "{level} {target}: {left_out} lines like the next one were left out");
        }
        is_written
    }
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

    impl Write for Lines {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(octets);
            Ok(octets.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A client makes h2 write a line with each acknowledgement of a PING that was not sent.
    #[test]
    fn a_place_writes_a_bounded_number_of_lines() {
        let lines = Lines::default();
        let writer = lines.clone();
        let bounded = Bounded::new(std::io::sink);
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(bounded).with(layer), || {
            for number in 0..5_000 {
                tracing::warn!(number, "one place");
            }
            tracing::warn!("another place");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("one place")).count() as u64, LINES_MAX);
        assert!(text.contains("another place"), "{text}");
    }

    #[test]
    fn the_next_window_begins_with_the_number_of_lines_left_out() {
        let bounded = Bounded::new(std::io::sink);
        let place = || Identifier(&PLACE);
        let began = Instant::now();
        for _ in 0..LINES_MAX {
            assert_eq!(bounded.take(place(), began), (true, 0));
        }
        assert_eq!(bounded.take(place(), began), (false, 0));
        assert_eq!(bounded.take(place(), began + WINDOW / 2), (false, 0));
        assert_eq!(bounded.take(place(), began + WINDOW), (true, 2));
    }

    struct Place;
    static PLACE: Place = Place;

    impl tracing::Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("no event comes from here")
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
