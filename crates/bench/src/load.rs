//! The load generator: a number of connections, each with one request or event in flight.

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

use crate::client::{Connection, Request, Tls, open_tick_connection};

mod prompt;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address of the measured server
    #[arg(long)]
    to: SocketAddr,
    /// Address of the provider, which sends each next event of `pingpong` on request
    #[arg(long)]
    mock: SocketAddr,
    /// Path of the requests
    #[arg(long, default_value = "/v1/messages")]
    path: String,
    /// Model to request
    #[arg(long, default_value = "bench-1")]
    model: String,
    /// Certificate of the measured server in PEM; enables TLS
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Bearer token
    #[arg(long, default_value = "none")]
    token: String,
    #[arg(long)]
    kind: Kind,
    /// Number of connections
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Number of requests or events per connection
    #[arg(long, default_value_t = 1_000)]
    count: usize,
    /// Number of requests or events before the measurement
    #[arg(long, default_value_t = 100)]
    warmup: usize,
    /// Number of events in a bunched stream
    #[arg(long, default_value_t = 30)]
    events: usize,
    /// Size of the request body
    #[arg(long, default_value_t = 1_000)]
    prompt_bytes: usize,
    /// Time between events of `paced`, or between requests of `whole`
    #[arg(long, default_value_t = 0)]
    pace_us: u64,
    /// Whether streams of `paced` start one after the other, so that their events are not all due at once
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    staggered: bool,
    /// Count `open` and `whole` requests that are not answered 200 instead of ending with an error
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    count_refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Streams whose next event is sent once the previous one has arrived
    Pingpong,
    /// Consecutive requests with complete responses; with a pace, latencies count from when each was due
    Whole,
    /// Consecutive streams, each sent in one piece
    Bunched,
    /// Streams with events at a fixed pace
    Paced,
    /// Streams that are silent after their first event
    Idle,
}

/// The measurements of one connection.
#[derive(Debug, Default)]
struct Measurements {
    /// The nanoseconds from the request to the (first) event or the complete response.
    latencies: Vec<u64>,
    /// The number of events received.
    events: usize,
    /// Requests that were not answered 200.
    refused: usize,
}

impl Measurements {
    fn with_capacity(requests: usize) -> Self {
        Self { latencies: Vec::with_capacity(requests), ..Self::default() }
    }
}

/// The body of a request for a complete response.
pub(crate) fn prompt(path: &str, bytes: usize) -> String {
    prompt::body(path, "bench-1", false, bytes)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        options.streams > 0 && options.count > 0,
        "the count and the number of streams must not be 0"
    );
    let barrier = Barrier::new(options.streams + 1);
    let all = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.streams)
            .map(|number| {
                let (barrier, all) = (&barrier, &all);
                scope.spawn(move || {
                    let seen = run_connection(options, number, barrier);
                    all.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
                })
            })
            .collect();
        barrier.wait();
        println!("{}", json!({ "ready": options.streams }));
        // The measuring process decides when to start.
        io::stdin().lock().read_line(&mut String::new())?;
        let start = Instant::now();
        barrier.wait();
        barrier.wait();
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", json!({ "done": true, "seconds": seconds }));
        io::stdin().lock().read_line(&mut String::new())?;
        barrier.wait();
        for worker in workers {
            ensure!(worker.join().is_ok(), "a connection panicked");
        }
        anyhow::Ok(())
    })?;
    let mut total = Measurements::default();
    for seen in all.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let seen = seen?;
        total.latencies.extend(seen.latencies);
        total.events += seen.events;
        total.refused += seen.refused;
    }
    println!("{}", report(options, total));
    Ok(())
}

/// Runs one connection in step with the others: ready, start, done, end. A connection that fails stays
/// in step, so that the others can end.
fn run_connection(
    options: &Options,
    number: usize,
    barrier: &Barrier,
) -> anyhow::Result<Measurements> {
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
    fn request(&self, plan: &str) -> Request {
        let is_streaming = self.kind != Kind::Whole;
        let body = prompt::body(&self.path, &self.model, is_streaming, self.prompt_bytes);
        Request::new(&self.path, &self.token, plan, &body)
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        let tls = self.certificate.as_deref().map(Tls::trusting).transpose()?;
        Connection::open(self.to, tls.as_ref())
    }

    fn pace(&self) -> Duration {
        Duration::from_micros(self.pace_us)
    }

    /// The delay of a connection's start, so that connections do not all start at once.
    fn offset(&self, number: usize) -> anyhow::Result<Duration> {
        Ok(self.pace() * u32::try_from(number)? / u32::try_from(self.streams)?)
    }
}

fn pingpong(
    options: &Options,
    number: usize,
    step: &mut impl FnMut(),
) -> anyhow::Result<Measurements> {
    use std::io::Write;
    let id = u64::try_from(number)? + u64::from(std::process::id()) * 100_000;
    let mut tick = open_tick_connection(options.mock, id)?;
    // The provider must know the tick connection before the stream is requested.
    thread::sleep(Duration::from_millis(20));
    let events = options.warmup + options.count;
    let mut connection = options.connect()?;
    connection.send(&options.request(&format!("mode=pingpong;events={events};tick={id}")))?;
    connection.read_head()?;
    let beginning = if options.path.ends_with("/messages") { 2 } else { 1 };
    for _ in 0..beginning {
        connection.read_event()?;
    }
    let mut seen = Measurements::with_capacity(options.count);
    let mut next = |seen: &mut Measurements| {
        let start = Instant::now();
        tick.write_all(b"+")?;
        connection.read_event()?;
        connection.discard_read();
        seen.latencies.push(nanos(start.elapsed()));
        seen.events += 1;
        anyhow::Ok(())
    };
    for _ in 0..options.warmup {
        next(&mut seen)?;
    }
    seen = Measurements::with_capacity(options.count);
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

fn requests(
    options: &Options,
    number: usize,
    step: &mut impl FnMut(),
) -> anyhow::Result<Measurements> {
    let is_whole = options.kind == Kind::Whole;
    let plan = if is_whole {
        "mode=whole".into()
    } else {
        format!("mode=bunched;events={}", options.events)
    };
    let request = options.request(&plan);
    let mut connection = options.connect()?;
    let mut seen = Measurements::default();
    let one = |connection: &mut Connection, seen: &mut Measurements, start: Instant| {
        connection.send(&request)?;
        if is_whole {
            connection.read_body()?;
            seen.latencies.push(nanos(start.elapsed()));
        } else {
            connection.read_head()?;
            connection.read_event()?;
            seen.latencies.push(nanos(start.elapsed()));
            seen.events += connection.read_stream()?;
        }
        anyhow::Ok(())
    };
    for _ in 0..options.warmup {
        one(&mut connection, &mut seen, Instant::now())?;
    }
    seen = Measurements::with_capacity(options.count);
    step();
    step();
    let pace = options.pace();
    let mut due = Instant::now() + options.offset(number)?;
    for _ in 0..options.count {
        if !pace.is_zero() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        // A request that was due earlier also waited for the previous one.
        let start = if pace.is_zero() { Instant::now() } else { due };
        match one(&mut connection, &mut seen, start) {
            Err(_refused) if options.count_refused => {
                seen.refused += 1;
                connection = options.connect()?;
            }
            result => result?,
        }
        due += pace;
    }
    step();
    step();
    Ok(seen)
}

fn paced(
    options: &Options,
    number: usize,
    step: &mut impl FnMut(),
) -> anyhow::Result<Measurements> {
    let plan = format!("mode=paced;events={};pace_us={}", options.count, options.pace_us);
    let request = options.request(&plan);
    let mut connection = options.connect()?;
    step();
    step();
    if options.staggered {
        thread::sleep(options.offset(number)?);
    }
    connection.send(&request)?;
    connection.read_head()?;
    let mut seen = Measurements::default();
    let beginning = if options.path.ends_with("/messages") { 2 } else { 1 };
    for _ in 0..beginning {
        connection.read_event()?;
    }
    while seen.events < options.count {
        let end = connection.read_event()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let stamp = connection.stamp(end).context("an event has no timestamp")?;
        seen.latencies.push(u64::try_from(now.saturating_sub(stamp))?);
        seen.events += 1;
        connection.discard_read();
    }
    connection.end()?;
    step();
    step();
    Ok(seen)
}

/// Opens `count` streams and holds them.
fn idle(options: &Options, step: &mut impl FnMut()) -> anyhow::Result<Measurements> {
    let request = options.request("mode=idle");
    let mut held = Vec::with_capacity(options.count);
    step();
    step();
    for _ in 0..options.count {
        let mut connection = options.connect()?;
        connection.send(&request)?;
        connection.read_head()?;
        for _ in 0..3 {
            connection.read_event()?;
        }
        held.push(connection);
    }
    step();
    step();
    Ok(Measurements { events: held.len(), ..Measurements::default() })
}

fn report(options: &Options, mut seen: Measurements) -> serde_json::Value {
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
        "refused": seen.refused,
        "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": at(1.0),
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
