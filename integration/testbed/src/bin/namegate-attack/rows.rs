//! What must be so after the attack, row by row.

use crate::Seen;
use crate::honest::{Count, Counter};
use crate::report::Report;

/// Memory of the agent's process, bytes.
const MEMORY_MAX: u64 = 300 << 20;
/// Details shown of each kind.
const SHOWN: usize = 20;

/// A way to attack, and the metrics of which one must have grown where it was refused.
struct Refusal {
    what: &'static str,
    /// Each is one sample: all its texts are in its name and labels.
    any: &'static [&'static [&'static str]],
}

const REFUSALS: &[Refusal] = &[
    Refusal { what: "packets that no rule allows", any: &[&["packets_total", "default-deny"]] },
    Refusal { what: "packets from others' addresses", any: &[&["packets_total", "spoofed-source"]] },
    Refusal { what: "fragments without a first one", any: &[&["packets_total", "fragment-alone"]] },
    Refusal {
        what: "forged ARP and neighbour discovery",
        any: &[&["packets_total", "forged-neighbour"], &["packets_total", "neighbour-form"]],
    },
    Refusal { what: "idle connections of the layer 7 proxy", any: &[&["refused_total", "limits.l7Connections"]] },
    Refusal { what: "idle DNS clients over TCP", any: &[&["refused_total", "dns clients over TCP"]] },
    Refusal {
        what: "unfinished first packets of QUIC",
        any: &[
            &["refused_total", "held datagrams"],
            &["refused_total", "copies of handshakes"],
            &["refused_total", "handshakes"],
            &["name_checks_total", "refused"],
            &["name_checks_total", "unread"],
        ],
    },
    Refusal { what: "names beyond the bound of an endpoint", any: &[&["refused_total", "dns.namesPerEndpointMax"]] },
    Refusal { what: "prefixes beyond the map", any: &[&["refused_total", "limits.cidrs"]] },
    Refusal { what: "answers with addresses of pods and nodes", any: &[&["refused_total", "addresses of pods"]] },
    Refusal { what: "answers with special addresses", any: &[&["dns_messages_total", "special_address"]] },
    Refusal { what: "answers that are broken", any: &[&["dns_messages_total", "malformed_answer"]] },
];

/// How many acts failed.
pub(crate) fn failed(tally: &Counter) -> u64 {
    [tally.lookups, tally.connections, tally.fragments, tally.requests, tally.denials, tally.restarts]
        .iter()
        .map(|count| count.failed)
        .sum()
}

/// Adds every row about the attack itself.
pub(crate) fn judge(report: &mut Report, seen: &Seen) {
    far_side(report, seen);
    honest(report, &seen.honest);
    let memory = seen.health.memory;
    report.row("memory of the agent", "below 300 MB", &format!("{} MB", memory >> 20), memory < MEMORY_MAX);
    let silent = seen.health.silent;
    report.row("answers about health", "all", &format!("{silent} of {} missing", seen.health.asked), silent == 0);
    refusals(report, seen);
    notes(report, seen);
}

fn far_side(report: &mut Report, seen: &Seen) {
    let denied: u64 = seen.far.denied.values().sum();
    report.row("denied packets at the far side", "0", &denied.to_string(), denied == 0);
    for (what, count) in seen.far.denied.iter().take(SHOWN) {
        report.note(format!("denied, and there: {count} {what}"));
    }
    // What sees nothing proves nothing.
    for (what, mark) in [("endpoint", "endpoint:flow-churn at outside"), ("zone", "zone:open at outside")] {
        let count = seen.far.passed.get(mark).copied().unwrap_or_default();
        report.row(&format!("open packets of the {what} at the far side"), "some", &count.to_string(), count > 0);
    }
}

fn honest(report: &mut Report, tally: &Counter) {
    let rows = [
        ("honest look-ups", tally.lookups),
        ("honest connections", tally.connections),
        ("honest datagrams in fragments", tally.fragments),
        ("honest requests under HTTP and TLS rules", tally.requests),
        ("honest requests that a rule forbids: 403", tally.denials),
        ("honest restarts", tally.restarts),
    ];
    for (what, Count { done, failed }) in rows {
        report.row(what, "0 failed", &format!("{failed} of {done} failed"), failed == 0 && done > 0);
    }
    for word in &tally.words {
        report.note(format!("failed: {word}"));
    }
    let at = |quantile| format_ms(tally.latency.value_at_quantile(quantile));
    let most = format_ms(tally.latency.max());
    report.value("honest look-ups that were asked a second time", &tally.again.to_string());
    report.value("latency of honest look-ups", &format!("p50 {}, p99 {}, max {most}", at(0.5), at(0.99)));
}

fn format_ms(micros: u64) -> String {
    let (whole, tenths) = (micros / 1_000, micros / 100 % 10);
    format!("{whole}.{tenths} ms")
}

fn refusals(report: &mut Report, seen: &Seen) {
    for refusal in REFUSALS {
        let grown: Vec<_> = refusal.any.iter().flat_map(|texts| seen.grown.with(texts)).collect();
        let sum = grown.iter().fold(0.0, |sum, (_, by)| sum + by);
        report.row(&format!("counted: {}", refusal.what), "some", &format!("{sum}"), sum > 0.0);
    }
}

fn notes(report: &mut Report, seen: &Seen) {
    let sent: Vec<_> = seen.sent.iter().map(|(name, count)| format!("{name} {count}")).collect();
    report.note(format!("sent: {}", sent.join(", ")));
    let idle: Vec<_> =
        seen.idle.iter().map(|(name, opened, refused)| format!("{name} {opened} ({refused} refused)")).collect();
    report.note(format!("idle connections: {}", idle.join(", ")));
    let (asked, answered) = seen.zone;
    report.note(format!("hostile zone: {asked} questions, {answered} answers; policies written: {}", seen.policies));
    for (name, by) in seen.grown.with(&["_total"]).into_iter().take(3 * SHOWN) {
        report.note(format!("grew: {name} by {by}"));
    }
    let health = &seen.health;
    report.note(format!("health: {} of {} answers were not 200", health.unwell, health.asked));
    for problem in health.problems.iter().take(SHOWN) {
        report.note(format!("was a problem: {problem}"));
    }
}
