//! The load: `wrk`, and what it counted.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use namegate_testbed::Netns;
use serde::{Deserialize, Serialize};

use super::{Work, settings};
use crate::config;

/// Threads of wrk; never more than connections.
pub(crate) const THREADS: u32 = 2;
/// After so many seconds without an answer a request counts as failed.
const TIMEOUT_S: u32 = 2;

/// The name in the URL goes into `Host` and into TLS; the connection goes to the address. Every path gets its turn.
const SCRIPT: &str = r#"local resolve = wrk.resolve
wrk.resolve = function(_, service) resolve("ADDRESS", service) end
local requests, at = {}, 0
init = function()
  for _, path in ipairs({PATHS}) do requests[#requests + 1] = wrk.format("GET", path) end
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\n{"requests":%d,"duration-us":%d,"p50-us":%d,"p99-us":%d,"failed":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), failed))
end
"#;

/// One load.
pub(crate) struct Load {
    pub(crate) work: Work,
    pub(crate) target: SocketAddr,
    pub(crate) connections: u32,
    pub(crate) seconds: u64,
}

/// What wrk counted.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Counted {
    /// Answers.
    pub(crate) requests: u64,
    /// How long that took, microseconds.
    pub(crate) duration_us: f64,
    /// Median time of an answer, microseconds.
    pub(crate) p50_us: f64,
    /// 99 of 100 answers came within so many microseconds.
    pub(crate) p99_us: f64,
    /// Connections that broke, answers that did not come in time or were errors.
    pub(crate) failed: u64,
}

impl Counted {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far fewer requests than 2^52")]
        let requests = self.requests as f64;
        requests * 1e6 / self.duration_us
    }
}

impl Load {
    /// Asks for so long, and waits for the end.
    pub(crate) fn run(&self, netns: &Netns, folder: &Path) -> Result<Counted> {
        let script = config::write(folder, "load.lua", &script(self.target))?;
        let scheme = if self.work == Work::Http { "http" } else { "https" };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "wrk", "--script"]).arg(script);
        let threads = THREADS.min(self.connections);
        for (option, value) in [("--threads", threads), ("--connections", self.connections)] {
            command.args([option, &value.to_string()]);
        }
        command.args(["--duration", &format!("{}s", self.seconds), "--timeout", &format!("{TIMEOUT_S}s")]);
        if self.work == Work::Connect {
            command.args(["--header", "Connection: close"]);
        }
        command.arg(format!("{scheme}://{}:{}/", settings::NAME, self.target.port()));
        command.stdin(Stdio::null());
        let output = netns.call(move || command.output()).context("running wrk by `setpriv` (util-linux)")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "wrk ended with {}: {said}{complaint}", output.status);
        read(&said).with_context(|| format!("wrk says nothing that can be read:\n{said}{complaint}"))
    }
}

fn script(target: SocketAddr) -> String {
    let paths: Vec<_> = settings::paths().iter().map(|path| format!("\"{path}\"")).collect();
    SCRIPT.replace("ADDRESS", &target.ip().to_string()).replace("PATHS", &paths.join(", "))
}

/// The object that the script writes at the end.
fn read(said: &str) -> Option<Counted> {
    said.lines().rev().find(|line| line.starts_with('{')).and_then(|line| serde_json::from_str(line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_writes_is_read() {
        let said = "Running 1s test\nRequests/sec: 5\n\n\
            {\"requests\":300,\"duration-us\":1500000,\"p50-us\":170,\"p99-us\":7338,\"failed\":2}\n";
        let want = Counted { requests: 300, duration_us: 1.5e6, p50_us: 170.0, p99_us: 7_338.0, failed: 2 };
        assert_eq!(read(said), Some(want));
        assert!((want.rate() - 200.0).abs() < 1e-9);
        assert_eq!(read("unable to connect"), None);
    }

    #[test]
    fn the_script_names_every_path() {
        let script = script(([192, 0, 2, 1], 80).into());
        assert!(script.contains("resolve(\"192.0.2.1\", service)"), "{script}");
        assert!(settings::paths().iter().all(|path| script.contains(path)), "{script}");
    }
}
