//! The rules as one ipset of addresses and ports behind iptables with connection tracking.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use namegate_testbed::Netns;

use super::element;
use super::leg::{fill, run};
use super::rules::Rules;

const SET: &str = "namegate-bench";

/// The rules; dropping them removes them.
pub(crate) struct Chain<'a>(&'a Netns);

impl<'a> Chain<'a> {
    pub(super) fn add(node: &'a Netns, rules: &Rules) -> Result<Self> {
        let chain = Self(node);
        let mut script = format!("create {SET} hash:ip,port maxelem {}\n", rules.count());
        for pair in rules.elements() {
            let _ = writeln!(script, "add {SET} {}", element(pair, ",tcp:")); // Writing to a string does not fail.
        }
        let output = fill(node, "ipset", &["restore"], script)?;
        ensure!(output.status.success(), "`ipset` refused: {}", String::from_utf8_lossy(&output.stderr).trim());
        for arguments in [
            &["-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"][..],
            &["-A", "FORWARD", "-m", "set", "--match-set", SET, "dst,dst", "-j", "ACCEPT"],
            &["-P", "FORWARD", "DROP"],
        ] {
            let output = run(node, "iptables", arguments)?;
            ensure!(output.status.success(), "`iptables` refused: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(chain)
    }
}

impl Drop for Chain<'_> {
    fn drop(&mut self) {
        for (program, arguments) in [
            ("iptables", &["-P", "FORWARD", "ACCEPT"][..]),
            ("iptables", &["-F", "FORWARD"]),
            ("ipset", &["destroy", SET]),
        ] {
            if let Err(error) = run(self.0, program, arguments) {
                super::say(&format!("{error:#}"));
            }
        }
    }
}
