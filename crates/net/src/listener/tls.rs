//! The server's certificate, which can be replaced while connections are open.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::limits::HANDSHAKE_TIMEOUT;

/// The protocols offered by ALPN, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS of a listener; clones share the certificate.
#[derive(Debug, Clone)]
pub struct ServerTls {
    current: Arc<ArcSwap<ServerConfig>>,
}

/// A certificate with its chain, and its key.
#[derive(Debug)]
pub struct Certificate {
    /// The server's own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the server's own certificate.
    pub key: PrivateKeyDer<'static>,
}

impl ServerTls {
    /// Makes TLS with a certificate.
    ///
    /// # Errors
    ///
    /// When the key does not belong to the certificate, or is of an unsupported kind.
    pub fn new(Certificate { chain, key }: Certificate) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(config)) })
    }

    /// Uses the certificate of `other` for new connections.
    pub fn replace(&self, other: &Self) {
        self.current.store(other.current.load_full());
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
    }
}
