//! The load: `dnsperf` in the asking pod, and what it counted.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use namegate_testbed::Netns;
use serde::Serialize;

use std::net::SocketAddr;

/// Sockets that ask, each with a port of its own.
pub(crate) const CLIENTS: u32 = 16;
/// Threads of dnsperf.
pub(crate) const THREADS: u32 = 2;
/// Questions on the way at any time.
pub(crate) const OUTSTANDING: u32 = 100;
/// After so many seconds without an answer a question counts as lost.
pub(crate) const TIMEOUT_S: u32 = 1;

/// What dnsperf counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Counted {
    /// Answers a second.
    pub(crate) queries_per_second: f64,
    /// Questions that were answered in time.
    pub(crate) completed: u64,
    /// Questions that were not.
    pub(crate) lost: u64,
    /// Answers with an error.
    pub(crate) refused: u64,
}

/// dnsperf at work.
pub(crate) struct Load(Child);

impl Load {
    /// Starts asking the questions of a file, over and over, for so many seconds.
    pub(crate) fn start(netns: &Netns, target: SocketAddr, questions: &Path, seconds: u64) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "dnsperf", "-W", "-s", &target.ip().to_string()]);
        command.args(["-p", &target.port().to_string(), "-l", &seconds.to_string(), "-d"]).arg(questions);
        for (option, value) in [("-c", CLIENTS), ("-T", THREADS), ("-q", OUTSTANDING), ("-t", TIMEOUT_S)] {
            command.args([option, &value.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(netns.call(move || command.spawn()).context("starting dnsperf by `setpriv` (util-linux)")?))
    }

    /// Waits for its end and reads what it says.
    pub(crate) fn finish(self) -> Result<Counted> {
        let output = self.0.wait_with_output().context("waiting for dnsperf")?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("dnsperf ended with {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        read(&said).with_context(|| format!("dnsperf says nothing that can be read:\n{said}"))
    }
}

/// Reads dnsperf's closing statistics.
fn read(said: &str) -> Option<Counted> {
    let value = |key: &str| said.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    let first = |text: &str| text.split_whitespace().next().map(str::to_owned);
    let count = |key: &str| value(key).and_then(first).and_then(|word| word.parse::<u64>().ok());
    let completed = count("Queries completed:")?;
    let without_error = value("Response codes:").unwrap_or_default().split(',').find_map(|code| {
        let number = code.trim().strip_prefix("NOERROR")?;
        first(number)?.parse::<u64>().ok()
    });
    Some(Counted {
        queries_per_second: value("Queries per second:")?.parse().ok()?,
        completed,
        lost: count("Queries lost:")?,
        refused: completed.saturating_sub(without_error.unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Statistics:

  Queries sent:         480521
  Queries completed:    480421 (99.98%)
  Queries lost:         100 (0.02%)

  Response codes:       NOERROR 480400 (100.00%), SERVFAIL 21 (0.00%)
  Average packet size:  request 38, response 54
  Run time (s):         2.000102
  Queries per second:   240198.247890

  Average Latency (s):  0.000391 (min 0.000018, max 0.011301)
";

    #[test]
    fn the_statistics_are_read() {
        let want = Counted { queries_per_second: 240_198.247_89, completed: 480_421, lost: 100, refused: 21 };
        assert_eq!(read(SAID), Some(want));
        let refused = SAID.replace("NOERROR 480400 (100.00%), SERVFAIL 21", "REFUSED 480421");
        assert_eq!(read(&refused).map(|counted| counted.refused), Some(480_421));
        assert_eq!(read("Error: nothing to do"), None);
    }
}
