//! Reads case files. The policies inside are read where they stand, so that mistakes point into the case file.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny},
};

use super::{Answer, Case, Changes, Check, Family, Place, Step};
use crate::{
    diagnostic::{Code, Diagnostic, Source, Span},
    document::{self, Kind, Node, read_as},
    l7::Request,
    name::Fqdn,
    policy::{self, Features, Parsed},
    question::QueryType,
    reader::Value,
    reference::{Flow, ICMP, ICMPV6},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    name: String,
    #[serde(default)]
    title: String,
    world: String,
    #[serde(default)]
    doubtful: Option<String>,
    #[serde(default)]
    steps: Vec<StepFile>,
    // A case without steps is one step.
    #[serde(default)]
    events: Vec<String>,
    #[serde(default, rename = "policies")]
    _policies: IgnoredAny,
    #[serde(default)]
    world_changes: Changes,
    #[serde(default)]
    dns: Vec<AnswerFile>,
    #[serde(default)]
    expect: Expect,
    #[serde(default, rename = "suite")]
    _suite: IgnoredAny,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(default, rename = "kinds")]
    _kinds: IgnoredAny,
    #[serde(default, rename = "features")]
    _features: IgnoredAny,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    #[serde(default)]
    title: String,
    #[serde(default)]
    events: Vec<String>,
    #[serde(default, rename = "policies")]
    _policies: IgnoredAny,
    #[serde(default)]
    world_changes: Changes,
    #[serde(default)]
    dns: Vec<AnswerFile>,
    #[serde(default)]
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    #[serde(default)]
    at: u64,
    #[serde(deserialize_with = "from_text")]
    by: Place,
    #[serde(deserialize_with = "from_text")]
    name: Fqdn,
    #[serde(default)]
    cnames: Vec<String>,
    ips: Vec<IpAddr>,
    ttl: u64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    #[serde(default)]
    matrix: Option<Matrix>,
    #[serde(default)]
    flows: Vec<FlowFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    to: Vec<String>,
    tables: Vec<Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    probes: Vec<String>,
    #[serde(default, rename = "origin")]
    _origin: IgnoredAny,
    denied: usize,
    rows: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowFile {
    #[serde(deserialize_with = "from_text")]
    from: Place,
    #[serde(deserialize_with = "from_text")]
    to: Place,
    #[serde(default)]
    family: FamilyWord,
    #[serde(default = "tcp")]
    protocol: String,
    #[serde(default)]
    port: u16,
    #[serde(default, rename = "type")]
    kind: u8,
    #[serde(default)]
    http: Option<HttpFile>,
    #[serde(default)]
    dns: Option<DnsFile>,
    #[serde(default)]
    sni: Option<String>,
    #[serde(default)]
    at: Option<u64>,
    verdict: VerdictWord,
    #[serde(default)]
    how: Option<String>,
    #[serde(default, rename = "origin")]
    _origin: IgnoredAny,
    #[serde(default, rename = "reason")]
    _reason: IgnoredAny,
}

#[derive(Default, Deserialize)]
enum FamilyWord {
    #[default]
    IPv4,
    IPv6,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum VerdictWord {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpFile {
    #[serde(default = "get")]
    method: String,
    #[serde(default = "root")]
    path: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DnsFile {
    #[serde(deserialize_with = "from_text")]
    name: Fqdn,
    #[serde(default = "address", rename = "type", deserialize_with = "from_text")]
    kind: QueryType,
}

fn address() -> QueryType {
    QueryType::A
}

fn tcp() -> String {
    "TCP".to_owned()
}

fn get() -> String {
    "GET".to_owned()
}

fn root() -> String {
    "/".to_owned()
}

fn from_text<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

impl Case {
    /// Reads a case file. Mistakes in its policies are no mistakes of the case: see [`Step::diagnostics`].
    pub fn parse(file_name: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let source = Source::new(file_name, text);
        let file: CaseFile = read_as(&source).map_err(|error| vec![error])?;
        let mut documents = document::read(&source);
        let node = match documents.pop() {
            Some(Ok(node)) => node,
            Some(Err(error)) => return Err(vec![error]),
            None => return Err(vec![mistake(&source, "the file is empty")]),
        };
        let steps: Vec<(StepFile, &Node)> = if file.steps.is_empty() {
            let step = StepFile {
                title: file.title.clone(),
                events: file.events,
                world_changes: file.world_changes,
                dns: file.dns,
                expect: file.expect,
                ..StepFile::default()
            };
            vec![(step, &node)]
        } else {
            let Some(Kind::List(nodes)) = node.field("steps").map(|steps| &steps.kind) else {
                return Err(vec![mistake(&source, "`steps` is no list")]);
            };
            file.steps.into_iter().zip(nodes).collect()
        };
        let steps = steps.into_iter().map(|(step, node)| step.read(&source, node)).collect::<Result<_, _>>();
        let steps = steps.map_err(|problem| vec![mistake(&source, &problem)])?;
        Ok(Self { name: file.name, title: file.title, world: file.world, doubtful: file.doubtful, steps })
    }
}

fn mistake(source: &Source, problem: &str) -> Diagnostic {
    source.error(Span::default(), Code::BadValue, "", problem)
}

impl StepFile {
    fn read(self, source: &Source, node: &Node) -> Result<Step, String> {
        let mut parsed = Parsed::default();
        if let Some(Kind::List(policies)) = node.field("policies").map(|policies| &policies.kind) {
            for policy in policies {
                policy::parse_node(source, &Value::root(policy), Features::default(), &mut parsed);
            }
        }
        let mut checks = self.expect.matrix.map(Matrix::checks).transpose()?.unwrap_or_default();
        for flow in self.expect.flows {
            checks.push(flow.check()?);
        }
        Ok(Step {
            title: self.title,
            events: self.events,
            changes: self.world_changes,
            documents: parsed.documents,
            diagnostics: parsed.diagnostics,
            answers: self.dns.into_iter().map(AnswerFile::answer).collect::<Result<_, _>>()?,
            checks,
        })
    }
}

impl AnswerFile {
    fn answer(self) -> Result<Answer, String> {
        let mut names = vec![self.name];
        for name in self.cnames {
            names.push(name.parse().map_err(|error| format!("`{name}`: {error}"))?);
        }
        Ok(Answer { at_s: self.at, by: self.by, names, addresses: self.ips, ttl_s: self.ttl })
    }
}

impl Matrix {
    fn checks(self) -> Result<Vec<Check>, String> {
        let places = self.to.iter().map(|text| text.parse()).collect::<Result<Vec<Place>, _>>()?;
        let mut checks = Vec::new();
        for table in self.tables {
            let crosses: usize = table.rows.values().map(|row| row.matches('X').count()).sum();
            if crosses != table.denied {
                return Err(format!("a table has {crosses} denials, its check sum says {}", table.denied));
            }
            if let Some(stranger) = table.rows.keys().find(|row| !self.to.contains(row)) {
                return Err(format!("the row `{stranger}` is no column"));
            }
            for probe in &table.probes {
                let (protocol, port) = probe.split_once('/').ok_or_else(|| format!("`{probe}` is no probe"))?;
                let port = port.parse().map_err(|error| format!("`{probe}`: {error}"))?;
                let flow = Flow { protocol: protocol_number(protocol)?, port };
                for (from, place) in self.to.iter().zip(&places) {
                    row(place, &places, table.rows.get(from).map(String::as_str), flow, &mut checks)?;
                }
            }
        }
        Ok(checks)
    }
}

/// The cells of one row; a row that is left out allows everything but the pod itself, which no cell claims.
fn row(from: &Place, to: &[Place], cells: Option<&str>, flow: Flow, checks: &mut Vec<Check>) -> Result<(), String> {
    if let Some(cells) = cells.filter(|cells| cells.chars().count() != to.len()) {
        return Err(format!("the row `{from}` has {} cells for {} columns", cells.chars().count(), to.len()));
    }
    let mut cells = cells.map(str::chars);
    for to in to {
        let allowed = match cells.as_mut().and_then(Iterator::next) {
            Some('-') => continue,
            None if from == to => continue,
            None | Some('.') => true,
            Some('X') => false,
            Some(other) => return Err(format!("`{other}` is no cell: `.`, `X` and `-` are")),
        };
        checks.push(Check {
            from: from.clone(),
            to: to.clone(),
            family: Family::V4,
            flow,
            request: None,
            at_s: None,
            allowed,
            how: None,
        });
    }
    Ok(())
}

impl FlowFile {
    fn check(self) -> Result<Check, String> {
        let protocol = protocol_number(&self.protocol)?;
        let port = if [ICMP, ICMPV6].contains(&protocol) { u16::from(self.kind) << 8 } else { self.port };
        let request = match (self.http, self.dns, self.sni) {
            (Some(http), ..) => Some(Request::Http {
                method: http.method,
                path: http.path,
                host: http.host,
                headers: http.headers.into_iter().collect(),
            }),
            (None, Some(dns), _) => Some(Request::Dns { name: dns.name, kind: dns.kind }),
            (None, None, Some(name)) => {
                let server_name = name.parse().map_err(|error| format!("`{name}`: {error}"))?;
                Some(Request::Tls { server_name: Some(server_name) })
            }
            (None, None, None) => None,
        };
        Ok(Check {
            from: self.from,
            to: self.to,
            family: match self.family {
                FamilyWord::IPv4 => Family::V4,
                FamilyWord::IPv6 => Family::V6,
            },
            flow: Flow { protocol, port },
            request,
            at_s: self.at,
            allowed: self.verdict == VerdictWord::Allow,
            how: self.how,
        })
    }
}

/// IANA protocol number of a word.
fn protocol_number(word: &str) -> Result<u8, String> {
    match word {
        "ICMP" => Ok(ICMP),
        "TCP" => Ok(6),
        "UDP" => Ok(17),
        "GRE" => Ok(47),
        "ICMPv6" => Ok(ICMPV6),
        "SCTP" => Ok(132),
        _ => Err(format!("`{word}` is no protocol of cases")),
    }
}
