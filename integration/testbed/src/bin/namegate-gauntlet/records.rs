//! The agent's records, followed while the forms are played.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use namegate_testbed::Agent;
use serde_json::Value;

use crate::judge::marks;
use crate::seen::decode;

/// Flows of the past that the stream begins with: none.
const PAST: &str = "0";

/// A request or a name that the agent let pass. Each character of a text is one byte, as far as the agent keeps them.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) port: u16,
    pub(crate) destination: String,
    /// Method, decoded path and host.
    pub(crate) http: Option<(String, String, String)>,
    pub(crate) server_name: Option<String>,
}

/// `namegate monitor`, which writes to a file. Dropping it ends it.
pub(crate) struct Follower {
    child: Child,
    path: PathBuf,
}

impl Follower {
    pub(crate) fn start(agent: &Agent<'_>) -> Result<Self> {
        let path = agent.path("flows");
        let mut monitor = Command::new(agent.binary());
        monitor.arg("monitor").arg("--socket").arg(agent.socket()).args(["--last", PAST, "--output", "json"]);
        let child = monitor.stdin(Stdio::null()).stdout(File::create(&path)?).stderr(Stdio::null()).spawn();
        Ok(Self { child: child.context("starting `namegate monitor`")?, path })
    }

    /// What passed so far, by mark.
    pub(crate) fn allowed(&self) -> Result<HashMap<String, Vec<Record>>> {
        let text = std::fs::read_to_string(&self.path).context("reading the flows")?;
        let mut records: HashMap<String, Vec<Record>> = HashMap::new();
        for line in text.lines() {
            // The last line may be under way.
            let Ok(flow) = serde_json::from_str::<Value>(line) else { continue };
            for (mark, record) in record(&flow) {
                records.entry(mark).or_default().push(record);
            }
        }
        Ok(records)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended by itself.
        let _ = self.child.wait();
    }
}

fn record(flow: &Value) -> Vec<(String, Record)> {
    if flow["verdict"] != "allowed" {
        return Vec::new();
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let http = (!flow["http"].is_null()).then(|| {
        let http = &flow["http"];
        let path = text(&http["path"]);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        (text(&http["method"]), decode(path), text(&http["host"]))
    });
    let server_name = flow["server-name"].as_str().map(str::to_owned);
    let said = format!("{} {}", text(&flow["http"]["path"]), server_name.as_deref().unwrap_or_default());
    let port = flow["destination-port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    let record = Record { port, destination: text(&flow["destination"]), http, server_name };
    let mut marks: Vec<String> = marks(&said).map(|(mark, _)| mark.to_owned()).collect();
    marks.dedup();
    marks.into_iter().map(|mark| (mark, record.clone())).collect()
}
