//! Serves HTTP/1.1 by hyper, and the rest of streaming responses that pause without it.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{
    context::ConnectionContext,
    exchange::Exchange,
    handoff::{Handoff, ResponseBody, write_rest},
    limits::{CLOSE_TIMEOUT, HEAD_READ_TIMEOUT},
    stream::ClientStream,
};
use crate::BoxError;

/// Read buffer per connection. A request head that does not fit in it is refused at twice its size at
/// the latest. A buffer that a long prompt made grow is given back when the response is handed off.
const MAX_READ_BUFFER: usize = 32 * 1024;

/// Why hyper's connection was left.
enum Leave {
    Ended,
    HandedOff(Body),
    TimedOut,
}

/// Serves requests until the connection ends. `received` was read from it before; the first head must
/// be complete at `head_deadline`.
pub(super) async fn serve<S>(
    context: &ConnectionContext,
    stream: Pin<Box<S>>,
    received: Bytes,
    head_deadline: Instant,
    mut drain: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let settings = context.settings;
    let exchange = Arc::<Exchange>::default();
    let handoff = Arc::new(Handoff::new(Arc::clone(&exchange), settings.idle_stream_handoff));
    let mut stream = ClientStream::new(stream, received, Arc::clone(&exchange));
    let mut timer = IdleTimer::new(settings.keep_alive);
    let mut sleep = pin!(sleep_until(head_deadline));
    let mut is_draining = false;
    loop {
        let service = service_fn(|request| respond(context, &exchange, &handoff, request));
        let mut connection = Box::new(builder().serve_connection(TokioIo::new(stream), service));
        let leave = loop {
            let left = poll_fn(|cx| {
                if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(cx) {
                    return Poll::Ready(ended.map(|()| Leave::Ended));
                }
                if let Some(body) = handoff.take() {
                    return Poll::Ready(Ok(Leave::HandedOff(body)));
                }
                timer.poll(&exchange, sleep.as_mut(), cx).map(|()| Ok(Leave::TimedOut))
            });
            tokio::select! {
                biased;
                left = left => break left?,
                () = &mut drain, if !is_draining => is_draining = true,
            }
            Pin::new(&mut *connection).graceful_shutdown();
        };
        if matches!(leave, Leave::Ended) {
            return Ok(());
        }
        let parts = connection.into_parts();
        stream = parts.io.into_inner();
        let Leave::HandedOff(body) = leave else { return close(&mut stream).await };
        stream.unread(&parts.read_buf);
        drop(parts.read_buf);
        write_rest(&mut stream, body).await?;
        if context.shutdown.is_cancelled() {
            return close(&mut stream).await;
        }
        timer.start(&exchange, sleep.as_mut());
    }
}

fn respond(
    context: &ConnectionContext,
    exchange: &Arc<Exchange>,
    handoff: &Arc<Handoff>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
    let (eligibility, handoff) = (handoff.check_request(&request), Arc::clone(handoff));
    let responding = context.respond(exchange.begin(request));
    async move { Ok(handoff.wrap_response(responding.await?, eligibility)) }
}

/// hyper's own limit for heads is off: it counts from the end of the request before, and would be the
/// idle limit, too.
fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_buf_size(MAX_READ_BUFFER);
    builder
}

/// Closes a connection so that its client sees an end and no reset.
async fn close(stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), BoxError> {
    Ok(timeout(CLOSE_TIMEOUT, stream.shutdown()).await??)
}

/// Limits the time that a connection has no exchange in progress: [`HEAD_READ_TIMEOUT`] for a head
/// from its first byte, and the keep-alive time before it.
struct IdleTimer {
    state: IdleState,
    keep_alive: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdleState {
    /// An exchange is in progress; its own limits apply.
    Busy,
    /// Nothing of the next request has been received.
    Idle,
    /// A part of a request head has been received.
    ReadingHead,
}

impl IdleTimer {
    const fn new(keep_alive: Duration) -> Self {
        Self { state: IdleState::ReadingHead, keep_alive }
    }

    /// Starts the keep-alive time.
    fn start(&mut self, exchange: &Exchange, sleep: Pin<&mut Sleep>) {
        let _begun = exchange.take_begun();
        exchange.clear_received();
        self.state = IdleState::Idle;
        sleep.reset(Instant::now() + self.keep_alive);
    }

    /// Waits until the time limit is reached. To be polled after hyper, which may have started or ended
    /// an exchange.
    fn poll(
        &mut self,
        exchange: &Exchange,
        mut sleep: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if exchange.take_begun() {
            self.state = IdleState::Busy;
        }
        match self.state {
            _ if exchange.is_in_progress() => {
                self.state = IdleState::Busy;
                return Poll::Pending;
            }
            IdleState::Busy => self.start(exchange, sleep.as_mut()),
            // What comes after a request that was not read to its end may be the rest of it.
            IdleState::Idle if exchange.has_received() && exchange.is_request_read() => {
                self.state = IdleState::ReadingHead;
                sleep.as_mut().reset(Instant::now() + HEAD_READ_TIMEOUT);
            }
            IdleState::Idle | IdleState::ReadingHead => {}
        }
        sleep.poll(cx)
    }
}
