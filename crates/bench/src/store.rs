//! Recording alone: how many requests per second the ledger records and what each costs, compared with
//! the simplest ways to write the same rows.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use keybridge_identity::{Accounts, NewUser, Role, User};
use keybridge_ledger::{
    Ledger, NewTokenUsage, NewToolUsage, Opening, Recorder, Settlement,
    record::{Interception, Outcome, Quality},
};
use rusqlite::{Connection, params};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_postgres::NoTls;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// The rows of a request: an interception (updated once), a prompt, token usage and a tool call.
const ROWS_PER_REQUEST: usize = 4;
/// The number of requests in flight.
const IN_FLIGHT: usize = 512;
/// The number of requests per transaction in the batched baseline.
const REQUESTS_PER_BATCH: usize = 1_000;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long)]
    method: Method,
    /// URL of the store; for `autocommit` and `batches` the path of a file, for `rows` a PostgreSQL URL
    #[arg(long)]
    store: String,
    #[arg(long, default_value_t = 2_000)]
    count: usize,
    /// Requests of one session of a client, for the ledger; all are of one without it
    #[arg(long)]
    session_requests: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// The ledger
    Ledger,
    /// The ledger, one request at a time, each with its own two commits
    Alone,
    /// SQLite, one transaction per statement
    Autocommit,
    /// SQLite, a thousand requests per transaction
    Batches,
    /// PostgreSQL, one statement and one transaction per row
    Rows,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { method, store, count, session_requests } = options;
    ensure!(*count > 0, "the count must not be 0");
    let Cost { seconds, cpu } = match method {
        Method::Ledger => ledger(store, *count, session_requests.unwrap_or(*count))?,
        Method::Alone => alone(store, *count)?,
        Method::Autocommit => sqlite(Path::new(store), *count, 1)?,
        Method::Batches => sqlite(Path::new(store), *count, REQUESTS_PER_BATCH)?,
        Method::Rows => runtime()?.block_on(rows(store, *count))?,
    };
    let cpu_us = cpu * 1e6 / f64::from(u32::try_from(*count)?);
    let per_second = f64::from(u32::try_from(*count)?) / seconds;
    let rows_per_second = per_second * f64::from(u32::try_from(ROWS_PER_REQUEST)?);
    println!(
        "{}",
        json!({ "requests_per_second": per_second, "rows_per_second": rows_per_second, "cpu_us": cpu_us })
    );
    Ok(())
}

/// The cost of a method, in seconds.
struct Cost {
    seconds: f64,
    cpu: f64,
}

/// Measures elapsed time and CPU time.
struct Clock {
    start: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> anyhow::Result<Self> {
        Ok(Self { cpu: cpu()?, start: Instant::now() })
    }

    /// Must be called while the measured threads are still running.
    fn stop(&self) -> anyhow::Result<Cost> {
        Ok(Cost { seconds: self.start.elapsed().as_secs_f64(), cpu: cpu()? - self.cpu })
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The CPU time used by the threads of this process, in seconds.
fn cpu() -> anyhow::Result<f64> {
    let mut nanos = 0_u64;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(std::time::Duration::from_nanos(nanos).as_secs_f64())
}

fn open_ledger(store: &str) -> anyhow::Result<(Ledger, User)> {
    let ledger = Ledger::open(store)?;
    let user = Accounts::new(ledger.clone()).create_user(&NewUser {
        name: "bench".into(),
        email: None,
        role: Role::Member,
    })?;
    Ok((ledger, user))
}

/// Measures the cost of recording a number of requests.
fn recorded(
    store: &str,
    count: usize,
    work: impl AsyncFnOnce(&Recorder, Uuid) -> anyhow::Result<()>,
) -> anyhow::Result<Cost> {
    let (ledger, user) = open_ledger(store)?;
    let recorder = ledger.recorder();
    let cost = runtime()?.block_on(async {
        let clock = Clock::start()?;
        work(&recorder, user.id).await?;
        clock.stop()
    })?;
    let recorded = usize::try_from(ledger.recount()?.interceptions)?;
    ensure!(recorded == count, "{recorded} of {count} requests were recorded");
    ledger.close();
    Ok(cost)
}

fn alone(store: &str, count: usize) -> anyhow::Result<Cost> {
    recorded(store, count, async |recorder, user_id| {
        for _ in 0..count {
            recorder.open(opening(user_id, 0)).await?.settle(settlement());
            recorder.drained().await;
        }
        Ok(())
    })
}

fn ledger(store: &str, count: usize, session_requests: usize) -> anyhow::Result<Cost> {
    ensure!(session_requests > 0, "a session has at least one request");
    recorded(store, count, async |recorder, user_id| {
        let (places, tasks) = (Arc::new(Semaphore::new(IN_FLIGHT)), TaskTracker::new());
        for number in 0..count {
            let place = Arc::clone(&places).acquire_owned().await?;
            let recorder = recorder.clone();
            tasks.spawn(async move {
                let opening = opening(user_id, number / session_requests);
                let entry = recorder.open(opening).await;
                if let Ok(entry) = entry {
                    entry.settle(settlement());
                }
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
        recorder.drained().await;
        Ok(())
    })
}

fn opening(user_id: Uuid, session: usize) -> Opening {
    let mut interception = Interception::new(Uuid::now_v7(), user_id, Timestamp::now());
    interception.provider = "anthropic".into();
    interception.model = Some("bench-1".into());
    interception.client_session_id = Some(format!("0199-session-of-the-benchmark-{session}"));
    interception.request_sha256 = Some("0".repeat(64));
    Opening {
        interception,
        prompt: Some("What does this function do, and who calls it?".into()),
        tool_results: Vec::new(),
        attachments: Vec::new(),
    }
}

fn settlement() -> Settlement {
    let mut settlement = Settlement::new(Timestamp::now(), Outcome::Completed);
    settlement.status_code = Some(200);
    settlement.token_usages.push(NewTokenUsage {
        provider_response_id: Some(format!("msg_{}", Uuid::now_v7().simple())),
        input_tokens: Some(300),
        output_tokens: Some(90),
        quality: Quality::Exact,
        ..NewTokenUsage::default()
    });
    settlement.tool_usages.push(NewToolUsage {
        tool_call_id: Some(format!("toolu_{}", Uuid::now_v7().simple())),
        tool: "Read".into(),
        arguments: Some(r#"{"path":"src/main.rs"}"#.into()),
        ..NewToolUsage::default()
    });
    settlement
}

/// Tables like those of a store, with only the columns that are used.
const TABLES: &str = "
CREATE TABLE interceptions (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, provider TEXT, model TEXT,
    session TEXT, started_at TEXT, ended_at TEXT, outcome TEXT, status_code INTEGER, sha256 TEXT);
CREATE INDEX interceptions_user ON interceptions (user_id, id);
CREATE INDEX interceptions_session ON interceptions (session);
CREATE TABLE prompts (id TEXT PRIMARY KEY, interception_id TEXT NOT NULL, prompt TEXT);
CREATE INDEX prompts_interception ON prompts (interception_id);
CREATE TABLE token_usages (id TEXT PRIMARY KEY, interception_id TEXT NOT NULL, response TEXT,
    input INTEGER, output INTEGER);
CREATE INDEX token_usages_interception ON token_usages (interception_id);
CREATE TABLE tool_usages (id TEXT PRIMARY KEY, interception_id TEXT NOT NULL, call TEXT, tool TEXT,
    arguments TEXT);
CREATE INDEX tool_usages_interception ON tool_usages (interception_id);
CREATE INDEX tool_usages_call ON tool_usages (call);
";
/// The statements of one request, with `$1` for the request and `$2` for a row.
const STATEMENTS: [&str; 5] = [
    "INSERT INTO interceptions (id, user_id, provider, model, session, started_at, outcome, sha256)
     VALUES ($1, $2, 'anthropic', 'bench-1', '0199-session', '2026-11-24T00:00:00.000000Z',
     'in_progress', '0000000000000000000000000000000000000000000000000000000000000000')",
    "INSERT INTO prompts (id, interception_id, prompt)
     VALUES ($2, $1, 'What does this function do, and who calls it?')",
    "INSERT INTO token_usages (id, interception_id, response, input, output)
     VALUES ($2, $1, 'msg_0199', 300, 90)",
    "INSERT INTO tool_usages (id, interception_id, call, tool, arguments)
     VALUES ($2, $1, 'toolu_0199' || $2, 'Read', '{\"path\":\"src/main.rs\"}')",
    "UPDATE interceptions SET outcome = 'completed', status_code = 200, ended_at = $2 WHERE id = $1",
];

fn sqlite(file: &Path, count: usize, batch: usize) -> anyhow::Result<Cost> {
    let mut connection = Connection::open(PathBuf::from(file))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(TABLES)?;
    let clock = Clock::start()?;
    let write = |connection: &Connection| {
        let request = Uuid::now_v7().to_string();
        for statement in STATEMENTS {
            connection
                .prepare_cached(statement)?
                .execute(params![request, Uuid::now_v7().to_string()])?;
        }
        anyhow::Ok(())
    };
    let mut left = count;
    while left > 0 {
        let now = left.min(batch);
        if batch == 1 {
            write(&connection)?;
        } else {
            let transaction = connection.transaction()?;
            (0..now).try_for_each(|_| write(&transaction))?;
            transaction.commit()?;
        }
        left -= now;
    }
    clock.stop()
}

async fn rows(url: &str, count: usize) -> anyhow::Result<Cost> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        // The connection ends with the client.
        let _ended = connection.await;
    });
    client.batch_execute(TABLES).await?;
    let mut statements = Vec::new();
    for statement in STATEMENTS {
        statements.push(client.prepare(statement).await?);
    }
    let clock = Clock::start()?;
    for _ in 0..count {
        let request = Uuid::now_v7().to_string();
        for statement in &statements {
            let row = Uuid::now_v7().to_string();
            client.execute(statement, &[&request, &row]).await.context("a row")?;
        }
    }
    clock.stop()
}
