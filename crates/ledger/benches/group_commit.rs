//! How many interceptions per second a store commits, with one sync per commit, and how long opening
//! a record takes.
//!
//! ```sh
//! cargo bench -p keybridge-ledger
//! python3 tests/ledger/postgres.py -- cargo bench -p keybridge-ledger
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark: it prints, measures time and reads the server from the environment"
)]

use std::time::{Duration, Instant};

use jiff::Timestamp;
use keybridge_ledger::{
    Ledger, NewTokenUsage, NewToolUsage, Opening, Recorder, Settlement,
    record::{Interception, Outcome, Quality},
    store::execute,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

const CONCURRENCIES: [usize; 3] = [1, 16, 256];
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(4);
const PROMPT_BYTES: usize = 500;

fn main() {
    println!(
        "store       concurrent  interceptions/s  commits  per commit  open p50 ms  open p99 ms"
    );
    let dir = tempfile::tempdir().unwrap();
    for concurrency in CONCURRENCIES {
        let url = format!("sqlite://{}/{concurrency}.db", dir.path().display());
        measure("sqlite", &url, concurrency);
    }
    match std::env::var("KEYBRIDGE_TEST_POSTGRES") {
        Err(_unset) => println!("skipping postgresql: KEYBRIDGE_TEST_POSTGRES is not set"),
        Ok(server) => {
            for concurrency in CONCURRENCIES {
                // All in the server's default database, which is empty at first.
                measure("postgresql", &format!("{server}/postgres"), concurrency);
            }
        }
    }
}

fn measure(store: &str, url: &str, concurrency: usize) {
    let ledger = Ledger::open(url).unwrap();
    let name = format!("u{}", Uuid::now_v7().simple());
    let user = create_user(&ledger, &name);
    let mut registry = Registry::default();
    ledger.register_metrics(&mut registry);
    let runtime = Runtime::new().unwrap();
    run(&runtime, &ledger.recorder(), user, concurrency, WARM_UP);
    let before = commits(&registry);
    let started = Instant::now();
    let mut waits = run(&runtime, &ledger.recorder(), user, concurrency, MEASURED);
    let seconds = started.elapsed().as_secs_f64();
    let commits = commits(&registry) - before;
    ledger.close();
    waits.sort();
    let count = f64::from(u32::try_from(waits.len()).unwrap());
    let quantile = |of_100: usize| waits[waits.len() * of_100 / 100].as_secs_f64() * 1e3;
    println!(
        "{store:<12}{concurrency:>10}{:>17.0}{commits:>9.0}{:>12.1}{:>13.2}{:>13.2}",
        count / seconds,
        count / commits,
        quantile(50),
        quantile(99)
    );
}

/// Records interceptions for a time with a number of concurrent clients; returns how long each opening
/// took.
fn run(
    runtime: &Runtime,
    recorder: &Recorder,
    user: Uuid,
    concurrency: usize,
    time: Duration,
) -> Vec<Duration> {
    let tasks = TaskTracker::new();
    let clients: Vec<_> = (0..concurrency)
        .map(|_| {
            let recorder = recorder.clone();
            let client = async move {
                let (started, mut waits) = (Instant::now(), Vec::new());
                while started.elapsed() < time {
                    waits.push(record_one(&recorder, user).await);
                }
                waits
            };
            tasks.spawn_on(client, runtime.handle())
        })
        .collect();
    runtime.block_on(async {
        let mut waits = Vec::new();
        for client in clients {
            waits.extend(client.await.unwrap());
        }
        recorder.drained().await;
        waits
    })
}

/// Records a streamed response with one tool call; returns how long its opening took.
async fn record_one(recorder: &Recorder, user: Uuid) -> Duration {
    let id = Uuid::now_v7();
    let interception = Interception {
        provider: "anthropic".into(),
        provider_type: "anthropic".into(),
        endpoint: "/v1/messages".into(),
        dialect: "messages".into(),
        model: Some("claude-sonnet-4-5".into()),
        client_session_id: Some(user.to_string()),
        ..Interception::new(id, user, Timestamp::now())
    };
    let prompt = Some("x".repeat(PROMPT_BYTES));
    let opening =
        Opening { interception, prompt, tool_results: Vec::new(), attachments: Vec::new() };
    let started = Instant::now();
    let entry = recorder.open(opening).await.unwrap();
    let wait = started.elapsed();
    let usage = NewTokenUsage {
        provider_response_id: Some(format!("msg_{id}")),
        input_tokens: Some(25),
        output_tokens: Some(12),
        quality: Quality::Exact,
        ..NewTokenUsage::default()
    };
    entry.note(NewTokenUsage { quality: Quality::Partial, ..usage.clone() });
    let tool = NewToolUsage {
        tool_call_id: Some(format!("toolu_{id}")),
        tool: "Bash".into(),
        arguments: Some(r#"{"command":"ls"}"#.into()),
        ..NewToolUsage::default()
    };
    entry.settle(Settlement {
        token_usages: vec![usage],
        tool_usages: vec![tool],
        ..Settlement::new(Timestamp::now(), Outcome::Completed)
    });
    wait
}

fn commits(registry: &Registry) -> f64 {
    let mut page = String::new();
    text::encode(&mut page, registry).unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix("ledger_commits_total "));
    line.unwrap().parse().unwrap()
}

fn create_user(ledger: &Ledger, name: &str) -> Uuid {
    let id = Uuid::now_v7();
    execute(
        ledger.database(),
        "INSERT INTO users (id, name, role, status, created_at)
         VALUES ($1, $2, 'member', 'active', $3)",
        &[id.into(), name.into(), Timestamp::now().into()],
    )
    .unwrap();
    id
}
