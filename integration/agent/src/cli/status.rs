//! `namegate status`: the gate at a glance.

use std::{fmt::Write, net::SocketAddr};

use namegate_api::view::{Facts, Severity, SourceState, Status};
use namegate_config::fair_ring::pick_fairly;

use super::{Outcome, args::Output, client::Client, monitor::flow_line, output, style};

/// Kinds of connections with another name shown; `-o json` has them all.
const MISMATCHES_SHOWN: usize = 20;
/// Denials shown; `-o json` has them all.
const DENIALS_SHOWN: usize = 20;

pub(crate) async fn run(client: &Client, form: Output) -> anyhow::Result<Outcome> {
    let status: Status = client.get("/v1/status").await?;
    match form {
        Output::Json => output::json(&status)?,
        Output::Table => output::text(&page(&output::shown(&status)?)?)?,
    }
    Ok(Outcome::Good)
}

fn page(status: &Status) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    problems(&mut page, status)?;
    head(&mut page, status)?;
    section(&mut page, "Packets", &counters(status))?;
    section(&mut page, "Maps", &maps(status))?;
    if !status.refused.is_empty() {
        section(&mut page, "Refused", &refused(status))?;
    }
    if !status.dns.is_empty() {
        let rows = status.dns.iter().map(|counters| [counters.what.clone(), counters.count.to_string()]);
        section(&mut page, "DNS", &output::table(&["OUTCOME", "MESSAGES"], rows))?;
    }
    if status.requests.iter().any(|counters| counters.count > 0) {
        let rows = status.requests.iter().map(|counters| [counters.what.clone(), counters.count.to_string()]);
        section(&mut page, "Requests", &output::table(&["OUTCOME", "COUNT"], rows))?;
    }
    if status.name_checks.iter().any(|counters| counters.count > 0) {
        let rows = status.name_checks.iter().map(|counters| [counters.what.clone(), counters.count.to_string()]);
        section(&mut page, "Names of connections", &output::table(&["OUTCOME", "CONNECTIONS"], rows))?;
    }
    if !status.names_unread.is_empty() {
        let rows = status.names_unread.iter().map(|at| [at.endpoint.clone(), at.count.to_string()]);
        section(&mut page, "Connections that were not looked at", &output::table(&["ENDPOINT", "COUNT"], rows))?;
    }
    if !status.mismatches.is_empty() {
        section(&mut page, "What `nameBinding: enforce` would refuse", &mismatches(status))?;
    }
    section(&mut page, "Last denials", &denials(status))?;
    if !status.diagnostics.is_empty() {
        section(&mut page, "Mistakes and warnings", &diagnostics(status))?;
    }
    Ok(page)
}

/// What is wrong comes first.
fn problems(page: &mut String, status: &Status) -> std::fmt::Result {
    for problem in &status.problems {
        let subject = if problem.subject.is_empty() { String::new() } else { format!(" {}", problem.subject) };
        writeln!(page, "{}{}{}{subject}: {}", style::ERROR, problem.kind, style::RESET, problem.message)?;
    }
    if status.problems.is_empty() { Ok(()) } else { writeln!(page) }
}

fn head(page: &mut String, status: &Status) -> std::fmt::Result {
    let mode = if status.audit { "audit: nothing is dropped" } else { "enforcing" };
    let directions: Vec<&str> = status.directions.iter().map(|direction| direction.text()).collect();
    writeln!(page, "Namegate {}, {mode} ({}), since {}", status.version, directions.join(" and "), status.started)?;
    let behind = status.revision.wanted.saturating_sub(status.revision.enforced);
    let behind = if behind == 0 { String::new() } else { format!(", {behind} behind what the files say") };
    writeln!(page, "Policy     revision {} enforced{behind}", status.revision.enforced)?;
    let endpoints = &status.endpoints;
    let (guarded, waiting, failed) = (endpoints.guarded, endpoints.waiting, endpoints.failed);
    writeln!(page, "Endpoints  {guarded} guarded, {waiting} waiting for their interface, {failed} failed")?;
    writeln!(page, "Names      {} learned, {} addresses open", status.names.names, status.names.addresses)?;
    if let Some(kubernetes) = &status.kubernetes {
        let facts = match kubernetes.facts {
            Facts::Server => "objects of the API server are in force",
            Facts::Saved => "the API server has not answered yet: objects of the last run are in force",
            Facts::None => "the API server has not answered yet: the kernel goes on with what it holds",
        };
        writeln!(page, "Kubernetes {facts} (node {})", kubernetes.node)?;
        for source in kubernetes.sources.iter().filter(|source| source.state == SourceState::Failing) {
            let problem = source.problem.as_deref().unwrap_or("no reason is known");
            writeln!(page, "           {} is not followed: {problem}", source.kind)?;
        }
    }
    if status.flows_lost > 0 {
        writeln!(page, "Flows      {} were not told: they came too fast", status.flows_lost)?;
    }
    Ok(())
}

fn section(page: &mut String, heading: &str, text: &str) -> std::fmt::Result {
    write!(page, "\n{}{heading}{}\n{text}", style::HEADING, style::RESET)
}

fn counters(status: &Status) -> String {
    let rows = status.counters.iter().map(|counter| {
        [
            counter.direction.text().to_owned(),
            if counter.denied { "denied" } else { "allowed" }.to_owned(),
            counter.packets.to_string(),
            counter.octets.to_string(),
            counter.text.clone(),
        ]
    });
    output::table(&["DIRECTION", "VERDICT", "PACKETS", "OCTETS", "REASON"], rows)
}

fn maps(status: &Status) -> String {
    let rows = status.maps.iter().map(|fill| {
        let percent = fill.rows.saturating_mul(100) / fill.rows_max.max(1);
        [
            fill.map.clone(),
            fill.rows.to_string(),
            fill.rows_max.to_string(),
            format!("{percent}%"),
            fill.setting.clone(),
        ]
    });
    output::table(&["MAP", "ROWS", "MAX", "USED", "SETTING"], rows)
}

fn refused(status: &Status) -> String {
    let rows = status.refused.iter().map(|at| {
        let endpoint = if at.endpoint.is_empty() { "-" } else { &at.endpoint };
        [at.bound.clone(), endpoint.to_owned(), at.count.to_string(), at.setting.clone()]
    });
    output::table(&["BOUND", "ENDPOINT", "REFUSED", "SETTING"], rows)
}

fn mismatches(status: &Status) -> String {
    let rows = status.mismatches.iter().take(MISMATCHES_SHOWN).map(|one| {
        [
            one.endpoint.clone(),
            SocketAddr::new(one.address, one.port).to_string() + "/" + &one.protocol,
            one.asked.clone().unwrap_or_else(|| "none".to_owned()),
            one.names.join(", "),
            one.count.to_string(),
        ]
    });
    output::table(&["ENDPOINT", "ADDRESS", "ASKED FOR", "OPENED BY", "COUNT"], rows)
}

fn denials(status: &Status) -> String {
    if status.denials.is_empty() {
        return "none\n".to_owned();
    }
    let shown = pick_fairly(status.denials.iter(), DENIALS_SHOWN, |flow| flow.endpoint.id);
    shown.into_iter().map(|flow| flow_line(flow) + "\n").collect()
}

fn diagnostics(status: &Status) -> String {
    let lines = status.diagnostics.iter().map(|found| {
        let colour = if found.severity == Severity::Error { style::ERROR } else { style::NOTE };
        let help = found.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        // What no file says has no place.
        let place = if found.file.is_empty() {
            String::new()
        } else {
            format!("{}:{}:{}:", found.file, found.line, found.column)
        };
        let field = if found.field.is_empty() { String::new() } else { format!(" `{}`:", found.field) };
        format!("{colour}{}{} {place}{field} {}{help}\n", found.severity.text(), style::RESET, found.message)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use namegate_api::view::{
        Counter, Diagnostic, Direction, EndpointCounts, Fill, Kubernetes, NameCounts, NameMismatch, PacketCounter,
        Problem, Refused, Revision, Source,
    };

    use super::*;

    fn mismatch() -> NameMismatch {
        NameMismatch {
            endpoint: "shop/web".into(),
            address: [192, 0, 2, 9].into(),
            port: 443,
            protocol: "TCP".into(),
            asked: Some("b.example".into()),
            names: vec!["a.example".into()],
            count: 2,
            last: "2026-07-01T12:00:01.000Z".into(),
        }
    }

    fn denied() -> PacketCounter {
        PacketCounter {
            direction: Direction::Egress,
            reason: "default-deny".into(),
            text: "no rule allows it".into(),
            denied: true,
            packets: 12,
            octets: 900,
        }
    }

    fn kubernetes() -> Kubernetes {
        let problem = Some("connection refused".into());
        let source = Source { kind: "Pod".into(), state: SourceState::Failing, problem };
        Kubernetes { node: "node1".into(), facts: Facts::Server, sources: vec![source] }
    }

    fn mistake() -> Diagnostic {
        Diagnostic {
            file: "a.yaml".into(),
            line: 3,
            column: 5,
            severity: Severity::Error,
            code: "namegate::unknown-field".into(),
            field: "spec.egres".into(),
            message: "there is no such field".into(),
            help: Some("did you mean `egress`?".into()),
        }
    }

    fn problem() -> Problem {
        Problem {
            kind: "attachment".into(),
            subject: "shop/web".into(),
            message: "programs could not be attached".into(),
            since: "2026-07-01T12:00:00.000Z".into(),
        }
    }

    fn refused_names() -> Refused {
        Refused { bound: "names-per-endpoint".into(), endpoint: "shop/web".into(), count: 2, setting: "dns.n".into() }
    }

    #[test]
    fn the_page_tells_what_matters() {
        let status = Status {
            problems: vec![problem()],
            version: "0.1.0".into(),
            started: "2026-07-01T12:00:00.000Z".into(),
            audit: false,
            directions: vec![Direction::Egress],
            revision: Revision { wanted: 5, enforced: 4 },
            endpoints: EndpointCounts { guarded: 2, waiting: 1, failed: 0 },
            names: NameCounts { names: 3, addresses: 7 },
            counters: vec![denied()],
            maps: vec![Fill { map: "POLICY".into(), rows: 50, rows_max: 200, setting: "limits.policyRows".into() }],
            refused: vec![refused_names()],
            dns: vec![Counter { what: "answered".into(), count: 6 }],
            dns_answers_kept: 0,
            requests: vec![],
            name_checks: vec![Counter { what: "matched".into(), count: 8 }],
            names_unread: vec![],
            mismatches: vec![mismatch()],
            denials: vec![],
            flows: vec![],
            flows_lost: 4,
            attachments_healed: 0,
            kubernetes: Some(kubernetes()),
            diagnostics: vec![mistake()],
        };
        let page = anstream::adapter::strip_str(&page(&status).unwrap()).to_string();
        insta::assert_snapshot!(page, @r"
        attachment shop/web: programs could not be attached

        Namegate 0.1.0, enforcing (egress), since 2026-07-01T12:00:00.000Z
        Policy     revision 4 enforced, 1 behind what the files say
        Endpoints  2 guarded, 1 waiting for their interface, 0 failed
        Names      3 learned, 7 addresses open
        Kubernetes objects of the API server are in force (node node1)
                   Pod is not followed: connection refused
        Flows      4 were not told: they came too fast

        Packets
        DIRECTION  VERDICT  PACKETS  OCTETS  REASON
        egress     denied   12       900     no rule allows it

        Maps
        MAP     ROWS  MAX  USED  SETTING
        POLICY  50    200  25%   limits.policyRows

        Refused
        BOUND               ENDPOINT  REFUSED  SETTING
        names-per-endpoint  shop/web  2        dns.n

        DNS
        OUTCOME   MESSAGES
        answered  6

        Names of connections
        OUTCOME  CONNECTIONS
        matched  8

        What `nameBinding: enforce` would refuse
        ENDPOINT  ADDRESS            ASKED FOR  OPENED BY  COUNT
        shop/web  192.0.2.9:443/TCP  b.example  a.example  2

        Last denials
        none

        Mistakes and warnings
        error a.yaml:3:5: `spec.egres`: there is no such field (did you mean `egress`?)
        ");
    }
}
