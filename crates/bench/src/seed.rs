//! Fills a new store with generated interceptions: a plan of users, sessions and words is made here, and the
//! store generates the records from it in SQL.
//!
//! The same seed, end and size give the same records in both stores.

use std::{path::Path, time::Instant};

use anyhow::{Context, ensure};
use clap::Args;
use jiff::{Timestamp, ToSpan};
use keybridge_ledger::Ledger;
use rusqlite::Connection;
use serde_json::json;
use tokio_postgres::NoTls;
use tokio_util::task::TaskTracker;

use self::{
    plan::{HOUR_US, Plan, Size},
    sql::Flavour,
};

mod plan;
mod random;
mod sql;
mod words;

/// Length of the period that is filled in one transaction.
const STEP_HOURS: u64 = 24;
/// How long before now the records end by default: the last hour has none.
const DEFAULT_END_HOURS: i64 = 2;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// URL of a store without interceptions; it is created where there is none
    #[arg(long)]
    store: String,
    /// Number of interceptions
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=40_000_000))]
    interceptions: u64,
    /// Number of days over which they are distributed
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
    /// Number of users
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(3..=100_000))]
    users: u64,
    /// Start of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End of the period [default: the full hour two hours ago]
    #[arg(long)]
    end: Option<Timestamp>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let end = options.end.map_or_else(default_end, Ok)?;
    let plan = Plan::new(&Size {
        interceptions: options.interceptions,
        users: options.users,
        seed: options.seed,
        hours: options.days * 24,
        end_us: u64::try_from(end.as_microsecond())? / HOUR_US * HOUR_US,
    })?;
    Ledger::migrate(&options.store)?;
    match options.store.strip_prefix("sqlite://") {
        Some(path) => fill(&plan, &mut SqliteStore::open(Path::new(path))?)?,
        None => fill(&plan, &mut PostgresStore::open(&options.store)?)?,
    }
    println!(
        "{}",
        json!({ "interceptions": options.interceptions, "sessions": plan.sessions(),
                "seconds": started.elapsed().as_secs_f64() })
    );
    Ok(())
}

fn default_end() -> anyhow::Result<Timestamp> {
    Ok(Timestamp::now().checked_sub(DEFAULT_END_HOURS.hours())?)
}

/// A connection that runs SQL; each call is one transaction, unless the SQL says otherwise.
trait Store {
    fn flavour(&self) -> Flavour;

    fn execute(&mut self, sql: &str) -> anyhow::Result<()>;

    /// The number in the only row.
    fn number(&mut self, sql: &str) -> anyhow::Result<i64>;
}

fn fill(plan: &Plan, store: &mut impl Store) -> anyhow::Result<()> {
    let flavour = store.flavour();
    let found = store.number("SELECT count(*) FROM interceptions")?;
    ensure!(found == 0, "the store has {found} interceptions; only one without any is seeded");
    let has_session_id = store.number(flavour.has_session_id())? > 0;
    store.execute(flavour.settings())?;
    for statements in plan.statements() {
        store.execute(&flavour.transaction(&statements))?;
    }
    let expand = |template: &str, from: u64, to: u64| {
        let template = template.replace("@seed", &plan.seed().to_string());
        let template = template.replace("@start", &plan.start_us().to_string());
        let template = template.replace("@common_word", words::COMMON_WORD);
        let template = template.replace("@rare_word", words::RARE_WORD);
        let template = template.replace("@from", &from.to_string()).replace("@to", &to.to_string());
        flavour.expand(&template, has_session_id)
    };
    store.execute(&expand(flavour.partitions(), plan.start_us(), plan.end_us())?)?;
    store.execute(&expand(include_str!("seed/requests.sql"), plan.start_us(), plan.end_us())?)?;
    let step = STEP_HOURS * HOUR_US;
    let mut from = plan.start_us();
    while from < plan.end_us() {
        let sql = expand(include_str!("seed/records.sql"), from, from + step)?;
        store.execute(&flavour.transaction(&sql))?;
        from += step;
        let days = |end: u64| (end - plan.start_us()) / step;
        eprintln!("  day {} of {}", days(from), days(plan.end_us()));
    }
    store.execute(flavour.after())?;
    let found = store.number("SELECT count(*) FROM interceptions")?;
    ensure!(found == i64::try_from(plan.interceptions())?, "{found} interceptions were written");
    Ok(())
}

struct SqliteStore(Connection);

impl SqliteStore {
    fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(Connection::open(path)?))
    }
}

impl Store for SqliteStore {
    fn flavour(&self) -> Flavour {
        Flavour::Sqlite
    }

    fn execute(&mut self, sql: &str) -> anyhow::Result<()> {
        self.0.execute_batch(sql).with_context(|| sql::shown(sql))
    }

    fn number(&mut self, sql: &str) -> anyhow::Result<i64> {
        Ok(self.0.query_row(sql, [], |row| row.get(0))?)
    }
}

struct PostgresStore {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl PostgresStore {
    fn open(url: &str) -> anyhow::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // This client has no TLS.
        let url = url.split('?').next().unwrap_or(url);
        let (client, connection) = runtime.block_on(tokio_postgres::connect(url, NoTls))?;
        TaskTracker::new().spawn_on(
            async move {
                // The connection ends with the client.
                let _ended = connection.await;
            },
            runtime.handle(),
        );
        Ok(Self { runtime, client })
    }
}

impl Store for PostgresStore {
    fn flavour(&self) -> Flavour {
        Flavour::Postgres
    }

    fn execute(&mut self, sql: &str) -> anyhow::Result<()> {
        self.runtime.block_on(self.client.batch_execute(sql)).with_context(|| sql::shown(sql))
    }

    fn number(&mut self, sql: &str) -> anyhow::Result<i64> {
        Ok(self.runtime.block_on(self.client.query_one(sql, &[]))?.try_get(0)?)
    }
}
