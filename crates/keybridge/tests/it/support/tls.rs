//! TLS and a proxy in front of a simulated provider.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use keybridge_net::egress::Roots;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::tcp::{read_head, serve};

/// A certificate authority for tests.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// Trusts only this authority.
    pub fn roots(&self) -> Roots {
        Roots::default().with(vec![self.issuer.der().clone()]).unwrap()
    }

    /// A certificate for a name and its key.
    pub fn certificate(
        &self,
        name: &str,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// The TLS configuration of a server with a certificate for a name.
    pub fn server(&self, name: &str) -> rustls::ServerConfig {
        let (certificates, key) = self.certificate(name);
        rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .unwrap()
    }

    /// The TLS configuration of a client that trusts this authority.
    pub fn client(&self) -> rustls::ClientConfig {
        let mut store = rustls::RootCertStore::empty();
        store.add(self.issuer.der().clone()).unwrap();
        rustls::ClientConfig::builder().with_root_certificates(store).with_no_client_auth()
    }

    /// Listens with TLS for a name and forwards everything.
    pub fn terminate(&self, name: &str, target: SocketAddr) -> SocketAddr {
        let acceptor = TlsAcceptor::from(Arc::new(self.server(name)));
        serve(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut onward = TcpStream::connect(target).await.unwrap();
                let _ended = copy_bidirectional(&mut stream, &mut onward).await;
            }
        })
    }
}

/// A proxy that responds to `CONNECT` and forwards everything to one address.
pub struct ConnectProxy {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// `status` is its response, such as `200 OK`.
    pub fn start(target: SocketAddr, status: &'static str) -> Self {
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&heads);
        let address = serve(move |stream| connect(stream, target, status, Arc::clone(&noted)));
        Self { address, heads }
    }

    /// The request heads received so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn connect(
    mut stream: TcpStream,
    target: SocketAddr,
    status: &'static str,
    heads: Arc<Mutex<Vec<String>>>,
) {
    let Some(head) = read_head(&mut stream).await else { return };
    heads.lock().unwrap().push(head);
    let answer = format!("HTTP/1.1 {status}\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    if status.starts_with("200") {
        let mut onward = TcpStream::connect(target).await.unwrap();
        let _ended = copy_bidirectional(&mut stream, &mut onward).await;
    }
}
