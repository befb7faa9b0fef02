//! Forms of paths through the proxy, as the table of `docs/http-paths.md` says.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[allow(dead_code, reason = "each program of this folder uses its own part")]
mod bench;

use bench::{Bench, OK, codes, rule};
use namegate_config::l7::{HttpRule, L7, RegexText};

const TABLE: &str = include_str!("../../docs/http-paths.md");
/// Columns of the table beside the form and the answer of the proxy.
const SERVERS: usize = 12;

#[test]
fn every_form_of_a_path_is_answered_as_the_table_says() {
    let path = Some(RegexText::new("/public/.*").unwrap());
    let bench = Bench::new(rule(L7::Http(vec![HttpRule { path, ..HttpRule::default() }])), OK);
    let rows = TABLE.lines().filter(|line| line.starts_with("| `/") || line.starts_with("| `http"));
    let mut forms = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), SERVERS + 2, "{row}");
        let form = cells[0].trim_matches('`');
        let before = bench.seen().len();
        let heard = bench.ask(format!("GET {form} HTTP/1.1\r\nHost: a.io\r\nConnection: close\r\n\r\n").as_bytes());
        let want = cells[SERVERS + 1];
        let code = if want.starts_with(|digit: char| digit.is_ascii_digit()) { want } else { "200" };
        assert_eq!(codes(&heard), [code], "{form}: {heard}");
        let seen = bench.seen()[before..].to_owned();
        let target = seen.split(' ').nth(1).unwrap_or_default();
        match want {
            "public" => assert_eq!(target, "/public/x.php", "{form}"),
            "name" => assert!(target.starts_with("/public/") && !target.contains("/../"), "{form}: {target}"),
            _ => assert_eq!(seen, "", "{form} reaches the server"),
        }
        let servers = &cells[1..=SERVERS];
        let serves_admin = servers.contains(&"admin");
        assert!(!serves_admin || code != "200", "{form} is allowed, and some server serves /admin");
        forms += 1;
    }
    assert!(forms >= 40, "{forms} forms");
}
