//! Tests of PostgreSQL only; `scripts/test postgres` starts a server.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::{PostgresStore, Server, retention, schema};
use crate::{
    Ledger, LedgerError, ReadOptions,
    read::plans::{self, Plan},
    record::{Interception, Opening, Outcome, Settlement},
    store::{
        COMMIT_TIMEOUT, Dead, IndexStep, Store, execute,
        interceptions::first_id,
        rollups::{self, tables},
        sql::CHILD_TABLES,
    },
    words::words,
    write::reap,
};

/// A database of its own.
struct Fixture {
    server: String,
    database: String,
}

#[expect(clippy::disallowed_methods, reason = "the test's settings")]
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_unset| panic!("{name} is not set: scripts/test postgres"))
}

impl Fixture {
    async fn new() -> Self {
        let server = variable("KEYBRIDGE_TEST_POSTGRES");
        let database = format!("keybridge_{}", Uuid::now_v7().simple());
        let fixture = Self { server, database };
        let create = format!("CREATE DATABASE {}", fixture.database);
        fixture.client("postgres").await.batch_execute(&create).await.unwrap();
        fixture
    }

    fn url(&self) -> String {
        format!("{}/{}", self.server, self.database)
    }

    fn store(&self) -> PostgresStore {
        let store =
            PostgresStore::new(Server::parse(&self.url()).unwrap(), &ReadOptions::default())
                .unwrap();
        store.migrate().unwrap();
        store
    }

    async fn client(&self, database: &str) -> Client {
        let url = format!("{}/{database}", self.server);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        drop(tokio_util::task::TaskTracker::new().spawn(connection));
        client
    }

    async fn psql(&self, sql: &str) -> Vec<String> {
        let client = self.client(&self.database).await;
        let messages = client.simple_query(sql).await.unwrap();
        messages
            .iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .collect()
    }

    async fn remove(self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        self.client("postgres").await.batch_execute(&drop).await.unwrap();
    }
}

/// Creates a user and returns their id.
fn user(ledger: &Ledger) -> Uuid {
    let id = Uuid::now_v7();
    execute(
        ledger.database(),
        "INSERT INTO users (id, name, role, status, created_at)
         VALUES ($1, 'ada', 'member', 'active', now())",
        &[id.into()],
    )
    .unwrap();
    id
}

fn opening_at(user_id: Uuid, time: Timestamp) -> Opening {
    let millis = u128::try_from(time.as_millisecond()).unwrap();
    let id = Uuid::from_u128(millis << 80 | Uuid::now_v7().as_u128() & ((1 << 80) - 1));
    let interception = Interception::new(id, user_id, time);
    Opening {
        interception,
        prompt: Some("hello".into()),
        tool_results: Vec::new(),
        attachments: Vec::new(),
    }
}

fn completed() -> Settlement {
    Settlement::new(Timestamp::now(), Outcome::Completed)
}

const PARTITIONS: &str =
    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'interceptions'::regclass
     ORDER BY 1";

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn each_month_has_a_partition_and_retention_drops_it() {
    let fixture = Fixture::new().await;
    let ledger = Ledger::open(&fixture.url()).unwrap();
    let ada = user(&ledger);
    let now = Timestamp::now();
    let long_ago = now - SignedDuration::from_hours(24 * 100);
    // As if keybridge had run then.
    let store = fixture.store();
    store
        .run_maintenance(move |mut client| async move {
            let result = schema::create_partitions(&mut client, long_ago).await;
            (client, result)
        })
        .unwrap();
    let before = fixture.psql(PARTITIONS).await;
    assert_eq!(before.len(), 7, "a default partition, three of then and three of now: {before:?}");
    let recorder = ledger.recorder();
    let ids: Vec<Uuid> = [long_ago, now]
        .map(|time| opening_at(ada, time))
        .map(|opening| {
            let id = opening.interception.id;
            let recorder = recorder.clone();
            drop(tokio_util::task::TaskTracker::new().spawn(async move {
                recorder.record(opening, completed()).await.unwrap();
            }));
            id
        })
        .into();
    tokio::task::yield_now().await;
    recorder.drained().await;
    let placed =
        fixture.psql("SELECT tableoid::regclass::text FROM interceptions ORDER BY id").await;
    assert!(placed.iter().all(|table| !table.contains("default")), "{placed:?}");

    // A month with a record in progress is not dropped.
    let open = recorder.open(opening_at(ada, long_ago)).await.unwrap();
    let cutoff = now - SignedDuration::from_hours(24 * 60);
    assert_eq!(ledger.apply_retention(cutoff).unwrap(), 1, "deleted as a single row");
    assert!(fixture.psql(PARTITIONS).await.contains(&placed[0]));
    open.settle(completed());
    recorder.drained().await;
    assert_eq!(ledger.apply_retention(cutoff).unwrap(), 1, "dropped with its month");
    let after = fixture.psql(PARTITIONS).await;
    assert!(!after.contains(&placed[0]), "{after:?}");
    let left = fixture.psql("SELECT count(*)::text FROM prompts").await;
    assert_eq!(left, ["1"], "its child rows are deleted, too");
    assert!(ledger.interception(ids[1]).unwrap().is_some());

    // A late record of a dropped month is still stored.
    recorder.record(opening_at(ada, long_ago), completed()).await.unwrap();
    recorder.drained().await;
    assert_eq!(fixture.psql("SELECT count(*)::text FROM interceptions_default").await, ["1"]);
    ledger.close();
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn retention_reads_no_partition_of_later_months() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let now = Timestamp::now();
    let long_ago = now - SignedDuration::from_hours(24 * 100);
    store
        .run_maintenance(move |mut client| async move {
            let result = schema::create_partitions(&mut client, long_ago).await;
            (client, result)
        })
        .unwrap();
    let partitions = fixture.psql(PARTITIONS).await;
    let months: Vec<&String> =
        partitions.iter().filter(|name| !name.ends_with("default")).collect();
    let (first, last) = (months[0], months[months.len() - 1]);
    let old = first_id(long_ago);
    let mut statements = vec![
        retention::plans::find_old(long_ago + SignedDuration::from_hours(24)),
        retention::plans::delete("interceptions", "id", old),
    ];
    statements
        .extend(CHILD_TABLES.map(|table| retention::plans::delete(table, "interception_id", old)));
    for statement in statements {
        let plan = fixture.psql(&format!("EXPLAIN {statement}")).await.join("\n");
        let month = |partition: &str| partition.trim_start_matches("interceptions").to_owned();
        assert!(plan.contains(&month(first)), "{statement}: {plan}");
        assert!(!plan.contains(&month(last)), "{statement}: {plan}");
    }
    fixture.remove().await;
}

/// Fills this month with interceptions of a new user that have a prompt each.
async fn fill(fixture: &Fixture) {
    let first = first_id(Timestamp::now() - SignedDuration::from_mins(5)).to_string();
    let (prefix, user) = (first.split_at(8).0, Uuid::now_v7());
    fixture
        .psql(&format!(
            "INSERT INTO users VALUES ('{user}', 'ada', NULL, 'member', 'active', now());
             INSERT INTO interceptions (id, user_id, provider, provider_type, endpoint, dialect, streaming,
               started_at, outcome, attempts, inner_turns, request_bytes, response_bytes, body_edits)
             SELECT ('{prefix}-' || lpad(to_hex(n), 4, '0') || '-7000-8000-000000000000')::uuid, '{user}',
               'p', '', '', '', false, now(), 'completed', 1, 0, 0, 0, '[]'
             FROM generate_series(1, 5000) n;
             INSERT INTO prompts SELECT id, id, NULL, 'hello number ' || id, started_at
             FROM interceptions;
             ANALYZE"
        ))
        .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn no_list_reads_all_records() {
    let fixture = Fixture::new().await;
    // Whether there is an index: small tables are read as a whole anyway.
    fixture.psql(&format!("ALTER DATABASE {} SET enable_seqscan = off", fixture.database)).await;
    let store = fixture.store();
    fill(&fixture).await;
    while store.index_step().unwrap() != IndexStep::Complete {}
    let since = Timestamp::now() - SignedDuration::from_mins(10);
    for (filter, expected) in plans::lists("ada", Uuid::now_v7(), since) {
        let explained = plans::explain(&store, &filter);
        // The indexes of partitions are named after their columns.
        let expected = match expected {
            "by_user" => "user_id_id",
            "by_session" => "session_id_user_id",
            "by_thread" => "thread_id",
            "by_outcome" => "outcome_id",
            "open" => "replica_id_idx",
            "words" => "prompt_words",
            other => other,
        };
        let contains = |plan: &Plan, text: &str| plan.lines.iter().any(|line| line.contains(text));
        let is_expected = |plan: &Plan| contains(plan, expected);
        assert!(explained.iter().any(is_expected), "{filter:?}: {explained:#?}");
        for plan in &explained {
            let scans = ["Seq Scan on interceptions", "Seq Scan on prompts"];
            assert!(!scans.iter().any(|scan| contains(plan, scan)), "{filter:?}: {plan:#?}");
        }
    }
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn a_period_selects_the_partitions_that_a_search_reads() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    fill(&fixture).await;
    let now = Timestamp::now();
    let filter = crate::InterceptionFilter {
        since: Some(now - SignedDuration::from_mins(6)),
        until: Some(now),
        q: Some("nothing".into()),
        ..crate::InterceptionFilter::default()
    };
    let later = fixture.psql(PARTITIONS).await.pop().unwrap();
    let later = later.trim_start_matches("interceptions").to_owned();
    for plan in plans::explain(&store, &filter) {
        let reads_later = plan.lines.iter().any(|line| line.contains(&later));
        // The oldest id, wherever it is.
        let is_unbounded = plan.sql.ends_with("ORDER BY id LIMIT 1");
        assert!(!reads_later || is_unbounded, "{plan:#?}");
    }
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn indexes_of_searches_are_built_on_partitions_of_earlier_releases() {
    const MISSING: &str = "SELECT c.relname::text FROM pg_inherits t JOIN pg_class c ON c.oid = t.inhrelid
        WHERE t.inhparent = 'prompts'::regclass AND NOT EXISTS (SELECT 1 FROM pg_index x
          WHERE x.indrelid = c.oid AND x.indisvalid AND pg_get_indexdef(x.indexrelid) LIKE '%USING gin%')";
    let fixture = Fixture::new().await;
    let store = fixture.store();
    assert_eq!(fixture.psql(MISSING).await, ["prompts_default"], "new partitions have it at once");
    // What a process leaves that dies while it builds.
    fixture
        .psql(
            "CREATE INDEX prompts_default_words ON prompts_default (created_at);
             UPDATE pg_index SET indisvalid = false
             WHERE indexrelid = 'prompts_default_words'::regclass",
        )
        .await;
    let mut steps = 0;
    while store.index_step().unwrap() != IndexStep::Complete {
        steps += 1;
    }
    assert_eq!(steps, 2, "one of prompts, one of interceptions");
    assert_eq!(fixture.psql(MISSING).await, Vec::<String>::new());
    let valid = "SELECT indisvalid::text FROM pg_index
        WHERE indexrelid IN ('prompts_by_words'::regclass, 'interceptions_by_outcome'::regclass)";
    assert_eq!(fixture.psql(valid).await, ["true", "true"]);
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn the_server_splits_every_character_as_this_program_does() {
    let fixture = Fixture::new().await;
    let _store = fixture.store();
    let client = fixture.client(&fixture.database).await;
    let sql = "SELECT tsvector_to_array(prompt_words($1))";
    let characters: Vec<char> = ('\u{1}'..='\u{3ffff}').collect();
    for some in characters.chunks(4_096) {
        let text: String = some.iter().map(|character| format!("x{character}Y ")).collect();
        let mut theirs: Vec<String> = client.query_one(sql, &[&text]).await.unwrap().get(0);
        let mut ours: Vec<String> = words(&text).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        ours.dedup();
        assert_eq!(theirs, ours, "from {:?}", some.first());
    }
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn concurrent_migrations_wait_for_each_other() {
    let fixture = Fixture::new().await;
    let pending = Ledger::pending_migrations(&fixture.url()).unwrap().len();
    let url = Arc::new(fixture.url());
    let migrators: Vec<_> = (0..8)
        .map(|_| {
            let url = Arc::clone(&url);
            std::thread::spawn(move || Ledger::migrate(&url).unwrap().len())
        })
        .collect();
    let applied: usize = migrators.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(applied, pending);
    assert_eq!(Ledger::pending_migrations(&fixture.url()).unwrap(), Vec::<&str>::new());
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn a_later_expand_only_schema_is_supported() {
    let fixture = Fixture::new().await;
    let ledger = Ledger::open(&fixture.url()).unwrap();
    let ada = user(&ledger);
    ledger.close();
    fixture
        .psql(
            "INSERT INTO schema_migrations VALUES (99, '0099_expands', 1, now());
             ALTER TABLE interceptions ADD COLUMN colour text DEFAULT 'red';
             ALTER TABLE users ADD COLUMN team text",
        )
        .await;
    let ledger = Ledger::open(&fixture.url()).unwrap();
    ledger.recorder().open(opening_at(ada, Timestamp::now())).await.unwrap().settle(completed());
    ledger.close();
    fixture.psql("INSERT INTO schema_migrations VALUES (100, '0100_breaks', 2, now())").await;
    let error = Ledger::open(&fixture.url()).unwrap_err();
    assert!(matches!(error, LedgerError::Newer { found: 2, known: 1 }), "{error}");
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn only_records_of_dead_processes_are_marked_interrupted() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let (living, silent, unknown) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let ledger = Ledger::open(&fixture.url()).unwrap();
    let ada = user(&ledger);
    let mut writer = store.writer(COMMIT_TIMEOUT).unwrap();
    let open = |replica| {
        let opening = opening_at(ada, Timestamp::now());
        (opening.interception.id, crate::store::Write::Open(replica, Box::new(opening)))
    };
    let (ids, writes): (Vec<_>, Vec<_>) = [living, silent, unknown].map(open).into_iter().unzip();
    let commit = move || writer.write(&mut |store| drop(store.commit(&writes).unwrap()));
    std::thread::spawn(commit).join().unwrap();
    store.beat(living).unwrap();
    store.beat(silent).unwrap();
    fixture
        .psql(&format!(
            "UPDATE replicas SET beat_at = now() - interval '20 seconds' WHERE id = '{silent}'"
        ))
        .await;
    let outcome = |id| ledger.interception(id).unwrap().unwrap().item.interception.outcome;
    let own_id = Uuid::now_v7();
    assert_eq!(reap::reap(&store, own_id, Dead::Ended).unwrap(), 1);
    assert_eq!(outcome(ids[2]), Outcome::Interrupted);
    assert_eq!(outcome(ids[1]), Outcome::InProgress, "silent, perhaps because of an outage");
    assert_eq!(reap::reap(&store, own_id, Dead::Silent).unwrap(), 1);
    assert_eq!(outcome(ids[1]), Outcome::Interrupted);
    assert_eq!(outcome(ids[0]), Outcome::InProgress);
    assert_eq!(reap::reap(&store, own_id, Dead::Silent).unwrap(), 0);
    store.release(living).unwrap();
    assert_eq!(reap::reap(&store, own_id, Dead::Ended).unwrap(), 1);
    fixture.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn an_access_change_is_announced_to_all_processes() {
    let fixture = Fixture::new().await;
    let (here, there) =
        (Ledger::open(&fixture.url()).unwrap(), Ledger::open(&fixture.url()).unwrap());
    let _claim = there.claim().unwrap();
    // The first change is counted when listening starts.
    wait_for(|| there.access_version() == 1).await;
    here.announce_access_change().unwrap();
    wait_for(|| there.access_version() == 2).await;
    here.announce_access_change().unwrap();
    wait_for(|| there.access_version() == 3).await;
    fixture.remove().await;
}

async fn wait_for(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await.unwrap();
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
fn the_error_of_an_unusable_server_says_what_to_do() {
    let server = variable("KEYBRIDGE_TEST_POSTGRES");
    let (_, host) = server.rsplit_once('@').unwrap();
    let (_, user) = server.split_once("://").unwrap();
    let (user, _) = user.split_once(':').unwrap();
    let rows = [
        (format!("postgres://{user}:wrong-secret@{host}/postgres"), "check user and password"),
        (format!("{server}/no_such_database"), "createdb"),
        ("postgres://u:wrong-secret@127.0.0.1:1/d".to_owned(), "is PostgreSQL running there?"),
        ("postgres://u:wrong-secret@no.such.host.invalid/d".to_owned(), "lookup"),
        (format!("{server}/postgres?options=-c%20default_transaction_read_only=on"), "read-only"),
    ];
    for (url, expected) in rows {
        let error = Ledger::open(&url).unwrap_err();
        let is_unreachable = ["is PostgreSQL running there?", "lookup"].contains(&expected);
        match error {
            LedgerError::Unreachable { .. } => assert!(is_unreachable, "{error}"),
            LedgerError::Open { .. } => assert!(!is_unreachable, "{error}"),
            _ => panic!("{error}"),
        }
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("wrong-secret"), "{text}");
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
fn certificates_are_verified_as_sslmode_requires() {
    let authority = variable("KEYBRIDGE_TEST_POSTGRES_CA");
    let server = variable("KEYBRIDGE_TEST_POSTGRES");
    // The certificate is for `localhost`; the tests connect to an IP address.
    let named = server.replace("127.0.0.1", "localhost");
    let open = |server: &str, parameters: &str| {
        Ledger::pending_migrations(&format!("{server}/postgres?{parameters}"))
            .map(|_pending| ())
            .map_err(|error| error.to_string())
    };
    let with_authority = |mode: &str| format!("sslmode={mode}&sslrootcert={authority}");
    open(&server, "sslmode=disable").unwrap();
    open(&server, "sslmode=require").unwrap();
    open(&server, &with_authority("verify-ca")).unwrap();
    open(&named, &with_authority("verify-full")).unwrap();
    let wrong_name = open(&server, &with_authority("verify-full")).unwrap_err();
    assert!(wrong_name.contains("certificate"), "{wrong_name}");
    // This authority is not among those of the system.
    assert!(open(&named, "sslmode=verify-full").is_err());
    assert!(open(&named, "sslmode=verify-ca&sslrootcert=/no/such/file").is_err());
}

#[test]
fn urls_are_parsed_as_by_libpq() {
    for url in [
        "postgres://u@h/d",
        "postgresql://u:p@h:5433/d?sslmode=verify-full&sslrootcert=%2Fa%20b.pem",
        "postgres://u@h1,h2/d?target_session_attrs=read-write",
        "postgres:///d?host=/run/postgresql",
    ] {
        Server::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
    }
    for (url, expected) in [
        ("postgres:///d", "the host is missing"),
        ("postgres://u@h/d?sslmode=maybe", "sslmode `maybe`"),
        ("postgres://u@h/d?colour=red", "colour"),
        ("postgres://u@h:port/d", "port"),
    ] {
        let error = Server::parse(url).unwrap_err();
        assert!(error.contains(expected), "{url}: {error}");
    }
    assert_eq!(
        Server::parse("postgres://u:p@h/d?sslmode=require").unwrap().display_url,
        "postgres://***@h/d"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn the_sums_of_ended_days_are_folded_into_one_shard() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let now = Timestamp::now();
    let today = rollups::slot(now).div_euclid(rollups::SLOTS_PER_DAY);
    let zeros = "0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0";
    for (day, shard, completed) in
        [(today - 3, 0, 1), (today - 3, 7, 2), (today - 3, 9, 4), (today, 7, 8)]
    {
        let slot = day * rollups::SLOTS_PER_DAY;
        for sql in [
            format!(
                "INSERT INTO fleet_slots VALUES ({slot}, 'p', '', '', '', {shard}, {completed}, {zeros})"
            ),
            format!(
                "INSERT INTO user_days VALUES ({day}, '{}', '', {shard}, {completed}, {zeros})",
                Uuid::nil()
            ),
            format!(
                "INSERT INTO latency_slots VALUES ({slot}, 'p', '', '', 'total', 5, {shard}, {completed})"
            ),
        ] {
            execute(&store, &sql, &[]).unwrap();
        }
    }
    for _again in 0..2 {
        tables::fold(&store, now).unwrap();
        for (table, sum) in [
            ("fleet_slots", "completed"),
            ("user_days", "completed"),
            ("latency_slots", "requests"),
        ] {
            let sql = format!("SELECT shard || ':' || {sum} FROM {table} ORDER BY shard");
            assert_eq!(fixture.psql(&sql).await, ["0:7", "7:8"], "{table}");
        }
    }
    fixture.remove().await;
}
