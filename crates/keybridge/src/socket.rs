//! The sockets that are listened on: made here, or given by a service manager.

use std::net::SocketAddr;

use anyhow::Context;
use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait for being accepted.
const BACKLOG: u32 = 1024;

/// Listens on an address; with `reuse_port` beside other processes that do the same.
pub(crate) fn listen(address: SocketAddr, reuse_port: bool) -> anyhow::Result<TcpListener> {
    let listening = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart need not wait for the connections of the process before.
        socket.set_reuseaddr(true)?;
        if reuse_port {
            socket.set_reuseport(true)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listening().with_context(|| format!("{address} cannot be listened on"))
}

/// The socket that systemd or a like manager gives (`LISTEN_FDS`), if it does. It stays open while
/// this process is replaced, so that no connection is refused meanwhile.
pub(crate) fn inherited() -> anyhow::Result<Option<TcpListener>> {
    let mut given = ListenFd::from_env();
    let taking = given.take_tcp_listener(0);
    let Some(listener) = taking.context("the socket given in LISTEN_FDS is not for TCP")? else {
        return Ok(None);
    };
    if given.len() > 1 {
        let given = given.len();
        tracing::warn!(given, "only the first socket of LISTEN_FDS is used");
    }
    listener.set_nonblocking(true)?;
    Ok(Some(TcpListener::from_std(listener)?))
}
