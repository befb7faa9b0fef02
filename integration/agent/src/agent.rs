//! The agent: reads settings, starts the enforcer, serves DNS and the API, and follows files, interfaces and flows.

mod absent;
mod api_backend;
mod asked_names;
mod attachments;
mod background;
mod begun;
mod clock;
mod cluster;
mod cluster_state;
mod cni;
mod configs;
mod descriptors;
mod dns_backend;
mod enforcer;
mod existing_pods;
mod fair_cache;
mod file_watch;
mod files;
mod flows;
mod interfaces;
mod kubernetes;
mod listeners;
mod log;
mod memory;
mod name_check;
mod named_flows;
mod objects;
mod own;
mod policies;
mod policy_state;
mod problems;
mod quic_hold;
mod reading;
mod records;
mod refusals;
mod reload;
mod requests;
mod shown;
mod sources;
mod stamp;
mod start;
mod state;
mod touched;
mod unit;
mod unused_selectors;
mod upkeep;
mod wake;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use namegate_api::rfc3339;
use namegate_config::{
    policy::Features,
    rule::Direction,
    settings::{self, Settings},
};
use namegate_dns_proxy::Proxy;
use namegate_enforcer::{Enforcer, EnforcerHandle, Journal, Parts as EnforcerParts, Reader, Running, Stall};
use namegate_engine::Proxies;
use namegate_l7_proxy::Proxy as L7Proxy;
use namegate_loader::{Datapath, Events, MapLimits, Meters, Openings, Options, PinsLock, routes, untracked};
use tokio::signal::unix::{SignalKind, signal};

use crate::outcome::Outcome;

pub(crate) use unit::shown as shown_diagnostic;

use api_backend::ApiBackend;
use asked_names::Checks;
use background::Background;
use cluster::Cluster;
use configs::{PROXY_MARK, descriptors_wanted, dns_config, kernel_settings, l7_config};
use dns_backend::DnsBackend;
use enforcer::{Kernel, Reports};
use flows::Flows;
use kubernetes::Kubernetes;
use listeners::Listeners;
use named_flows::{Judge, NamedFlows};
use policy_state::SharedPolicyState;
use problems::Problems;
use records::RecordsThread;
use reload::{Held, Reloader};
use requests::L7Backend;
use touched::Cause;

/// What of the policy language is enforced where both directions are guarded: no names in policies for nodes.
pub(crate) const FEATURES: Features =
    Features { http: true, dns: true, server_names: true, nodes: true, node_names: false };
/// A thread that has had nothing to do for so long ends: while it lives, it keeps memory that it has freed.
const IDLE_THREAD_KEPT: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to end. Mistakes in the settings are drawn, and exit with 2.
pub(crate) fn run(config: &Path) -> anyhow::Result<Outcome> {
    let shown = config.display().to_string();
    let text = std::fs::read_to_string(config)
        .with_context(|| format!("reading the settings {shown}; name the file with `--config`"))?;
    let settings = match settings::parse(&shown, &text) {
        Ok(settings) => beside(config, settings),
        Err(mistakes) => {
            for mistake in mistakes {
                anstream::eprintln!("{:?}", miette::Report::new(mistake.printable()));
            }
            return Ok(Outcome::Failed);
        }
    };
    let checked = start::check(&settings)?;
    if checked != Outcome::Good {
        return Ok(checked);
    }
    log::start();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_keep_alive(IDLE_THREAD_KEPT).enable_all().build()?;
    runtime.block_on(serve(settings))?;
    Ok(Outcome::Good)
}

/// Paths in the settings are relative to their file.
fn beside(config: &Path, mut settings: Settings) -> Settings {
    let folder = config.parent().unwrap_or(Path::new("."));
    let files = [&mut settings.policies, &mut settings.endpoints].into_iter().flatten();
    let kubeconfig = settings.kubernetes.as_mut().and_then(|kubernetes| kubernetes.kubeconfig.as_mut());
    let places = [&mut settings.socket, &mut settings.state, &mut settings.pins];
    for path in files.chain(kubeconfig).chain(places) {
        *path = folder.join(&*path);
    }
    settings
}

/// What of the policy language is enforced with these directions: a proxy gets its servers' answers from the programs of
/// both.
fn features(directions: &[Direction], nodes: bool) -> Features {
    let both = [Direction::Ingress, Direction::Egress].iter().all(|direction| directions.contains(direction));
    Features { http: both && FEATURES.http, server_names: both && FEATURES.server_names, nodes, ..FEATURES }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let started = rfc3339(std::time::SystemTime::now());
    let limit = descriptors::raise();
    let listeners = Listeners::open(&settings)?;
    let (flows, policy_state) = (Arc::<Flows>::default(), Arc::<SharedPolicyState>::default());
    let reports = Arc::<Reports>::default();
    let (problems, refusals) = (Arc::clone(&reports.problems), Arc::clone(&reports.refusals));
    let Parts { running, events, openings, features, looked, meters, held } = open(&settings, Arc::clone(&reports))?;
    let enforcer = running.handle();
    let reader = enforcer.reader().clone();
    let mut background = Background::default();
    let checks = Arc::<Checks>::default();
    watch_kernel(&mut background, (looked, openings, &meters), (&reader, &reports), (&flows, &checks), settings.audit);
    let following = flows::follow(events, reader.clone(), Arc::clone(&flows));
    let shared = descriptors::share_out(limit, descriptors_wanted(&settings), &problems);
    let (requests, records) = L7Backend::new(reader.clone(), Arc::clone(&refusals), settings.audit);
    let l7 = Arc::new(L7Proxy::start(&l7_config(&settings, &shared), requests.clone())?);
    let telling = requests::follow(records, reader.clone(), Arc::clone(&flows));
    let explaining = RecordsThread::start(following, telling).context("starting the thread that explains records")?;
    let dns_backend = DnsBackend::new(enforcer.clone(), Arc::clone(&refusals), settings.audit);
    let proxy = Arc::new(Proxy::start(&dns_config(&settings, &shared), dns_backend)?);
    // Before the rules: those that need a proxy find it.
    let proxies = Proxies { dns: proxy.port(), l7: l7.port() };
    enforcer.set_proxies(proxies).await?;
    let kubernetes = Kubernetes::start(&settings).await?;
    let cluster = kubernetes.as_ref().map(Kubernetes::cluster);
    let reloader = read(&settings, features, (enforcer.clone(), held), (&policy_state, &problems), cluster).await?;
    reports.follow(reloader.nudge(Cause::Kernel));
    let kubernetes = kubernetes.map(|kubernetes| kubernetes.followed(reloader.nudge(Cause::Cluster), &mut background));
    let links = reload::follow_links(reloader.nudge(Cause::Machine), Arc::clone(&problems));
    background.run("following interfaces", links);
    background.run("giving memory back", memory::keep_giving_back());
    // Open as long as names are looked at.
    let (names_port, _present) =
        quic_hold::presence(PROXY_MARK).context("opening the ports that say somebody looks at names")?;
    enforcer.configure(kernel_settings(proxies.dns, names_port)).await??;
    tracing::info!(port = proxy.port(), socket = %settings.socket.display(), "the agent enforces, and serves DNS and the API");
    let backend = ApiBackend {
        settings,
        enforcer,
        meters,
        refusals,
        policy_state,
        problems,
        flows,
        checks,
        proxy: Arc::clone(&proxy),
        l7: Arc::clone(&l7),
        requests,
        instruments: reports.instruments.clone(),
        started,
        kubernetes,
    };
    background.watch("explaining records", explaining.pulse());
    background.watch("reading policies and endpoints", reloader.pulse());
    watch_proxies(&mut background, Arc::clone(&proxy), Arc::clone(&l7));
    let mut ended = Ok(());
    listeners.serve(backend, async { ended = end(&reader, &mut background).await }).await;
    drop(background);
    stop(reloader, running, proxy, l7).await?;
    ended
}

/// Starts the tasks that follow what the programs copy and count, and what other tools change.
fn watch_kernel(
    background: &mut Background,
    (looked, openings, meters): (upkeep::Looked, (Openings, NamedFlows), &Arc<Meters>),
    (reader, reports): (&Reader, &Reports),
    (flows, checks): (&Arc<Flows>, &Arc<Checks>),
    audit: bool,
) {
    let (problems, refusals) = (Arc::clone(&reports.problems), Arc::clone(&reports.refusals));
    let looking = upkeep::follow(looked, reader.clone(), Arc::clone(&problems));
    background.run("looking at what other tools change", looking);
    let judging = (reader.clone(), Arc::clone(&refusals));
    // Nothing ends where denials are recorded only.
    let judge = (!audit).then(|| Judge {
        named: openings.1.clone(),
        reader: reader.clone(),
        checks: Arc::clone(checks),
        flows: Arc::clone(flows),
        problems: Arc::clone(&problems),
    });
    let copies = name_check::follow(openings, judging, Arc::clone(flows), Arc::clone(checks), PROXY_MARK);
    background.run("looking at names that connections ask for", copies);
    if let Some(judge) = judge {
        background.run("judging QUIC connections again", judge.follow());
    }
    let counting = refusals::follow(refusals, problems, reader.clone(), Arc::clone(meters));
    background.run("counting what is refused", counting);
}

/// Looks after the threads of both proxies.
fn watch_proxies(background: &mut Background, dns: Arc<Proxy>, l7: Arc<L7Proxy>) {
    background.watch("the DNS proxy", move || dns.is_alive());
    background.watch("the layer 7 proxy", move || l7.is_alive());
}

/// Reads everything once, and waits until the kernel holds it.
async fn read(
    settings: &Settings,
    features: Features,
    kernel: (EnforcerHandle, Held),
    (policy_state, problems): (&Arc<SharedPolicyState>, &Arc<Problems>),
    cluster: Option<Cluster>,
) -> anyhow::Result<Reloader> {
    let (settings, policy_state, problems) = (settings.clone(), Arc::clone(policy_state), Arc::clone(problems));
    tokio::task::spawn_blocking(move || Reloader::start(&settings, features, kernel, policy_state, problems, cluster))
        .await?
}

/// What the kernel's side was opened with.
struct Parts {
    running: Running,
    events: Events,
    /// What connections begin with, and the flows that were let pass by it.
    openings: (Openings, NamedFlows),
    /// What can be enforced.
    features: Features,
    looked: upkeep::Looked,
    meters: Arc<Meters>,
    held: Held,
}

/// Loads or adopts what is in the kernel, and starts the thread that owns it. A second agent ends here, before it touches
/// what the first one has pinned.
fn open(settings: &Settings, reports: Arc<Reports>) -> anyhow::Result<Parts> {
    let limits = settings.limits;
    let options = Options {
        pins: settings.pins.clone(),
        limits: MapLimits {
            addresses: limits.addresses,
            policy_rows: limits.policy_rows,
            cidrs: limits.cidrs,
            flows: limits.flows,
            flows_per_endpoint: limits.flows_per_endpoint,
            // One more: the node's own row has a place of its own.
            endpoints: limits.endpoints.saturating_add(1),
        },
        settings: kernel_settings(0, 0),
    };
    let lock = PinsLock::take(&settings.pins, &settings.socket)?;
    let mut datapath = Datapath::open(&options).map_err(enforcer::load_error)?;
    routes::set_up(&options.settings).context("setting up the route to the proxy")?;
    let refusal = datapath.node_refusal();
    if let Some(error) = refusal {
        tracing::warn!(error = %enforcer::Chain(error), "policies for nodes are refused here");
    }
    let features = features(&settings.directions, refusal.is_none());
    if features.http
        && let Err(error) = routes::forward_proxied()
    {
        tracing::error!(%error, "net.ipv4.tcp_early_demux stays: limits on requests to endpoints drop them; set it to 0");
    }
    let nftables = features.http
        && untracked::set_up(&options.settings).inspect_err(|error| tracing::warn!(%error, "{NO_NFTABLES}")).is_ok();
    let looked = upkeep::Looked { settings: options.settings, limits: features.http, nftables, lock };
    let events = datapath.take_events().context("the ring of events was taken already")?;
    let openings = datapath.take_openings().context("the ring of openings was taken already")?;
    let openings = (openings, NamedFlows::new(datapath.named_flows()?));
    let (inspector, meters) = (datapath.inspector(), Arc::new(datapath.meters()?));
    let enforcer = Enforcer::new(EnforcerParts {
        settings,
        kernel: Kernel { datapath, directions: enforcer::directions(&settings.directions) },
        journal: Journal::open(&settings.state),
        observer: reports,
        clock: clock::boot_ns,
    })?;
    let held = Held { interfaces: enforcer.known_interfaces(), inspector };
    Ok(Parts { running: enforcer.start()?, events, openings, features, looked, meters, held })
}

const NO_NFTABLES: &str = "no rule of nftables: connections to a service are dropped where limits on requests apply";

/// Ready when the agent is asked to end, or can do nothing more: one that is started again enforces changes again.
async fn end(reader: &Reader, background: &mut Background) -> anyhow::Result<()> {
    let why = tokio::select! {
        () = asked_to_end() => return Ok(()),
        () = reader.stopped() => Stall::Stopped.into(),
        why = background.ended() => why,
    };
    tracing::error!("{why:#}; the agent ends, the kernel goes on enforcing what it holds");
    Err(why)
}

async fn asked_to_end() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be heard: end the agent with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("asked to end (SIGTERM); the kernel goes on enforcing"),
        _ = interrupt.recv() => tracing::info!("asked to end (SIGINT); the kernel goes on enforcing"),
    }
}

/// Ends threads in the order in which they need each other.
async fn stop(reloader: Reloader, running: Running, proxy: Arc<Proxy>, l7: Arc<L7Proxy>) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || {
        if let Ok(l7) = Arc::try_unwrap(l7) {
            l7.stop();
        }
        if let Ok(proxy) = Arc::try_unwrap(proxy) {
            proxy.stop();
        }
        reloader.stop();
        running.stop();
    })
    .await?;
    Ok(())
}
