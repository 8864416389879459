//! One client connection: TLS, the protocol, and then its requests.

use std::pin::pin;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_io_timeout::TimeoutWriter;

use super::{
    context::ConnectionContext,
    http1, http2,
    limits::{HEAD_READ_TIMEOUT, WRITE_STALL_TIMEOUT},
    preface::{self, Protocol},
    tls::ServerTls,
};
use crate::BoxError;

/// Serves a connection to its end.
pub(super) async fn serve(context: ConnectionContext, stream: TcpStream, tls: Option<ServerTls>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the client disconnected before it was served");
        return;
    }
    let ended = match tls {
        None => serve_plain(&context, stream).await,
        // Boxed: otherwise a connection without TLS takes three times the memory.
        Some(tls) => Box::pin(serve_tls(&context, stream, tls)).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn serve_tls(
    context: &ConnectionContext,
    stream: TcpStream,
    tls: ServerTls,
) -> Result<(), BoxError> {
    let stream = tls.accept(stream).await?;
    serve_plain(context, stream).await
}

async fn serve_plain<S>(context: &ConnectionContext, stream: S) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(WRITE_STALL_TIMEOUT));
    let mut stream = Box::pin(stream);
    let head_deadline = Instant::now() + HEAD_READ_TIMEOUT;
    let mut drain = pin!(context.wait_for_drain());
    let (protocol, received) = tokio::select! {
        biased;
        read = timeout_at(head_deadline, preface::read(&mut stream)) => read??,
        () = &mut drain => return Ok(()),
    };
    match protocol {
        Protocol::Http1 => http1::serve(context, stream, received, head_deadline, drain).await,
        // Boxed: few connections need the memory.
        Protocol::Http2 => Box::pin(http2::serve(context, stream, received, drain)).await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, sync::Notify};
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::listener::{connections::Connections, context::ConnectionSettings};

    #[tokio::test]
    async fn an_open_connection_takes_little_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let context = ConnectionContext {
            peer,
            slot: Connections::default().admit(peer.ip()).unwrap(),
            site: axum::Router::new().into(),
            settings: ConnectionSettings::default(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            request_received: Notify::new(),
        };
        let stream = TcpStream::connect(peer).await.unwrap();
        let size = size_of_val(&serve(context, stream, None));
        assert!(size < 1_500, "{size} bytes");
    }
}
