//! `namegate policy trace`: one flow, judged on both sides, with the rules that say so.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use anyhow::{Context, bail};
use namegate_config::{
    cases::{Answer, Case, Changes, Check, Family, Outcome as Became, Place, Records, Step, World, run_each},
    diagnostic::Diagnostic,
    l7::Request,
    policy::{self, Document},
    reference::Reason,
    rule::Direction,
};
use namegate_policy_test::{Explained, Model, Tracer, Trial};
use serde_json::json;

use super::{
    Outcome,
    args::{Output, TraceArgs},
    cluster, output, sources, style,
};

/// Addresses of a name that nobody gave any (RFC 5737, RFC 3849).
const ASSUMED: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// TTL of these, in seconds.
const ASSUMED_TTL_S: u64 = 60;
/// The service that pods look names up at.
const RESOLVER: (&str, &str) = ("kube-system", "kube-dns");

pub(crate) fn run(args: &TraceArgs) -> anyhow::Result<Outcome> {
    let Some((mut world, paths)) = cluster::read(args.world.as_deref(), args.config.as_deref())? else {
        bail!("give `--world` or `--config`");
    };
    let documents = documents(if args.policies.is_empty() { &paths } else { &args.policies })?;
    let check = check(args)?;
    let refused = check.request.as_ref().filter(|request| matches!(request, Request::Http { .. }));
    let refused = refused.and_then(|request| request.head().err());
    let (step, mut notes) = step(&mut world, documents, check);
    if let Some(refused) = refused {
        notes.push(format!(
            "the proxy answers {} to such a request, whatever rules say: {}",
            refused.status, refused.why
        ));
    }
    let case = Case {
        name: "trace".to_owned(),
        title: String::new(),
        world: world.name.clone(),
        doubtful: None,
        steps: vec![step],
    };
    let mut tracer = Tracer::new(Trial::new(Box::new(Model)));
    let mut became = None;
    run_each(&case, &world, &mut tracer, &mut |seen| became = Some((seen.check.clone(), seen.got.clone())));
    let Some((check, became)) = became else { bail!("nothing was asked") };
    let flow = format!("{} -> {} {}", args.from, shown(&args.to), check.flow);
    let allowed = match became {
        Became::Allowed => true,
        Became::Denied { .. } => false,
        Became::Impossible(why) => bail!("{flow}: {why}"),
        Became::NotJudged(why) => bail!("{flow}: {why}"),
    };
    match args.form.output {
        Output::Table => output::text(&text(&flow, allowed, &tracer.sides, &notes)?)?,
        Output::Json => output::json(&as_json(args, allowed, &tracer.sides, &notes))?,
    }
    Ok(if allowed { Outcome::Good } else { Outcome::Bad })
}

/// The policies; one that would be refused is an error, since what the others do says little without it.
fn documents(paths: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for source in sources::read(paths)? {
        let parsed = policy::parse(&source.name, &source.text);
        let errors: Vec<&Diagnostic> = parsed.diagnostics.iter().filter(|found| found.is_error()).collect();
        if !errors.is_empty() {
            bail!("{} is refused:\n{}", source.name, output::drawn(errors)?);
        }
        documents.extend(parsed.documents);
    }
    Ok(documents)
}

fn check(args: &TraceArgs) -> anyhow::Result<Check> {
    let host = if let Place::Name(name) = &args.to { name.to_string() } else { String::new() };
    let request = args.http.as_ref().map(|text| {
        let (method, path) =
            text.split_once(' ').with_context(|| format!("`{text}` is no request: write `GET /path`"))?;
        Ok::<_, anyhow::Error>(Request::Http {
            method: method.to_owned(),
            path: path.to_owned(),
            host: host.clone(),
            headers: Vec::new(),
        })
    });
    let family = match &args.to {
        Place::Address(address) => Family::of(*address),
        _ if args.ipv6 => Family::V6,
        _ => Family::V4,
    };
    Ok(Check {
        from: args.from.clone(),
        to: args.to.clone(),
        family,
        flow: args.port,
        request: request.transpose()?,
        at_s: None,
        allowed: true,
        how: None,
    })
}

/// The one step. A name without an address gets one; where no resolver is known the answer is taken as heard.
fn step(world: &mut World, documents: Vec<Document>, mut check: Check) -> (Step, Vec<String>) {
    let mut notes = Vec::new();
    let mut answers = Vec::new();
    if let Place::Name(name) = check.to.clone() {
        if world.resolve(&name, check.family).addresses.is_empty() {
            let [v4, v6] = ASSUMED.map(|text| text.parse().into_iter().collect());
            let records = Records { a: v4, aaaa: v6, cname: None, ttl: ASSUMED_TTL_S };
            world.dns.insert(name.as_str().to_owned(), records);
            notes.push(format!("no address of {name} is known: one outside the cluster is assumed"));
        }
        let resolved = world.resolve(&name, check.family);
        let service = world.services.iter().find(|service| (&*service.namespace, &*service.name) == RESOLVER);
        let answering = service.map(|service| world.backends(service, 17, 53, check.family).len()).unwrap_or_default();
        if let (0, Some(address)) = (answering, resolved.addresses.first()) {
            notes.push("no resolver is known: the look-up itself is not judged".to_owned());
            check.to = Place::Address(*address);
            answers.push(Answer {
                at_s: 0,
                by: check.from.clone(),
                names: resolved.names,
                addresses: resolved.addresses.clone(),
                ttl_s: resolved.ttl_s.max(1),
            });
        }
    }
    let step = Step {
        title: String::new(),
        events: Vec::new(),
        changes: Changes::default(),
        documents,
        diagnostics: Vec::new(),
        answers,
        checks: vec![check],
    };
    (step, notes)
}

/// A destination as the command line takes it.
fn shown(place: &Place) -> String {
    match place {
        Place::Name(name) => name.to_string(),
        Place::Address(address) => address.to_string(),
        other => other.to_string(),
    }
}

const fn side(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

const fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

const fn phrase(reason: Reason) -> &'static str {
    match reason {
        Reason::Rule => "a rule allows it",
        Reason::NoPolicy => "no policy denies it by default",
        Reason::LocalHost => "the node may reach its own endpoints",
        Reason::DefaultDeny => "no rule allows it",
        Reason::DenyRule => "a deny rule matches",
        Reason::L7 => "rules allow the flow, and none the request inside it",
    }
}

fn text(flow: &str, allowed: bool, sides: &[Explained], notes: &[String]) -> Result<String, std::fmt::Error> {
    let colour = |allowed| if allowed { style::GOOD } else { style::ERROR };
    let mut text = format!("{}{}{}: {flow}\n", colour(allowed), word(allowed), style::RESET);
    for note in notes {
        writeln!(text, "note: {note}")?;
    }
    if sides.is_empty() {
        writeln!(text, "nobody's policy is asked: an endpoint reaches itself, and the world has no policy")?;
    }
    for one in sides {
        let (verdict, lookup) = (&one.verdict, if one.is_lookup { ", asking for the name" } else { "" });
        let (colour, word) = (colour(verdict.allowed), word(verdict.allowed));
        writeln!(
            text,
            "\n{} of {}{lookup}: {colour}{word}{}, {}",
            side(one.direction),
            one.subject,
            style::RESET,
            phrase(verdict.reason)
        )?;
        for rule in &one.rules {
            write!(text, "  {:9}  {:5}  {} {}", rule.standing.word(), rule.effect, rule.origin.kind, rule.origin)?;
            if rule.tier != "normal" {
                write!(text, " ({} tier)", rule.tier)?;
            }
            for (pattern, name) in &rule.names {
                write!(text, "; `{pattern}` stands for {name}")?;
            }
            writeln!(text, "{}", if rule.has_limits { "; limits requests" } else { "" })?;
        }
        for origin in &one.default_deny_by {
            writeln!(text, "  denies by default  {} {origin}", origin.kind)?;
        }
    }
    Ok(text)
}

fn as_json(args: &TraceArgs, allowed: bool, sides: &[Explained], notes: &[String]) -> serde_json::Value {
    let side = |one: &Explained| {
        let rules = one.rules.iter().map(|rule| {
            let names: BTreeMap<&String, &String> = rule.names.iter().map(|(pattern, name)| (pattern, name)).collect();
            json!({
                "kind": rule.origin.kind, "rule": rule.origin.to_string(), "effect": rule.effect, "tier": rule.tier,
                "standing": rule.standing.word(), "names": names, "limitsRequests": rule.has_limits,
            })
        });
        json!({
            "direction": side(one.direction), "endpoint": one.subject.to_string(), "isLookup": one.is_lookup,
            "verdict": word(one.verdict.allowed), "reason": one.verdict.reason.word(),
            "rule": one.verdict.by.as_ref().map(ToString::to_string), "rules": rules.collect::<Vec<_>>(),
            "defaultDenyBy": one.default_deny_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    };
    json!({
        "from": args.from.to_string(), "to": shown(&args.to), "flow": args.port.to_string(), "verdict": word(allowed),
        "notes": notes, "sides": sides.iter().map(side).collect::<Vec<_>>(),
    })
}
