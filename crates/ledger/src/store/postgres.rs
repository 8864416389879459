//! The store in PostgreSQL, for one process or many.
//!
//! The ledger's calls block, but the driver is asynchronous: a thread of this module drives the
//! connections. There is a pool for each purpose; each writing thread has a connection of its own.

use std::{
    future::{Future, poll_fn},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts,
};
use jiff::Timestamp;
use tokio::runtime::{self, Handle};
use tokio_postgres::{AsyncMessage, Row, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::{cells::PostgresCells, write::PostgresWriter};
use crate::{
    LedgerError,
    store::read_limit::{ReadLimit, ReadOptions},
    store::retention_run::RetentionRun,
    store::sql::{
        Cells, Database, Flavour, RECOUNT_TIMEOUT, STATEMENT_TIMEOUT, Value, execute, first,
    },
    store::trail::SequencerThread,
    store::{DEAD_AFTER, Dead, Hold, IndexStep, Store, WriterConnection},
};

mod cells;
mod columns;
mod retention;
mod schema;
mod search_index;
mod server;
mod write;

pub(crate) use self::server::Server;

/// How long a caller waits for a free connection of a pool.
const POOL_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of migrations, and of maintenance of the partitions.
const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(600);
/// Timeout of building the index of a partition.
const INDEX_TIMEOUT: Duration = Duration::from_secs(4 * 3_600);
/// Timeout of a statement that a model request waits for.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a health check.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// How much longer than this process the server waits before it cancels a read.
const SERVER_TIMEOUT_MARGIN: Duration = Duration::from_secs(1);
/// Connections for authentication, each of which serves several hundred lookups per second.
const AUTHENTICATION_CONNECTIONS: usize = 4;
/// Connections for administration and maintenance: a heartbeat waits neither for the retention job, nor for an
/// index that is built, nor for the sequencer.
const ADMINISTRATION_CONNECTIONS: usize = 5;
/// Delay before the connection that listens for changes is reopened.
const LISTEN_BACKOFF: Duration = Duration::from_secs(1);
/// The channel on which changes of users and tokens are announced.
const ACCESS_CHANNEL: &str = "keybridge_access";
/// The settings of every connection. The timeout cancels statements whose client is lost.
const SETTINGS: &str = "SET statement_timeout = '1h'; SET TimeZone = 'UTC'";

/// A store on a PostgreSQL server.
pub(crate) struct PostgresStore {
    server: Arc<Server>,
    tls: MakeRustlsConnect,
    driver: Arc<Driver>,
    administration: Connections,
    authentication: Connections,
    health: Connections,
    readers: Connections,
    listening: CancellationToken,
    sequencer: SequencerThread,
}

/// The connections for one purpose.
struct Connections {
    pool: Pool,
    tls: MakeRustlsConnect,
    driver: Arc<Driver>,
    /// Timeout of each statement.
    timeout: Duration,
}

/// The runtime that drives the connections.
#[derive(Debug)]
struct Driver {
    runtime: Option<runtime::Runtime>,
    handle: Handle,
    tasks: TaskTracker,
}

impl Driver {
    fn start() -> Result<Self, LedgerError> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ledger-postgres")
            .enable_all()
            .build()
            .map_err(|error| {
                LedgerError::Database(format!("cannot start the runtime of the driver: {error}"))
            })?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle, tasks: TaskTracker::new() })
    }

    /// Runs a future to its end and blocks the caller's thread, which may be one of another runtime.
    fn block_on<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, LedgerError>> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (sender, result) = mpsc::sync_channel(1);
        let work = async move {
            // The receiver is still there: the caller waits.
            let _sent = sender.send(work.await);
        };
        drop(self.tasks.spawn_on(work, &self.handle));
        let ended = |_dropped| LedgerError::Database("the thread of the driver has ended".into());
        result.recv().map_err(ended)?
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // This may run on a thread of another runtime, which must not block.
            runtime.shutdown_background();
        }
    }
}

impl Connections {
    /// At most `max_size` connections with `settings`, whose statements take at most `timeout`.
    fn new(
        server: &Server,
        tls: MakeRustlsConnect,
        driver: &Arc<Driver>,
        max_size: usize,
        settings: String,
        timeout: Duration,
    ) -> Result<Self, LedgerError> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(server.config.clone(), tls.clone(), recycling);
        let wait = timeout.min(POOL_TIMEOUT);
        let pool = Pool::builder(manager)
            .max_size(max_size)
            .timeouts(Timeouts { wait: Some(wait), create: Some(wait * 2), recycle: Some(wait) })
            .post_create(Hook::async_fn(move |client, _metrics| {
                let settings = settings.clone();
                Box::pin(async move {
                    client.batch_execute(&settings).await.map_err(HookError::Backend)
                })
            }))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| LedgerError::Database(error.to_string()))?;
        Ok(Self { pool, tls, driver: Arc::clone(driver), timeout })
    }

    /// The rows of a statement. When `limit` completes first, the statement is cancelled.
    fn rows(
        &self,
        limit: impl Future<Output = LedgerError> + Send + 'static,
        sql: &str,
        values: &[Value],
    ) -> Result<Vec<Row>, LedgerError> {
        let (pool, sql, values) = (self.pool.clone(), sql.to_owned(), values.to_vec());
        let tls = self.tls.clone();
        self.driver.block_on(async move {
            tokio::pin!(limit);
            let client = tokio::select! {
                client = pool.get() => client.map_err(|error| pool_error(&error))?,
                error = &mut limit => return Err(error),
            };
            let parameters = parameters(&values);
            let error = tokio::select! {
                rows = client.query(&sql, &parameters) => {
                    return rows.map_err(|error| server::failed(&error));
                }
                error = limit => error,
            };
            let cancelling = client.cancel_token();
            // The connection is closed, whether this succeeds or not.
            let _cancelled = tokio::time::timeout(POOL_TIMEOUT, cancelling.cancel_query(tls)).await;
            drop(Object::take(client));
            Err(error)
        })
    }
}

impl Database for Connections {
    fn flavour(&self) -> Flavour {
        Flavour::Postgres
    }

    fn run(
        &self,
        timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let timeout = timeout.min(self.timeout);
        let limit = async move {
            tokio::time::sleep(timeout).await;
            LedgerError::no_answer(timeout)
        };
        let rows = self.rows(limit, sql, values)?;
        rows.iter().try_for_each(|row| each(&mut PostgresCells::new(row)))
    }
}

/// The connections of one read; its statements are cancelled when its limit is reached.
struct PostgresReader<'a> {
    connections: &'a Connections,
    limit: ReadLimit,
}

impl Database for PostgresReader<'_> {
    fn flavour(&self) -> Flavour {
        Flavour::Postgres
    }

    fn run(
        &self,
        _timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let rows = self.connections.rows(self.limit.clone().wait(), sql, values)?;
        rows.iter().try_for_each(|row| each(&mut PostgresCells::new(row)))
    }
}

/// The values of a statement as the driver takes them.
fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    let mut parameters: Vec<&(dyn ToSql + Sync)> = Vec::with_capacity(values.len());
    for value in values {
        parameters.push(value);
    }
    parameters
}

/// The statements of one transaction.
struct InTransaction {
    driver: Arc<Driver>,
    /// `None` after a statement that was given up.
    client: Mutex<Option<Object>>,
}

impl InTransaction {
    fn rows(
        &self,
        timeout: Duration,
        sql: &str,
        values: &[Value],
    ) -> Result<Vec<Row>, LedgerError> {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = || LedgerError::Database("the transaction has ended".into());
        let client = held.take().ok_or_else(lost)?;
        let (sql, values) = (sql.to_owned(), values.to_vec());
        let (client, rows) = self.driver.block_on(async move {
            let parameters = parameters(&values);
            let query = async {
                let statement = client.prepare_cached(&sql).await?;
                client.query(&statement, &parameters).await
            };
            let rows = match tokio::time::timeout(timeout, query).await {
                Ok(rows) => rows.map_err(|error| server::failed(&error)),
                Err(_elapsed) => {
                    drop(Object::take(client));
                    return Err(LedgerError::no_answer(timeout));
                }
            };
            Ok((client, rows))
        })?;
        *held = Some(client);
        rows
    }

    fn commit(&self) -> Result<(), LedgerError> {
        self.rows(STATEMENT_TIMEOUT, "COMMIT", &[]).map(|_rows| ())
    }

    fn close(self, is_committed: bool) {
        let client = self.client.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = client.filter(|_| !is_committed) {
            drop(Object::take(client));
        }
    }
}

impl Database for InTransaction {
    fn flavour(&self) -> Flavour {
        Flavour::Postgres
    }

    fn run(
        &self,
        timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let rows = self.rows(timeout, sql, values)?;
        rows.iter().try_for_each(|row| each(&mut PostgresCells::new(row)))
    }
}

impl PostgresStore {
    pub(crate) fn new(server: Server, reads: &ReadOptions) -> Result<Self, LedgerError> {
        let tls = server.tls()?;
        let driver = Arc::new(Driver::start()?);
        let connections = |max_size: usize, settings: String, timeout: Duration| {
            Connections::new(&server, tls.clone(), &driver, max_size, settings, timeout)
        };
        // A reader uses at most one core of the server, and cannot write. To compile one of its short statements
        // takes longer than to run it. Its statements are too short to be
        // compiled.
        let read_settings = format!(
            "{SETTINGS}; SET statement_timeout = {}; SET default_transaction_read_only = on; \
             SET max_parallel_workers_per_gather = 0; SET jit = off; SET jit = off",
            (reads.timeout + SERVER_TIMEOUT_MARGIN).as_millis()
        );
        let settings = SETTINGS.to_owned();
        Ok(Self {
            administration: connections(
                ADMINISTRATION_CONNECTIONS,
                settings.clone(),
                RECOUNT_TIMEOUT,
            )?,
            authentication: connections(
                AUTHENTICATION_CONNECTIONS,
                settings.clone(),
                AUTHENTICATION_TIMEOUT,
            )?,
            health: connections(1, settings, HEALTH_TIMEOUT)?,
            readers: connections(reads.max_concurrent, read_settings, reads.timeout)?,
            server: Arc::new(server),
            tls,
            driver,
            listening: CancellationToken::new(),
            sequencer: SequencerThread::default(),
        })
    }

    /// Runs work that may take long on a connection for administration.
    fn run_maintenance<T, F>(
        &self,
        work: impl FnOnce(Object) -> F + Send + 'static,
    ) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: Future<Output = (Object, Result<T, LedgerError>)> + Send + 'static,
    {
        self.run_within(MAINTENANCE_TIMEOUT, work)
    }

    fn run_within<T, F>(
        &self,
        timeout: Duration,
        work: impl FnOnce(Object) -> F + Send + 'static,
    ) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: Future<Output = (Object, Result<T, LedgerError>)> + Send + 'static,
    {
        let (pool, server) = (self.administration.pool.clone(), Arc::clone(&self.server));
        self.driver.block_on(async move {
            let client = pool.get().await.map_err(|error| match unreachable_reason(&error) {
                Some(reason) => server.unreachable_error(reason),
                None => pool_error(&error),
            })?;
            let (client, result) =
                tokio::time::timeout(timeout, work(client)).await.map_err(|_elapsed| {
                    LedgerError::Database("maintenance of the schema timed out".into())
                })?;
            if result.is_err() {
                // The connection may be broken, or in a transaction.
                drop(Object::take(client));
            }
            result
        })
    }
}

/// Why the server cannot be reached, if a later attempt may succeed with the same configuration.
fn unreachable_reason(error: &deadpool_postgres::PoolError) -> Option<String> {
    match error {
        deadpool_postgres::PoolError::Backend(error)
        | deadpool_postgres::PoolError::PostCreateHook(HookError::Backend(error)) => {
            server::is_unreachable(error).then(|| server::reason(error))
        }
        deadpool_postgres::PoolError::Timeout(_) => Some("connection timed out".into()),
        _ => None,
    }
}

fn pool_error(error: &deadpool_postgres::PoolError) -> LedgerError {
    match error {
        deadpool_postgres::PoolError::Backend(error)
        | deadpool_postgres::PoolError::PostCreateHook(HookError::Backend(error)) => {
            server::failed(error)
        }
        other => LedgerError::Database(other.to_string()),
    }
}

impl Database for PostgresStore {
    fn flavour(&self) -> Flavour {
        Flavour::Postgres
    }

    fn run(
        &self,
        timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        self.administration.run(timeout, sql, values, each)
    }
}

/// The SQL condition under which the process of an interception `i` is alive.
fn alive_sql(dead: Dead) -> String {
    let seconds = DEAD_AFTER.as_secs();
    let recent = match dead {
        Dead::Ended => String::new(),
        Dead::Silent => format!(" AND r.beat_at > now() - interval '{seconds} seconds'"),
    };
    format!("EXISTS (SELECT 1 FROM replicas r WHERE r.id = i.replica_id{recent})")
}

impl Store for PostgresStore {
    fn authentication(&self) -> &dyn Database {
        &self.authentication
    }

    fn health(&self) -> &dyn Database {
        &self.health
    }

    fn reader(&self, limit: ReadLimit) -> Box<dyn Database + '_> {
        Box::new(PostgresReader { connections: &self.readers, limit })
    }

    fn pending(&self) -> Result<Vec<&'static str>, LedgerError> {
        self.run_maintenance(|client| async move {
            let result = schema::pending(&client).await;
            (client, result)
        })
        .map_err(|error| self.server.open_error(error))
    }

    fn migrate(&self) -> Result<Vec<&'static str>, LedgerError> {
        self.run_maintenance(|mut client| async move {
            let result = schema::migrate(&mut client).await;
            (client, result)
        })
        .map_err(|error| self.server.open_error(error))
    }

    fn writer(&self, commit_timeout: Duration) -> Result<Box<dyn WriterConnection>, LedgerError> {
        let (server, tls) = (Arc::clone(&self.server), self.tls.clone());
        let (driver, tasks) = (self.driver.handle.clone(), self.driver.tasks.clone());
        let sequencer = self.sequencer.clone();
        Ok(Box::new(PostgresWriter::new(server, tls, (driver, tasks), commit_timeout, sequencer)))
    }

    fn claim(&self, replica: Uuid) -> Result<Hold, LedgerError> {
        self.beat(replica)?;
        Ok(Hold::default())
    }

    fn beat(&self, replica: Uuid) -> Result<(), LedgerError> {
        execute(
            self,
            "INSERT INTO replicas (id, version, started_at, beat_at)
             VALUES ($1, $2, now(), now()) ON CONFLICT (id) DO UPDATE SET beat_at = now()",
            &[replica.into(), env!("CARGO_PKG_VERSION").into()],
        )
    }

    fn release(&self, replica: Uuid) -> Result<(), LedgerError> {
        self.listening.cancel();
        execute(self, "DELETE FROM replicas WHERE id = $1", &[replica.into()])
    }

    fn reap_condition(&self, dead: Dead) -> String {
        format!("i.replica_id IS DISTINCT FROM $1 AND NOT {}", alive_sql(dead))
    }

    /// A process that is still alive adds itself again with its next heartbeat.
    fn forget_silent(&self) -> Result<(), LedgerError> {
        let silent = format!(
            "DELETE FROM replicas WHERE beat_at < now() - interval '{} seconds'",
            DEAD_AFTER.as_secs()
        );
        execute(self, &silent, &[])
    }

    fn transaction(
        &self,
        work: &mut dyn FnMut(&dyn Database) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let pool = self.administration.pool.clone();
        let client = self.driver.block_on(async move {
            let client = pool.get().await.map_err(|error| pool_error(&error))?;
            client.batch_execute("BEGIN").await.map_err(|error| server::failed(&error))?;
            Ok(client)
        })?;
        let statements =
            InTransaction { driver: Arc::clone(&self.driver), client: Mutex::new(Some(client)) };
        let result = work(&statements);
        // After an error the connection is closed, which ends the transaction.
        let committed = result.and_then(|()| statements.commit());
        statements.close(committed.is_ok());
        committed
    }

    fn wake_on_commit(&self, sequencer: thread::Thread) {
        self.sequencer.set(sequencer);
    }

    fn alive_condition(&self) -> Result<String, LedgerError> {
        Ok(alive_sql(Dead::Silent))
    }

    fn maintain(&self) -> Result<(), LedgerError> {
        self.run_maintenance(|mut client| async move {
            let result = schema::create_partitions(&mut client, Timestamp::now()).await;
            (client, result)
        })
    }

    fn index_step(&self) -> Result<IndexStep, LedgerError> {
        self.run_within(INDEX_TIMEOUT, |client| async move {
            let result = search_index::step(&client).await;
            (client, result)
        })
    }

    fn location(&self) -> String {
        self.server.location()
    }

    fn server_time(&self) -> Result<Option<Timestamp>, LedgerError> {
        first(self, "SELECT clock_timestamp()", &[])
    }

    fn drop_before(&self, run: &mut RetentionRun) -> Result<(), LedgerError> {
        let mut current = run.clone();
        *run = self.run_maintenance(move |mut client| async move {
            let result = retention::drop_months(&mut client, &mut current).await;
            (client, result.map(|()| current))
        })?;
        Ok(())
    }

    fn delete_before(&self, run: &mut RetentionRun, limit: u32) -> Result<u64, LedgerError> {
        let mut current = run.clone();
        let (after, deleted) = self.run_maintenance(move |mut client| async move {
            let result = retention::delete_before(&mut client, &mut current, limit).await;
            (client, result.map(|deleted| (current, deleted)))
        })?;
        *run = after;
        Ok(deleted)
    }

    fn announce_access_change(&self) -> Result<(), LedgerError> {
        execute(self, "SELECT pg_notify($1, '')", &[ACCESS_CHANNEL.into()])
    }

    fn on_access_change(&self, call: Box<dyn Fn() + Send + Sync>) {
        let (server, tls) = (Arc::clone(&self.server), self.tls.clone());
        let stop = self.listening.clone();
        let listening = async move {
            stop.run_until_cancelled(keep_listening(&server, &tls, &*call)).await;
        };
        drop(self.driver.tasks.spawn_on(listening, &self.driver.handle));
    }
}

async fn keep_listening(server: &Server, tls: &MakeRustlsConnect, call: &(dyn Fn() + Send + Sync)) {
    loop {
        if let Err(error) = listen(server, tls, call).await {
            tracing::debug!(%error, "cannot listen for changes of users and tokens");
        }
        tokio::time::sleep(LISTEN_BACKOFF).await;
    }
}

/// Calls back for every notification until the connection closes.
async fn listen(
    server: &Server,
    tls: &MakeRustlsConnect,
    call: &(dyn Fn() + Send + Sync),
) -> Result<(), LedgerError> {
    let (client, mut connection) = server.connect(tls).await?;
    let receiving = async {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(_))) => call(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(server::failed(&error)),
                None => return Ok(()),
            }
        }
    };
    let subscribing = async {
        let subscribed = client.batch_execute(&format!("LISTEN {ACCESS_CHANNEL}")).await;
        subscribed.map_err(|error| server::failed(&error))?;
        // A change may have been missed before.
        call();
        std::future::pending().await
    };
    tokio::select! {
        ended = receiving => ended,
        failed = subscribing => failed,
    }
}

/// A URL without its user and password, to be displayed.
pub(crate) fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;
