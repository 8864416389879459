//! The accept loop: takes clients' connections, and lets them end in order at the shutdown.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::context::ConnectionContext;
pub use self::{
    connections::{ConnectionLimits, Connections, ForwardedClient},
    context::ConnectionSettings,
    site::{DataPath, Site},
    tls::{Certificate, ServerTls},
};

mod connection;
mod connections;
mod context;
mod exchange;
mod handoff;
mod http1;
mod http2;
mod limits;
mod preface;
mod site;
mod stream;
mod tls;

/// Delay after an accept error such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// While tokio sleeps until its earliest timer, registering an even earlier one wakes it through the
/// kernel, which the time limits of most requests would do. This timer is always earlier than those.
const TIMER_TICK: Duration = Duration::from_secs(1);
/// Connections that the kernel may have accepted, and this process not yet, at the shutdown.
const MAX_ACCEPT_QUEUE: usize = 1024;
/// How long streams that were ended after the grace period may take to send their last bytes.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Endpoint {
    /// The socket.
    pub listener: TcpListener,
    /// Whether another process shares the socket and will accept the connections waiting in it.
    pub is_inherited: bool,
    /// None: plain HTTP.
    pub tls: Option<ServerTls>,
    /// Settings of the accepted connections.
    pub settings: ConnectionSettings,
    /// Their counts and limits.
    pub connections: Connections,
}

impl From<TcpListener> for Endpoint {
    /// Plain HTTP with the default settings, on a socket of this process, without limits.
    fn from(listener: TcpListener) -> Self {
        let (settings, connections) = (ConnectionSettings::default(), Connections::default());
        Self { listener, is_inherited: false, tls: None, settings, connections }
    }
}

/// Serves connections until `shutdown`, then drains them for the grace period at most.
///
/// If requests are still in flight after it, `on_grace_period_end` is called to end them, and the
/// listener returns soon after.
///
/// # Errors
///
/// When the listener's own address cannot be read. A connection that fails is no error.
pub async fn serve(
    endpoint: impl Into<Endpoint>,
    site: impl Into<Site>,
    shutdown: CancellationToken,
    grace_period: Duration,
    on_grace_period_end: impl FnOnce(),
) -> io::Result<()> {
    let Endpoint { listener, is_inherited, tls, settings, connections } = endpoint.into();
    let site = site.into();
    let address = listener.local_addr()?;
    tracing::info!(%address, tls = tls.is_some(), "listening");
    let tasks = TaskTracker::new();
    let connect = |stream: TcpStream, peer: SocketAddr| {
        // Without a slot the connection is closed.
        let Some(slot) = connections.admit(peer.ip()) else { return };
        let context = ConnectionContext {
            peer,
            slot,
            site: site.clone(),
            settings,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
            request_received: Notify::new(),
        };
        tasks.spawn(connection::serve(context, stream, tls.clone()));
    };
    accept_until(&shutdown, &listener, &connect).await;
    let listener = listener.into_std()?;
    if !is_inherited {
        // Their clients are connected already, and would see a reset when the socket is closed.
        for _ in 0..MAX_ACCEPT_QUEUE {
            let Ok((stream, peer)) = listener.accept() else { break };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            stream.into_iter().for_each(|stream| connect(stream, peer));
        }
    }
    drop(listener);
    tasks.close();
    if timeout(grace_period, tasks.wait()).await.is_err() {
        tracing::warn!("requests are still in flight after the grace period and are ended");
        on_grace_period_end();
        if timeout(LAST_BYTES_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::warn!(
                open = tasks.len(),
                "connections were closed before their requests ended"
            );
        }
    }
    Ok(())
}

async fn accept_until(
    shutdown: &CancellationToken,
    listener: &TcpListener,
    connect: impl Fn(TcpStream, SocketAddr),
) {
    let mut tick = tokio::time::interval(TIMER_TICK);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tick.tick() => continue,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => connect(stream, peer),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}
