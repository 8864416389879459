//! A misbehaving provider, on a real socket.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{self, SendResponse},
};
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;

/// What the provider does with each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is refused.
    Refused,
    /// Its name does not exist.
    NoName,
    /// It uses plain HTTP instead of TLS.
    NoTls,
    /// It accepts the connection, but never starts the TLS handshake.
    SilentTls,
    /// The connection is reset before the response.
    ResetBeforeHead,
    /// The connection is closed before the response.
    ClosedBeforeHead,
    /// No response is sent.
    SilentBeforeHead,
    /// Half of the response headers are sent.
    SilentInHead,
    /// The response is not HTTP.
    Garbage,
    /// Headers without an end.
    EndlessHead,
    /// The connection is reset in the middle of the body.
    ResetInBody,
    /// The connection is closed in the middle of a chunked body.
    ClosedInBody,
    /// The connection is closed after fewer bytes than `Content-Length` says.
    TooShort,
    /// The body stops in the middle.
    SilentInBody,
    /// Another content type, with status 200.
    Html,
    /// A redirect to another address.
    Redirect,
    /// A truncated gzip stream in a complete body.
    TruncatedGzip,
    /// 100 Continue before the response.
    Continue,
    /// 103 Early Hints before the response.
    EarlyHints,
    /// HTTP/2: the stream is refused.
    RefusedStream,
    /// HTTP/2: GOAWAY before the response.
    GoAway,
    /// HTTP/2: GOAWAY, while this stream is served to its end.
    GoAwayGracefully,
    /// HTTP/2: the stream is reset in the middle of the body.
    ResetStream,
}

/// A response without a fault.
#[derive(Debug, Clone)]
pub(crate) struct Good {
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
}

/// The responses without a fault, by the end of the path and whether they are streamed.
pub(crate) type Goods = HashMap<(String, bool), Good>;

/// A provider with one fault.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// A permit for each request that waits.
    pub(crate) waiting: Arc<Semaphore>,
    _tasks: TaskTracker,
}

impl Upstream {
    pub(crate) async fn start(fault: Fault, goods: Goods) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = Arc::new(Semaphore::new(0));
        let tasks = TaskTracker::new();
        if fault == Fault::Refused {
            return Self { address, waiting, _tasks: tasks };
        }
        let (told, goods, spawning) = (Arc::clone(&waiting), Arc::new(goods), tasks.clone());
        tasks.spawn(async move {
            loop {
                let (socket, _peer) = listener.accept().await.unwrap();
                let serving = Serving { fault, goods: Arc::clone(&goods), told: Arc::clone(&told) };
                spawning.spawn(serving.serve(socket));
            }
        });
        Self { address, waiting, _tasks: tasks }
    }
}

pub(crate) fn is_http2(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::RefusedStream | Fault::GoAway | Fault::GoAwayGracefully | Fault::ResetStream
    )
}

struct Serving {
    fault: Fault,
    goods: Arc<Goods>,
    told: Arc<Semaphore>,
}

impl Serving {
    fn good(&self, path: &str, body: &[u8]) -> &Good {
        let is_stream = String::from_utf8_lossy(body).contains("\"stream\":true");
        let mut goods = self.goods.iter();
        let good = goods.find(|((end, stream), _)| path.ends_with(end) && *stream == is_stream);
        good.unwrap().1
    }

    /// Lets the bridge wait, and adds a permit.
    async fn wait(&self, socket: TcpStream) {
        self.told.add_permits(1);
        std::future::pending::<()>().await;
        drop(socket);
    }

    async fn serve(self, socket: TcpStream) {
        if is_http2(self.fault) {
            self.http2(socket).await;
        } else {
            // An error means that the bridge has closed the connection.
            let _ended = self.http1(socket).await;
        }
    }

    async fn http1(&self, mut socket: TcpStream) -> std::io::Result<()> {
        if self.fault == Fault::SilentTls {
            self.wait(socket).await;
            return Ok(());
        }
        let (path, body) = read_request(&mut socket).await?;
        if self.fault == Fault::NoTls {
            return socket
                .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
        let good = self.good(&path, &body);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {}\r\n", good.content_type);
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
        let whole = |head: &str, body: &[u8]| {
            let mut text = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
            text.extend_from_slice(body);
            text
        };
        let half = &good.body[..good.body.len() / 2];
        match self.fault {
            Fault::ResetBeforeHead => reset(&socket),
            Fault::ClosedBeforeHead => {}
            Fault::SilentBeforeHead => self.wait(socket).await,
            Fault::SilentInHead => {
                socket.write_all(head.as_bytes()).await?;
                self.wait(socket).await;
            }
            Fault::Garbage => socket.write_all(b"\x00\x01\x02 this is no HTTP\r\n\r\n").await?,
            Fault::EndlessHead => {
                socket.write_all(head.as_bytes()).await?;
                loop {
                    socket
                        .write_all(format!("x-more: {}\r\n", "x".repeat(1_000)).as_bytes())
                        .await?;
                }
            }
            Fault::ResetInBody => {
                write_chunk(&mut socket, &chunked, half).await?;
                // A reset discards what the peer has not read yet.
                tokio::time::sleep(Duration::from_millis(100)).await;
                reset(&socket);
            }
            Fault::ClosedInBody => write_chunk(&mut socket, &chunked, half).await?,
            Fault::TooShort => {
                let text = whole(&head, &good.body);
                socket.write_all(&text[..text.len() - good.body.len() + half.len()]).await?;
            }
            Fault::SilentInBody => {
                write_chunk(&mut socket, &chunked, half).await?;
                self.wait(socket).await;
            }
            Fault::Html => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n";
                socket.write_all(&whole(head, HTML)).await?;
            }
            Fault::Redirect => {
                let head = "HTTP/1.1 308 Permanent Redirect\r\nlocation: http://127.0.0.1:9/v1\r\n";
                socket.write_all(&whole(head, HTML)).await?;
            }
            Fault::TruncatedGzip => {
                let head = format!("{head}content-encoding: gzip\r\n");
                socket.write_all(&whole(&head, &gzip(&good.body))).await?;
            }
            Fault::Continue => {
                socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                socket.write_all(&whole(&head, &good.body)).await?;
            }
            Fault::EarlyHints => {
                socket.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await?;
                socket.write_all(&whole(&head, &good.body)).await?;
            }
            other => panic!("{other:?} is handled elsewhere"),
        }
        Ok(())
    }

    async fn http2(&self, socket: TcpStream) {
        let tasks = TaskTracker::new();
        let mut connection = server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            if self.fault == Fault::RefusedStream {
                respond.send_reset(Reason::REFUSED_STREAM);
                continue;
            }
            if self.fault == Fault::GoAway {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            let goods = Arc::clone(&self.goods);
            let serving = Self { fault: self.fault, goods, told: Arc::clone(&self.told) };
            tasks.spawn(serving.http2_stream(request, respond));
            if self.fault == Fault::GoAwayGracefully {
                connection.graceful_shutdown();
            }
        }
    }
}

impl Serving {
    async fn http2_stream(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let path = request.uri().path().to_owned();
        let mut received = request.into_body();
        let mut body = Vec::new();
        while let Some(Ok(chunk)) = received.data().await {
            received.flow_control().release_capacity(chunk.len()).unwrap();
            body.extend_from_slice(&chunk);
        }
        let good = self.good(&path, &body);
        let head = Response::builder().header("content-type", &good.content_type);
        let mut sending = respond.send_response(head.body(()).unwrap(), false).unwrap();
        if self.fault == Fault::GoAwayGracefully {
            sending.send_data(good.body.clone(), true).unwrap();
            return;
        }
        sending.send_data(good.body.slice(..good.body.len() / 2), false).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        sending.send_reset(Reason::INTERNAL_ERROR);
    }
}

/// The response of an intermediate proxy.
pub(crate) const HTML: &[u8] = b"<html><body>Please log in to the network.</body></html>";

/// Four fifths of the bytes of a compressed body.
pub(crate) fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    let mut bytes = encoder.finish().unwrap();
    bytes.truncate(bytes.len() * 4 / 5);
    bytes
}

/// Makes closing the socket send a reset.
fn reset(socket: &TcpStream) {
    socket.set_zero_linger().unwrap();
}

async fn write_chunk(socket: &mut TcpStream, head: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut text = format!("{head}{:x}\r\n", bytes.len()).into_bytes();
    text.extend_from_slice(bytes);
    text.extend_from_slice(b"\r\n");
    socket.write_all(&text).await
}

/// The path and the body.
async fn read_request(socket: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Ok((String::new(), bytes));
        }
        if bytes.first() == Some(&0x16) {
            // A TLS handshake, not HTTP.
            return Ok((String::new(), bytes));
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap_or("0").trim().parse().unwrap();
        if bytes.len() >= end + 4 + length {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            return Ok((path, bytes[end + 4..].to_vec()));
        }
    }
}
