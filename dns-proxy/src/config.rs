//! How the proxy runs, as its owner says it.

use std::{net::SocketAddr, time::Duration};

use namegate_config::{
    name::Fqdn,
    settings::{Refusal, Tunnelling},
};

/// How the proxy runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads, each with sockets of its own; 0 is one per core.
    pub workers: usize,
    /// Port on the loopback addresses, UDP and TCP; 0 is the kernel's choice.
    pub port: u16,
    /// How long a resolver may take, for each of UDP and TCP. Then the client gets SERVFAIL.
    pub upstream_timeout: Duration,
    /// How long the enforcer may take for an answer. Then the client gets SERVFAIL.
    pub install_timeout: Duration,
    /// `SO_MARK` of all sockets, by which the programs know them; 0 sets none. It must not be a mark that routing rules send
    /// to this machine, as the mark of redirected packets is.
    pub mark: u32,
    /// Who is asked where a question is not redirected but sent to the proxy's own address: the proxy is then a plain
    /// forwarder with the same checks. None answers such questions not at all.
    pub fixed_resolver: Option<SocketAddr>,
    /// How a question that [`Backend::forbids`](crate::Backend::forbids) is answered.
    pub refusal: Refusal,
    /// Whether questions that look like a tunnel's are looked for, and refused.
    pub tunnelling: Tunnelling,
    /// Different names below one parent that an endpoint may ask for in a minute, where they look like data.
    pub tunnelling_names: u32,
    /// Names below these are not counted.
    pub tunnelling_except: Vec<Fqdn>,
    /// Answers of trusted resolvers that are kept to be given again; 0 keeps none.
    pub cache_answers: usize,
    /// Questions under way in one worker.
    pub pending_max: usize,
    /// Of them, those of one endpoint. It gets no more than it leaves free, so others always find room.
    pub pending_per_endpoint_max: usize,
    /// Descriptors that the sockets of all workers may take beside those of the start ([`WORKER_DESCRIPTORS_FIXED`] for
    /// each); `None` is as many as the workers use at most ([`WORKER_DESCRIPTORS_MAX`] for each).
    ///
    /// [`WORKER_DESCRIPTORS_FIXED`]: crate::WORKER_DESCRIPTORS_FIXED
    /// [`WORKER_DESCRIPTORS_MAX`]: crate::WORKER_DESCRIPTORS_MAX
    pub descriptors_max: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 0,
            port: 0,
            upstream_timeout: Duration::from_secs(5),
            install_timeout: Duration::from_secs(1),
            mark: 0,
            fixed_resolver: None,
            refusal: Refusal::Refused,
            tunnelling: Tunnelling::Off,
            tunnelling_names: 200,
            tunnelling_except: Vec::new(),
            cache_answers: 0,
            pending_max: 16_384,
            pending_per_endpoint_max: 4_096,
            descriptors_max: None,
        }
    }
}
