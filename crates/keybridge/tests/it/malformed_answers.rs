//! Providers whose answers are not what HTTP or a reverse proxy allows.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

use crate::support::{ENDPOINTS, World, body, client, tcp::serve};

/// A whole answer of the Messages API.
const MESSAGE: &str = r#"{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}"#;

/// Answers each request with these bytes, and closes the connection.
fn answer_with(text: impl Into<Vec<u8>>) -> SocketAddr {
    let text = Arc::new(text.into());
    serve(move |mut stream| {
        let text = Arc::clone(&text);
        async move {
            let mut head = vec![0; 16 * 1024];
            let _read = stream.read(&mut head).await;
            let _written = stream.write_all(&text).await;
        }
    })
}

/// A bridge whose provider of the Messages API is at this address.
async fn world_with(address: SocketAddr) -> World {
    World::with(|config| {
        config.providers[0].base_url = format!("http://{address}").parse().unwrap();
        config.providers[0].max_retries = 0;
    })
    .await
}

fn whole(head: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{head}content-length: {}\r\n\r\n{MESSAGE}", MESSAGE.len())
}

fn request(world: &World) -> Request<Full<Bytes>> {
    world.centralized(ENDPOINTS[0], &body(ENDPOINTS[0], "text", false))
}

#[tokio::test]
async fn a_protocol_switch_that_nobody_asked_for_is_a_bad_gateway() {
    let text =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let world = world_with(answer_with(text)).await;
    let answer = world.send(request(&world)).await;
    assert_status!(answer, 502);
    assert_eq!(answer.json()["error"]["type"], "api_error");
    assert!(!answer.headers.contains_key("upgrade"));
    let record = world.settled_record().await;
    assert_eq!((&record["outcome"], &record["status_code"]), (&"failed".into(), &502.into()));
    let bearer = format!("Bearer {}", world.token);
    let headers =
        [("authorization", bearer.as_str()), ("connection", "upgrade"), ("upgrade", "websocket")];
    let answer = world.send(world.request(Method::GET, "/anthropic/v1/models", &headers)).await;
    assert_status!(answer, 502);
}

#[tokio::test]
async fn what_a_provider_says_of_its_own_origin_is_not_said_of_the_bridge() {
    let text = whole(
        "alt-svc: h3=\":443\"\r\nstrict-transport-security: max-age=1\r\nset-cookie: a=b\r\n\
         clear-site-data: \"*\"\r\nnel: {}\r\nreport-to: {}\r\nx-request-id: r\r\n",
    );
    let world = world_with(answer_with(text)).await;
    let answer = world.send(request(&world)).await;
    assert_eq!(answer.text(), MESSAGE);
    let names: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    let expected = ["x-request-id", "content-length", "x-keybridge-interception-id", "date"];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn an_answer_that_breaks_before_its_first_byte_is_a_bad_gateway() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let texts = [
        format!("{head}transfer-encoding: chunked\r\n\r\nthis is no size\r\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\n"),
        format!("{head}content-length: 10\r\n\r\n"),
    ];
    for text in texts {
        let world = world_with(answer_with(text.clone())).await;
        let answer = world.send(request(&world)).await;
        assert_status!(answer, 502, "{text}");
        assert_eq!(answer.json()["error"]["type"], "api_error", "{text}");
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "failed", "{text}");
        assert_eq!(record["status_code"], 502, "{text}");
        assert_eq!(record["upstream_status"], 200, "{text}");
    }
}

/// Reads a request, and sends this until the bridge closes the connection.
async fn flood(mut stream: TcpStream, text: &[u8]) {
    let mut head = vec![0; 16 * 1024];
    let _read = stream.read(&mut head).await;
    while stream.write_all(text).await.is_ok() {}
}

#[tokio::test]
async fn a_flood_of_interim_responses_is_a_bad_gateway() {
    let floods = [
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.0 103 Early Hints\r\n\r\n",
        "\r\nHTTP/1.1 199 x\r\n\r\n",
        "HTTP/1.1 103 Early Hints\nlink: </x>\n\n",
    ];
    for text in floods {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let address = serve(move |stream| {
            counted.fetch_add(1, Ordering::Relaxed);
            flood(stream, text.as_bytes())
        });
        let world = World::with(|config| {
            config.providers[0].base_url = format!("http://{address}").parse().unwrap();
        })
        .await;
        let answer = world.send(request(&world)).await;
        assert_status!(answer, 502, "{text:?}");
        assert!(answer.text().contains("interim responses"), "{text:?}: {}", answer.text());
        assert_eq!(connections.load(Ordering::Relaxed), 1, "it is not retried: {text:?}");
    }
}

#[tokio::test]
async fn a_flood_of_interim_responses_over_http2_is_a_bad_gateway() {
    let address = serve(|stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            let hint = || http::Response::builder().status(103).body(()).unwrap();
            for _hint in 0..1_000 {
                // An error: the bridge has closed the connection.
                let _sent = respond.send_informational(hint());
            }
        }
    });
    let world = World::with(|config| {
        config.providers[0].base_url = format!("http://{address}").parse().unwrap();
        config.providers[0].http2 = true;
        config.providers[0].max_retries = 0;
    })
    .await;
    let answer = world.send(request(&world)).await;
    assert_status!(answer, 502);
}

/// A whole answer in one chunk, beside a length that does not count.
fn chunked_with_length() -> String {
    format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n\
         {:x}\r\n{MESSAGE}\r\n0\r\n\r\n",
        MESSAGE.len()
    )
}

#[tokio::test]
async fn a_length_beside_chunks_is_not_relayed() {
    let world = world_with(answer_with(chunked_with_length())).await;
    let answer = world.send(request(&world)).await;
    assert_eq!(answer.text(), MESSAGE);
    assert!(!answer.headers.contains_key("content-length"));
}

#[tokio::test]
async fn interim_responses_are_counted_after_an_answer_with_odd_framing_too() {
    let is_first = Arc::new(AtomicBool::new(true));
    let address = serve(move |mut stream| {
        let is_first = is_first.swap(false, Ordering::Relaxed);
        async move {
            if is_first {
                let mut head = vec![0; 16 * 1024];
                let _read = stream.read(&mut head).await;
                stream.write_all(chunked_with_length().as_bytes()).await.unwrap();
            }
            flood(stream, b"HTTP/1.1 102 Processing\r\n\r\n").await;
        }
    });
    let world = world_with(address).await;
    let answer = world.send(request(&world)).await;
    assert_eq!(answer.text(), MESSAGE);
    let answer = world.send(request(&world)).await;
    assert_status!(answer, 502);
    assert!(answer.text().contains("interim responses"), "{}", answer.text());
}

#[tokio::test]
async fn some_interim_responses_are_passed_over() {
    let text = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(16) + &whole("");
    let world = world_with(answer_with(text)).await;
    let answer = world.send(request(&world)).await;
    assert_status!(answer, 200);
    assert_eq!(answer.text(), MESSAGE);
}

#[tokio::test]
async fn a_head_with_too_many_or_too_long_headers_is_a_bad_gateway() {
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    for headers in [many, format!("x-long: {}\r\n", "x".repeat(200 << 10))] {
        let world = world_with(answer_with(whole(&headers))).await;
        let answer = world.send(request(&world)).await;
        assert_status!(answer, 502, "{headers:.40}");
    }
}

#[tokio::test]
async fn a_request_with_too_many_or_too_long_headers_is_refused() {
    let world = World::start().await;
    let many: Vec<(String, String)> = (0..200).map(|n| (format!("x-{n}"), "1".into())).collect();
    let long = vec![("x-long".to_owned(), "x".repeat(200 << 10))];
    for (headers, http2) in [(many, false), (long.clone(), false), (long, true)] {
        let mut request = request(&world);
        for (name, value) in &headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        // An error: the client was still sending.
        if let Ok(answer) = client(http2).request(request).await {
            assert_eq!(answer.status(), 431, "over HTTP/2: {http2}");
        }
    }
    assert!(world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn trailers_of_an_answer_are_not_relayed() {
    let text = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: set-cookie\r\n\r\n\
         {:x}\r\n{MESSAGE}\r\n0\r\nset-cookie: a=b\r\nx-late: 1\r\n\r\n",
        MESSAGE.len()
    );
    let world = world_with(answer_with(text)).await;
    for http2 in [false, true] {
        let mut answer = client(http2).request(request(&world)).await.unwrap().into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = answer.frame().await {
            let frame = frame.unwrap();
            assert!(!frame.is_trailers(), "over HTTP/2: {http2}");
            bytes.extend_from_slice(frame.data_ref().unwrap());
        }
        assert_eq!(bytes, MESSAGE.as_bytes());
    }
}

#[tokio::test]
async fn an_http2_provider_that_is_gone_is_noticed_by_a_ping() {
    let received = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&received);
    let address = serve(move |stream| {
        let told = Arc::clone(&told);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let _request = connection.accept().await.unwrap().unwrap();
            told.add_permits(1);
            // The connection stays open, and nothing reads from it any more.
            std::future::pending::<()>().await;
        }
    });
    let world = World::with(|config| {
        config.providers[0].base_url = format!("http://{address}").parse().unwrap();
        config.providers[0].http2 = true;
        config.providers[0].max_retries = 0;
        config.providers[0].timeouts.head = Duration::from_secs(600);
    })
    .await;
    let asking = world.send(request(&world));
    let waiting = async {
        let _permit = received.acquire().await.unwrap();
        tokio::time::pause();
    };
    let (answer, ()) = tokio::join!(asking, waiting);
    tokio::time::resume();
    // Not 504, which it would be after the timeout for the head.
    assert_status!(answer, 502);
}
