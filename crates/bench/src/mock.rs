//! The minimal provider: HTTP/1.1 on one thread, prebuilt answers, nothing is looked at but the length
//! of a body and the header `x-bench`.

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

use crate::answers::{STREAM_END, Shape, chunk};

/// Largest head of a request.
const HEAD: usize = 64 * 1024;

/// How a request is answered: the header `x-bench`, such as `mode=paced;events=100;pace_us=5000`.
#[derive(Debug, Default)]
struct Ask {
    mode: String,
    events: usize,
    pace: Duration,
    /// The connection whose bytes ask for the next event each.
    tick: u64,
}

/// The tick connections that wait for their streams.
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
            // A client that leaves is none of its business.
            let _ended = connection(stream, &ticks).await;
        });
    }
}

async fn connection(mut stream: TcpStream, ticks: &Ticks) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(HEAD);
    let mut whole = [Shape::Messages, Shape::Chat].map(Shape::whole);
    loop {
        let Some((shape, ask)) = request(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        match ask.mode.as_str() {
            "tick" => {
                lock(ticks).insert(ask.tick, stream);
                return Ok(());
            }
            "whole" => {
                let [messages, chat] = &mut whole;
                let answer = if shape == Shape::Messages { messages } else { chat };
                stream.write_all(answer.with_id(next_id())).await?;
            }
            _ => streamed(&mut stream, shape, &ask, ticks).await?,
        }
    }
}

/// Reads a request and forgets its body; `None` at the end of the connection.
async fn request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<Option<(Shape, Ask)>> {
    buffer.clear();
    let end = loop {
        if let Some(at) = memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > HEAD || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = buffer.get(..end).unwrap_or_default();
    let head = std::str::from_utf8(head)?.to_owned();
    let mut lines = head.split("\r\n");
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let (mut length, mut ask) = (0_usize, Ask::default());
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        } else if name.eq_ignore_ascii_case("x-bench") {
            ask = Ask::parse(value.trim())?;
        }
    }
    let mut left = (end + length).saturating_sub(buffer.len());
    while left > 0 {
        buffer.clear();
        let read = stream.read_buf(buffer).await?;
        if read == 0 {
            bail!("the body broke off");
        }
        left = left.saturating_sub(read);
    }
    Ok(Some((Shape::of(path), ask)))
}

impl Ask {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut ask = Self { mode: "whole".into(), ..Self::default() };
        for (name, value) in text.split(';').filter_map(|part| part.split_once('=')) {
            match name {
                "mode" => ask.mode = value.into(),
                "events" => ask.events = value.parse()?,
                "pace_us" => ask.pace = Duration::from_micros(value.parse()?),
                "tick" => ask.tick = value.parse()?,
                other => bail!("x-bench has no `{other}`"),
            }
        }
        Ok(ask)
    }
}

/// No two answers have the same.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

async fn streamed(
    stream: &mut TcpStream,
    shape: Shape,
    ask: &Ask,
    ticks: &Ticks,
) -> anyhow::Result<()> {
    let id = next_id();
    let mut first = shape.opening().with_id(id).to_vec();
    let mut last = chunk(&shape.end(id, ask.events));
    last.extend_from_slice(STREAM_END);
    match ask.mode.as_str() {
        // All in one piece, each event in a chunk of its own.
        "bunched" => {
            let delta = chunk(&shape.delta(id));
            first.extend(std::iter::repeat_n(delta, ask.events).flatten());
            first.extend(last);
            stream.write_all(&first).await?;
        }
        "paced" => {
            stream.write_all(&first).await?;
            let begin = Instant::now();
            let mut due = begin;
            for _ in 0..ask.events {
                due += ask.pace;
                sleep_until(due).await;
                stream.write_all(&chunk(&shape.delta(id))).await?;
            }
            stream.write_all(&last).await?;
        }
        "pingpong" => {
            let mut tick = lock(ticks).remove(&ask.tick).context("its tick is missing")?;
            stream.write_all(&first).await?;
            let delta = chunk(&shape.delta(id));
            let mut byte = [0; 1];
            for _ in 0..ask.events {
                tick.read_exact(&mut byte).await?;
                stream.write_all(&delta).await?;
            }
            stream.write_all(&last).await?;
        }
        // One event, then nothing until the client leaves.
        "idle" => {
            first.extend(chunk(&shape.delta(id)));
            stream.write_all(&first).await?;
            let mut byte = [0; 1];
            let _left = stream.read(&mut byte).await?;
            bail!("the client has left");
        }
        other => bail!("there is no mode `{other}`"),
    }
    Ok(())
}

fn lock(ticks: &Ticks) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
    ticks.lock().unwrap_or_else(PoisonError::into_inner)
}
