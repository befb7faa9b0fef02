//! The rules as one nftables set of concatenated addresses and ports, behind connection tracking.

use anyhow::{Context, Result, ensure};
use namegate_testbed::Netns;

use super::element;
use super::leg::{fill, run};
use super::rules::Rules;

const TABLE: &str = "namegate-bench";

/// The table; dropping it removes it.
pub(crate) struct Table<'a>(&'a Netns);

impl<'a> Table<'a> {
    pub(super) fn add(node: &'a Netns, rules: &Rules) -> Result<Self> {
        let table = Self(node);
        let elements: Vec<_> = rules.elements().map(|pair| element(pair, " . ")).collect();
        let script = format!(
            "table inet {TABLE} {{\n\
             set allowed {{ type ipv4_addr . inet_service; elements = {{ {} }} }}\n\
             chain forward {{ type filter hook forward priority filter; policy drop;\n\
             ct state established,related accept\n\
             ip daddr . tcp dport @allowed accept\n}}\n}}\n",
            elements.join(", ")
        );
        let output = fill(node, "nft", &["-f", "-"], script)?;
        ensure!(output.status.success(), "`nft` refused: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(table)
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let removed = run(self.0, "nft", &["delete", "table", "inet", TABLE]).context("removing the table");
        if let Err(error) = removed {
            super::say(&format!("{error:#}"));
        }
    }
}
