//! Clients that disconnect once the model has finished: the answer is read on for its usage.

use std::{net::SocketAddr, time::Duration};

use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::support::{World, client, tcp::serve};

/// A stream in two parts: up to where the client disconnects, and the rest.
#[derive(Clone, Copy)]
struct Script {
    path: &'static str,
    /// The last text that the client waits for.
    last: &'static str,
    begin: &'static str,
    /// Empty: the provider stays silent.
    end: &'static str,
}

const CHAT: Script = Script {
    path: "/openai/v1/chat/completions",
    last: "\"stop\"",
    begin: concat!(
        r#"data: {"id":"c1","choices":[{"index":0,"delta":{"content":"three"},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        "\n\n",
    ),
    end: concat!(
        r#"data: {"id":"c1","choices":[],"usage":{"prompt_tokens":50,"completion_tokens":9,"total_tokens":59}}"#,
        "\n\ndata: [DONE]\n\n",
    ),
};

const MESSAGES: Script = Script {
    path: "/anthropic/v1/messages",
    last: "end_turn",
    begin: concat!(
        r#"data: {"type":"message_start","message":{"id":"msg_1","role":"assistant","model":"m","content":[],"usage":{"input_tokens":50,"output_tokens":1}}}"#,
        "\n\n",
        r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}"#,
        "\n\n",
    ),
    end: "data: {\"type\":\"message_stop\"}\n\n",
};

/// A provider that plays a script. Comments between its parts let the bridge notice that its client has
/// disconnected.
fn provider(script: Script) -> SocketAddr {
    serve(move |mut stream: TcpStream| async move {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte.into());
        }
        let lengths = head.to_lowercase();
        let length = lengths.split_once("content-length: ").unwrap().1.lines().next().unwrap();
        stream.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let begin = format!("{answer}{}", chunk(script.begin));
        stream.write_all(begin.as_bytes()).await.unwrap();
        for _comment in 0..20 {
            sleep(Duration::from_millis(10)).await;
            if stream.write_all(chunk(": waiting\n\n").as_bytes()).await.is_err() {
                return;
            }
        }
        if script.end.is_empty() {
            // Until the bridge closes the connection.
            let _closed = stream.read_u8().await;
        }
        let _result = stream.write_all(format!("{}0\r\n\r\n", chunk(script.end)).as_bytes()).await;
    })
}

/// Asks for the stream and disconnects once the model has finished.
async fn abandon(world: &World, script: Script) {
    let options = if script.path.ends_with("/messages") { r#","max_tokens":9"# } else { "" };
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"Which boat?"}}],"stream":true{options}}}"#
    );
    let client = client(false);
    let response = client.request(world.centralized(script.path, &body)).await.unwrap();
    let (mut stream, mut seen) = (response.into_body(), String::new());
    while !seen.contains(script.last) {
        let frame = stream.frame().await.unwrap().unwrap();
        seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap()));
    }
    drop((stream, client));
}

async fn world(script: Script) -> World {
    let base = format!("http://{}", provider(script));
    World::with(|config| {
        config.providers[0].base_url = base.parse().unwrap();
        config.providers[1].base_url = format!("{base}/v1").parse().unwrap();
    })
    .await
}

#[tokio::test]
async fn the_usage_that_follows_the_finish_is_recorded() {
    for script in [CHAT, MESSAGES] {
        let world = world(script).await;
        abandon(&world, script).await;
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "completed", "{record:#}");
        let usage = &record["token_usages"][0];
        assert_eq!((&usage["quality"], &usage["output_tokens"]), (&"exact".into(), &9.into()));
        assert_eq!(usage["input_tokens"], 50);
    }
}

#[tokio::test]
async fn a_provider_that_stays_silent_after_the_finish_is_left() {
    let script = Script { end: "", ..CHAT };
    let world = world(script).await;
    abandon(&world, script).await;
    let record = world.settled_record().await;
    assert_eq!(record["outcome"], "cancelled", "{record:#}");
    assert_ne!(record["token_usages"][0]["quality"], "exact");
}

#[tokio::test]
async fn a_shutdown_ends_the_reading() {
    let script = Script { end: "", ..CHAT };
    let world = world(script).await;
    abandon(&world, script).await;
    world.shutdown.cancel();
    world.serving.wait().await;
    world.bridge.wait_until_idle().await;
    assert_ne!(world.settled_record().await["outcome"], "completed");
}
