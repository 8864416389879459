//! Uploads on allowed routes: passed on while they arrive, never held as a whole, and recorded exactly.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use keybridge::config::Config;
use keybridge_providers::{config::ProviderType, routes::AllowedRoute};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    World,
    tcp::{read_head, serve},
};

const MIB: usize = 1 << 20;
const BOUNDARY: &str = "boundary-of-the-form";
/// The SHA-256 of the forms with files of 1 MiB and 4 MiB.
const SHA256_OF_1_MIB: &str = "e465433c4a799ea482e59ea9feeceb6899485fb3a30c16578fb3f98e6b9456bd";
const SHA256_OF_4_MIB: &str = "7f0f4383bafa7ba680381fe6ca1c691e59fe72fd0f1bfaf49c3101259f68f9cb";
const TRANSCRIPTION: &str =
    r#"{"text":"The 07:10 one.","usage":{"input_tokens":14,"output_tokens":5,"total_tokens":19}}"#;

/// A request as a provider received it.
#[derive(Debug, Clone, Default)]
struct Received {
    head: String,
    body: Vec<u8>,
    is_complete: bool,
}

/// A provider that answers each request with the next status, 200 at the end.
#[derive(Debug, Clone, Default)]
struct Provider {
    statuses: Arc<Mutex<Vec<u16>>>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Provider {
    fn start(&self) -> SocketAddr {
        let provider = self.clone();
        serve(move |mut stream| {
            let provider = provider.clone();
            async move { while provider.exchange(&mut stream).await.is_some() {} }
        })
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, at: usize, change: impl FnOnce(&mut Received)) {
        change(&mut self.received.lock().unwrap_or_else(PoisonError::into_inner)[at]);
    }

    async fn exchange(&self, stream: &mut TcpStream) -> Option<()> {
        let head = read_head(stream).await?.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1);
        let mut left: Option<usize> = length.map(|l| l.lines().next().unwrap().parse().unwrap());
        let at = {
            let mut all = self.received.lock().unwrap();
            all.push(Received { head, ..Received::default() });
            all.len() - 1
        };
        let mut buffer = vec![0; 64 * 1024];
        // Over chunks, the body is kept with its framing.
        while left != Some(0) {
            let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
            self.update(at, |received| received.body.extend_from_slice(&buffer[..count]));
            left = match left {
                Some(left) => Some(left - count),
                None if self.received()[at].body.ends_with(b"\r\n0\r\n\r\n") => Some(0),
                None => None,
            };
        }
        self.update(at, |received| received.is_complete = true);
        let status = self.statuses.lock().unwrap().pop().unwrap_or(200);
        let length = TRANSCRIPTION.len();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n\
             {TRANSCRIPTION}"
        );
        stream.write_all(answer.as_bytes()).await.ok()
    }
}

async fn world(provider: &Provider, change: impl FnOnce(&mut Config)) -> World {
    let address = provider.start();
    World::with(|config| {
        config.providers[1].base_url = format!("http://{address}/v1").parse().unwrap();
        config.providers[1].allow_routes =
            AllowedRoute::parse(ProviderType::OpenAi, "audio").unwrap();
        config.providers[1].max_retries = 2;
        change(config);
    })
    .await
}

/// A form with the model before its file.
fn form(file_bytes: usize) -> Vec<u8> {
    let mut form = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n"
    )
    .into_bytes();
    // No run of it is like another.
    form.extend((0..file_bytes).map(|at| u8::try_from(at * at % 251).unwrap()));
    form.extend(format!("\r\n--{BOUNDARY}--\r\n").into_bytes());
    form
}

enum Framing {
    Length(usize),
    Chunked,
}

/// A connection on which the head of an upload has been sent.
async fn connect(world: &World, framing: Framing) -> TcpStream {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let framing = match framing {
        Framing::Length(length) => format!("content-length: {length}"),
        Framing::Chunked => "transfer-encoding: chunked".to_owned(),
    };
    let head = format!(
        "POST /openai/v1/audio/transcriptions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
         authorization: Bearer {}\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n\
         {framing}\r\n\r\n",
        world.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn read(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _read = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends an upload and reads the response.
async fn send(world: &World, body: &[u8]) -> String {
    let mut stream = connect(world, Framing::Length(body.len())).await;
    stream.write_all(body).await.unwrap();
    read(&mut stream).await
}

/// Waits until the provider has received this many bytes of its first request.
async fn arrived(provider: &Provider, bytes: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while provider.received().first().is_none_or(|first| first.body.len() < bytes) {
        assert!(tokio::time::Instant::now() < deadline, "{bytes} bytes have not arrived");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_upload_reaches_the_provider_while_it_arrives() {
    let provider = Provider::default();
    let world = world(&provider, |_config| {}).await;
    let form = form(4 * MIB);
    let mut stream = connect(&world, Framing::Length(form.len())).await;
    stream.write_all(&form[..MIB]).await.unwrap();
    arrived(&provider, MIB).await;
    let held = world.bridge.body_memory();
    assert!(held <= MIB, "{held} bytes are held");
    let records = world.records().await;
    assert_eq!(records[0]["outcome"], "in_progress", "recorded before it was sent");
    assert_eq!(records[0]["model"], "whisper-1");
    stream.write_all(&form[MIB..]).await.unwrap();
    let answer = read(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(TRANSCRIPTION), "{answer}");
    let received = provider.received().remove(0);
    assert!(received.body == form, "the bytes of the upload differ");
    assert!(received.head.contains(&format!("content-length: {}\r\n", form.len())));
    assert!(received.head.contains("authorization: bearer sk-company-"), "{}", received.head);
    let record = world.settled_record().await;
    assert_eq!(record["outcome"], "completed");
    assert_eq!(record["request_bytes"], form.len());
    assert_eq!(record["request_sha256"], SHA256_OF_4_MIB);
    assert_eq!(record["token_usages"][0]["input_tokens"], 14);
    assert_eq!(world.bridge.body_memory(), 0);
}

#[tokio::test]
async fn an_upload_of_unknown_length_is_chunked_towards_the_provider() {
    let provider = Provider::default();
    let world = world(&provider, |_config| {}).await;
    let form = form(MIB);
    let mut stream = connect(&world, Framing::Chunked).await;
    for chunk in form.chunks(100_000) {
        let head = format!("{:x}\r\n", chunk.len());
        stream.write_all(&[head.as_bytes(), chunk, b"\r\n"].concat()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = read(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(provider.received()[0].head.contains("transfer-encoding: chunked"));
    let record = world.settled_record().await;
    assert_eq!(record["request_bytes"], form.len());
    assert_eq!(record["request_sha256"], SHA256_OF_1_MIB);
}

#[tokio::test]
async fn an_upload_over_the_limit_is_refused_or_broken_off() {
    let provider = Provider::default();
    let world = world(&provider, |config| config.max_upload = MIB).await;
    let answer = send(&world, &form(2 * MIB)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("larger than the limit of 1048576 bytes"), "{answer}");
    assert!(provider.received().is_empty(), "its length was announced");
    let mut stream = connect(&world, Framing::Chunked).await;
    for chunk in form(2 * MIB).chunks(MIB / 2) {
        let head = format!("{:x}\r\n", chunk.len());
        stream.write_all(&[head.as_bytes(), chunk, b"\r\n"].concat()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = read(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let records = world.settled_records(2).await;
    assert_eq!(records[0]["outcome"], "refused");
    assert_eq!(records[1]["outcome"], "failed");
    assert_eq!(records[1]["error_kind"], "request_too_large");
    let received = provider.received();
    assert!(received.iter().all(|received| !received.is_complete), "it would be taken for whole");
    let state = world.bridge.provider_states().remove(1);
    assert!(state.last_centralized_error.is_none(), "the provider is not to blame: {state:?}");
}

#[tokio::test]
async fn an_upload_that_is_cut_off_is_never_whole_at_the_provider() {
    let provider = Provider::default();
    let world = world(&provider, |_config| {}).await;
    let form = form(4 * MIB);
    let mut stream = connect(&world, Framing::Length(form.len())).await;
    stream.write_all(&form[..MIB]).await.unwrap();
    arrived(&provider, MIB).await;
    drop(stream);
    let record = world.settled_record().await;
    assert!(["cancelled", "failed"].contains(&record["outcome"].as_str().unwrap()), "{record:#}");
    assert_eq!(record["request_bytes"], MIB);
    assert_eq!(record["request_sha256"], Value::Null, "the whole is not known");
    assert!(!provider.received()[0].is_complete);
}

#[tokio::test]
async fn only_an_upload_that_is_held_is_retried() {
    for (file_bytes, statuses, attempts) in [(1_000, "HTTP/1.1 200", 2), (MIB, "HTTP/1.1 503", 1)] {
        let provider = Provider::default();
        provider.statuses.lock().unwrap().push(503);
        let world = world(&provider, |_config| {}).await;
        let form = form(file_bytes);
        let answer = send(&world, &form).await;
        assert!(answer.starts_with(statuses), "{answer}");
        assert_eq!(provider.received().len(), attempts);
        assert!(provider.received().iter().all(|received| received.body == form));
        let record = world.settled_record().await;
        assert_eq!(record["attempts"], attempts);
        assert_eq!(record["model"], "whisper-1");
        assert_eq!(record["request_bytes"], form.len());
    }
}
