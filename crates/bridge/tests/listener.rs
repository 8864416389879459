//! Connections of clients: slow ones, encrypted ones, and those that are open at the end.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream as StdStream},
    sync::Arc,
    time::Duration,
};

use axum::{Router, routing::get};
use http::Version;
use http_body_util::{BodyExt, Empty};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keybridge_bridge::listener::{self, Certificate, Endpoint, ServerTls};
use rustls::pki_types::{CertificateDer, ServerName};
use support::tls::Authority;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener that answers `hi`, or after a while below `/slow`.
struct Served {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: TaskTracker,
}

impl Served {
    async fn start(tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = || async {
            sleep(Duration::from_millis(300)).await;
            "slow"
        };
        let router = Router::new().route("/", get(|| async { "hi" })).route("/slow", get(slow));
        let endpoint = Endpoint { tls, ..listener.into() };
        let (shutdown, serving) = (CancellationToken::new(), TaskTracker::new());
        let until = shutdown.clone();
        serving.spawn(async move {
            let grace = Duration::from_secs(30);
            listener::serve(endpoint, router, until, grace, || ()).await.unwrap();
        });
        serving.close();
        Self { address, shutdown, serving }
    }
}

async fn read_to_end(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // One that is reset has ended, too.
    let _read = timeout(PATIENCE, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Each sends its piece once a second, and is cut off within a time.
#[tokio::test]
async fn slow_heads_are_cut_off_while_others_are_served() {
    let authority = Authority::new();
    let (chain, key) = authority.certificate("a.test");
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ServerTls::new(Certificate { chain, key }).unwrap();
    let cases: [(Option<ServerTls>, &[u8]); 5] = [
        (None, b""),
        (None, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"),
        (None, b"GET / HTTP/1.1\r\nhost: a\r\nx-y: 0123456789012345678901234567890123456789"),
        (Some(tls.clone()), b""),
        (Some(tls), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ];
    tokio::time::pause();
    for (tls, pieces) in cases {
        let is_plain = tls.is_none();
        let served = Served::start(tls).await;
        let began = Instant::now();
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let mut sent = pieces.iter();
        let mut buffer = [0; 1024];
        let cut_off = loop {
            if let Some(byte) = sent.next() {
                let _gone = stream.write_all(&[*byte]).await;
            }
            match timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => break began.elapsed(),
                // It is told why.
                Ok(Ok(_)) => {}
                Err(_elapsed) => assert!(began.elapsed() < Duration::from_secs(60), "{pieces:?}"),
            }
        };
        assert!(cut_off >= Duration::from_secs(9), "{cut_off:?} {pieces:?}");
        assert!(cut_off <= Duration::from_secs(21), "{cut_off:?} {pieces:?}");
        if is_plain {
            let mut other = TcpStream::connect(served.address).await.unwrap();
            other.write_all(REQUEST).await.unwrap();
            assert!(read_to_end(other).await.ends_with("hi"));
        }
    }
}

#[tokio::test]
async fn whoever_is_connected_at_the_end_is_answered() {
    let served = &Served::start(None).await;
    let slow = async {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        read_to_end(stream).await
    };
    // A head of which so much has come when the end is told.
    let late = |before: usize| async move {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(&REQUEST[..before]).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        stream.write_all(&REQUEST[before..]).await.unwrap();
        read_to_end(stream).await
    };
    let silent = async {
        let stream = TcpStream::connect(served.address).await.unwrap();
        read_to_end(stream).await
    };
    let ending = async {
        sleep(Duration::from_millis(100)).await;
        served.shutdown.cancel();
        let began = Instant::now();
        served.serving.wait().await;
        began.elapsed()
    };
    let (slow, unbegun, halved, silent, took) =
        tokio::join!(slow, late(0), late(20), silent, ending);
    assert!(slow.ends_with("slow") && slow.contains("connection: close"), "{slow}");
    assert!(unbegun.ends_with("hi"), "{unbegun}");
    assert!(halved.ends_with("hi"), "{halved}");
    assert_eq!(silent, "");
    assert!(took < Duration::from_secs(10), "one that never asks does not hold the end up");
    assert!(TcpStream::connect(served.address).await.is_err());
}

/// The kernel has taken these connections; nobody here has seen them when the end is told.
#[tokio::test]
async fn whoever_waits_in_the_socket_is_answered() {
    let served = Served::start(None).await;
    let mut streams: Vec<_> =
        (0..100).map(|_| StdStream::connect(served.address).unwrap()).collect();
    served.shutdown.cancel();
    for stream in &mut streams {
        stream.write_all(REQUEST).unwrap();
    }
    timeout(PATIENCE, served.serving.wait()).await.unwrap();
    for mut stream in streams {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("hi"), "{text}");
    }
}

fn https(
    authority: &Authority,
    http2: bool,
) -> Client<HttpsConnector<HttpConnector>, Empty<&'static [u8]>> {
    let config = authority.client();
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
    let connector =
        if http2 { connector.enable_http2().build() } else { connector.enable_http1().build() };
    Client::builder(TokioExecutor::new()).build(connector)
}

/// The certificate that a new connection is shown.
async fn shown(authority: &Authority, address: SocketAddr) -> CertificateDer<'static> {
    let connector = TlsConnector::from(Arc::new(authority.client()));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    certificates.first().unwrap().clone().into_owned()
}

#[tokio::test]
async fn a_certificate_is_replaced_under_open_connections() {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = Authority::new();
    let [first, second] = [0, 1].map(|_| {
        let (chain, key) = authority.certificate("localhost");
        Certificate { chain, key }
    });
    let [first_shown, second_shown] = [&first, &second].map(|given| given.chain[0].to_vec());
    let tls = ServerTls::new(first).unwrap();
    let served = Served::start(Some(tls.clone())).await;
    let uri: http::Uri = format!("https://localhost:{}/", served.address.port()).parse().unwrap();
    let clients =
        [(https(&authority, false), Version::HTTP_11), (https(&authority, true), Version::HTTP_2)];
    for (client, version) in &clients {
        let answer = client.get(uri.clone()).await.unwrap();
        assert_eq!(answer.version(), *version);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hi");
    }
    assert_eq!(shown(&authority, served.address).await.as_ref(), first_shown);
    tls.replace(&ServerTls::new(second).unwrap());
    assert_eq!(shown(&authority, served.address).await.as_ref(), second_shown);
    for (client, _) in &clients {
        assert_eq!(client.get(uri.clone()).await.unwrap().status(), 200);
    }
    let (chain, _) = authority.certificate("localhost");
    let (_, key) = authority.certificate("localhost");
    assert!(ServerTls::new(Certificate { chain, key }).is_err(), "a key of another certificate");
    let plain = timeout(PATIENCE, async {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        read_to_end(stream).await
    });
    assert!(!plain.await.unwrap().contains("hi"));
}
