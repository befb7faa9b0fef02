//! The honest endpoint: one request after the other, over HTTP and TLS, each on a connection of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use namegate_testbed::{Task, World, client};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::ground::{HONEST, TLS, TLS_NAME, WEB};

/// Between two requests of one kind.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a request may take; beyond, it has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request that is told apart, microseconds.
const LATENCY_MAX: u64 = 20_000_000;
/// Failures that are kept word for word.
const WORDS_MAX: usize = 3;

/// What became of the requests.
#[derive(Clone)]
pub(crate) struct Counter {
    pub(crate) sent: u64,
    pub(crate) refused: u64,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) words: Vec<String>,
}

/// The endpoint at work.
pub(crate) struct Honest {
    tally: Arc<Mutex<Counter>>,
    end: Arc<AtomicBool>,
    tasks: [Task<()>; 2],
}

impl Honest {
    /// Starts it; it goes on until [`Honest::finish`].
    pub(crate) fn start(world: &World) -> anyhow::Result<Self> {
        let none =
            Counter { sent: 0, refused: 0, latency: Histogram::new_with_max(LATENCY_MAX, 3)?, words: Vec::new() };
        let (tally, end) = (Arc::new(Mutex::new(none)), Arc::new(AtomicBool::new(false)));
        let pod = world.pod(HONEST);
        let tasks = [false, true].map(|is_tls| {
            let (tally, end, tls) = (Arc::clone(&tally), Arc::clone(&end), pod.client().tls);
            pod.netns.spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let outcome = timeout(PATIENCE, request(is_tls.then_some(&tls))).await;
                    let outcome = outcome.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                    note(&tally, began.elapsed(), outcome);
                    tokio::time::sleep(PAUSE).await;
                }
            })
        });
        Ok(Self { tally, end, tasks })
    }

    /// Waits for the last requests.
    pub(crate) fn finish(self) -> Counter {
        self.end.store(true, Ordering::Relaxed);
        self.tasks.into_iter().for_each(Task::wait);
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn note(tally: &Mutex<Counter>, took: Duration, outcome: Result<(), String>) {
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.sent += 1;
    tally.latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LATENCY_MAX));
    if let Err(why) = outcome {
        tally.refused += 1;
        if tally.words.len() < WORDS_MAX {
            tally.words.push(why);
        }
    }
}

async fn request(tls: Option<&TlsConnector>) -> Result<(), String> {
    let to = if tls.is_some() { TLS } else { WEB };
    let stream = client::connect(to, PATIENCE).await.map_err(|failure| format!("{to}: {failure}"))?;
    let exchanged = match tls {
        None => exchange(stream).await,
        Some(tls) => {
            let name = ServerName::try_from(TLS_NAME).map_err(|error| error.to_string())?;
            exchange(tls.connect(name, stream).await.map_err(|error| format!("{to}: {error}"))?).await
        }
    };
    exchanged.map_err(|error| format!("{to}: {error}"))
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    stream.write_all(b"GET /v1 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    while stream.read_buf(&mut answer).await? > 0 {}
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let line = String::from_utf8_lossy(&answer);
    Err(std::io::Error::other(line.lines().next().unwrap_or("no answer").to_owned()))
}
