//! The client of the API server, whose connections notice when the server behind them is gone.
//!
//! A watch only listens: were its connection lost without a word (a translated address whose translation is gone, a
//! server that was cut off), it would wait for ever, and what it follows would be as it was.

use std::{path::PathBuf, time::Duration};

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt, retry::RetryPolicy},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// How long a connection to the server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long without a word the server's kernel is asked, again after each further pause.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Answers that may be missing.
const KEEPALIVE_MAX: u32 = 3;
/// How long anything sent, a question of these too, may stay without an answer of the server's kernel.
const UNANSWERED_MAX: Duration = Duration::from_secs(20);
/// How long the server itself may be silent. It sends each watch a bookmark every minute.
const SILENCE_MAX: Duration = Duration::from_mins(3);

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kubeconfig.
    #[error("reading the kubeconfig {}; set `kubernetes.kubeconfig`", .path.display())]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Neither an account of the pod nor a kubeconfig.
    #[error("there is no way to the API server: no account of a pod, and no `KUBECONFIG`; set `kubernetes.kubeconfig`")]
    NoWay(#[source] kube::config::KubeconfigError),
    /// The client.
    #[error("setting up the client of the API server")]
    Client(#[source] kube::Error),
}

/// A client by a kubeconfig, or else as the pod's service account or by `KUBECONFIG`.
pub(crate) async fn client(kubeconfig: Option<PathBuf>) -> Result<Client, StartError> {
    over(config(kubeconfig).await?).map_err(StartError::Client)
}

async fn config(kubeconfig: Option<PathBuf>) -> Result<Config, StartError> {
    let options = KubeConfigOptions::default();
    if let Some(path) = kubeconfig {
        let wrong = |source| StartError::Kubeconfig { path: path.clone(), source };
        let read = Kubeconfig::read_from(&path).map_err(wrong)?;
        return Config::from_custom_kubeconfig(read, &options).await.map_err(wrong);
    }
    match Config::incluster() {
        Ok(config) => Ok(config),
        Err(_) => Config::from_kubeconfig(&options).await.map_err(StartError::NoWay),
    }
}

/// What `Client::try_from` makes, over sockets that are looked after.
fn over(config: Config) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(KEEPALIVE_MAX));
    tcp.set_tcp_user_timeout(Some(UNANSWERED_MAX));
    let mut timed = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    timed.set_connect_timeout(Some(CONNECT_TIMEOUT));
    timed.set_read_timeout(Some(SILENCE_MAX));
    // A connection that is used again was silent for a good reason.
    timed.set_reset_reader_on_write(true);
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(timed);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
