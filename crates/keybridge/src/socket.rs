//! Listening sockets: opened here, or passed by a service manager.

use std::net::SocketAddr;

use anyhow::Context;
use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on an address; with `reuse_port`, other processes may listen on it too.
pub(crate) fn listen(address: SocketAddr, reuse_port: bool) -> anyhow::Result<TcpListener> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of the previous process in TIME_WAIT do not prevent a restart.
        socket.set_reuseaddr(true)?;
        if reuse_port {
            socket.set_reuseport(true)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().with_context(|| format!("cannot listen on {address}"))
}

/// The socket that systemd or another service manager passes (`LISTEN_FDS`), if any. The manager keeps
/// it open while this process is replaced, so that no connection is refused.
pub(crate) fn inherited() -> anyhow::Result<Option<TcpListener>> {
    let mut passed = ListenFd::from_env();
    let listener = passed.take_tcp_listener(0);
    let listener = listener.context("the socket passed in LISTEN_FDS is not a TCP socket")?;
    let Some(listener) = listener else {
        return Ok(None);
    };
    if passed.len() > 1 {
        let sockets = passed.len();
        tracing::warn!(sockets, "LISTEN_FDS passes several sockets; only the first is used");
    }
    listener.set_nonblocking(true)?;
    Ok(Some(TcpListener::from_std(listener)?))
}
