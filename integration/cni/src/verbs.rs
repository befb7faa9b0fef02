//! The commands of the CNI specification 1.1.0, section 2.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, Endpoint, Failure};
use crate::error::{Code, Error};
use crate::link;
use crate::request::{Config, Environment, NEWEST, OnAgentDown, VERSIONS};
use crate::result::Made;

/// Does what the runtime asks for; gives what goes to standard output.
pub(crate) fn run(environment: &Environment<'_>, input: &[u8]) -> Result<Option<Value>, Error> {
    let command = environment.command()?;
    if command == "VERSION" {
        return Ok(Some(version(input)));
    }
    let config = Config::read(input)?;
    match command.as_str() {
        "ADD" => add(environment, &config).map(Some),
        "DEL" => delete(environment, &config).map(|()| None),
        "CHECK" => check(environment, &config).map(|()| None),
        "GC" => collect(&config).map(|()| None),
        "STATUS" => status(&config).map(|()| None),
        _ => Err(Error::new(Code::BadEnvironment, format!("CNI_COMMAND `{command}` is unknown"))),
    }
}

/// Answers in the version that was asked in, as the reference library does.
fn version(input: &[u8]) -> Value {
    let asked: Option<Value> = serde_json::from_slice(input).ok();
    let asked = asked.as_ref().and_then(|asked| asked["cniVersion"].as_str()).unwrap_or(NEWEST);
    json!({"cniVersion": asked, "supportedVersions": VERSIONS})
}

/// Succeeds when the kernel guards the endpoint, and hands on what the plugins before have made.
fn add(environment: &Environment<'_>, config: &Config) -> Result<Value, Error> {
    let (container, inside) = (environment.container()?, environment.interface()?);
    let (netns, pod) = (environment.netns()?, environment.pod()?);
    let (made, previous) = previous(config)?;
    let interface = outside(&netns, &inside, &made)?;
    let (namespace, name) = (pod.namespace, pod.name);
    let addresses = made.addresses()?;
    let endpoint = Endpoint { namespace, pod: name, uid: pod.uid, interface, addresses, netns };
    match agent(config).add(&container, &endpoint) {
        Ok(()) => {}
        Err(Failure::Away(error)) if config.on_agent_down == OnAgentDown::Allow => {
            eprintln!("namegate-cni: {}/{} starts unguarded: {error}", endpoint.namespace, endpoint.pod);
        }
        Err(failure) => return Err(later("the endpoint is not guarded", &failure)),
    }
    Ok(previous)
}

/// Never keeps a pod from going: an agent that is away sees that the interface is gone when it is back.
fn delete(environment: &Environment<'_>, config: &Config) -> Result<(), Error> {
    let container = environment.container()?;
    if let Err(failure) = Agent::new(&config.socket, Duration::ZERO).remove(&container) {
        eprintln!("namegate-cni: {container} was not taken away from the agent: {failure}");
    }
    Ok(())
}

fn check(environment: &Environment<'_>, config: &Config) -> Result<(), Error> {
    let (container, inside, netns) = (environment.container()?, environment.interface()?, environment.netns()?);
    let (made, _) = previous(config)?;
    outside(&netns, &inside, &made)?;
    match agent(config).list() {
        Ok(known) if known.iter().any(|known| known.container == container) => Ok(()),
        Ok(_) => Err(Error::new(Code::NotGuarded, format!("the agent does not know the container {container}"))),
        Err(Failure::Away(_)) if config.on_agent_down == OnAgentDown::Allow => Ok(()),
        Err(failure) => Err(later("the agent cannot be asked", &failure)),
    }
}

/// Takes away what is not there any more, all of it even where one fails.
fn collect(config: &Config) -> Result<(), Error> {
    let valid = config.valid_attachments.as_ref().ok_or_else(|| {
        Error::new(Code::BadConfig, "the configuration has no `cni.dev/valid-attachments`: nothing is taken away")
    })?;
    let agent = agent(config);
    let known = agent.list().map_err(|failure| later("the agent cannot be asked", &failure))?;
    let gone = known.iter().filter(|known| valid.iter().all(|valid| valid.container != known.container));
    let failures: Vec<String> = gone
        .filter_map(|gone| agent.remove(&gone.container).err().map(|failure| format!("{}: {failure}", gone.container)))
        .collect();
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::TryAgainLater, "containers could not be taken away").with(failures.join("; ")))
}

fn status(config: &Config) -> Result<(), Error> {
    match Agent::new(&config.socket, Duration::ZERO).list() {
        Err(failure) if config.on_agent_down == OnAgentDown::Deny => {
            Err(Error::new(Code::NotAvailable, "no pod can start").with(failure))
        }
        _ => Ok(()),
    }
}

fn agent(config: &Config) -> Agent<'_> {
    Agent::new(&config.socket, config.wait())
}

fn later(what: &str, failure: &Failure) -> Error {
    Error::new(Code::TryAgainLater, what).with(failure)
}

/// What the plugins before have made, and the same verbatim.
fn previous(config: &Config) -> Result<(Made, Value), Error> {
    let missing = || {
        Error::new(Code::BadConfig, "there is no prevResult")
            .with("namegate-cni makes no interface: it stands after a plugin that does")
    };
    let previous = config.prev_result.clone().ok_or_else(missing)?;
    Ok((Made::read(&previous)?, previous))
}

/// The node's side of the pod's link: the kernel's word, else that of the plugins before.
fn outside(netns: &Path, inside: &str, made: &Made) -> Result<String, Error> {
    let looked = link::peer(netns, inside)
        .map_err(|error| Error::new(Code::Io, format!("looking for {inside} in {}", netns.display())).with(error))?;
    let failed = |error| Error::new(Code::Io, "looking for the interfaces of the plugins before").with(error);
    let mut known = looked;
    for name in made.outside() {
        if known.is_none() && link::exists(name).map_err(failed)? {
            known = Some(name.to_owned());
        }
    }
    known.ok_or_else(|| {
        Error::new(Code::BadConfig, format!("{inside} has no other side on the node"))
            .with("only interfaces with a side on the node (veth, netkit) can be guarded")
    })
}
