//! The minimal provider: HTTP/1.1 on one thread with prebuilt responses. It reads only the length of a
//! body and the header `x-bench`.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use memchr::memmem;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};
use tokio_util::task::TaskTracker;

use crate::responses::{ApiFormat, STREAM_END, chunk};

/// The maximum size of a request head.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// How to respond to a request: the header `x-bench`, such as `mode=paced;events=100;pace_us=5000`.
#[derive(Debug, Default)]
struct ResponsePlan {
    mode: String,
    events: usize,
    pace: Duration,
    /// The connection on which each byte requests the next event.
    tick: u64,
}

/// The tick connections whose streams have not started yet.
type Ticks = Arc<Mutex<HashMap<u64, TcpStream>>>;

pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("{}", listener.local_addr()?);
    let (ticks, tasks) = (Ticks::default(), TaskTracker::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let ticks = Arc::clone(&ticks);
        tasks.spawn(async move {
            // A client may disconnect at any time.
            let _ended = connection(stream, &ticks).await;
        });
    }
}

async fn connection(mut stream: TcpStream, ticks: &Ticks) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(MAX_HEAD_BYTES);
    let mut whole = [ApiFormat::Messages, ApiFormat::Chat].map(ApiFormat::whole);
    loop {
        let Some((format, plan)) = request(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        match plan.mode.as_str() {
            "tick" => {
                lock(ticks).insert(plan.tick, stream);
                return Ok(());
            }
            "whole" => {
                let [messages, chat] = &mut whole;
                let answer = if format == ApiFormat::Messages { messages } else { chat };
                stream.write_all(answer.with_id(next_id())).await?;
            }
            _ => send_stream(&mut stream, format, &plan, ticks).await?,
        }
    }
}

/// Reads a request and discards its body; `None` at the end of the connection.
async fn request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<Option<(ApiFormat, ResponsePlan)>> {
    buffer.clear();
    let end = loop {
        if let Some(at) = memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > MAX_HEAD_BYTES || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = buffer.get(..end).unwrap_or_default();
    let head = std::str::from_utf8(head)?.to_owned();
    let mut lines = head.split("\r\n");
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let (mut length, mut plan) = (0_usize, ResponsePlan::default());
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        } else if name.eq_ignore_ascii_case("x-bench") {
            plan = ResponsePlan::parse(value.trim())?;
        }
    }
    let mut left = (end + length).saturating_sub(buffer.len());
    while left > 0 {
        buffer.clear();
        let read = stream.read_buf(buffer).await?;
        if read == 0 {
            bail!("the request body is incomplete");
        }
        left = left.saturating_sub(read);
    }
    Ok(Some((ApiFormat::of(path), plan)))
}

impl ResponsePlan {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut plan = Self { mode: "whole".into(), ..Self::default() };
        for (name, value) in text.split(';').filter_map(|part| part.split_once('=')) {
            match name {
                "mode" => plan.mode = value.into(),
                "events" => plan.events = value.parse()?,
                "pace_us" => plan.pace = Duration::from_micros(value.parse()?),
                "tick" => plan.tick = value.parse()?,
                other => bail!("unknown x-bench parameter `{other}`"),
            }
        }
        Ok(plan)
    }
}

/// Returns an id that is unique among all responses.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

async fn send_stream(
    stream: &mut TcpStream,
    format: ApiFormat,
    plan: &ResponsePlan,
    ticks: &Ticks,
) -> anyhow::Result<()> {
    let id = next_id();
    let mut first = format.opening().with_id(id).to_vec();
    let mut last = chunk(&format.end(id, plan.events));
    last.extend_from_slice(STREAM_END);
    match plan.mode.as_str() {
        // All in one write, each event in its own chunk.
        "bunched" => {
            let delta = chunk(&format.delta(id));
            first.extend(std::iter::repeat_n(delta, plan.events).flatten());
            first.extend(last);
            stream.write_all(&first).await?;
        }
        "paced" => {
            stream.write_all(&first).await?;
            let begin = Instant::now();
            let mut due = begin;
            for _ in 0..plan.events {
                due += plan.pace;
                sleep_until(due).await;
                stream.write_all(&chunk(&format.delta(id))).await?;
            }
            stream.write_all(&last).await?;
        }
        "pingpong" => {
            let mut tick =
                lock(ticks).remove(&plan.tick).context("the stream has no tick connection")?;
            stream.write_all(&first).await?;
            let delta = chunk(&format.delta(id));
            let mut byte = [0; 1];
            for _ in 0..plan.events {
                tick.read_exact(&mut byte).await?;
                stream.write_all(&delta).await?;
            }
            stream.write_all(&last).await?;
        }
        // One event, then nothing until the client disconnects.
        "idle" => {
            first.extend(chunk(&format.delta(id)));
            stream.write_all(&first).await?;
            let mut byte = [0; 1];
            let _left = stream.read(&mut byte).await?;
            bail!("the client disconnected");
        }
        other => bail!("unknown mode `{other}`"),
    }
    Ok(())
}

fn lock(ticks: &Ticks) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
    ticks.lock().unwrap_or_else(PoisonError::into_inner)
}
