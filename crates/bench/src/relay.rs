//! A relay of bytes: the minimum cost of anything between two sockets.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

pub(crate) async fn serve(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("{}", listener.local_addr()?);
    let tasks = TaskTracker::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        tasks.spawn(async move {
            let Ok(mut upstream) = TcpStream::connect(to).await else { return };
            // Either side may close its connection.
            if upstream.set_nodelay(true).is_ok() {
                let _ended = copy_bidirectional(&mut client, &mut upstream).await;
            }
        });
    }
}
