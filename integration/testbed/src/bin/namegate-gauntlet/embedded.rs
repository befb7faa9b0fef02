//! Servers inside of this program: rustls over TCP, and quinn. Each writes the name of every `ClientHello`.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use namegate_testbed::World;
use quinn::crypto::rustls::QuicServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use crate::servers::Identity;

const PORTS: [u16; 2] = [443, 8444];

/// Gives one certificate to everybody, and writes down who asked for which name.
#[derive(Debug)]
struct Noting {
    port: u16,
    certificate: Arc<CertifiedKey>,
    log: Arc<Mutex<File>>,
}

impl Noting {
    fn note(&self, line: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(log, "{line}"); // A full disk shows in what is missing.
    }
}

impl ResolvesServerCert for Noting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.note(&format!("hello\t{}\t{}", self.port, hello.server_name().unwrap_or_default()));
        Some(self.certificate.clone())
    }
}

fn noting(identity: &Identity, log: &Path) -> Result<impl Fn(u16) -> Arc<Noting> + use<>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let chain = CertificateDer::from_pem_slice(&read(&identity.certificate)?)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&identity.key)?)?;
    let certificate = Arc::new(CertifiedKey::new(vec![chain], ring::sign::any_supported_type(&key)?));
    let log = Arc::new(Mutex::new(File::options().create(true).append(true).open(log)?));
    Ok(move |port| Arc::new(Noting { port, certificate: certificate.clone(), log: log.clone() }))
}

fn config(noting: Arc<Noting>) -> Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_cert_resolver(noting))
}

/// Serves TLS over TCP: a page for each connection.
pub(crate) fn tls(world: &World, address: IpAddr, identity: &Identity, log: &Path) -> Result<()> {
    let noting = noting(identity, log)?;
    for port in PORTS {
        let acceptor = TlsAcceptor::from(Arc::new(config(noting(port))?));
        let at = SocketAddr::new(address, port);
        world.outside().run(async move {
            let listener = TcpListener::bind(at).await?;
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(page(acceptor.clone(), stream));
                }
            });
            Ok::<_, std::io::Error>(())
        })?;
    }
    Ok(())
}

/// Says whose page it is; a client that goes away is no error.
async fn page(acceptor: TlsAcceptor, stream: TcpStream) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut request = vec![0; 4_096];
    let count = stream.read(&mut request).await?;
    let text = String::from_utf8_lossy(request.get(..count).unwrap_or_default()).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default();
    let body = format!("saw GET {path}\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await
}

/// Answers QUIC, and no request.
pub(crate) fn quic(world: &World, address: IpAddr, identity: &Identity, log: &Path) -> Result<()> {
    let noting = noting(identity, log)?;
    let port = 8444;
    let noting = noting(port);
    let mut crypto = config(noting.clone())?;
    crypto.alpn_protocols = vec![b"h3".to_vec()];
    let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto)?));
    let at = SocketAddr::new(address, port);
    world.outside().run(async move {
        let endpoint = quinn::Endpoint::server(server, at)?;
        noting.note("ready");
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move { incoming.accept()?.await });
            }
        });
        Ok::<_, std::io::Error>(())
    })?;
    Ok(())
}
