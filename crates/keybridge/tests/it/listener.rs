//! Connections of clients: slow ones, encrypted ones, and those that are open at the end.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream as StdStream},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{get, post},
};
use futures_util::StreamExt;
use http::Version;
use http_body_util::{BodyExt, Empty};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keybridge_net::listener::{self, Certificate, Endpoint, ServerTls};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::tls::Authority;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

type Piece = Result<&'static str, std::io::Error>;

/// A listener that answers `hi`, or after a while below `/slow`.
struct Served {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: TaskTracker,
}

impl Served {
    async fn start(tls: Option<ServerTls>) -> Self {
        let slow = || async {
            sleep(Duration::from_millis(300)).await;
            "slow"
        };
        let router = Router::new().route("/", get(|| async { "hi" })).route("/slow", get(slow));
        Self::start_with(router, tls).await
    }

    /// Answers POST with what comes, bit by bit; only once.
    async fn streaming(tls: Option<ServerTls>) -> (Self, mpsc::Sender<Piece>) {
        let (sender, receiver) = mpsc::channel::<Piece>(100);
        let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
        let stream = move |_asked: Bytes| async move {
            let receiver = receiver.lock().unwrap().take().unwrap();
            let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|piece| (piece, receiver))
            });
            Body::from_stream(pieces.map(|piece| piece.map(Bytes::from)))
        };
        let router = Router::new().route("/", get(|| async { "hi" }).merge(post(stream)));
        (Self::start_with(router, tls).await, sender)
    }

    async fn start_with(router: Router, tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
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

const ASK: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";

/// Reads until the text ends with something.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let read = timeout(PATIENCE, stream.read_buf(&mut bytes)).await.unwrap().unwrap();
        assert_ne!(read, 0, "it ended after {bytes:?}");
    }
    String::from_utf8(bytes).unwrap()
}

/// What the client sends while the answer pauses is the next request.
async fn streams(mut stream: impl AsyncRead + AsyncWrite + Unpin, pieces: mpsc::Sender<Piece>) {
    stream.write_all(ASK).await.unwrap();
    pieces.send(Ok("one")).await.unwrap();
    let head = read_until(&mut stream, "\r\n3\r\none\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    pieces.send(Ok("and two")).await.unwrap();
    assert_eq!(read_until(&mut stream, "two\r\n").await, "7\r\nand two\r\n");
    let (beginning, end) = REQUEST.split_at(20);
    stream.write_all(beginning).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    pieces.send(Ok("three")).await.unwrap();
    assert_eq!(read_until(&mut stream, "ee\r\n").await, "5\r\nthree\r\n");
    drop(pieces);
    assert_eq!(read_until(&mut stream, "0\r\n\r\n").await, "0\r\n\r\n");
    stream.write_all(end).await.unwrap();
    assert!(read_until(&mut stream, "hi").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_answer_that_pauses_arrives_whole_and_the_connection_goes_on() {
    let (served, pieces) = Served::streaming(None).await;
    streams(TcpStream::connect(served.address).await.unwrap(), pieces).await;

    let authority = Authority::new();
    let (chain, key) = authority.certificate("a.test");
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ServerTls::new(Certificate { chain, key }).unwrap();
    let (served, pieces) = Served::streaming(Some(tls)).await;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let stream =
        TlsConnector::from(Arc::new(authority.client())).connect(name, stream).await.unwrap();
    streams(stream, pieces).await;
}

#[tokio::test]
async fn a_long_answer_waits_for_its_reader_and_is_not_changed() {
    const PIECE: &str = "0123456789abcdef";
    let (served, pieces) = Served::streaming(None).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(ASK).await.unwrap();
    pieces.send(Ok("begin")).await.unwrap();
    read_until(&mut stream, "begin\r\n").await;
    let long: &str = Box::leak(PIECE.repeat(64 * 1024).into_boxed_str());
    let sending = async {
        for piece in ["a", "b", long, long, "c", long] {
            pieces.send(Ok(piece)).await.unwrap();
        }
        drop(pieces);
    };
    let reading = async {
        sleep(Duration::from_millis(100)).await;
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n0\r\n\r\n") {
            assert_ne!(timeout(PATIENCE, stream.read_buf(&mut bytes)).await.unwrap().unwrap(), 0);
        }
        bytes
    };
    let ((), bytes) = tokio::join!(sending, reading);
    let mut rest = std::str::from_utf8(&bytes).unwrap();
    let mut content = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let (chunk, after) = after.split_at(usize::from_str_radix(size, 16).unwrap());
        content.push_str(chunk);
        rest = after.strip_prefix("\r\n").unwrap();
    }
    assert_eq!(content, format!("ab{long}{long}c{long}"));
}

/// A stream whose first piece has come to its client.
async fn begun() -> (Served, mpsc::Sender<Piece>, TcpStream) {
    let (served, pieces) = Served::streaming(None).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(ASK).await.unwrap();
    pieces.send(Ok("one")).await.unwrap();
    read_until(&mut stream, "one\r\n").await;
    (served, pieces, stream)
}

#[tokio::test]
async fn a_client_that_leaves_while_its_answer_pauses_ends_it() {
    let (_served, pieces, stream) = begun().await;
    sleep(Duration::from_millis(50)).await;
    drop(stream);
    timeout(PATIENCE, pieces.closed()).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_breaks_off_after_a_pause_has_no_end() {
    let (_served, pieces, stream) = begun().await;
    sleep(Duration::from_millis(50)).await;
    pieces.send(Ok("two")).await.unwrap();
    pieces.send(Err(std::io::Error::other("broken"))).await.unwrap();
    assert_eq!(read_to_end(stream).await, "3\r\ntwo\r\n");
}

#[tokio::test]
async fn an_answer_that_pauses_at_the_end_is_finished_and_its_connection_closed() {
    let (served, pieces, stream) = begun().await;
    served.shutdown.cancel();
    sleep(Duration::from_millis(50)).await;
    pieces.send(Ok("two")).await.unwrap();
    drop(pieces);
    assert_eq!(read_to_end(stream).await, "3\r\ntwo\r\n0\r\n\r\n");
    timeout(PATIENCE, served.serving.wait()).await.unwrap();
}
