//! The text of the metrics: names, labels and values as docs/metrics.md has them, and true at each scrape.

use std::collections::BTreeMap;

use crate::{
    instruments::Instruments,
    view::{self, Counter, Direction, EndpointCounter, Fill, Refused, Status},
};

fn status() -> Status {
    Status {
        problems: vec![view::Problem {
            kind: "attachment".into(),
            subject: "shop/web".into(),
            message: String::new(),
            since: String::new(),
        }],
        version: "1.2.3".into(),
        started: String::new(),
        audit: false,
        directions: vec![],
        revision: view::Revision { wanted: 8, enforced: 7 },
        endpoints: view::EndpointCounts { guarded: 3, waiting: 1, failed: 0 },
        names: view::NameCounts { names: 5, addresses: 9 },
        counters: vec![view::PacketCounter {
            direction: Direction::Egress,
            reason: "default-deny".into(),
            text: String::new(),
            denied: true,
            packets: 12,
            octets: 900,
        }],
        maps: vec![Fill { map: "POLICY".into(), rows: 4, rows_max: 10, setting: String::new() }],
        refused: vec![Refused { bound: "names".into(), endpoint: "shop/web".into(), count: 2, setting: String::new() }],
        dns: vec![Counter { what: "answered".into(), count: 6 }],
        dns_answers_kept: 21,
        requests: vec![Counter { what: "denied".into(), count: 3 }],
        name_checks: vec![Counter { what: "mismatched".into(), count: 4 }],
        names_unread: vec![EndpointCounter { endpoint: "shop/web".into(), count: 3 }],
        mismatches: vec![],
        denials: vec![],
        flows: vec![Counter { what: "denied".into(), count: 11 }],
        flows_lost: 1,
        attachments_healed: 2,
        kubernetes: None,
        diagnostics: vec![],
    }
}

#[test]
fn figures_are_those_of_the_status() {
    let instruments = Instruments::default();
    instruments.answer_installed(std::time::Duration::from_micros(100));
    let text = instruments.exposition().render(status()).unwrap();
    for line in [
        "namegate_packets_total{direction=\"egress\",reason=\"default-deny\",denied=\"true\"} 12",
        "namegate_traffic_bytes_total{direction=\"egress\",reason=\"default-deny\",denied=\"true\"} 900",
        "namegate_problems{kind=\"attachment\"} 1",
        "namegate_endpoints{state=\"guarded\"} 3",
        "namegate_policy_revision{state=\"wanted\"} 8",
        "namegate_policy_revision{state=\"enforced\"} 7",
        "namegate_map_rows_max{map=\"POLICY\"} 10",
        "namegate_refused_total{bound=\"names\",endpoint=\"shop/web\"} 2",
        "namegate_dns_messages_total{outcome=\"answered\"} 6",
        "namegate_dns_cache_entries 21",
        "namegate_name_checks_total{outcome=\"mismatched\"} 4",
        "namegate_names_unread_total{endpoint=\"shop/web\"} 3",
        "namegate_flows_lost_total 1",
        "namegate_attachments_healed_total 2",
        "namegate_dns_install_seconds_count 1",
        "namegate_build_info{version=\"1.2.3\"} 1",
    ] {
        assert!(text.lines().any(|got| got == line), "no `{line}` in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

/// Name and type of every metric, as the page or the exposition writes them.
fn listed(page: &str) -> BTreeMap<&str, &str> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `"));
    cells.filter_map(|row| Some((row.split('`').next()?, row.split(" | ").nth(1)?))).collect()
}

#[test]
fn the_page_lists_every_metric_and_no_other() {
    let text = Instruments::default().exposition().render(status()).unwrap();
    let exposed: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let exposed: BTreeMap<String, &str> = exposed
        .into_iter()
        .map(|(name, kind)| match kind {
            "counter" => (format!("{name}_total"), kind),
            "info" => (format!("{name}_info"), kind),
            _ => (name.to_owned(), kind),
        })
        .collect();
    let page = include_str!("../../../docs/metrics.md");
    let exposed: BTreeMap<&str, &str> = exposed.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    assert_eq!(listed(page), exposed);
}

/// The whole text for [`status`], line by line in the order of the alphabet: names, units, help and labels are a promise to
/// whoever has written a dashboard.
#[test]
fn the_text_is_as_promised() {
    let instruments = Instruments::default();
    instruments.answer_installed(std::time::Duration::from_micros(100));
    let text = instruments.exposition().render(status()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let promised: Vec<&str> = include_str!("exposition.txt").lines().collect();
    assert_eq!(lines, promised);
}

#[test]
fn each_scrape_shows_its_own_status() {
    let instruments = Instruments::default();
    let line = |status| {
        instruments.answer_installed(std::time::Duration::from_micros(100));
        let text = instruments.clone().exposition().render(status).unwrap();
        let found = |name: &str| text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        (found("namegate_problems{"), found("namegate_flows_total{"), found("namegate_dns_install_seconds_count"))
    };
    let calm = Status { problems: vec![], flows: vec![], ..status() };
    let counted = |count| Some(format!("namegate_dns_install_seconds_count {count}"));
    let problem = Some("namegate_problems{kind=\"attachment\"} 1".to_owned());
    let flows = Some("namegate_flows_total{verdict=\"denied\"} 11".to_owned());
    assert_eq!(line(status()), (problem.clone(), flows.clone(), counted(1)));
    assert_eq!(line(calm), (None, None, counted(2)));
    assert_eq!(line(status()), (problem, flows, counted(3)));
}

#[test]
fn counts_of_equal_labels_are_added_up() {
    let refused = |count| Refused { bound: "names".into(), endpoint: "a/b".into(), count, setting: String::new() };
    let status = Status { refused: vec![refused(2), refused(3)], ..status() };
    let text = Instruments::default().exposition().render(status).unwrap();
    assert!(text.contains("namegate_refused_total{bound=\"names\",endpoint=\"a/b\"} 5\n"), "{text}");
}
