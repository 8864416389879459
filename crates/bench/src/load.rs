//! The load: so many connections, each with one request or event in flight, and what they saw.

use std::{
    io::{self, BufRead},
    net::SocketAddr,
    path::PathBuf,
    sync::{Barrier, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::client::{Connection, Request, Tls, tick};

mod prompt;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What is measured
    #[arg(long)]
    to: SocketAddr,
    /// The provider, which is asked for each next event of `pingpong`
    #[arg(long)]
    mock: SocketAddr,
    /// Path of the requests
    #[arg(long, default_value = "/v1/messages")]
    path: String,
    /// Model that is asked for
    #[arg(long, default_value = "bench-1")]
    model: String,
    /// The certificate of what is measured, as PEM: TLS is spoken
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Bearer token
    #[arg(long, default_value = "none")]
    token: String,
    #[arg(long)]
    kind: Kind,
    /// Connections
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Requests or events of each connection
    #[arg(long, default_value_t = 1_000)]
    count: usize,
    /// The same before anything is measured
    #[arg(long, default_value_t = 100)]
    warmup: usize,
    /// Events of a bunched stream
    #[arg(long, default_value_t = 30)]
    events: usize,
    /// Size of a request's body
    #[arg(long, default_value_t = 1_000)]
    prompt_bytes: usize,
    /// Time between events of `paced`, or between requests of `open` and `whole`
    #[arg(long, default_value_t = 0)]
    pace_us: u64,
    /// Whether streams of `paced` begin one after the other, so that their events are not due at one moment
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    staggered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Streams whose next event is sent when the one before has come
    Pingpong,
    /// Requests one after the other, answered whole; with a pace, latencies count from when each was due
    Whole,
    /// Streams one after the other, each sent in one piece
    Bunched,
    /// Streams with an event at each pace
    Paced,
    /// Streams that say nothing after their first event
    Idle,
}

/// What one connection saw.
#[derive(Debug, Default)]
struct Seen {
    /// Nanoseconds from asking to the (first) event or the whole answer.
    latencies: Vec<u64>,
    /// Events that have come.
    events: usize,
}

/// The body of a request that is answered whole.
pub(crate) fn prompt(path: &str, bytes: usize) -> String {
    prompt::body(path, "bench-1", false, bytes)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.streams > 0 && options.count > 0, "nothing is to be done");
    let barrier = Barrier::new(options.streams + 1);
    let all = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.streams)
            .map(|number| {
                let (barrier, all) = (&barrier, &all);
                scope.spawn(move || {
                    let seen = work(options, number, barrier);
                    all.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
                })
            })
            .collect();
        barrier.wait();
        println!("{}", json!({ "ready": options.streams }));
        // Whoever measures says when.
        io::stdin().lock().read_line(&mut String::new())?;
        let began = Instant::now();
        barrier.wait();
        barrier.wait();
        let seconds = began.elapsed().as_secs_f64();
        println!("{}", json!({ "done": true, "seconds": seconds }));
        io::stdin().lock().read_line(&mut String::new())?;
        barrier.wait();
        for worker in workers {
            ensure!(worker.join().is_ok(), "a connection panicked");
        }
        anyhow::Ok(())
    })?;
    let mut total = Seen::default();
    for seen in all.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let seen = seen?;
        total.latencies.extend(seen.latencies);
        total.events += seen.events;
    }
    println!("{}", report(options, total));
    Ok(())
}

/// The work of one connection, in step with the others: ready, begin, done, end. One that fails goes on
/// in step, so that the others end.
fn work(options: &Options, number: usize, barrier: &Barrier) -> anyhow::Result<Seen> {
    let mut steps = 4;
    let mut step = || {
        barrier.wait();
        steps -= 1;
    };
    let result = match options.kind {
        Kind::Pingpong => pingpong(options, number, &mut step),
        Kind::Whole | Kind::Bunched => requests(options, number, &mut step),
        Kind::Paced => paced(options, number, &mut step),
        Kind::Idle => idle(options, &mut step),
    };
    for _ in 0..steps {
        barrier.wait();
    }
    result
}

impl Options {
    fn request(&self, ask: &str) -> Request {
        let is_streaming = self.kind != Kind::Whole;
        let body = prompt::body(&self.path, &self.model, is_streaming, self.prompt_bytes);
        Request::new(&self.path, &self.token, ask, &body)
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        let tls = self.certificate.as_deref().map(Tls::trusting).transpose()?;
        Connection::open(self.to, tls.as_ref())
    }

    fn pace(&self) -> Duration {
        Duration::from_micros(self.pace_us)
    }

    /// One connection begins after the other, not all at once.
    fn offset(&self, number: usize) -> anyhow::Result<Duration> {
        Ok(self.pace() * u32::try_from(number)? / u32::try_from(self.streams)?)
    }
}

fn pingpong(options: &Options, number: usize, step: &mut impl FnMut()) -> anyhow::Result<Seen> {
    use std::io::Write;
    let id = u64::try_from(number)? + u64::from(std::process::id()) * 100_000;
    let mut tick = tick(options.mock, id)?;
    // The provider must know the tick before the stream is asked for.
    thread::sleep(Duration::from_millis(20));
    let events = options.warmup + options.count;
    let mut connection = options.connect()?;
    connection.send(&options.request(&format!("mode=pingpong;events={events};tick={id}")))?;
    connection.head()?;
    let beginning = if options.path.ends_with("/messages") { 2 } else { 1 };
    for _ in 0..beginning {
        connection.event()?;
    }
    let mut seen = Seen { latencies: Vec::with_capacity(options.count), events: 0 };
    let mut next = |seen: &mut Seen| {
        let began = Instant::now();
        tick.write_all(b"+")?;
        connection.event()?;
        connection.forget();
        seen.latencies.push(nanos(began.elapsed()));
        seen.events += 1;
        anyhow::Ok(())
    };
    for _ in 0..options.warmup {
        next(&mut seen)?;
    }
    seen = Seen { latencies: Vec::with_capacity(options.count), events: 0 };
    step();
    step();
    for _ in 0..options.count {
        next(&mut seen)?;
    }
    step();
    step();
    connection.end()?;
    Ok(seen)
}

fn requests(options: &Options, number: usize, step: &mut impl FnMut()) -> anyhow::Result<Seen> {
    let is_whole = options.kind == Kind::Whole;
    let ask = if is_whole {
        "mode=whole".into()
    } else {
        format!("mode=bunched;events={}", options.events)
    };
    let request = options.request(&ask);
    let mut connection = options.connect()?;
    let mut seen = Seen::default();
    let mut one = |seen: &mut Seen, began: Instant| {
        connection.send(&request)?;
        if is_whole {
            connection.whole()?;
            seen.latencies.push(nanos(began.elapsed()));
        } else {
            connection.head()?;
            connection.event()?;
            seen.latencies.push(nanos(began.elapsed()));
            seen.events += connection.stream()?;
        }
        anyhow::Ok(())
    };
    for _ in 0..options.warmup {
        one(&mut seen, Instant::now())?;
    }
    seen = Seen { latencies: Vec::with_capacity(options.count), events: 0 };
    step();
    step();
    let pace = options.pace();
    let mut due = Instant::now() + options.offset(number)?;
    for _ in 0..options.count {
        if !pace.is_zero() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        // What was due earlier has waited for the one before, too.
        one(&mut seen, if pace.is_zero() { Instant::now() } else { due })?;
        due += pace;
    }
    step();
    step();
    Ok(seen)
}

fn paced(options: &Options, number: usize, step: &mut impl FnMut()) -> anyhow::Result<Seen> {
    let ask = format!("mode=paced;events={};pace_us={}", options.count, options.pace_us);
    let request = options.request(&ask);
    let mut connection = options.connect()?;
    step();
    step();
    if options.staggered {
        thread::sleep(options.offset(number)?);
    }
    connection.send(&request)?;
    connection.head()?;
    let mut seen = Seen::default();
    let beginning = if options.path.ends_with("/messages") { 2 } else { 1 };
    for _ in 0..beginning {
        connection.event()?;
    }
    while seen.events < options.count {
        let end = connection.event()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let stamp = connection.stamp(end).context("an event without its time")?;
        seen.latencies.push(u64::try_from(now.saturating_sub(stamp))?);
        seen.events += 1;
        connection.forget();
    }
    connection.end()?;
    step();
    step();
    Ok(seen)
}

/// Opens `count` streams and holds them.
fn idle(options: &Options, step: &mut impl FnMut()) -> anyhow::Result<Seen> {
    let request = options.request("mode=idle");
    let mut held = Vec::with_capacity(options.count);
    step();
    step();
    for _ in 0..options.count {
        let mut connection = options.connect()?;
        connection.send(&request)?;
        connection.head()?;
        for _ in 0..3 {
            connection.event()?;
        }
        held.push(connection);
    }
    step();
    step();
    Ok(Seen { latencies: Vec::new(), events: held.len() })
}

fn report(options: &Options, mut seen: Seen) -> serde_json::Value {
    seen.latencies.sort_unstable();
    let at = |share: f64| {
        let last = seen.latencies.len().saturating_sub(1);
        #[expect(
            clippy::as_conversions,
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among far fewer than 2^52"
        )]
        let rank = (last as f64 * share).round() as usize;
        seen.latencies.get(rank).map(|nanos| Duration::from_nanos(*nanos).as_secs_f64() * 1e6)
    };
    json!({
        "kind": format!("{:?}", options.kind).to_lowercase(),
        "requests": seen.latencies.len(),
        "events": seen.events,
        "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": at(1.0),
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
