//! Asks at a low and steady rate beside the load, and notes how long each answer takes.
//!
//! An answer's time is that of its packet's arrival at the socket, told by the kernel (`SO_TIMESTAMPNS`, socket(7)): what
//! the scheduler adds afterwards on a busy machine does not count.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use namegate_testbed::Netns;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use serde::Serialize;

use crate::names::{self, NAMES};

/// Questions a second.
pub(crate) const RATE: u32 = 500;
/// After so long without an answer a question counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// Waiting time of a single question.
const ONE_WITHIN: Duration = Duration::from_millis(100);
/// Answers that take longer count as if they took so long, nanoseconds.
const LATENCY_NS_MAX: u64 = 10_000_000_000;
/// Steps from one name to the next one asked: prime, so that all names get their turn.
const STRIDE: u32 = 7;
/// Octets that an answer may have.
const ANSWER_OCTETS: usize = 1_500;

/// What the probe saw.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Latency {
    /// Median, microseconds.
    pub(crate) p50_us: f64,
    /// 99 of 100 answers came within so many microseconds.
    pub(crate) p99_us: f64,
    /// The slowest answer, microseconds.
    pub(crate) max_us: f64,
    /// Answers that were measured.
    pub(crate) answers: u64,
    /// Questions without an answer, or with an error for an answer.
    pub(crate) failed: u64,
    /// Of those, answers that were SERVFAIL.
    pub(crate) servfail: u64,
}

/// A socket that asks one server.
pub(crate) struct Probe {
    socket: UdpSocket,
    sent: Vec<Option<Duration>>,
    histogram: Histogram<u64>,
    asked: u64,
    servfail: u64,
    /// How many names are asked for in turn.
    names: u16,
}

impl Probe {
    /// Opens a socket in a namespace.
    pub(crate) fn open(netns: &Netns, target: SocketAddr) -> Result<Self> {
        let socket = netns.call(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(ONE_WITHIN))?;
            Ok::<_, std::io::Error>(socket)
        });
        let socket = socket.with_context(|| format!("opening a socket to ask {target}"))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("asking for times of arrival")?;
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).context("making a histogram")?;
        Ok(Self { socket, sent: vec![None; usize::from(u16::MAX) + 1], histogram, asked: 0, servfail: 0, names: NAMES })
    }

    /// Asks for so many names in turn.
    pub(crate) const fn of_names(mut self, names: u16) -> Self {
        self.names = names;
        self
    }

    /// Asks one question and says whether an answer without error came.
    pub(crate) fn ask_once(&self) -> bool {
        let mut octets = [0; ANSWER_OCTETS];
        self.socket.send(&names::question(0, 0)).is_ok()
            && self.socket.recv(&mut octets).is_ok_and(|length| names::answer(&octets[..length]) == Some((0, true)))
    }

    /// Asks so many questions a second for so long, waits for the last answers, and sums up.
    pub(crate) fn run(mut self, length: Duration, rate: u32) -> Result<Latency> {
        let (started, interval) = (Instant::now(), Duration::from_secs(1) / rate);
        let mut next = interval;
        while next < length {
            self.receive()?;
            std::thread::sleep(next.saturating_sub(started.elapsed()));
            self.ask()?;
            next += interval;
        }
        let ended = Instant::now();
        while self.sent.iter().any(Option::is_some) && ended.elapsed() < PATIENCE {
            std::thread::sleep(interval);
            self.receive()?;
        }
        let quantile = |part| Duration::from_nanos(self.histogram.value_at_quantile(part)).as_secs_f64() * 1e6;
        let answers = self.histogram.len();
        Ok(Latency {
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: quantile(1.0),
            answers,
            failed: self.asked.saturating_sub(answers),
            servfail: self.servfail,
        })
    }

    fn ask(&mut self) -> Result<()> {
        let id = u16::try_from(self.asked & u64::from(u16::MAX)).context("a message's identifier")?;
        let number = self.asked * u64::from(STRIDE) % u64::from(self.names);
        let question = names::question(id, u16::try_from(number).context("a name's number")?);
        self.asked += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock")?;
        // A refused port shows as an error of the next call: the question stays unanswered.
        self.sent[usize::from(id)] = self.socket.send(&question).is_ok().then_some(now);
        Ok(())
    }

    /// Takes every answer that has arrived.
    fn receive(&mut self) -> Result<()> {
        let mut octets = [0; ANSWER_OCTETS];
        let mut space = nix::cmsg_space!(TimeSpec);
        loop {
            let mut slices = [IoSliceMut::new(&mut octets)];
            let (descriptor, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            let message = match recvmsg::<()>(descriptor, &mut slices, Some(&mut space), flags) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::ECONNREFUSED | Errno::EINTR) => continue,
                Err(error) => bail!("receiving an answer: {error}"),
            };
            let arrived = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            });
            let length = message.bytes;
            let arrived = arrived.context("an answer without its time of arrival")?;
            self.servfail += u64::from(names::is_server_failure(&octets[..length]));
            if let Some((id, good)) = names::answer(&octets[..length])
                && let Some(sent) = self.sent[usize::from(id)].take()
                && good
            {
                let took = arrived.saturating_sub(sent).as_nanos();
                self.histogram.saturating_record(u64::try_from(took).unwrap_or(u64::MAX));
            }
        }
    }
}
