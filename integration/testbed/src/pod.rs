//! A pod: a namespace with an address, servers, and a client that acts from inside.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::client::{self, Client, Failure, Visit};
use crate::dns::{DnsFailure, Lookup};
use crate::host::Log;
use crate::icmp;
use crate::netns::{Netns, Task};
use crate::spec::PodSpec;

/// A pod of a world.
#[derive(Debug)]
pub struct Pod {
    /// Its description.
    pub spec: PodSpec,
    /// Its namespace.
    pub netns: Netns,
    /// The node's side of its link.
    pub interface: String,
    /// What its servers accepted.
    pub log: Log,
    client: Client,
}

impl Pod {
    pub(crate) fn new(spec: PodSpec, netns: Netns, interface: String, client: Client) -> Self {
        Self { spec, netns, interface, log: Log::default(), client }
    }

    /// Its first IPv4 address.
    ///
    /// # Panics
    ///
    /// Where it has none.
    pub fn ipv4(&self) -> IpAddr {
        *self.spec.ips.iter().find(|address| address.is_ipv4()).expect("the pod has an IPv4 address")
    }

    /// Its first IPv6 address.
    ///
    /// # Panics
    ///
    /// Where it has none.
    pub fn ipv6(&self) -> IpAddr {
        *self.spec.ips.iter().find(|address| address.is_ipv6()).expect("the pod has an IPv6 address")
    }

    /// The client that its programs use; change a copy and hand it to [`Pod::run`].
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs an act of a client inside the pod and waits for it.
    pub fn run<T, A, F>(&self, client: Client, act: A) -> T
    where
        T: Send + 'static,
        A: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.netns.run(async move { act(client).await })
    }

    /// Starts an act of a client inside the pod.
    pub fn spawn<T, A, F>(&self, client: Client, act: A) -> Task<T>
    where
        T: Send + 'static,
        A: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.netns.spawn(async move { act(client).await })
    }

    /// GETs a URL, looking its host up as a program would.
    pub fn http_get(&self, url: &str) -> Visit {
        let url = url.to_owned();
        self.run(self.client(), move |client| async move { client.get(&url).await })
    }

    /// Looks up one record type of a name.
    pub fn lookup(&self, name: &str, record_type: RecordType) -> Result<Lookup, DnsFailure> {
        let name = name.to_owned();
        self.run(self.client(), move |client| async move { client.lookup_type(&name, record_type).await })
    }

    /// Opens a connection and closes it.
    pub fn connect(&self, to: SocketAddr, within: Duration) -> Result<(), Failure> {
        self.netns.run(async move { client::connect(to, within).await.map(drop) })
    }

    /// Opens a connection to an echo server and keeps it.
    pub fn open(&self, to: SocketAddr, within: Duration) -> Result<Conversation<'_>, Failure> {
        let stream = self.netns.run(async move { client::connect(to, within).await })?;
        Ok(Conversation { netns: &self.netns, stream: Arc::new(Mutex::new(stream)) })
    }

    /// Sends a datagram of so many octets to an echo server and waits for it to come back.
    pub fn echo(&self, to: SocketAddr, octets: usize, within: Duration) -> Result<(), Failure> {
        self.netns.run(async move { client::echo(to, &vec![0x5a; octets], within).await })
    }

    /// Sends an echo request and waits for the reply.
    pub fn ping(&self, to: IpAddr, payload_octets: usize, within: Duration) -> Result<(), Failure> {
        self.netns.call(move || icmp::ping(to, payload_octets, within))
    }

    /// Runs a program inside the pod's network namespace and waits for it.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments);
        let program = program.to_owned();
        self.netns.call(move || command.output().with_context(|| format!("running `{program}`")))
    }
}

/// A connection to an echo server that stays open.
#[derive(Debug)]
pub struct Conversation<'a> {
    netns: &'a Netns,
    stream: Arc<Mutex<TcpStream>>,
}

impl Conversation<'_> {
    /// Sends octets and waits for them to come back.
    pub fn say(&self, octets: &[u8], within: Duration) -> Result<(), Failure> {
        let (stream, octets) = (self.stream.clone(), octets.to_vec());
        self.netns.run(async move {
            let mut stream = stream.lock().await;
            let exchange = async {
                stream.write_all(&octets).await?;
                let mut back = vec![0; octets.len()];
                stream.read_exact(&mut back).await?;
                Ok::<_, std::io::Error>(back == octets)
            };
            match tokio::time::timeout(within, exchange).await {
                Err(_) => Err(Failure::Timeout),
                Ok(Ok(true)) => Ok(()),
                Ok(Ok(false)) => Err(Failure::Other("the echo differs".to_owned())),
                Ok(Err(error)) => Err(client::failure(error)),
            }
        })
    }
}
