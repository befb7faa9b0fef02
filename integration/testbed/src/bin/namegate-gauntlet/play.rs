//! Plays cases from the pod, many at a time, and keeps what came back.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use namegate_testbed::Pod;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::form::{Case, Kind, Policy, Protocol, Stream, bytes, complete};
use crate::judge;
use crate::servers::{Places, Server};
use crate::wire::{self, Ask};
use crate::{http2, quic, tls};

/// Exchanges at a time with all servers together.
const AT_A_TIME: usize = 160;
/// How long one form may take.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// Exchanges between two lines of progress.
const STEP: usize = 1_000;

/// A case for a server.
pub(crate) struct Turn {
    /// Its places in the lists of servers and cases.
    pub(crate) server: usize,
    pub(crate) case: usize,
    pub(crate) mark: String,
    /// Letters of its requests in order.
    pub(crate) letters: Vec<char>,
}

/// What a client got: text whose characters are bytes, or why there was none.
pub(crate) type Said = Result<String, String>;

/// What is sent, with every placeholder filled in.
enum Sent {
    Bytes(Vec<Vec<u8>>),
    Tls(Box<tls::TlsForm>),
    Quic(quic::QuicForm),
    Program(Vec<String>),
}

/// Every case for every server that speaks its protocol.
pub(crate) fn turns(servers: &[Server], cases: &[Case]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        for (place, server) in servers.iter().enumerate() {
            let is_named = case.to.is_empty() || case.to.iter().any(|name| name == server.kind.name);
            let speaks = server.kind.speaks.contains(&case.protocol());
            if is_named && speaks {
                let mark = judge::mark(turns.len());
                let letters = letters(case, &mark);
                turns.push(Turn { server: place, case: at, mark, letters });
            }
        }
    }
    turns
}

fn letters(case: &Case, mark: &str) -> Vec<char> {
    let text = match &case.kind {
        Kind::Http1(pieces) => pieces.iter().map(|piece| complete(piece, mark, case.policy)).collect::<String>(),
        Kind::Http2(streams) => return streams.iter().flat_map(|stream| letters_of(stream, mark)).collect(),
        Kind::Tls(_) | Kind::Quic(_) | Kind::Program(_) => String::new(),
    };
    judge::marks(&text).filter_map(|(_, letter)| letter).collect()
}

/// Letters of the requests that a stream asks for.
pub(crate) fn letters_of(stream: &Stream, mark: &str) -> Vec<char> {
    let text: String = stream.fields.iter().map(|(_, value)| complete(value, mark, Policy::Limits)).collect();
    judge::marks(&text).filter_map(|(_, letter)| letter).collect()
}

/// The piece-wise text of a form for people, for what went wrong.
pub(crate) fn shown(case: &Case, mark: &str) -> String {
    match &case.kind {
        Kind::Http1(pieces) => {
            let shown = pieces.iter().map(|piece| complete(piece, mark, case.policy).escape_default().to_string());
            shown.collect::<Vec<_>>().join(" | ")
        }
        Kind::Http2(streams) => streams_of(streams, mark, case.policy)
            .iter()
            .map(|stream| format!("{:?} {:?} {:?}", stream.fields, stream.body, stream.trailers))
            .collect::<Vec<_>>()
            .join(" | "),
        Kind::Tls(form) => format!("{form:?}"),
        Kind::Quic(form) => format!("{form:?}"),
        Kind::Program(words) => words.join(" "),
    }
}

/// Plays all turns; what came back, in their order.
pub(crate) fn all(pod: &Pod, servers: &[Server], cases: &[Case], turns: &[Turn], places: &Places) -> Vec<Said> {
    let limits: Vec<_> = servers.iter().map(|server| Arc::new(Semaphore::new(server.at_a_time()))).collect();
    let mut work = Vec::new();
    for turn in turns {
        let (Some(server), Some(case)) = (servers.get(turn.server), cases.get(turn.case)) else { continue };
        let ask = Ask {
            to: SocketAddr::new(server.address, case.port()),
            mark: turn.mark.clone(),
            host: format!("{}.good.test", turn.mark),
            answers: if case.honest { turn.letters.len() } else { 0 },
        };
        work.push((ask, sent(case, &turn.mark, server, places), limits[turn.server].clone()));
    }
    pod.netns.run(async move {
        let everything = Arc::new(Semaphore::new(AT_A_TIME));
        let (mut running, count) = (JoinSet::new(), work.len());
        for (at, (ask, sent, own)) in work.into_iter().enumerate() {
            let everything = everything.clone();
            running.spawn(async move {
                let _own = own.acquire_owned().await;
                let _one = everything.acquire_owned().await;
                let played = tokio::time::timeout(PATIENCE, play(ask, sent)).await;
                let said = played.unwrap_or_else(|_| bail!("no end within {PATIENCE:?}"));
                let text = |said: Vec<u8>| -> String { said.into_iter().map(char::from).collect() };
                (at, said.map(text).map_err(|error| format!("{error:#}")))
            });
        }
        let mut all: Vec<Said> = vec![Err("it was not played".to_owned()); count];
        let mut done = 0;
        while let Some(ended) = running.join_next().await {
            if let Ok((at, said)) = ended {
                all[at] = said;
            }
            done += 1;
            if done % STEP == 0 {
                eprintln!("{done} of {count} exchanges");
            }
        }
        all
    })
}

fn streams_of(streams: &[Stream], mark: &str, policy: Policy) -> Vec<Stream> {
    let fill = |text: &String| complete(text, mark, policy);
    let both = |fields: &[(String, String)]| fields.iter().map(|(name, value)| (fill(name), fill(value))).collect();
    let filled = |stream: &Stream| Stream {
        fields: both(&stream.fields),
        body: stream.body.as_ref().map(fill),
        trailers: both(&stream.trailers),
    };
    streams.iter().map(filled).collect()
}

fn sent(case: &Case, mark: &str, server: &Server, places: &Places) -> Sent {
    let name = |text: &str| named(text, mark);
    match &case.kind {
        Kind::Http1(pieces) => {
            Sent::Bytes(pieces.iter().map(|piece| bytes(&complete(piece, mark, case.policy))).collect())
        }
        Kind::Http2(streams) => Sent::Bytes(http2::pieces(&streams_of(streams, mark, case.policy))),
        Kind::Tls(form) => Sent::Tls(Box::new(form.map(&name))),
        Kind::Quic(form) => Sent::Quic(form.clone()),
        Kind::Program(words) => {
            let python = places.python.as_ref().map_or("python3".into(), |python| python.to_string_lossy());
            let filled = |word: &String| {
                name(word)
                    .replace("{address}", &server.address.to_string())
                    .replace("{port}", &case.port().to_string())
                    .replace("{folder}", &server.folder.to_string_lossy())
                    .replace("{python}", &python)
                    .replace("{scripts}", &places.sources.join("python").to_string_lossy())
            };
            Sent::Program(words.iter().map(filled).collect())
        }
    }
}

/// Fills in names of TLS, different for each turn.
pub(crate) fn named(text: &str, mark: &str) -> String {
    text.replace("{good}", "{id}.good.test").replace("{bad}", "{id}.bad.test").replace("{id}", mark)
}

async fn play(ask: Ask, sent: Sent) -> Result<Vec<u8>> {
    match sent {
        Sent::Bytes(pieces) => wire::exchange(ask, pieces).await,
        Sent::Tls(form) => tls::exchange(ask, *form).await,
        Sent::Quic(form) => quic::exchange(ask, form).await,
        Sent::Program(words) => program(&words).await,
    }
}

/// Runs a program in the pod; what it says does not count.
async fn program(words: &[String]) -> Result<Vec<u8>> {
    let Some((program, arguments)) = words.split_first() else { bail!("no program") };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (mut child, started) = (command.spawn()?, Instant::now());
    while child.try_wait()?.is_none() {
        if started.elapsed() > PATIENCE / 2 {
            child.kill()?;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Vec::new())
}

/// Whether a turn asks for names of its own, which must be resolved before.
pub(crate) fn has_names(case: &Case) -> bool {
    case.policy == Policy::Names && !matches!(case.protocol(), Protocol::Http1 | Protocol::Http2)
}
