//! The hostile policy author: huge policies, many prefixes and names, mistakes, deletions, one after the other.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::flood::End;

/// Between two changes.
const PAUSE: Duration = Duration::from_millis(1_500);
/// Prefixes of one policy: more than `limits.cidrs` has room for.
const PREFIXES: u32 = 9_000;
/// Names of one policy.
const NAMES: u32 = 2_000;
/// Rules with ports of one policy: more rows than `limits.policyRows` has room for.
const PORTS: u32 = 400;

/// The author at work.
pub(crate) struct Author {
    pub(crate) written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Author {
    /// Writes into the agent's folder of policies until the end; its file is gone afterwards.
    pub(crate) fn start(policies: &Path, end: &End) -> Self {
        let (file, beside) = (policies.join("author.yaml"), policies.with_file_name("author.new"));
        let written = Arc::new(AtomicU64::new(0));
        let (count, end) = (written.clone(), end.clone());
        let thread = std::thread::spawn(move || {
            for number in 0_u32.. {
                if end.is_set() {
                    break;
                }
                write(&file, &beside, number);
                count.store(u64::from(number) + 1, Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
            let _ = std::fs::remove_file(file); // It may be gone already.
        });
        Self { written, thread: Some(thread) }
    }
}

impl Drop for Author {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic was shown when it happened.
        }
    }
}

fn write(file: &PathBuf, beside: &PathBuf, number: u32) {
    let text = match number % 6 {
        0 => document(&prefixes(number)),
        1 => document(&names(number)),
        2 => "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nspec: [\n".to_owned(),
        3 => document(&ports(number)),
        4 => document("  - toFQDNs: [{matchPattern: '***'}]\n  - toPorts: [{ports: [{port: '-1'}]}]\n"),
        _ => {
            let _ = std::fs::remove_file(file); // It may be gone already.
            return;
        }
    };
    // A full disk shows in the other rows of the report.
    let _ = std::fs::write(beside, text).and_then(|()| std::fs::rename(beside, file));
}

fn document(egress: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: flood, namespace: author}}\nspec:\n  \
         endpointSelector: {{}}\n  egress:\n{egress}"
    )
}

fn prefixes(number: u32) -> String {
    let mut text = String::from("  - toCIDR:\n");
    for at in 0..PREFIXES {
        let _ = writeln!(text, "    - 172.{}.{}.{}/32", 16 + number % 16, at >> 8 & 0xff, at & 0xff);
    }
    text
}

fn names(number: u32) -> String {
    let mut text = String::from("  - toFQDNs:\n");
    for at in 0..NAMES {
        let _ = writeln!(text, "    - {{matchPattern: '*.n{at}.r{number}.author.test'}}");
    }
    text
}

fn ports(number: u32) -> String {
    let mut text = String::new();
    for at in 0..PORTS {
        let (third, port) = (at % 250, 1_000 + (number + at) % 50_000);
        let _ = writeln!(text, "  - toCIDR: [172.31.{third}.0/24]\n    toPorts:\n    - ports:");
        for next in 0..40 {
            let _ = writeln!(text, "      - {{port: '{}', protocol: TCP}}", port + next * 2);
        }
    }
    text
}
