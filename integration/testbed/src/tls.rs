//! A certificate authority for one world: each server name that a client sends gets a certificate on the spot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Name of the authority.
const AUTHORITY: &str = "testbed";
/// Name on the certificate for a client that sends none.
const NAMELESS: &str = "nameless.test";

/// Both ends of the world's TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    /// For servers.
    pub(crate) acceptor: TlsAcceptor,
    /// For clients: trusts this world's authority only.
    pub(crate) connector: TlsConnector,
    authority: Arc<Authority>,
}

/// A certificate with its key, in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Makes an authority.
    pub(crate) fn new() -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = called(AUTHORITY);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let (issuer, certificate) = (Issuer::new(params, key), certificate.pem());
        let authority = Arc::new(Authority { certificate, issuer, made: Mutex::default() });
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_no_client_auth()
            .with_cert_resolver(authority.clone());
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into(), authority })
    }

    /// The authority's certificate, in PEM.
    pub(crate) fn authority(&self) -> &str {
        &self.authority.certificate
    }

    /// A certificate for names.
    pub(crate) fn certificate(&self, names: &[&str]) -> Result<Certificate> {
        let (certificate, key) = self.authority.sign(names)?;
        Ok(Certificate { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// A server's side of TLS with an authority of its own, which no client trusts.
pub fn tls_server() -> Result<TlsAcceptor> {
    Ok(Tls::new()?.acceptor)
}

fn called(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    fn sign(&self, names: &[&str]) -> Result<(rcgen::Certificate, KeyPair)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name = called(names.first().copied().unwrap_or(NAMELESS));
        params.use_authority_key_identifier_extension = true;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    fn certificate(&self, name: &str) -> Result<Arc<CertifiedKey>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(name) {
            return Ok(known.clone());
        }
        let (certificate, key) = self.sign(&[name])?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = ring::sign::any_supported_type(&private)?;
        let fresh = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer));
        made.insert(name.to_owned(), fresh.clone());
        Ok(fresh)
    }
}

impl ResolvesServerCert for Authority {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate(hello.server_name().unwrap_or(NAMELESS)).ok()
    }
}
