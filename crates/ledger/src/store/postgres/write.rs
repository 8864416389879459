//! The writing connection: a batch is one transaction, each kind of row in it one statement.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio_postgres::{CancelToken, Client, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{
    cells::PostgresCells,
    columns::Columns,
    server::{Fault, Server, failed, reason},
};
use crate::{
    LedgerError,
    record::{
        Interception, NewPrompt, NewTokenUsage, Opening, Outcome, Quality, ServedBy, Settlement,
        columns::{ChildRow, RowCells, replaced_columns},
        objects::ObjectChanges,
    },
    store::{
        Receipt, StoreWriter, Write, WriterConnection,
        interceptions::{Parent, opened_cells, opened_columns},
        needs_record,
        rollups::{
            self, Differences, LOCK_KEY, SummedRecord, select_with_usages, session_id,
            tables::Table,
        },
        sql::Flavour,
        trail::SequencerThread,
    },
};

/// How long a probe may take, and how long the request to cancel a commit.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a batch is retried after a conflict with another transaction.
const MAX_CONTENTION_RETRIES: usize = 5;
/// An id that more tool calls share identifies none of them: some providers count their calls in each
/// response, and looking through all with one id would delay every commit.
const MAX_SHARED_CALLS: u32 = 1_000;
/// Up to so many writes are repeated with a savepoint for each, when one of them cannot be stored.
const MAX_SAVEPOINTS: usize = 32;
/// The precision of a token's last use.
const LAST_USED_STEP: &str = "60 seconds";
/// Rows are found by their keys. Without statistics the planner assumes that partitions are small and
/// would read them whole, which is never right here.
const SETTINGS: &str = "SET TimeZone = 'UTC'; SET enable_seqscan = off;
    SET enable_hashjoin = off; SET enable_mergejoin = off";

/// The connection of one writing thread; opened when it is needed.
pub(super) struct PostgresWriter {
    server: Arc<Server>,
    tls: MakeRustlsConnect,
    driver: Handle,
    tasks: TaskTracker,
    commit_timeout: Duration,
    session: Option<Session>,
    /// Cancels the statement of the session that is in use.
    cancelling: Option<CancelToken>,
    /// Where its sums go.
    shard: i64,
    /// Gives positions to what is committed.
    sequencer: SequencerThread,
}

/// A connection and its prepared statements, about a dozen.
struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
    /// Where its sums go.
    shard: i64,
}

type Receipts = Vec<Result<Receipt, LedgerError>>;
type PgError = tokio_postgres::Error;

impl PostgresWriter {
    pub(super) fn new(
        server: Arc<Server>,
        tls: MakeRustlsConnect,
        (driver, tasks): (Handle, TaskTracker),
        commit_timeout: Duration,
        sequencer: SequencerThread,
    ) -> Self {
        let shard = rollups::shard(Flavour::Postgres, Uuid::now_v7());
        let (session, cancelling) = (None, None);
        Self { server, tls, driver, tasks, commit_timeout, session, cancelling, shard, sequencer }
    }

    /// The session of the last batch, or a new one.
    async fn session(&mut self) -> Result<Session, LedgerError> {
        if let Some(session) = self.session.take().filter(|session| !session.client.is_closed()) {
            return Ok(session);
        }
        let (client, connection) = self.server.connect(&self.tls).await?;
        let driving = async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the store failed");
            }
        };
        drop(self.tasks.spawn_on(driving, &self.driver));
        // Where the request to cancel a statement is lost, the server ends it.
        let timeout = (self.commit_timeout + PROBE_TIMEOUT).as_millis();
        let settings = format!("{SETTINGS}; SET statement_timeout = {timeout}");
        client.batch_execute(&settings).await.map_err(|error| failed(&error))?;
        self.cancelling = Some(client.cancel_token());
        Ok(Session { client, statements: HashMap::new(), shard: self.shard })
    }

    /// Commits a batch. The session is kept only after a success: otherwise it may be in a transaction,
    /// or a response may be outstanding.
    async fn run(&mut self, batch: &[Write]) -> Result<Receipts, LedgerError> {
        let mut retries = 0;
        loop {
            let mut session = self.session().await?;
            let error = match session.commit(batch).await {
                Ok(receipts) => {
                    self.session = Some(session);
                    self.sequencer.wake_after(batch);
                    return Ok(receipts);
                }
                Err(error) => error,
            };
            match Fault::of(&error) {
                Fault::Contention if retries < MAX_CONTENTION_RETRIES => retries += 1,
                Fault::Data => {
                    session.client.batch_execute("ROLLBACK").await.map_err(|e| failed(&e))?;
                    self.session = Some(session);
                    return self.run_parts(batch, &error).await;
                }
                Fault::Contention | Fault::Statement | Fault::Server => {
                    return Err(commit_failed(&error));
                }
            }
        }
    }

    /// Finds the records that cannot be stored: by committing the halves of their batch, and a small batch
    /// with a savepoint for each.
    async fn run_parts(
        &mut self,
        batch: &[Write],
        error: &PgError,
    ) -> Result<Receipts, LedgerError> {
        if batch.len() == 1 {
            return Ok(vec![Err(failed(error))]);
        }
        if batch.len() <= MAX_SAVEPOINTS {
            let mut session = self.session().await?;
            let receipts = session.commit_each(batch).await.map_err(|e| commit_failed(&e))?;
            self.session = Some(session);
            self.sequencer.wake_after(batch);
            return Ok(receipts);
        }
        let (first, second) = batch.split_at(batch.len() / 2);
        let mut receipts = Box::pin(self.run(first)).await?;
        receipts.extend(Box::pin(self.run(second)).await?);
        Ok(receipts)
    }

    async fn run_probe(&mut self) -> Result<(), LedgerError> {
        let mut session = self.session().await?;
        session.rehearse().await.map_err(|error| failed(&error))?;
        let probe = "INSERT INTO settings (key, value)
             VALUES ('probe', convert_to(now()::text, 'UTF8'))
             ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        session.client.batch_execute(probe).await.map_err(|error| failed(&error))?;
        self.session = Some(session);
        Ok(())
    }

    /// Cancels the statement of a session that was given up because it took too long. Otherwise the server
    /// would go on with it, and the same records would wait for its end when they are tried again.
    fn cancel_slow<T>(&mut self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if !matches!(result, Err(LedgerError::Commit(_))) {
            return result;
        }
        let Some(cancelling) = self.cancelling.take() else { return result };
        let tls = self.tls.clone();
        let cancelled = self.driver.block_on(async {
            tokio::time::timeout(PROBE_TIMEOUT, cancelling.cancel_query(tls)).await
        });
        if !matches!(cancelled, Ok(Ok(()))) {
            tracing::debug!("a commit that took too long could not be cancelled");
        }
        result
    }
}

/// Converts the error of a commit.
fn commit_failed(error: &PgError) -> LedgerError {
    match Fault::of(error) {
        Fault::Statement => LedgerError::Commit(reason(error)),
        Fault::Data | Fault::Contention | Fault::Server => failed(error),
    }
}

/// Runs a future on this thread, for at most this long.
fn run_with_timeout<T>(
    driver: &Handle,
    limit: Duration,
    work: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    let result = driver.block_on(async { tokio::time::timeout(limit, work).await });
    result.unwrap_or_else(|_elapsed| Err(LedgerError::slow_commit(limit)))
}

impl WriterConnection for PostgresWriter {
    fn write(&mut self, work: &mut dyn FnMut(&mut dyn StoreWriter)) {
        work(self);
    }
}

impl StoreWriter for PostgresWriter {
    fn commit(&mut self, batch: &[Write]) -> Result<Receipts, LedgerError> {
        let (driver, limit) = (self.driver.clone(), self.commit_timeout);
        let result = run_with_timeout(&driver, limit, self.run(batch));
        self.cancel_slow(result)
    }

    fn probe(&mut self) -> Result<(), LedgerError> {
        let result = run_with_timeout(&self.driver.clone(), PROBE_TIMEOUT, self.run_probe());
        self.cancel_slow(result)
    }
}

impl Session {
    /// Commits a batch in one transaction.
    async fn commit(&mut self, batch: &[Write]) -> Result<Receipts, PgError> {
        self.begin().await?;
        let mut receipts = Vec::with_capacity(batch.len());
        let mut differences = Differences::default();
        let mut rest = batch;
        while !rest.is_empty() {
            let (group, after) = rest.split_at(group_length(rest));
            self.write(group, &mut receipts, &mut differences).await?;
            rest = after;
        }
        self.add(&differences).await?;
        self.client.batch_execute("COMMIT").await?;
        Ok(receipts)
    }

    /// Commits those writes of a batch that the store takes.
    async fn commit_each(&mut self, batch: &[Write]) -> Result<Receipts, PgError> {
        self.begin().await?;
        let mut receipts = Vec::with_capacity(batch.len());
        let mut differences = Differences::default();
        for write in batch {
            self.client.batch_execute("SAVEPOINT record").await?;
            let mut changed = differences.clone();
            match self.write(std::slice::from_ref(write), &mut receipts, &mut changed).await {
                Ok(()) => {
                    differences = changed;
                    self.client.batch_execute("RELEASE record").await?;
                }
                Err(error) if Fault::of(&error) == Fault::Data => {
                    self.client.batch_execute("ROLLBACK TO record; RELEASE record").await?;
                    receipts.push(Err(failed(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        self.add(&differences).await?;
        self.client.batch_execute("COMMIT").await?;
        Ok(receipts)
    }

    /// Writes a record and takes it back.
    async fn rehearse(&mut self) -> Result<(), PgError> {
        let user = self.client.query_opt("SELECT id FROM users LIMIT 1", &[]).await?;
        let Some(user) = user else { return Ok(()) };
        self.begin().await?;
        let mut differences = Differences::default();
        self.write(&[Write::sample(user.get(0))], &mut Vec::new(), &mut differences).await?;
        self.add(&differences).await?;
        self.client.batch_execute("ROLLBACK").await
    }

    /// Writes a group: openings, then notes, continuations and objects, then settlements.
    async fn write(
        &mut self,
        group: &[Write],
        receipts: &mut Receipts,
        differences: &mut Differences,
    ) -> Result<(), PgError> {
        let mut opened = HashSet::new();
        let mut openings = Vec::new();
        let mut notes = HashMap::new();
        let mut continuations = HashMap::new();
        let mut objects = Vec::new();
        let mut ended = HashSet::new();
        let mut settlements = Vec::new();
        for write in group {
            let (replica, opening) = match write {
                Write::Open(replica, opening) => (Some(*replica), Some(&**opening)),
                Write::Record(opening, _) => (None, Some(&**opening)),
                Write::Note(..)
                | Write::Settle(..)
                | Write::Keep(..)
                | Write::Objects(..)
                | Write::Nothing => (None, None),
            };
            if let Some(opening) = opening
                && opened.insert(opening.interception.id)
            {
                openings.push((replica, opening));
            }
            let (id, settlement) = match write {
                Write::Settle(id, settlement) => (*id, &**settlement),
                Write::Record(opening, settlement) => (opening.interception.id, &**settlement),
                Write::Note(id, usage) => {
                    notes.insert((*id, usage.turn), &**usage);
                    continue;
                }
                Write::Keep(id, user, list) => {
                    let rows = list.iter().map(|(key, value)| ((*user, key), (*id, value)));
                    continuations.extend(rows);
                    continue;
                }
                Write::Objects(id, changes) => {
                    objects.push((*id, &**changes));
                    continue;
                }
                Write::Open(..) | Write::Nothing => continue,
            };
            if ended.insert(id) {
                settlements.push((id, settlement));
            }
        }
        let threads = self.open(&openings, differences).await?;
        notes.retain(|(id, _), _| !ended.contains(id));
        self.note(&notes, differences).await?;
        self.keep(&continuations).await?;
        self.put_objects(&objects).await?;
        let missing = self.settle(&settlements, differences).await?;
        receipts.extend(group.iter().map(|write| receipt(write, &threads, &missing)));
        Ok(())
    }

    /// Inserts records; returns the thread of each, also of those that existed already.
    async fn open(
        &mut self,
        openings: &[(Option<Uuid>, &Opening)],
        differences: &mut Differences,
    ) -> Result<HashMap<Uuid, Uuid>, PgError> {
        if openings.is_empty() {
            return Ok(HashMap::new());
        }
        let parents = self.parents(openings).await?;
        let sessions: Vec<String> = (0_u64..)
            .zip(openings)
            .map(|(place, (_, opening))| {
                session_id(&opening.interception, parents.get(&place).copied())
            })
            .collect();
        let inserted = self.insert(openings, &parents, &sessions).await?;
        let mut threads: HashMap<Uuid, Uuid> =
            inserted.iter().map(|row| (row.get(0), row.get(1))).collect();
        let is_new =
            |opening: &&(Option<Uuid>, &Opening)| threads.contains_key(&opening.1.interception.id);
        for (opening, session) in openings.iter().zip(&sessions).filter(|(o, _)| is_new(o)) {
            let (record, prompt) = (&opening.1.interception, opening.1.prompt.as_deref());
            differences.opened(record, session, prompt);
        }
        let new: Vec<&Opening> = openings.iter().filter(is_new).map(|opening| opening.1).collect();
        self.insert_prompts(&new).await?;
        self.insert_attachments(&new).await?;
        self.put_results(&new).await?;
        self.touch_tokens(&new).await?;
        if new.len() < openings.len() {
            let ids: Vec<Uuid> = openings.iter().map(|opening| opening.1.interception.id).collect();
            let sql = "SELECT id, coalesce(thread_id, id) FROM interceptions WHERE id = ANY ($1)";
            let existing = self.client.query(sql, &[&ids]).await?;
            threads
                .extend(existing.iter().map(|row| (row.get::<_, Uuid>(0), row.get::<_, Uuid>(1))));
        }
        Ok(threads)
    }

    /// The interceptions of the same user that these openings follow, and their threads, by the index of
    /// the opening: those that they name, or else those whose responses made the tool calls that they
    /// correlate with.
    async fn parents(
        &mut self,
        openings: &[(Option<Uuid>, &Opening)],
    ) -> Result<HashMap<u64, Parent>, PgError> {
        let mut parents = self.calling_parents(openings).await?;
        parents.extend(self.named_parents(openings).await?);
        Ok(parents)
    }

    async fn named_parents(
        &mut self,
        openings: &[(Option<Uuid>, &Opening)],
    ) -> Result<HashMap<u64, Parent>, PgError> {
        let named = || {
            (0_u64..).zip(openings).filter_map(|(place, (_, opening))| {
                let interception = &opening.interception;
                Some((place, interception.parent_id?, interception.user_id))
            })
        };
        if named().next().is_none() {
            return Ok(HashMap::new());
        }
        let mut columns = Columns::default();
        columns
            .numbers("place", named().map(|(place, ..)| Some(place)))
            .ids("parent_id", named().map(|(_, parent, _)| Some(parent)))
            .ids("user_id", named().map(|(.., user)| Some(user)));
        let sql = format!(
            "SELECT n.place, i.id, coalesce(i.thread_id, i.id) FROM {}
             JOIN interceptions i ON i.id = n.parent_id AND i.user_id = n.user_id",
            columns.table()
        );
        self.query(&sql, &columns).await.map(|rows| parents_of(&rows))
    }

    async fn calling_parents(
        &mut self,
        openings: &[(Option<Uuid>, &Opening)],
    ) -> Result<HashMap<u64, Parent>, PgError> {
        let calls = || {
            (0_u64..).zip(openings).filter_map(|(place, (_, opening))| {
                let interception = &opening.interception;
                if interception.parent_id.is_some() {
                    return None;
                }
                let call = interception.correlating_tool_call_id.as_deref()?;
                Some((place, call, interception.user_id))
            })
        };
        if calls().next().is_none() {
            return Ok(HashMap::new());
        }
        let mut columns = Columns::default();
        columns
            .numbers("place", calls().map(|(place, ..)| Some(place)))
            .texts("call", calls().map(|(_, call, _)| Some(call)))
            .ids("user_id", calls().map(|(_, _, user)| Some(user)));
        let sql = format!(
            "SELECT DISTINCT ON (n.place) n.place, i.id, coalesce(i.thread_id, i.id)
             FROM {} CROSS JOIN LATERAL ({}) AS t
             JOIN interceptions i ON i.id = t.interception_id AND i.user_id = n.user_id
             WHERE t.calls <= {MAX_SHARED_CALLS} ORDER BY n.place, t.id DESC",
            columns.table(),
            calls_with_id()
        );
        self.query(&sql, &columns).await.map(|rows| parents_of(&rows))
    }

    async fn insert(
        &mut self,
        openings: &[(Option<Uuid>, &Opening)],
        parents: &HashMap<u64, Parent>,
        sessions: &[String],
    ) -> Result<Vec<Row>, PgError> {
        let rows = openings.iter().zip(sessions).enumerate().map(|(place, (opening, session))| {
            let parent = u64::try_from(place).ok().and_then(|place| parents.get(&place));
            opened_cells(&opening.1.interception, parent.copied(), session, opening.0)
        });
        let mut columns = Columns::default();
        columns.cells(&opened_columns(), rows);
        let names = columns.names();
        let sql = format!(
            "INSERT INTO interceptions ({names}) SELECT {names} FROM {}
             WHERE EXISTS (SELECT 1 FROM users u WHERE u.id = n.user_id)
             ON CONFLICT (id) DO NOTHING RETURNING id, thread_id",
            columns.table()
        );
        self.query(&sql, &columns).await
    }

    async fn insert_prompts(&mut self, openings: &[&Opening]) -> Result<(), PgError> {
        let prompts: Vec<(&Interception, NewPrompt)> = openings
            .iter()
            .filter_map(|opening| {
                let prompt = opening.prompt.clone()?;
                let prompt = NewPrompt { provider_response_id: None, prompt };
                Some((&opening.interception, prompt))
            })
            .collect();
        let rows = prompts.iter().map(|(record, prompt)| (record.id, record.started_at, prompt));
        self.insert_children(rows.collect()).await
    }

    async fn insert_attachments(&mut self, openings: &[&Opening]) -> Result<(), PgError> {
        let rows = openings.iter().flat_map(|opening| {
            let Interception { id, started_at, .. } = &opening.interception;
            opening.attachments.iter().map(|attachment| (*id, *started_at, attachment))
        });
        self.insert_children(rows.collect()).await
    }

    /// Stores the sizes of results, and the users' answers, and which requests carried them, in the rows of their
    /// tool calls. Only the first one counts, because agents resend their whole history with each request.
    async fn put_results(&mut self, openings: &[&Opening]) -> Result<(), PgError> {
        let results = || {
            openings.iter().flat_map(|opening| {
                let record = &opening.interception;
                opening.tool_results.iter().map(move |result| (record, result))
            })
        };
        if results().next().is_none() {
            return Ok(());
        }
        let mut columns = Columns::default();
        columns
            .numbers("place", (0..).zip(results()).map(|(place, _)| Some(place)))
            .ids("user_id", results().map(|(record, _)| Some(record.user_id)))
            .ids("carrier", results().map(|(record, _)| Some(record.id)))
            .texts("call", results().map(|(_, result)| Some(result.tool_call_id.as_str())))
            .numbers("bytes", results().map(|(_, result)| Some(result.bytes)))
            .booleans("is_error", results().map(|(_, result)| result.is_error))
            .texts("approval", results().map(|(_, result)| result.approval()))
            .texts("sha256", results().map(|(_, result)| result.sha256.as_deref()))
            .texts("result", results().map(|(_, result)| result.result.as_deref()));
        let sql = format!(
            "UPDATE tool_usages t SET result_bytes = r.bytes, result_is_error = r.is_error,
               approval = coalesce(r.approval, t.approval), result_interception_id = r.carrier,
               result_sha256 = r.sha256, result = r.result
             FROM (SELECT DISTINCT ON (n.call, n.user_id) u.interception_id, u.id, n.bytes,
                     n.is_error, n.approval, n.carrier, n.sha256, n.result
                   FROM {} CROSS JOIN LATERAL ({}) AS u
                   JOIN interceptions i ON i.id = u.interception_id AND i.user_id = n.user_id
                   WHERE u.calls <= {MAX_SHARED_CALLS}
                   ORDER BY n.call, n.user_id, u.id DESC, n.place) AS r
             WHERE t.interception_id = r.interception_id AND t.id = r.id
             AND t.result_bytes IS NULL",
            columns.table(),
            calls_with_id()
        );
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    /// Stores the last use of tokens. Rows that another process has locked are skipped: it stores its own.
    async fn touch_tokens(&mut self, openings: &[&Opening]) -> Result<(), PgError> {
        let mut used: HashMap<Uuid, Timestamp> = HashMap::new();
        for opening in openings {
            let record = &opening.interception;
            if let Some(token) = record.token_id {
                used.insert(token, record.started_at);
            }
        }
        let mut columns = Columns::default();
        columns
            .ids("id", used.keys().copied().map(Some))
            .times("used_at", used.values().copied().map(Some));
        let sql = format!(
            "UPDATE tokens t SET last_used_at = r.used_at
             FROM (SELECT o.id, n.used_at FROM {} JOIN tokens o ON o.id = n.id
                   WHERE o.last_used_at IS NULL
                   OR o.last_used_at < n.used_at - interval '{LAST_USED_STEP}'
                   FOR UPDATE OF o SKIP LOCKED) AS r
             WHERE t.id = r.id",
            columns.table()
        );
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    /// Stores the token usage of records in progress, in the rows that the settlements then replace.
    async fn note(
        &mut self,
        notes: &HashMap<(Uuid, u16), &NewTokenUsage>,
        differences: &mut Differences,
    ) -> Result<(), PgError> {
        if notes.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = notes.keys().map(|(id, _)| *id).collect();
        let sql = "SELECT id, outcome = 'interrupted' FROM interceptions
                   WHERE id = ANY ($1) AND outcome IN ('in_progress', 'interrupted')";
        let open = self.client.query(sql, &[&ids]).await?;
        let now = Timestamp::now();
        // The sums have what was recorded of them before they were marked.
        let summed: Vec<Uuid> =
            open.iter().filter(|row| row.get(1)).map(|row| row.get(0)).collect();
        for before in self.summed_records(&summed, |_id| 0).await? {
            differences.take_back(&before);
        }
        let open: HashSet<Uuid> = open.iter().map(|row| row.get::<_, Uuid>(0)).collect();
        let rows: Vec<_> = notes
            .iter()
            .filter(|((id, _), _)| open.contains(id))
            .map(|((id, _), usage)| (usage.row_id(*id), *id, *usage, now))
            .collect();
        self.put_token_usages(&rows).await?;
        for after in self.summed_records(&summed, |_id| 0).await? {
            differences.ended(&after);
        }
        self.append_changes(&summed).await
    }

    /// Appends the changes of records that were marked as interrupted, by an earlier release perhaps, which
    /// appended nothing then.
    async fn append_changes(&mut self, ids: &[Uuid]) -> Result<(), PgError> {
        if ids.is_empty() {
            return Ok(());
        }
        let sql = "WITH new AS (UPDATE interceptions SET in_trail = TRUE
                     WHERE id = ANY ($1) AND in_trail IS NULL RETURNING id)
                   INSERT INTO outbox (kind, interception_id)
                   SELECT CASE WHEN n.id IN (SELECT id FROM new) THEN 'settled' ELSE 'amended' END,
                     n.id FROM unnest($1::uuid[]) AS n (id)";
        self.client.execute(sql, &[&ids]).await.map(|_appended| ())
    }

    /// What is summed of records, which have so many tool calls.
    async fn summed_records(
        &mut self,
        ids: &[Uuid],
        tool_calls: impl Fn(Uuid) -> usize,
    ) -> Result<Vec<SummedRecord>, PgError> {
        let (Some(first), Some(last)) = (ids.iter().min(), ids.iter().max()) else {
            return Ok(Vec::new());
        };
        // The bounds prune partitions.
        let sql = select_with_usages("? = ANY ($1) AND ? >= $2 AND ? <= $3");
        let statement = self.prepared(&sql).await?;
        let mut records: BTreeMap<Uuid, Option<SummedRecord>> = BTreeMap::new();
        for row in self.client.query(&statement, &[&ids, first, last]).await? {
            let id: Uuid = row.get(0);
            let calls = i64::try_from(tool_calls(id)).unwrap_or(i64::MAX);
            let record = records.entry(id).or_default();
            if let Err(error) = SummedRecord::add_row(record, &mut PostgresCells::new(&row), calls)
            {
                // Its figures are then found by a recount.
                tracing::error!(%error, interception_id = %id, "a record cannot be summed");
            }
        }
        Ok(records.into_values().flatten().collect())
    }

    /// Begins a transaction that may add to the sums.
    async fn begin(&self) -> Result<(), PgError> {
        let begin = format!("BEGIN; SELECT pg_advisory_xact_lock_shared({LOCK_KEY})");
        self.client.batch_execute(&begin).await
    }

    /// Adds what a transaction changes of the sums.
    async fn add(&mut self, differences: &Differences) -> Result<(), PgError> {
        let mut tables: Vec<(&Table, Vec<RowCells<'_>>)> = Vec::new();
        let collected = differences.rows(self.shard, &mut |table, row| {
            match tables.last_mut().filter(|(last, _)| std::ptr::eq(*last, table)) {
                Some((_, rows)) => rows.push(row),
                None => tables.push((table, vec![row])),
            }
            Ok::<_, PgError>(())
        });
        collected?;
        let mut statements = Vec::with_capacity(tables.len());
        for (table, rows) in tables {
            let mut columns = Columns::default();
            columns.cells(&table.columns, rows.into_iter());
            let statement = self.prepared(&table.bulk_sql(&columns.table())).await?;
            statements.push((statement, columns));
        }
        // All are sent before the first answer comes.
        let client = &self.client;
        let values: Vec<_> = statements.iter().map(|(s, columns)| (s, columns.values())).collect();
        let adding = values.iter().map(|(statement, values)| client.query(*statement, values));
        futures_util::future::try_join_all(adding).await.map(|_rows| ())
    }

    /// Stores continuations; a later value of a key replaces an earlier one.
    async fn keep(
        &mut self,
        continuations: &HashMap<(Uuid, &String), (Uuid, &String)>,
    ) -> Result<(), PgError> {
        if continuations.is_empty() {
            return Ok(());
        }
        let mut columns = Columns::default();
        columns
            .ids("user_id", continuations.keys().map(|(user, _)| Some(*user)))
            .texts("key", continuations.keys().map(|(_, key)| Some(key.as_str())))
            .ids("interception_id", continuations.values().map(|(id, _)| Some(*id)))
            .texts("value", continuations.values().map(|(_, value)| Some(value.as_str())));
        let names = columns.names();
        let sql = format!(
            "INSERT INTO continuations ({names}) SELECT {names} FROM {}
             ON CONFLICT (user_id, key) DO UPDATE
             SET (interception_id, value) = ROW (excluded.interception_id, excluded.value)",
            columns.table()
        );
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    /// Stores the objects that requests made or deleted. What is known keeps its maker.
    async fn put_objects(&mut self, changes: &[(Uuid, &ObjectChanges)]) -> Result<(), PgError> {
        let made = || {
            changes.iter().flat_map(|(id, changes)| {
                changes.made.iter().map(move |object| (*id, *changes, object))
            })
        };
        if made().next().is_some() {
            let mut columns = Columns::default();
            columns
                .texts("provider", made().map(|(_, changes, _)| Some(changes.provider.as_str())))
                .texts("id", made().map(|(.., object)| Some(object.id.as_str())))
                .texts("kind", made().map(|(.., object)| Some(object.kind.as_str())))
                .texts("key", made().map(|(_, changes, _)| changes.key.as_deref()))
                .ids("user_id", made().map(|(_, changes, _)| Some(changes.user_id)))
                .ids("interception_id", made().map(|(id, ..)| Some(id)))
                .times("created_at", made().map(|(_, changes, _)| Some(changes.at)));
            let names = columns.names();
            let sql = format!(
                "INSERT INTO objects ({names}) SELECT {names} FROM {}
                 ON CONFLICT (provider, id) DO NOTHING",
                columns.table()
            );
            self.query(&sql, &columns).await?;
        }
        self.delete_objects(changes).await
    }

    async fn delete_objects(&mut self, changes: &[(Uuid, &ObjectChanges)]) -> Result<(), PgError> {
        let deleted = || {
            changes.iter().flat_map(|(_, changes)| {
                changes.deleted.iter().map(move |object| (*changes, object))
            })
        };
        if deleted().next().is_none() {
            return Ok(());
        }
        let mut columns = Columns::default();
        columns
            .texts("provider", deleted().map(|(changes, _)| Some(changes.provider.as_str())))
            .texts("id", deleted().map(|(_, object)| Some(object.as_str())))
            .ids("user_id", deleted().map(|(changes, _)| Some(changes.user_id)))
            .times("deleted_at", deleted().map(|(changes, _)| Some(changes.at)));
        let sql = format!(
            "UPDATE objects o SET deleted_at = n.deleted_at FROM {}
             WHERE o.provider = n.provider AND o.id = n.id AND o.user_id = n.user_id
             AND o.deleted_at IS NULL",
            columns.table()
        );
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    /// Settles records that are in progress, or that were marked as interrupted too early. Settled
    /// records are not changed. Returns the ids of those that are not in the store.
    async fn settle(
        &mut self,
        settlements: &[(Uuid, &Settlement)],
        differences: &mut Differences,
    ) -> Result<HashSet<Uuid>, PgError> {
        if settlements.is_empty() {
            return Ok(HashSet::new());
        }
        let mut changed = self.settle_those(settlements, Outcome::InProgress).await?;
        if changed.len() < settlements.len() {
            let others: Vec<Uuid> =
                settlements.iter().map(|(id, _)| *id).filter(|id| !changed.contains(id)).collect();
            changed.extend(self.settle_interrupted(settlements, &others, differences).await?);
        }
        let settled: Vec<(Uuid, &Settlement)> =
            settlements.iter().filter(|(id, _)| changed.contains(id)).copied().collect();
        self.update_served_by(&settled).await?;
        self.update_prompts(&settled).await?;
        let repeated = self.insert_usages(&settled).await?;
        // What an answer says is recorded once, however often it is fetched.
        let new: Vec<(Uuid, &Settlement)> =
            settled.iter().filter(|(id, _)| !repeated.contains(id)).copied().collect();
        self.insert_children(child_rows(&new, |settlement| &settlement.tool_usages)).await?;
        self.insert_children(child_rows(&new, |settlement| &settlement.thoughts)).await?;
        self.insert_children(child_rows(&new, |settlement| &settlement.answers)).await?;
        self.insert_children(child_rows(&settled, |settlement| &settlement.upstream_attempts))
            .await?;
        let calls: HashMap<Uuid, usize> =
            new.iter().map(|(id, settlement)| (*id, settlement.tool_usages.len())).collect();
        let ids: Vec<Uuid> = settled.iter().map(|(id, _)| *id).collect();
        let calls = |id| calls.get(&id).copied().unwrap_or_default();
        for record in self.summed_records(&ids, calls).await? {
            differences.ended(&record);
        }
        let unchanged = settlements.iter().filter(|(id, _)| !changed.contains(id));
        self.missing(unchanged.filter(|(_, s)| needs_record(s)).map(|(id, _)| *id)).await
    }

    /// Settles the records of an outcome, and returns their ids. Those that end now are appended to the outbox
    /// by the same statement.
    async fn settle_those(
        &mut self,
        settlements: &[(Uuid, &Settlement)],
        outcome: Outcome,
    ) -> Result<HashSet<Uuid>, PgError> {
        let mut columns = Columns::default();
        let cells = settlements.iter().map(|(_, settlement)| settlement.cells());
        columns.cells(Settlement::COLUMNS, cells);
        let names = columns.names();
        columns.ids("record_id", settlements.iter().map(|(id, _)| Some(*id)));
        let (in_trail, append) = if outcome == Outcome::InProgress {
            let append = ", appended AS (INSERT INTO outbox (kind, interception_id)
                            SELECT 'settled', id FROM changed)";
            (", in_trail = TRUE", append)
        } else {
            ("", "")
        };
        let sql = format!(
            "WITH changed AS (UPDATE interceptions i SET ({names}) = ROW ({}){in_trail} FROM {}
               WHERE i.id = n.record_id AND i.outcome = '{outcome}' RETURNING i.id) {append}
             SELECT id FROM changed",
            names.split(", ").map(|name| format!("n.{name}")).collect::<Vec<_>>().join(", "),
            columns.table()
        );
        let changed = self.query(&sql, &columns).await?;
        Ok(changed.iter().map(|row| row.get(0)).collect())
    }

    /// Settles those of these records that were marked as interrupted too early: they are summed as they were.
    async fn settle_interrupted(
        &mut self,
        settlements: &[(Uuid, &Settlement)],
        ids: &[Uuid],
        differences: &mut Differences,
    ) -> Result<HashSet<Uuid>, PgError> {
        let sql = "SELECT id FROM interceptions WHERE id = ANY ($1) AND outcome = $2 FOR UPDATE";
        let found = self.client.query(sql, &[&ids, &Outcome::Interrupted.as_str()]).await?;
        let ids: Vec<Uuid> = found.iter().map(|row| row.get(0)).collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        for before in self.summed_records(&ids, |_id| 0).await? {
            differences.take_back(&before);
        }
        let late: Vec<(Uuid, &Settlement)> =
            settlements.iter().filter(|(id, _)| ids.contains(id)).copied().collect();
        let changed = self.settle_those(&late, Outcome::Interrupted).await?;
        self.append_changes(&changed.iter().copied().collect::<Vec<_>>()).await?;
        Ok(changed)
    }

    /// Those of these records that are not in the store.
    async fn missing(&self, ids: impl Iterator<Item = Uuid>) -> Result<HashSet<Uuid>, PgError> {
        let mut missing: HashSet<Uuid> = ids.collect();
        if !missing.is_empty() {
            let sql = "SELECT id FROM interceptions WHERE id = ANY ($1)";
            let ids: Vec<Uuid> = missing.iter().copied().collect();
            for row in self.client.query(sql, &[&ids]).await? {
                missing.remove(&row.get::<_, Uuid>(0));
            }
        }
        Ok(missing)
    }

    /// Stores the provider and credential that served, where they differ from those of the opening.
    async fn update_served_by(&mut self, settled: &[(Uuid, &Settlement)]) -> Result<(), PgError> {
        let served: Vec<(Uuid, &ServedBy)> =
            settled.iter().filter_map(|(id, s)| Some((*id, s.served_by.as_ref()?))).collect();
        if served.is_empty() {
            return Ok(());
        }
        let mut columns = Columns::default();
        columns.cells(ServedBy::COLUMNS, served.iter().map(|(_, served)| served.cells()));
        columns.ids("record_id", served.iter().map(|(id, _)| Some(*id)));
        // Unknown values stay as the record was opened.
        let set =
            ServedBy::COLUMNS.iter().map(|name| format!("{name} = coalesce(n.{name}, i.{name})"));
        let set: Vec<String> = set.collect();
        let sql = format!(
            "UPDATE interceptions i SET {} FROM {} WHERE i.id = n.record_id",
            set.join(", "),
            columns.table()
        );
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    /// Stores the provider's response ids in the rows of the prompts.
    async fn update_prompts(&mut self, settled: &[(Uuid, &Settlement)]) -> Result<(), PgError> {
        let named =
            || settled.iter().filter_map(|(id, s)| Some((*id, s.provider_response_id.as_deref()?)));
        if named().next().is_none() {
            return Ok(());
        }
        let mut columns = Columns::default();
        columns
            .ids("interception_id", named().map(|(id, _)| Some(id)))
            .texts("response_id", named().map(|(_, response)| Some(response)));
        let sql = format!(
            "UPDATE prompts p SET provider_response_id = n.response_id FROM {}
             WHERE p.interception_id = n.interception_id",
            columns.table()
        );
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    /// Stores token usage; returns the records whose response had exact usage before.
    async fn insert_usages(
        &mut self,
        settled: &[(Uuid, &Settlement)],
    ) -> Result<HashSet<Uuid>, PgError> {
        let (mut rows, mut repeated) = (Vec::new(), HashSet::new());
        for (id, settlement) in settled {
            for usage in &settlement.token_usages {
                if usage.once_per_response && self.has_exact_usage(*id, usage).await? {
                    repeated.insert(*id);
                    continue;
                }
                rows.push((usage.row_id(*id), *id, usage, settlement.ended_at));
            }
        }
        self.put_token_usages(&rows).await?;
        Ok(repeated)
    }

    /// Whether records of the same user have exact token usage of this response of the same provider.
    /// The lock serializes processes that fetch the same response.
    async fn has_exact_usage(&self, id: Uuid, usage: &NewTokenUsage) -> Result<bool, PgError> {
        let Some(response) = &usage.provider_response_id else { return Ok(false) };
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
        self.client.query(lock, &[response]).await?;
        let sql = "SELECT 1 FROM token_usages u JOIN interceptions i ON i.id = u.interception_id
             JOIN interceptions o ON o.id = $3 AND o.user_id = i.user_id AND o.provider = i.provider
             WHERE u.provider_response_id = $1 AND u.quality = $2 LIMIT 1";
        let known = self.client.query(sql, &[response, &Quality::Exact.as_str(), &id]).await?;
        Ok(!known.is_empty())
    }

    /// Inserts rows of token usage, or replaces those of notes.
    async fn put_token_usages(
        &mut self,
        rows: &[(Uuid, Uuid, &NewTokenUsage, Timestamp)],
    ) -> Result<(), PgError> {
        if rows.is_empty() {
            return Ok(());
        }
        let cells = rows.iter().map(|(row, id, usage, time)| usage.cells(*row, *id, *time));
        let mut columns = Columns::default();
        columns.cells(NewTokenUsage::COLUMNS, cells);
        let names = columns.names();
        let replaced: Vec<&str> = replaced_columns(NewTokenUsage::COLUMNS).collect();
        let sql = format!(
            "INSERT INTO token_usages ({names}) SELECT {names} FROM {}
             ON CONFLICT (interception_id, id) DO UPDATE SET ({}) = ROW (excluded.{})",
            columns.table(),
            replaced.join(", "),
            replaced.join(", excluded.")
        );
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    /// Inserts child rows of records, created at these times.
    async fn insert_children<T: ChildRow>(
        &mut self,
        rows: Vec<(Uuid, Timestamp, &T)>,
    ) -> Result<(), PgError> {
        if rows.is_empty() {
            return Ok(());
        }
        let cells = rows.iter().map(|(id, time, row)| row.cells(Uuid::now_v7(), *id, *time));
        let mut columns = Columns::default();
        columns.cells(T::COLUMNS, cells);
        let (table, names) = (T::TABLE, columns.names());
        let sql = format!("INSERT INTO {table} ({names}) SELECT {names} FROM {}", columns.table());
        self.query(&sql, &columns).await.map(|_rows| ())
    }

    async fn query(&mut self, sql: &str, columns: &Columns<'_>) -> Result<Vec<Row>, PgError> {
        let statement = self.prepared(sql).await?;
        self.client.query(&statement, &columns.values()).await
    }

    async fn prepared(&mut self, sql: &str) -> Result<Statement, PgError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// Parents by the index of their opening.
fn parents_of(rows: &[Row]) -> HashMap<u64, Parent> {
    let place = |row: &Row| u64::try_from(row.get::<_, i64>(0)).unwrap_or(u64::MAX);
    let parent = |row: &Row| Parent { id: row.get(1), thread_id: row.get(2) };
    rows.iter().map(|row| (place(row), parent(row))).collect()
}

/// The calls with the id `n.call`, and how many there are; reads only so many as need to be known.
fn calls_with_id() -> String {
    format!(
        "SELECT c.id, c.interception_id, count(*) OVER () AS calls
         FROM (SELECT id, interception_id FROM tool_usages WHERE tool_call_id = n.call
               LIMIT {}) AS c",
        MAX_SHARED_CALLS + 1
    )
}

/// The child rows of one table of all settlements, with the ids of their records and their times.
fn child_rows<'a, T>(
    settled: &[(Uuid, &'a Settlement)],
    rows: impl Fn(&'a Settlement) -> &'a [T],
) -> Vec<(Uuid, Timestamp, &'a T)> {
    let of_one = |(id, settlement): &(Uuid, &'a Settlement)| {
        let (id, ended_at) = (*id, settlement.ended_at);
        rows(settlement).iter().map(move |row| (id, ended_at, row)).collect::<Vec<_>>()
    };
    settled.iter().flat_map(of_one).collect()
}

/// How many writes at the front can be written together. An opening looks up earlier tool calls and the
/// record that it names, and a token usage earlier ones of its response: these must be written before.
fn group_length(batch: &[Write]) -> usize {
    let mut calls = HashSet::new();
    for (number, write) in batch.iter().enumerate() {
        let (opening, settlement) = match write {
            Write::Open(_, opening) => (Some(opening), None),
            Write::Record(opening, settlement) => (Some(opening), Some(settlement)),
            Write::Settle(_, settlement) => (None, Some(settlement)),
            Write::Note(..) | Write::Keep(..) | Write::Objects(..) | Write::Nothing => (None, None),
        };
        let parent = opening.and_then(|opening| opening.interception.parent_id);
        let names_parent =
            parent.is_some_and(|parent| batch.iter().take(number).any(|write| write.opens(parent)));
        let looks_back = opening.is_some_and(|opening| {
            let results = opening.tool_results.iter().map(|result| &result.tool_call_id);
            let correlating = opening.interception.correlating_tool_call_id.iter();
            correlating.chain(results).any(|call| calls.contains(call.as_str()))
        });
        let is_once = settlement.is_some_and(|settlement| {
            settlement.token_usages.iter().any(|usage| usage.once_per_response)
        });
        if number > 0 && (looks_back || names_parent || is_once) {
            return number;
        }
        if is_once {
            return 1;
        }
        let tools = settlement.into_iter().flat_map(|settlement| &settlement.tool_usages);
        calls.extend(tools.filter_map(|tool| tool.tool_call_id.as_deref()));
    }
    batch.len()
}

fn receipt(
    write: &Write,
    threads: &HashMap<Uuid, Uuid>,
    missing: &HashSet<Uuid>,
) -> Result<Receipt, LedgerError> {
    let id = match write {
        Write::Open(_, opening) | Write::Record(opening, _) => opening.interception.id,
        Write::Settle(id, _) if missing.contains(id) => return Err(LedgerError::no_record()),
        Write::Note(..)
        | Write::Settle(..)
        | Write::Keep(..)
        | Write::Objects(..)
        | Write::Nothing => {
            return Ok(Receipt::default());
        }
    };
    match threads.get(&id) {
        Some(thread) => Ok(Receipt { thread_id: Some(*thread) }),
        None => Err(LedgerError::Conflict("no such user".into())),
    }
}
