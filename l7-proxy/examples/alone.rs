//! The proxy without a gate, in front of one server: for measurements and for tests of the protocols.
//!
//! ```text
//! alone PORT SERVER WORKERS http PATH...    # GET of paths that one of these regular expressions is for; all without one
//! alone PORT SERVER WORKERS tls PATTERN...  # TLS to server names that one of these patterns is for
//! ```

use std::{error::Error, process::ExitCode, sync::Arc, thread};

use namegate_config::{
    l7::{HttpRule, L7, RegexText},
    labels::LabelSelector,
    name::NamePattern,
    reference::Limits,
    rule::{Direction, Effect, Origin, Peers, Ports, Rule, Subject, Tier},
};
use namegate_l7_proxy::{Access, Backend, Config, ConnectionPolicy, Match, Proxy, Question};

const USAGE: &str = "usage: alone PORT SERVER WORKERS http|tls RULE...";

/// One rule for everybody; records go nowhere.
#[derive(Clone)]
struct OneRule(Arc<Rule>);

impl Backend for OneRule {
    async fn connection_policy(&self, _: Question) -> Option<ConnectionPolicy> {
        let sides = vec![(Direction::Egress, Limits::Rules(vec![Arc::clone(&self.0)]))];
        Some(ConnectionPolicy {
            sides,
            keeps_source: false,
            audit: false,
            bound: false,
            binding: Match::Good,
            names: Arc::default(),
        })
    }

    fn revision(&self) -> u64 {
        0
    }

    fn record(&self, _: Access) {}
}

fn rule(l7: L7) -> Rule {
    let origin = Origin { kind: "cnp".into(), namespace: None, name: "alone".into(), path: String::new() };
    Rule {
        origin: Arc::new(origin),
        subject: Subject::Endpoints(LabelSelector::default()),
        direction: Direction::Egress,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers: Peers::Any,
        ports: Ports::Any,
        l7: Some(Arc::new(l7)),
        binding: None,
        named_only: None,
    }
}

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(proxy) => loop {
            thread::park();
            // It may wake without a cause; the proxy ends with the process.
            let _ = proxy.port();
        },
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<Proxy, Box<dyn Error>> {
    let [port, server, workers, what, rules @ ..] = arguments else { return Err(USAGE.into()) };
    let l7 = match what.as_str() {
        "http" if rules.is_empty() => L7::Http(vec![HttpRule::default()]),
        "http" => L7::Http(rules.iter().map(|path| get(path)).collect::<Result<_, _>>()?),
        "tls" => L7::ServerNames(rules.iter().map(|text| NamePattern::pattern(text)).collect::<Result<_, _>>()?),
        _ => return Err(USAGE.into()),
    };
    let (port, workers) = (port.parse()?, workers.parse()?);
    let config = Config { workers, port, fixed_server: Some(server.parse()?), ..Config::default() };
    let proxy = Proxy::start(&config, OneRule(Arc::new(rule(l7))))?;
    println!("{}", proxy.port());
    Ok(proxy)
}

fn get(path: &str) -> Result<HttpRule, Box<dyn Error>> {
    let text = |text: &str| RegexText::new(text).map(Some).map_err(|error| format!("{text}: {error:?}"));
    Ok(HttpRule { method: text("GET")?, path: text(path)?, ..HttpRule::default() })
}
