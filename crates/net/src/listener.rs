//! The accept loop: connections with every wait bounded, and an orderly end.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    handoff::{Handover, Pausing},
    preface::Protocol,
    stream::Wire,
};
pub use self::{
    site::{DataPath, Site},
    tls::{Certificate, ServerTls},
};

mod handoff;
mod preface;
mod site;
mod stream;
mod tls;

type BoxError = Box<dyn Error + Send + Sync>;

/// Longest wait for a request head.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Longest that a client may leave an answer unread.
const WRITE_STALL: Duration = Duration::from_secs(300);
/// Read buffer per connection; a request head that it does not hold is refused at twice its size at the
/// latest. One that was grown by a long prompt is given back when its answer pauses.
const READ_BUFFER: usize = 32 * 1024;
/// Ping of an HTTP/2 connection without traffic, and how long it may stay unanswered.
const HTTP2_PING: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 1024;
/// Pause after an accept error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// tokio wakes its own sleep through the kernel for each timer that is due before all others, which the
/// time limits of a request mostly are; not while there is one that is due before them.
const TICK: Duration = Duration::from_secs(1);
/// Connections that the kernel may have accepted when the process is told to end.
const BACKLOG: usize = 1024;
/// How long a connection without any request may still ask when the process is told to end.
const LAST_CALL: Duration = Duration::from_secs(1);
/// After streams were told to end: time for their last bytes.
const FAREWELL: Duration = Duration::from_secs(2);

/// A socket that connections come from.
#[derive(Debug)]
pub struct Endpoint {
    /// The socket.
    pub listener: TcpListener,
    /// Whether another process has the same socket, too, and takes what is left in it.
    pub is_inherited: bool,
    /// None: plain HTTP.
    pub tls: Option<ServerTls>,
}

impl From<TcpListener> for Endpoint {
    /// Plain HTTP on a socket of this process.
    fn from(listener: TcpListener) -> Self {
        Self { listener, is_inherited: false, tls: None }
    }
}

/// Serves connections until `shutdown`, then lets those in use end within `grace`; when that is
/// over, `on_grace_over` is called, and what remains is closed shortly after.
///
/// # Errors
///
/// When the listener's own address cannot be read; a failing connection is no error.
pub async fn serve(
    endpoint: impl Into<Endpoint>,
    site: impl Into<Site>,
    shutdown: CancellationToken,
    grace: Duration,
    on_grace_over: impl FnOnce(),
) -> io::Result<()> {
    let Endpoint { listener, is_inherited, tls } = endpoint.into();
    let site = site.into();
    let address = listener.local_addr()?;
    tracing::info!(%address, tls = tls.is_some(), "listening");
    let connections = TaskTracker::new();
    let connect = |stream: TcpStream, peer: SocketAddr| {
        let (site, shutdown, asked) = (site.clone(), shutdown.clone(), Arc::default());
        let connection = Connection { peer, site, shutdown, asked };
        connections.spawn(connection.begin(stream, tls.clone()));
    };
    let mut tick = tokio::time::interval(TICK);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tick.tick() => continue,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => connect(stream, peer),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let listener = listener.into_std()?;
    if !is_inherited {
        // Clients that are connected already, as far as they know, would be reset with the socket.
        for _ in 0..BACKLOG {
            let Ok((stream, peer)) = listener.accept() else { break };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            stream.into_iter().for_each(|stream| connect(stream, peer));
        }
    }
    drop(listener);
    connections.close();
    if timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!("streams are still open after the grace period and are ended");
        on_grace_over();
        if timeout(FAREWELL, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "connections were closed unfinished");
        }
    }
    Ok(())
}

/// What a connection is served with.
struct Connection {
    peer: SocketAddr,
    site: Site,
    shutdown: CancellationToken,
    /// Told of each request.
    asked: Arc<Notify>,
}

impl Connection {
    async fn begin(self, stream: TcpStream, tls: Option<ServerTls>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        let ended = match tls {
            None => self.serve(stream).await,
            // Boxed: a connection without TLS would take three times the memory.
            Some(tls) => Box::pin(self.serve_tls(stream, tls)).await,
        };
        if let Err(error) = ended {
            tracing::debug!(error = %error, "a connection ended early");
        }
    }

    async fn serve_tls(self, stream: TcpStream, tls: ServerTls) -> Result<(), BoxError> {
        let stream = tls.accept(stream).await?;
        self.serve(stream).await
    }

    async fn serve<S>(self, stream: S) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(WRITE_STALL));
        let mut stream = Box::pin(stream);
        let mut told = pin!(self.told());
        let begun = timeout(HEADER_TIME, preface::read(&mut stream));
        let (protocol, begun) = tokio::select! {
            biased;
            read = begun => read??,
            () = &mut told => return Ok(()),
        };
        let handover = Arc::default();
        let wire = Wire::new(stream, begun, Arc::clone(&handover));
        match protocol {
            Protocol::Http1 => self.serve_http1(wire, handover, told).await,
            // Boxed, as few connections need the room.
            Protocol::Http2 => Box::pin(self.serve_http2(wire, told)).await,
        }
    }

    /// Waits until it is time to end. One that has not asked yet is about to: its client knows
    /// nothing of the end.
    async fn told(&self) {
        self.shutdown.cancelled().await;
        let _asked = timeout(LAST_CALL, self.asked.notified()).await;
    }

    /// Serves requests by hyper, and the rest of answers that pause without it.
    async fn serve_http1<S>(
        &self,
        mut wire: Wire<S>,
        handover: Arc<Handover>,
        mut told: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut is_told = false;
        loop {
            let service = service_fn(|request| self.answer(&handover, request));
            let mut connection = Box::new(http1().serve_connection(TokioIo::new(wire), service));
            let body = loop {
                let pausing = poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
                    Poll::Ready(ended) => Poll::Ready(ended.map(|()| None)),
                    Poll::Pending => {
                        handover.take().map_or(Poll::Pending, |body| Poll::Ready(Ok(Some(body))))
                    }
                });
                tokio::select! {
                    biased;
                    paused = pausing => break paused?,
                    () = &mut told, if !is_told => is_told = true,
                }
                Pin::new(&mut *connection).graceful_shutdown();
            };
            let Some(body) = body else { return Ok(()) };
            let parts = connection.into_parts();
            wire = parts.io.into_inner();
            wire.rewind(&parts.read_buf);
            drop(parts.read_buf);
            handoff::writer::relay(&mut wire, body).await?;
            if self.shutdown.is_cancelled() {
                return Ok(wire.shutdown().await?);
            }
        }
    }

    async fn serve_http2<S>(
        &self,
        wire: Wire<S>,
        told: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            self.asked.notify_one();
            self.site.answer(request, self.peer)
        });
        let mut connection = pin!(http2().serve_connection(TokioIo::new(wire), service));
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = told => {}
        }
        connection.as_mut().graceful_shutdown();
        Ok(connection.await?)
    }

    fn answer(
        &self,
        handover: &Arc<Handover>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Pausing>, Infallible>> + use<> {
        self.asked.notify_one();
        let (request, handover) = handover.asked(request);
        let answering = self.site.answer(request, self.peer);
        async move { Ok(Pausing::answer(answering.await?, handover)) }
    }
}

fn http1() -> http1::Builder {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(READ_BUFFER);
    server
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .max_concurrent_streams(HTTP2_STREAMS);
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_connection_takes_little_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connection = Connection {
            peer: address,
            site: axum::Router::new().into(),
            shutdown: CancellationToken::new(),
            asked: Arc::default(),
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let size = size_of_val(&connection.begin(stream, None));
        assert!(size < 1_500, "{size} bytes");
    }
}
