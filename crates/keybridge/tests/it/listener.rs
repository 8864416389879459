//! Clients' connections: slow ones, those with TLS, and those that are open at the shutdown.

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
/// For what must happen soon.
const TIMEOUT: Duration = Duration::from_secs(20);

type Event = Result<&'static str, std::io::Error>;

/// A listener that answers `hi`, and `/slow` after a while.
struct TestListener {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: TaskTracker,
}

impl TestListener {
    async fn start(tls: Option<ServerTls>) -> Self {
        let slow = || async {
            sleep(Duration::from_millis(300)).await;
            "slow"
        };
        let router = Router::new().route("/", get(|| async { "hi" })).route("/slow", get(slow));
        Self::start_with(router, tls).await
    }

    /// Answers a POST, only once, with the events that are sent.
    async fn streaming(tls: Option<ServerTls>) -> (Self, mpsc::Sender<Event>) {
        let (sender, receiver) = mpsc::channel::<Event>(100);
        let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
        let stream = move |_request: Bytes| async move {
            let receiver = receiver.lock().unwrap().take().unwrap();
            let events = futures_util::stream::unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|event| (event, receiver))
            });
            Body::from_stream(events.map(|event| event.map(Bytes::from)))
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
    // A reset is an end, too.
    let _read = timeout(TIMEOUT, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Each client sends a byte a second.
#[tokio::test]
async fn a_slow_handshake_or_head_is_cut_off_while_other_clients_are_served() {
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
    for (tls, bytes) in cases {
        let is_plain = tls.is_none();
        let server = TestListener::start(tls).await;
        let began = Instant::now();
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let mut sent = bytes.iter();
        let mut buffer = [0; 1024];
        let cut_off = loop {
            if let Some(byte) = sent.next() {
                let _written = stream.write_all(&[*byte]).await;
            }
            match timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => break began.elapsed(),
                // A response that says why.
                Ok(Ok(_)) => {}
                Err(_elapsed) => assert!(began.elapsed() < Duration::from_secs(60), "{bytes:?}"),
            }
        };
        assert!(cut_off >= Duration::from_secs(9), "{cut_off:?} {bytes:?}");
        assert!(cut_off <= Duration::from_secs(21), "{cut_off:?} {bytes:?}");
        if is_plain {
            let mut other = TcpStream::connect(server.address).await.unwrap();
            other.write_all(REQUEST).await.unwrap();
            assert!(read_to_end(other).await.ends_with("hi"));
        }
    }
}

#[tokio::test]
async fn requests_on_connections_that_are_open_at_the_shutdown_are_answered() {
    let server = &TestListener::start(None).await;
    let slow = async {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        read_to_end(stream).await
    };
    // A head of which so many bytes have been sent at the shutdown.
    let late = |before: usize| async move {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&REQUEST[..before]).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        stream.write_all(&REQUEST[before..]).await.unwrap();
        read_to_end(stream).await
    };
    let silent = async {
        let stream = TcpStream::connect(server.address).await.unwrap();
        read_to_end(stream).await
    };
    let shutting_down = async {
        sleep(Duration::from_millis(100)).await;
        server.shutdown.cancel();
        let began = Instant::now();
        server.serving.wait().await;
        began.elapsed()
    };
    let (slow, not_begun, half_sent, silent, took) =
        tokio::join!(slow, late(0), late(20), silent, shutting_down);
    assert!(slow.ends_with("slow") && slow.contains("connection: close"), "{slow}");
    assert!(not_begun.ends_with("hi"), "{not_begun}");
    assert!(half_sent.ends_with("hi"), "{half_sent}");
    assert_eq!(silent, "");
    assert!(
        took < Duration::from_secs(10),
        "a client without a request does not delay the shutdown"
    );
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// At the shutdown the kernel has accepted these connections, and the listener has not.
#[tokio::test]
async fn connections_in_the_accept_queue_are_served_at_the_shutdown() {
    let server = TestListener::start(None).await;
    let mut streams: Vec<_> =
        (0..100).map(|_| StdStream::connect(server.address).unwrap()).collect();
    server.shutdown.cancel();
    for stream in &mut streams {
        stream.write_all(REQUEST).unwrap();
    }
    timeout(TIMEOUT, server.serving.wait()).await.unwrap();
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

/// Returns the certificate that a new connection gets.
async fn served_certificate(authority: &Authority, address: SocketAddr) -> CertificateDer<'static> {
    let connector = TlsConnector::from(Arc::new(authority.client()));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    certificates.first().unwrap().clone().into_owned()
}

#[tokio::test]
async fn a_certificate_is_replaced_while_connections_stay_open() {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = Authority::new();
    let [first, second] = [0, 1].map(|_| {
        let (chain, key) = authority.certificate("localhost");
        Certificate { chain, key }
    });
    let [first_bytes, second_bytes] = [&first, &second].map(|given| given.chain[0].to_vec());
    let tls = ServerTls::new(first).unwrap();
    let server = TestListener::start(Some(tls.clone())).await;
    let uri: http::Uri = format!("https://localhost:{}/", server.address.port()).parse().unwrap();
    let clients =
        [(https(&authority, false), Version::HTTP_11), (https(&authority, true), Version::HTTP_2)];
    for (client, version) in &clients {
        let answer = client.get(uri.clone()).await.unwrap();
        assert_eq!(answer.version(), *version);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hi");
    }
    assert_eq!(served_certificate(&authority, server.address).await.as_ref(), first_bytes);
    tls.replace(&ServerTls::new(second).unwrap());
    assert_eq!(served_certificate(&authority, server.address).await.as_ref(), second_bytes);
    for (client, _) in &clients {
        assert_eq!(client.get(uri.clone()).await.unwrap().status(), 200);
    }
    let (chain, _) = authority.certificate("localhost");
    let (_, key) = authority.certificate("localhost");
    assert!(ServerTls::new(Certificate { chain, key }).is_err(), "a key of another certificate");
    let plain = timeout(TIMEOUT, async {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        read_to_end(stream).await
    });
    assert!(!plain.await.unwrap().contains("hi"));
}

const POST: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";

/// Reads until the text ends with `end`.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let read = timeout(TIMEOUT, stream.read_buf(&mut bytes)).await.unwrap().unwrap();
        assert_ne!(read, 0, "the connection ended after {bytes:?}");
    }
    String::from_utf8(bytes).unwrap()
}

/// Reads a response that pauses, and sends the beginning of the next request during a pause.
async fn read_pausing_response(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    events: mpsc::Sender<Event>,
) {
    stream.write_all(POST).await.unwrap();
    events.send(Ok("one")).await.unwrap();
    let head = read_until(&mut stream, "\r\n3\r\none\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    events.send(Ok("and two")).await.unwrap();
    assert_eq!(read_until(&mut stream, "two\r\n").await, "7\r\nand two\r\n");
    let (beginning, end) = REQUEST.split_at(20);
    stream.write_all(beginning).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    events.send(Ok("three")).await.unwrap();
    assert_eq!(read_until(&mut stream, "ee\r\n").await, "5\r\nthree\r\n");
    drop(events);
    assert_eq!(read_until(&mut stream, "0\r\n\r\n").await, "0\r\n\r\n");
    stream.write_all(end).await.unwrap();
    assert!(read_until(&mut stream, "hi").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_response_that_pauses_is_complete_and_its_connection_is_reused() {
    let (server, events) = TestListener::streaming(None).await;
    read_pausing_response(TcpStream::connect(server.address).await.unwrap(), events).await;

    let authority = Authority::new();
    let (chain, key) = authority.certificate("a.test");
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ServerTls::new(Certificate { chain, key }).unwrap();
    let (server, events) = TestListener::streaming(Some(tls)).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let stream =
        TlsConnector::from(Arc::new(authority.client())).connect(name, stream).await.unwrap();
    read_pausing_response(stream, events).await;
}

#[tokio::test]
async fn a_long_response_waits_for_its_reader_and_is_not_changed() {
    const TEXT: &str = "0123456789abcdef";
    let (server, events) = TestListener::streaming(None).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(POST).await.unwrap();
    events.send(Ok("begin")).await.unwrap();
    read_until(&mut stream, "begin\r\n").await;
    let long: &str = Box::leak(TEXT.repeat(64 * 1024).into_boxed_str());
    let sending = async {
        for event in ["a", "b", long, long, "c", long] {
            events.send(Ok(event)).await.unwrap();
        }
        drop(events);
    };
    let reading = async {
        sleep(Duration::from_millis(100)).await;
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n0\r\n\r\n") {
            assert_ne!(timeout(TIMEOUT, stream.read_buf(&mut bytes)).await.unwrap().unwrap(), 0);
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

/// Opens a stream and reads its first event.
async fn open_stream() -> (TestListener, mpsc::Sender<Event>, TcpStream) {
    let (server, events) = TestListener::streaming(None).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(POST).await.unwrap();
    events.send(Ok("one")).await.unwrap();
    read_until(&mut stream, "one\r\n").await;
    (server, events, stream)
}

#[tokio::test]
async fn a_client_that_disconnects_while_its_response_pauses_ends_it() {
    let (_served, events, stream) = open_stream().await;
    sleep(Duration::from_millis(50)).await;
    drop(stream);
    timeout(TIMEOUT, events.closed()).await.unwrap();
}

#[tokio::test]
async fn a_response_that_fails_after_a_pause_is_truncated() {
    let (_served, events, stream) = open_stream().await;
    sleep(Duration::from_millis(50)).await;
    events.send(Ok("two")).await.unwrap();
    events.send(Err(std::io::Error::other("broken"))).await.unwrap();
    assert_eq!(read_to_end(stream).await, "3\r\ntwo\r\n");
}

#[tokio::test]
async fn a_response_that_pauses_at_the_shutdown_is_finished_and_its_connection_closed() {
    let (server, events, stream) = open_stream().await;
    server.shutdown.cancel();
    sleep(Duration::from_millis(50)).await;
    events.send(Ok("two")).await.unwrap();
    drop(events);
    assert_eq!(read_to_end(stream).await, "3\r\ntwo\r\n0\r\n\r\n");
    timeout(TIMEOUT, server.serving.wait()).await.unwrap();
}

/// Without `close_notify`, reading would fail.
#[tokio::test]
async fn an_idle_connection_with_tls_is_closed_in_order() {
    let authority = Authority::new();
    let (chain, key) = authority.certificate("a.test");
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ServerTls::new(Certificate { chain, key }).unwrap();
    let listener = TestListener::start(Some(tls)).await;
    let stream = TcpStream::connect(listener.address).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let connector = TlsConnector::from(Arc::new(authority.client()));
    let mut stream = connector.connect(name, stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_until(&mut stream, "hi").await;
    tokio::time::pause();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}
