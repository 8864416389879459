//! Time limits of clients' connections, with the settings that the product ships with.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::support::{ENDPOINTS, World, body};

const GET: &[u8] = b"GET /api/v1/nothing HTTP/1.1\r\nhost: a\r\n\r\n";

/// Sends a request and reads its whole response.
async fn get(stream: &mut TcpStream) {
    stream.write_all(GET).await.unwrap();
    let mut response = Vec::new();
    loop {
        assert_ne!(stream.read_buf(&mut response).await.unwrap(), 0, "closed early");
        let text = std::str::from_utf8(&response).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if length.unwrap().parse() == Ok(body.len()) {
            return;
        }
    }
}

/// Waits until the server closes the connection in order; returns how long that took.
async fn wait_for_end(stream: &mut TcpStream) -> f64 {
    let began = Instant::now();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    began.elapsed().as_secs_f64()
}

/// An HTTP/2 connection without a window for responses, or with the default one; its task ends with it.
async fn connect_http2(world: &World, has_window: bool) -> (SendRequest<Bytes>, TaskTracker) {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    if !has_window {
        builder.initial_window_size(0);
    }
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let tasks = TaskTracker::new();
    tasks.spawn(async { connection.await.unwrap() });
    tasks.close();
    (client.ready().await.unwrap(), tasks)
}

async fn get_http2(client: &mut SendRequest<Bytes>, world: &World) {
    let request = Request::get(world.url("/api/v1/nothing")).body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    while body.data().await.is_some() {}
}

/// Advances the clock by a minute. It runs again afterwards: a paused one would advance while a request
/// waits for its socket.
async fn sleep_a_minute() {
    tokio::time::pause();
    sleep(Duration::from_secs(60)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_75_seconds() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    get(&mut stream).await;
    sleep_a_minute().await;
    get(&mut stream).await;
    tokio::time::pause();
    let open = wait_for_end(&mut stream).await;
    assert!((74.0..76.0).contains(&open), "{open} s after the second request");
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_after_75_seconds() {
    let world = World::start().await;
    let (mut client, connection) = connect_http2(&world, true).await;
    get_http2(&mut client, &world).await;
    sleep_a_minute().await;
    get_http2(&mut client, &world).await;
    tokio::time::pause();
    let began = Instant::now();
    connection.wait().await;
    let open = began.elapsed().as_secs_f64();
    assert!((74.0..76.0).contains(&open), "{open} s after the second request");
}

#[tokio::test]
async fn the_keep_alive_time_is_configurable() {
    let world = World::with(|config| {
        config.connections.keep_alive = Duration::from_secs(600);
    })
    .await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    get(&mut stream).await;
    let (mut client, connection) = connect_http2(&world, true).await;
    get_http2(&mut client, &world).await;
    tokio::time::pause();
    let began = Instant::now();
    let open = wait_for_end(&mut stream).await;
    assert!((599.0..601.0).contains(&open), "{open} s");
    connection.wait().await;
    let open = began.elapsed().as_secs_f64();
    assert!((599.0..601.0).contains(&open), "{open} s");
}

#[tokio::test]
async fn a_request_head_that_stalls_is_cut_off_after_10_seconds() {
    let world = World::start().await;
    let mut new = TcpStream::connect(world.address).await.unwrap();
    let mut reused = TcpStream::connect(world.address).await.unwrap();
    get(&mut reused).await;
    tokio::time::pause();
    new.write_all(&GET[..20]).await.unwrap();
    let open = wait_for_end(&mut new).await;
    assert!((9.0..11.0).contains(&open), "{open} s on a new connection");
    let idle = timeout(Duration::from_secs(30), reused.read(&mut [0; 1])).await;
    assert!(idle.is_err(), "the limit for heads is not the idle limit");
    reused.write_all(&GET[..20]).await.unwrap();
    let open = wait_for_end(&mut reused).await;
    assert!((9.0..11.0).contains(&open), "{open} s on a reused connection");
}

#[tokio::test]
async fn a_response_over_http2_that_is_not_read_is_reset_after_300_seconds() {
    let world = World::start().await;
    let (mut client, _connection) = connect_http2(&world, false).await;
    let path = ENDPOINTS[0];
    let request = Request::post(world.url(path))
        .header("authorization", format!("Bearer {}", world.token))
        .header("content-type", "application/json")
        .body(())
        .unwrap();
    let (response, mut sender) = client.send_request(request, false).unwrap();
    sender.send_data(Bytes::from(body(path, "long", true)), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    tokio::time::pause();
    let began = Instant::now();
    let mut unread = response.into_body();
    let reset = unread.data().await.unwrap().unwrap_err();
    let open = began.elapsed().as_secs_f64();
    tokio::time::resume();
    assert_eq!(reset.reason(), Some(h2::Reason::CANCEL));
    assert!((299.0..320.0).contains(&open), "{open} s");
    let record = world.settled_record().await;
    assert_eq!(record["outcome"], "cancelled", "{record:#}");
    // The connection serves other requests; only their heads fit without a window.
    let request = Request::get(world.url("/api/v1/nothing")).body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert!(response.await.unwrap().status().is_client_error());
}
