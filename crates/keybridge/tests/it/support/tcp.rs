//! Scripted servers and proxies that speak HTTP/1.1 by hand.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener as StdListener},
};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

/// Listens, and handles each connection in its own task.
pub fn serve<F: Future<Output = ()> + Send + 'static>(
    handle: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let tasks = TaskTracker::new();
    let handling = tasks.clone();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            handling.spawn(handle(stream));
        }
    });
    address
}

/// Reads the head of a request, with the empty line at its end; `None` if the connection ends before.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}
