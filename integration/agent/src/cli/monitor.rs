//! `namegate monitor`: new and denied flows as they happen.

use namegate_api::view::{Direction, Flow, Lost, Verdict};

use super::{
    Outcome,
    args::{MonitorArgs, Output},
    client::{Client, path},
    output, style,
};

pub(crate) async fn run(client: &Client, args: &MonitorArgs) -> anyhow::Result<Outcome> {
    let parameters = [
        ("denied", args.denied.then(|| "true".to_owned())),
        ("endpoint", args.endpoint.clone()),
        ("last", (args.last > 0).then(|| args.last.to_string())),
        ("follow", args.no_follow.then(|| "false".to_owned())),
    ];
    let mut lines = client.lines(&path("/v1/flows", &parameters)).await?;
    while let Some(line) = lines.next().await? {
        match args.form.output {
            Output::Json => output::text(&(output::escaped_json(&line) + "\n"))?,
            Output::Table => output::text(&read(&line)?)?,
        }
    }
    if !args.no_follow {
        anyhow::bail!("the agent on {} has stopped; its last rules stay in force", client.socket().display());
    }
    Ok(Outcome::Good)
}

fn read(line: &str) -> anyhow::Result<String> {
    if let Ok(Lost { lost }) = serde_json::from_str(line) {
        return Ok(format!("{}{lost} flows came too fast to be told{}\n", style::NOTE, style::RESET));
    }
    Ok(flow_line(&output::shown(&serde_json::from_str::<Flow>(line)?)?) + "\n")
}

/// A flow in one line: time, verdict, who, whom, port, rule and reason.
pub(crate) fn flow_line(flow: &Flow) -> String {
    let colour = match flow.verdict {
        Verdict::Denied => style::ERROR,
        Verdict::Audited => style::NOTE,
        Verdict::Allowed | Verdict::Redirected => style::GOOD,
    };
    let arrow = match flow.direction {
        Direction::Egress => "->",
        Direction::Ingress => "<-",
    };
    let rule = flow.rule.as_ref().map(|rule| format!(" ({rule})")).unwrap_or_default();
    format!(
        "{} {colour}{:<10}{} {} {arrow} {} {}{}: {}{rule}",
        clock(&flow.time),
        flow.verdict.text(),
        style::RESET,
        endpoint(flow),
        peer(flow),
        port(flow),
        request(flow),
        flow.reason_text,
    )
}

/// The reason of connections that ask for a name which did not open their address.
const MISMATCH: &str = "name-mismatch";

/// The request in the flow, where one was read.
fn request(flow: &Flow) -> String {
    match (&flow.http, &flow.server_name) {
        (Some(http), _) => format!(" {} {}{} {}", http.method, http.host, http.path, http.code),
        // The reason tells it.
        (None, Some(_)) if flow.reason == MISMATCH => String::new(),
        (None, Some(name)) => format!(" TLS {name}"),
        (None, None) => String::new(),
    }
}

/// `12:00:00.123` of an RFC 3339 moment.
fn clock(time: &str) -> &str {
    time.split_once('T').map_or(time, |(_, clock)| clock.trim_end_matches('Z'))
}

fn endpoint(flow: &Flow) -> String {
    match &flow.endpoint {
        gone if gone.name.is_empty() => format!("endpoint {}", gone.id),
        // The node itself has no namespace.
        node if node.namespace.is_empty() => node.name.clone(),
        endpoint => format!("{}/{}", endpoint.namespace, endpoint.name),
    }
}

fn peer(flow: &Flow) -> String {
    let address = flow.peer.address;
    match (&flow.peer.name, flow.peer.fqdns.as_slice()) {
        (Some(name), _) => format!("{name} ({address})"),
        (None, []) => address.to_string(),
        (None, names) => format!("{} ({address})", names.join(",")),
    }
}

fn port(flow: &Flow) -> String {
    let [kind, code] = flow.destination_port.to_be_bytes();
    match flow.protocol.as_str() {
        "TCP" | "UDP" | "SCTP" => format!("{}/{}", flow.destination_port, flow.protocol),
        "ICMP" | "ICMPv6" => format!("{} type {kind} code {code}", flow.protocol),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use namegate_api::view::{FlowEndpoint, FlowPeer, HttpRequest};

    use super::*;

    fn flow() -> Flow {
        Flow {
            time: "2026-07-01T12:00:00.123Z".into(),
            verdict: Verdict::Denied,
            direction: Direction::Egress,
            endpoint: FlowEndpoint { id: 7, namespace: "empire".into(), name: "tiefighter".into() },
            peer: FlowPeer {
                address: [142, 250, 1, 1].into(),
                name: None,
                fqdns: vec!["google.com".into()],
                identity: 2,
            },
            source: [10, 244, 1, 10].into(),
            source_port: 40_000,
            destination: [142, 250, 1, 1].into(),
            destination_port: 443,
            protocol: "TCP".into(),
            rule: None,
            reason: "default-deny".into(),
            reason_text: "no rule allows it".into(),
            tcp_flags: 2,
            length: 74,
            http: None,
            server_name: None,
        }
    }

    fn plain(flow: &Flow) -> String {
        anstream::adapter::strip_str(&flow_line(flow)).to_string()
    }

    #[test]
    fn a_line_tells_who_whom_and_why() {
        let by_name = flow();
        let by_rule = Flow {
            verdict: Verdict::Allowed,
            direction: Direction::Ingress,
            peer: FlowPeer { name: Some("monitoring/prometheus".into()), fqdns: vec![], ..flow().peer },
            rule: Some("empire/prometheus ingress[0]".into()),
            reason_text: "a rule allows it".into(),
            ..flow()
        };
        let asked =
            HttpRequest { method: "GET".into(), path: "/x".into(), host: "a.io".into(), code: 403, latency_ms: 0.5 };
        let ping = Flow {
            protocol: "ICMP".into(),
            destination_port: 8 << 8,
            peer: FlowPeer { fqdns: vec![], ..flow().peer },
            endpoint: FlowEndpoint { id: 9, namespace: String::new(), name: String::new() },
            ..flow()
        };
        for (flow, want) in [
            (
                by_name,
                "12:00:00.123 denied     empire/tiefighter -> google.com (142.250.1.1) 443/TCP: no rule allows it",
            ),
            (
                by_rule,
                "12:00:00.123 allowed    empire/tiefighter <- monitoring/prometheus (142.250.1.1) 443/TCP: \
                 a rule allows it (empire/prometheus ingress[0])",
            ),
            (
                Flow { http: Some(asked), ..flow() },
                "12:00:00.123 denied     empire/tiefighter -> google.com (142.250.1.1) 443/TCP GET a.io/x 403: \
                 no rule allows it",
            ),
            (ping, "12:00:00.123 denied     endpoint 9 -> 142.250.1.1 ICMP type 8 code 0: no rule allows it"),
        ] {
            assert_eq!(plain(&flow), want);
        }
    }

    #[test]
    fn a_flow_steers_no_terminal() {
        let http = HttpRequest {
            method: "GET".into(),
            path: "/\x1b]0;title\x07\u{9b}2J".into(),
            host: "a\u{202e}.io".into(),
            code: 403,
            latency_ms: 0.5,
        };
        let peer = FlowPeer { fqdns: vec!["\x1b[8m.example".into()], ..flow().peer };
        let flow = Flow { http: Some(http), peer, rule: Some("x\r\ny".into()), ..flow() };
        let line = read(&serde_json::to_string(&flow).unwrap()).unwrap();
        let line = line.strip_suffix('\n').unwrap();
        // Its own colours are of the form `ESC [ digits m`.
        let end = "GET a\\u{202e}.io/\\u{1b}]0;title\\u{7}\\u{9b}2J 403: no rule allows it (x\\r\\ny)";
        assert!(line.ends_with(end), "{line:?}");
        assert!(line.contains("\\u{1b}[8m.example"), "{line:?}");
        assert_eq!(line.matches('\x1b').count(), anstream_codes(line), "{line:?}");
    }

    /// How many sequences that colour text there are.
    fn anstream_codes(line: &str) -> usize {
        [style::ERROR.to_string(), style::RESET.to_string()]
            .iter()
            .map(|code| code.matches('\x1b').count())
            .sum::<usize>()
            * usize::from(line.contains('\x1b'))
    }

    #[test]
    fn lost_flows_are_told() {
        let line = read(r#"{"lost":12}"#).unwrap();
        assert_eq!(anstream::adapter::strip_str(&line).to_string(), "12 flows came too fast to be told\n");
    }
}
