//! Verbs, options and their help. Every verb has an example, and a test runs the parser over each.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};
use ipnet::IpNet;
use namegate_config::{
    cases::Place,
    reference::{Flow, ICMP, ICMPV6},
    rule::Transport,
    schema,
};

/// Where the agent's API is, unless its settings say otherwise.
pub(crate) const SOCKET: &str = "/run/namegate/namegate.sock";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the answer is no or mistakes were found, 2 it could not be done.";

/// A DNS-aware egress gateway: names in policies open addresses for as long as their TTL says.
#[derive(Debug, Parser)]
#[command(
    name = "namegate",
    version,
    after_help = EXIT_CODES,
    after_long_help = "Example:\n  namegate status\n\nExit codes: 0 done, 1 the answer is no or mistakes were \
        found, 2 it could not be done.",
    disable_help_subcommand = true,
    infer_subcommands = false
)]
pub(crate) struct Cli {
    /// Unix socket of the agent's API.
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Guard the endpoints of this machine: load the programs, watch files, serve DNS and the API.
    #[command(after_help = "Example:\n  namegate agent --config /etc/namegate/namegate.yaml")]
    Agent {
        /// The settings file.
        #[arg(short, long, value_name = "FILE", default_value = "/etc/namegate/namegate.yaml")]
        config: PathBuf,
    },
    /// Work with policies, without an agent.
    #[command(after_help = "Example:\n  namegate policy validate policies/")]
    Policy {
        /// What to do.
        #[command(subcommand)]
        verb: PolicyVerb,
    },
    /// Work with names: match a pattern, list or clean what was learned.
    #[command(after_help = "Example:\n  namegate fqdn cache list")]
    Fqdn {
        /// What to do.
        #[command(subcommand)]
        verb: FqdnVerb,
    },
    /// Show what is guarded, counters, recent denials and mistakes.
    #[command(after_help = "Example:\n  namegate status -o json")]
    Status(OutputArgs),
    /// Follow new and denied flows as they happen.
    #[command(after_help = "Example:\n  namegate monitor --denied --endpoint empire/tiefighter")]
    Monitor(MonitorArgs),
}

/// Verbs about policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Show every mistake and warning in policy files, each at its line.
    #[command(
        after_help = "Example:\n  namegate policy validate policies/ extra.yaml\n  kubectl get cnp -A -o yaml | namegate policy validate -o sarif -"
    )]
    Validate(ValidateArgs),
    /// Try policies on a cluster on paper: unit tests, each flow judged by the datapath itself.
    #[command(
        after_help = "Example:\n  namegate policy test --cases conformance/cases\n  namegate policy test --cases tests/ --datapath kernel --only web -v\n\nExit codes: 0 every flow is as expected, 1 one is not, 2 a case could not be run."
    )]
    Test(TestArgs),
    /// Say what becomes of one flow, and which rules say so.
    #[command(
        after_help = "Example:\n  namegate policy trace --from shop/web --to 192.0.2.1 --config namegate.yaml\n  namegate policy trace --from empire/xwing --to empire/deathstar --http 'GET /v1' --world world.yaml --policies policies/\n\nExit codes: 0 the flow is allowed, 1 it is denied, 2 it could not be judged."
    )]
    Trace(TraceArgs),
    /// Print the JSON Schema of policies, for editors and pipelines: what is right in its form fits it.
    #[command(
        after_help = "Example:\n  namegate policy schema CiliumNetworkPolicy\n  namegate policy schema > policies.schema.json"
    )]
    Schema {
        /// Kind of object; left out, one schema of all kinds and of lists.
        #[arg(value_name = "KIND", value_parser = PossibleValuesParser::new(schema::kinds()))]
        kind: Option<String>,
    },
    /// Print the definitions of the policy kinds (CRDs), for clusters that have none of them.
    #[command(
        after_help = "Example:\n  namegate policy crds\n  namegate policy crds --directory crds/\n  namegate policy crds | kubectl apply --server-side -f -"
    )]
    Crds {
        /// Write a file for each kind there instead.
        #[arg(long, value_name = "PATH")]
        directory: Option<PathBuf>,
    },
}

/// Options of `policy trace`.
#[derive(Clone, Debug, Args)]
pub(crate) struct TraceArgs {
    /// Who starts the flow: `namespace/name` of an endpoint, or `host:NODE`.
    #[arg(long, value_name = "PLACE")]
    pub(crate) from: Place,
    /// Where it goes: `namespace/name`, an address, a name, or `svc:namespace/name`.
    #[arg(long, value_name = "PLACE", value_parser = destination)]
    pub(crate) to: Place,
    /// Port and protocol, as in `443/TCP`; for ICMP the type, as in `8/ICMP`.
    #[arg(long, value_name = "PORT/PROTOCOL", default_value = "80/TCP", value_parser = flow)]
    pub(crate) port: Flow,
    /// A request inside the flow, as in `GET /path`.
    #[arg(long, value_name = "REQUEST")]
    pub(crate) http: Option<String>,
    /// Use IPv6 addresses where both ends have them.
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,
    /// Cluster on paper, in the form of `conformance/README.md`.
    #[arg(long, value_name = "FILE", conflicts_with = "config", required_unless_present = "config")]
    pub(crate) world: Option<PathBuf>,
    /// The agent's settings file: its endpoints, and its policies unless others are given.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Policy files or directories.
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "config")]
    pub(crate) policies: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) form: OutputArgs,
}

/// Reads an address, a name, or a place as cases write it.
fn destination(text: &str) -> Result<Place, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Place::Address(address));
    }
    if text.contains(['/', ':']) {
        return text.parse();
    }
    text.parse().map(Place::Name).map_err(|error| format!("`{text}` is no place: {error}"))
}

/// Reads `443/TCP`, `443`, `8/ICMP` or `128/ICMPv6`.
fn flow(text: &str) -> Result<Flow, String> {
    let (number, word) = text.split_once('/').unwrap_or((text, "TCP"));
    let port: u16 = number.parse().map_err(|error| format!("`{number}`: {error}"))?;
    let transport = Transport::ALL.into_iter().find(|transport| transport.as_str().eq_ignore_ascii_case(word));
    let icmp = [("ICMP", ICMP), ("ICMPv6", ICMPV6)].into_iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    match (transport, icmp) {
        (Some(transport), _) => Ok(Flow { protocol: transport.number(), port }),
        (None, Some((_, protocol))) if port <= 255 => Ok(Flow { protocol, port: port << 8 }),
        (None, Some(_)) => Err(format!("{port} is no type of ICMP: 0 to 255")),
        (None, None) => Err(format!("`{word}` is none of TCP, UDP, SCTP, ICMP, ICMPv6")),
    }
}

/// Options of `policy test`.
#[derive(Clone, Debug, Args)]
pub(crate) struct TestArgs {
    /// Case files, or directories searched for them. Given once or more.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) cases: Vec<PathBuf>,
    /// What judges the flows.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) datapath: DatapathKind,
    /// Only cases whose name has this text.
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Every flow, not only those that fail.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: TestOutput,
}

/// What judges the flows of `policy test`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DatapathKind {
    /// Compiled rows in memory, under the decision that the kernel's programs take.
    #[default]
    Model,
    /// The programs, loaded into this machine's kernel; needs root.
    Kernel,
}

/// Forms of the output of `policy test`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TestOutput {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For build servers (`JUnit` XML).
    Junit,
}

/// Options of `policy validate`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Files, directories (searched for YAML and JSON), or `-` for standard input.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Warnings count as mistakes.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Cluster on paper: tells rules that are about nobody.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub(crate) world: Option<PathBuf>,
    /// The agent's settings file: the same, by its endpoints.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ValidateOutput,
}

/// Forms of the output of `policy validate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ValidateOutput {
    /// Drawn, for people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For code hosts (SARIF 2.1.0).
    Sarif,
}

/// Verbs about names.
#[derive(Debug, Subcommand)]
pub(crate) enum FqdnVerb {
    /// Say whether a pattern stands for a name: prints `match` (exit 0) or `no match` (exit 1).
    #[command(after_help = "Example:\n  namegate fqdn match '*.cilium.io' docs.cilium.io")]
    Match {
        /// A `matchName` or `matchPattern`.
        pattern: String,
        /// A name, with or without the trailing dot.
        name: String,
    },
    /// Names that endpoints have learned.
    #[command(after_help = "Example:\n  namegate fqdn cache list --matchpattern '*.cilium.io'")]
    Cache {
        /// What to do.
        #[command(subcommand)]
        verb: CacheVerb,
    },
}

/// Verbs about learned names.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheVerb {
    /// List learned names with their addresses and when they end.
    #[command(after_help = "Example:\n  namegate fqdn cache list -e empire/tiefighter -p '*.cilium.io' -o json")]
    List(CacheArgs),
    /// Forget learned names; the kernel closes their addresses at once.
    #[command(after_help = "Example:\n  namegate fqdn cache clean -p docs.cilium.io --yes")]
    Clean(CleanArgs),
    /// List the name selectors of the policies in force, with what they hold now.
    #[command(after_help = "Example:\n  namegate fqdn cache names -o table")]
    Names(OutputArgs),
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Which learned names.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Which {
    /// Only names that this pattern stands for.
    #[arg(short = 'p', long, value_name = "PATTERN")]
    pub(crate) matchpattern: Option<String>,
    /// Only names that this endpoint learned: `namespace/name`, a name or an id.
    #[arg(short, long)]
    pub(crate) endpoint: Option<String>,
    /// Only names with an address in this prefix.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) cidr: Option<IpNet>,
}

/// Options of `fqdn cache list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    #[command(flatten)]
    pub(crate) form: OutputArgs,
}

/// Options of `fqdn cache clean`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CleanArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Do not ask.
    #[arg(short, long, visible_short_alias = 'f')]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) form: OutputArgs,
}

/// Options of `monitor`.
#[derive(Clone, Debug, Args)]
pub(crate) struct MonitorArgs {
    /// Only flows that were denied, or in audit mode would have been.
    #[arg(long)]
    pub(crate) denied: bool,
    /// Only flows of this endpoint: `namespace/name`, a name or an id.
    #[arg(short, long)]
    pub(crate) endpoint: Option<String>,
    /// Begin with this many past flows.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) last: usize,
    /// End after the past flows.
    #[arg(long)]
    pub(crate) no_follow: bool,
    #[command(flatten)]
    pub(crate) form: OutputArgs,
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::*;

    /// Calls `see` for the command and everything below it, with the words that lead there.
    fn walk(command: &Command, path: &[String], see: &mut impl FnMut(&Command, &[String])) {
        see(command, path);
        for below in command.get_subcommands() {
            let path: Vec<String> = path.iter().cloned().chain([below.get_name().to_owned()]).collect();
            walk(below, &path, see);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example_that_is_read() {
        let mut verbs = 0;
        walk(&Cli::command(), &["namegate".to_owned()], &mut |command, path| {
            let help = command.clone().render_long_help().to_string();
            let verb = path.join(" ");
            let (_, examples) = help.split_once("Example:\n").unwrap_or_else(|| panic!("`{verb}` has no example"));
            let example = examples.lines().next().unwrap().trim();
            assert!(example.starts_with(&verb), "`{example}` is no example of `{verb}`");
            let words: Vec<String> = example.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("`{example}`: {error}"));
            verbs += 1;
        });
        assert!(verbs >= 9, "{verbs} verbs seen");
    }
}
