//! One watch for each kind: what the server tells becomes rows, in order.
//!
//! A kind of policy that the server does not know is no mistake: it is looked for again.

use std::{fmt::Debug, time::Duration};

use futures_util::{Stream, StreamExt};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use crate::{
    backoff::{Pauses, part},
    row::{self, Key, Kind, Project, Row},
    wire,
};

/// How often a kind that the server does not know is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// Code of an answer about something that is not there.
const NOT_FOUND: u16 = 404;

/// What a watch tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// A listing begins.
    Begin,
    /// One object of the listing.
    Listed(Key, Option<Row>),
    /// The listing is complete.
    End,
    /// An object is new or changed.
    Put(Key, Option<Row>),
    /// An object is gone.
    Gone(Key),
    /// The server does not have the kind.
    Absent,
    /// It does not work for now.
    Failed(Failure),
}

/// Why a watch does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// In words.
    pub(crate) problem: String,
    /// Whether the server answered, and refused.
    pub(crate) refused: bool,
}

/// A kind of policies: where the server has it.
struct Place {
    group: &'static str,
    /// The newest first.
    versions: &'static [&'static str],
    plural: &'static str,
}

impl Kind {
    const fn place(self) -> Option<Place> {
        let (group, versions, plural): (_, &[&str], _) = match self {
            Self::NetworkPolicy => ("networking.k8s.io", &["v1"], "networkpolicies"),
            Self::CiliumNetworkPolicy => ("cilium.io", &["v2"], "ciliumnetworkpolicies"),
            Self::CiliumClusterwideNetworkPolicy => ("cilium.io", &["v2"], "ciliumclusterwidenetworkpolicies"),
            Self::CiliumCIDRGroup => ("cilium.io", &["v2", "v2alpha1"], "ciliumcidrgroups"),
            Self::ClusterNetworkPolicy => ("policy.networking.k8s.io", &["v1alpha2"], "clusternetworkpolicies"),
            _ => return None,
        };
        Some(Place { group, versions, plural })
    }

    /// The kind in this version, for requests.
    pub(crate) fn resource(self, version: &str) -> Option<ApiResource> {
        let place = self.place()?;
        let gvk = GroupVersionKind::gvk(place.group, version, self.name());
        Some(ApiResource::from_gvk_with_plural(&gvk, place.plural))
    }
}

/// Follows a kind until nobody listens any more.
pub(crate) async fn follow(client: Client, kind: Kind, inbox: Sender<(Kind, Told)>) {
    let to = Teller { kind, inbox };
    let ended = match kind {
        // Pods that have ended are as good as gone: they are not even sent.
        Kind::Pod => {
            let config = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
            typed::<wire::Pod>(client, config, &to).await
        }
        Kind::Namespace => typed::<wire::Namespace>(client, watcher::Config::default(), &to).await,
        Kind::Node => typed::<wire::Node>(client, watcher::Config::default(), &to).await,
        Kind::Service => typed::<wire::Service>(client, watcher::Config::default(), &to).await,
        Kind::EndpointSlice => typed::<wire::EndpointSlice>(client, watcher::Config::default(), &to).await,
        _ => policies(client, &to).await,
    };
    if ended.is_err() {
        tracing::debug!(kind = kind.name(), "nobody listens any more");
    }
}

/// Nobody listens.
struct Unheard;

struct Teller {
    kind: Kind,
    inbox: Sender<(Kind, Told)>,
}

impl Teller {
    async fn tell(&self, told: Told) -> Result<(), Unheard> {
        self.inbox.send((self.kind, told)).await.map_err(|_| Unheard)
    }
}

async fn typed<K>(client: Client, config: watcher::Config, to: &Teller) -> Result<(), Unheard>
where
    K: Resource<DynamicType = ()> + Project + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = Box::pin(watcher(Api::<K>::all(client), config).backoff(Pauses::default()));
    let project = |object: K| (row::key(object.meta()), object.project());
    drive(&mut events, &project, to).await
}

async fn policies(client: Client, to: &Teller) -> Result<(), Unheard> {
    let mut pauses = Pauses::default();
    loop {
        let version = match served(&client, to.kind).await {
            Ok(Some(version)) => version,
            Ok(None) => {
                to.tell(Told::Absent).await?;
                tokio::time::sleep(LOOK_AGAIN + part(LOOK_AGAIN / 4)).await;
                continue;
            }
            Err(error) => {
                to.tell(Told::Failed(failure(&error))).await?;
                tokio::time::sleep(pauses.next().unwrap_or(LOOK_AGAIN)).await;
                continue;
            }
        };
        let Some(resource) = to.kind.resource(version) else { return Ok(()) };
        let api_version = resource.api_version.clone();
        let project =
            |object: DynamicObject| (row::key(&object.metadata), Some(row::policy(to.kind, &api_version, object)));
        let events = watcher(Api::<DynamicObject>::all_with(client.clone(), &resource), watcher::Config::default());
        let mut events = Box::pin(events.backoff(Pauses::default()));
        drive(&mut events, &project, to).await?;
    }
}

/// The version in which the server has the kind now; an error where it does not say.
async fn served(client: &Client, kind: Kind) -> kube::Result<Option<&'static str>> {
    let Some(place) = kind.place() else { return Ok(None) };
    let groups = client.list_api_groups().await?.groups;
    let group = groups.into_iter().find(|group| group.name == place.group);
    let listed = group.map(|group| group.versions).unwrap_or_default();
    for &version in place.versions {
        if !listed.iter().any(|one| one.version == version) {
            continue;
        }
        let resources = client.list_api_group_resources(&format!("{}/{version}", place.group)).await?.resources;
        if resources.iter().any(|resource| resource.name == place.plural) {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// Passes events on; ends where a kind of policies is not there any more.
async fn drive<T>(
    events: &mut (impl Stream<Item = watcher::Result<Event<T>>> + Unpin),
    project: &impl Fn(T) -> (Key, Option<Row>),
    to: &Teller,
) -> Result<(), Unheard> {
    while let Some(event) = events.next().await {
        let told = match event {
            Ok(Event::Init) => Told::Begin,
            Ok(Event::InitApply(object)) => {
                let (key, row) = project(object);
                Told::Listed(key, row)
            }
            Ok(Event::InitDone) => Told::End,
            Ok(Event::Apply(object)) => {
                let (key, row) = project(object);
                Told::Put(key, row)
            }
            Ok(Event::Delete(object)) => Told::Gone(project(object).0),
            Err(error) if to.kind.place().is_some() && is_missing(&error) => return Ok(()),
            Err(error) => Told::Failed(trouble(&error)),
        };
        to.tell(told).await?;
    }
    Ok(())
}

fn is_missing(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => status.code == NOT_FOUND,
        _ => false,
    }
}

fn trouble(error: &watcher::Error) -> Failure {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => failure(error),
        WatchError(status) => Failure { problem: status.message.clone(), refused: true },
        NoResourceVersion => Failure { problem: error.to_string(), refused: true },
    }
}

/// The words of an error with its causes, each once.
pub(crate) fn failure(error: &kube::Error) -> Failure {
    if let kube::Error::Api(status) = error {
        return Failure { problem: status.message.clone(), refused: true };
    }
    let mut problem = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !problem.contains(&words) {
            problem = format!("{problem}: {words}");
        }
        cause = error.source();
    }
    Failure { problem, refused: false }
}
