//! Keys of TLS 1.3 (RFC 8446 §7) for one suite, by the primitives of rustls.

use anyhow::{Context, Result, anyhow};
use tokio_rustls::rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use tokio_rustls::rustls::crypto::ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
use tokio_rustls::rustls::crypto::ring::kx_group::X25519;
use tokio_rustls::rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use tokio_rustls::rustls::crypto::{ActiveKeyExchange, SharedSecret};
use tokio_rustls::rustls::{ContentType, ProtocolVersion, Tls13CipherSuite};

/// Bytes of the suite's hash.
const HASH_BYTES: usize = 32;

/// The client's half of a key exchange.
pub(crate) struct Share(Box<dyn ActiveKeyExchange>);

impl Share {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(X25519.start()?))
    }

    pub(crate) fn public(&self) -> &[u8] {
        self.0.pub_key()
    }

    pub(crate) fn agree(self, public: &[u8]) -> Result<SharedSecret> {
        Ok(self.0.complete(public)?)
    }
}

/// One direction's key under the handshake, then under the application's traffic.
struct Traffic {
    secret: [u8; HASH_BYTES],
    sequence: u64,
}

/// The keys of one connection.
pub(crate) struct Schedule {
    handshake: [u8; HASH_BYTES],
    client: Traffic,
    server: Traffic,
}

impl Schedule {
    /// What stands for the first hello in the transcript after a retry (§4.4.1).
    pub(crate) fn stand_in(hello: &[u8]) -> Vec<u8> {
        let hash = hash(hello);
        [&[254, 0, 0, 32][..], &hash].concat()
    }

    /// The keys after the `ServerHello`.
    pub(crate) fn new(shared: &SharedSecret, transcript: &[u8]) -> Result<Self> {
        let hkdf = suite()?.hkdf_provider;
        let early = hkdf.extract_from_zero_ikm(None);
        let salt: [u8; HASH_BYTES] = expand(&*early, "derived", &hash(&[]))?;
        let handshake = hkdf.extract_from_secret(Some(&salt), shared.secret_bytes());
        let (client, server) = traffic(&*handshake, "hs", transcript)?;
        Ok(Self { handshake: expand(&*handshake, "derived", &hash(&[]))?, client, server })
    }

    /// The client's Finished in a record, after which the keys are those of the application.
    pub(crate) fn finish(&mut self, transcript: &[u8]) -> Result<Vec<u8>> {
        let hkdf = suite()?.hkdf_provider;
        let base = hkdf.expander_for_okm(&OkmBlock::new(&self.client.secret));
        let key: [u8; HASH_BYTES] = expand(&*base, "finished", &[])?;
        let tag = hkdf.hmac_sign(&OkmBlock::new(&key), &hash(transcript));
        let finished = [&[20, 0, 0, 32][..], tag.as_ref()].concat();
        let sealed = self.client.seal(ContentType::Handshake, &finished)?;
        let master = hkdf.extract_from_zero_ikm(Some(&self.handshake));
        (self.client, self.server) = traffic(&*master, "ap", transcript)?;
        Ok(sealed)
    }

    /// A record with the application's data.
    pub(crate) fn seal(&mut self, data: &[u8]) -> Result<Vec<u8>> {
        self.client.seal(ContentType::ApplicationData, data)
    }

    /// Type and content of a record from the server.
    pub(crate) fn open(&mut self, mut content: Vec<u8>) -> Result<(u8, Vec<u8>)> {
        let (key, iv) = self.server.key()?;
        let mut decrypter: Box<dyn MessageDecrypter> = suite()?.aead_alg.decrypter(key, iv);
        let sealed =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut content[..]);
        let plain = decrypter.decrypt(sealed, self.server.sequence)?;
        self.server.sequence += 1;
        Ok((plain.typ.into(), plain.payload.to_vec()))
    }
}

impl Traffic {
    fn key(&self) -> Result<(AeadKey, Iv)> {
        let base = suite()?.hkdf_provider.expander_for_okm(&OkmBlock::new(&self.secret));
        let iv: [u8; 12] = expand(&*base, "iv", &[])?;
        Ok((AeadKey::from(expand::<32>(&*base, "key", &[])?), Iv::new(iv)))
    }

    fn seal(&mut self, typ: ContentType, content: &[u8]) -> Result<Vec<u8>> {
        let (key, iv) = self.key()?;
        let mut encrypter: Box<dyn MessageEncrypter> = suite()?.aead_alg.encrypter(key, iv);
        let payload = OutboundChunks::Single(content);
        let plain = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_3, payload };
        let sealed = encrypter.encrypt(plain, self.sequence)?;
        self.sequence += 1;
        Ok(sealed.encode())
    }
}

fn suite() -> Result<&'static Tls13CipherSuite> {
    TLS13_CHACHA20_POLY1305_SHA256.tls13().context("a suite of TLS 1.3")
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    suite().map(|suite| suite.common.hash_provider.hash(bytes).as_ref().to_vec()).unwrap_or_default()
}

fn traffic(base: &dyn HkdfExpander, phase: &str, transcript: &[u8]) -> Result<(Traffic, Traffic)> {
    let hash = hash(transcript);
    let secret = |side: &str| expand(base, &format!("{side} {phase} traffic"), &hash);
    Ok((Traffic { secret: secret("c")?, sequence: 0 }, Traffic { secret: secret("s")?, sequence: 0 }))
}

/// `HKDF-Expand-Label` (§7.1).
fn expand<const N: usize>(base: &dyn HkdfExpander, label: &str, context: &[u8]) -> Result<[u8; N]> {
    let label = format!("tls13 {label}");
    let length = u16::try_from(N)?.to_be_bytes();
    let info = [&length[..], &[u8::try_from(label.len())?], label.as_bytes(), &[u8::try_from(context.len())?], context];
    let mut okm = [0; N];
    base.expand_slice(&info, &mut okm).map_err(|_| anyhow!("too long an output"))?;
    Ok(okm)
}
