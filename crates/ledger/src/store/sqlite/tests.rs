//! Tests of the writing connection and of retention.

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use uuid::Uuid;

use super::{SqliteStore, retention::FIND_OLD};
use crate::{
    read::plans::{self, Plan},
    record::{Interception, Opening},
    store::{
        COMMIT_TIMEOUT, IndexStep, Store, StoreWriter, Write,
        sql::{Cells, Database, STATEMENT_TIMEOUT, execute, first},
    },
};

/// A store and the id of its only user.
fn store() -> (TempDir, SqliteStore, Uuid) {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::new(&dir.path().join("ledger.db"));
    store.migrate().unwrap();
    let ada = Uuid::now_v7();
    execute(
        &store,
        "INSERT INTO users (id, name, role, status, created_at)
         VALUES ($1, 'ada', 'member', 'active', $2)",
        &[ada.into(), Timestamp::now().into()],
    )
    .unwrap();
    (dir, store, ada)
}

fn token(store: &SqliteStore, user_id: Uuid) -> Uuid {
    let id = Uuid::now_v7();
    execute(
        store,
        "INSERT INTO tokens (id, user_id, token_hash, hint, created_at)
         VALUES ($1, $2, 'hash', 'kb_...', $3)",
        &[id.into(), user_id.into(), Timestamp::now().into()],
    )
    .unwrap();
    id
}

fn open(user_id: Uuid, token_id: Option<Uuid>, at: Timestamp) -> Write {
    let mut interception = Interception::new(Uuid::now_v7(), user_id, at);
    interception.token_id = token_id;
    let prompt = Some("hello".into());
    Write::Open(
        Uuid::nil(),
        Box::new(Opening {
            interception,
            prompt,
            tool_results: Vec::new(),
            attachments: Vec::new(),
        }),
    )
}

fn last_use(store: &SqliteStore) -> Option<Timestamp> {
    let mut last_use = None;
    let mut read = |row: &mut dyn Cells| {
        last_use = row.time()?;
        Ok(())
    };
    store.run(STATEMENT_TIMEOUT, "SELECT last_used_at FROM tokens", &[], &mut read).unwrap();
    last_use
}

fn record_count(store: &SqliteStore) -> i64 {
    first(store, "SELECT count(*) FROM interceptions", &[]).unwrap().unwrap()
}

fn results(writer: &mut dyn StoreWriter, batch: &[Write]) -> Vec<bool> {
    writer.commit(batch).unwrap().iter().map(Result::is_ok).collect()
}

#[test]
fn the_last_use_of_a_token_is_recorded_to_the_minute() {
    let (_dir, store, ada) = store();
    let token = Some(token(&store, ada));
    let mut writer = store.writer(COMMIT_TIMEOUT).unwrap();
    let first: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
    writer.write(&mut |writer| {
        for (after, used) in [(0, 0), (30, 0), (60, 0), (61, 61), (62, 61), (121, 61), (122, 122)] {
            let at = first + SignedDuration::from_secs(after);
            assert_eq!(results(writer, &[open(ada, token, at)]), [true]);
            assert_eq!(last_use(&store), Some(first + SignedDuration::from_secs(used)), "{after}");
        }
    });
}

#[test]
fn an_invalid_record_affects_neither_other_records_nor_the_last_use_of_a_token() {
    let (_dir, store, ada) = store();
    let token = Some(token(&store, ada));
    let mut writer = store.writer(COMMIT_TIMEOUT).unwrap();
    let (unknown_user, at) = (Uuid::now_v7(), "2026-11-24T10:00:00Z".parse().unwrap());
    let batch = [open(ada, token, at), open(unknown_user, None, at), open(ada, token, at)];
    writer.write(&mut |writer| {
        assert_eq!(results(writer, &batch), [true, false, true]);
        assert_eq!((last_use(&store), record_count(&store)), (Some(at), 2));
        assert_eq!(results(writer, &batch), [true, false, true], "repeated");
        assert_eq!(record_count(&store), 2);
    });
}

#[test]
fn retention_reads_no_later_records() {
    let (_dir, store, _ada) = store();
    let plan = store
        .general
        .with(|connection| {
            let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {FIND_OLD}"))?;
            let lines = explain.query_map(["a", "b", "c"], |row| row.get::<_, String>("detail"))?;
            Ok(lines.collect::<Result<Vec<_>, _>>()?)
        })
        .unwrap();
    assert_eq!(plan.len(), 1, "one search and no sort: {plan:?}");
    assert!(plan[0].starts_with("SEARCH interceptions") && plan[0].contains("(id<?)"), "{plan:?}");
}

/// Fills a store with interceptions that have a prompt each.
fn fill(store: &SqliteStore, user: Uuid) {
    execute(
        store,
        "INSERT INTO interceptions (id, user_id, provider, provider_type, endpoint, dialect, streaming,
           started_at, outcome, attempts, inner_turns, request_bytes, response_bytes, body_edits)
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 3000)
         SELECT printf('01930000-%04x-7000-8000-000000000000', n), $1, 'p', '', '', '', 0,
           '2024-11-01T00:00:00Z', 'completed', 1, 0, 0, 0, '[]' FROM n",
        &[user.into()],
    )
    .unwrap();
    execute(
        store,
        "INSERT INTO prompts SELECT id, id, NULL, 'hello world', started_at FROM interceptions",
        &[],
    )
    .unwrap();
    while store.index_step().unwrap() != IndexStep::Complete {}
}

#[test]
fn no_list_reads_all_records() {
    let (_dir, store, ada) = store();
    fill(&store, ada);
    let since = "2024-11-01T00:00:00Z".parse().unwrap();
    for (filter, expected) in plans::lists("ada", Uuid::now_v7(), since) {
        let explained = plans::explain(&store, &filter);
        let expected = expected.replace("words", "VIRTUAL TABLE INDEX");
        let is_expected = |plan: &Plan| plan.lines.iter().any(|line| line.contains(&expected));
        assert!(explained.iter().any(is_expected), "{filter:?}: {explained:#?}");
        for Plan { sql, lines } in &explained {
            let scans = |line: &&String| {
                let table = line.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
                table.is_some_and(|table| ["i", "p", "interceptions", "prompts"].contains(&table))
            };
            let sorts = lines.iter().any(|line| line.starts_with("USE TEMP B-TREE"));
            for scan in lines.iter().filter(scans) {
                let is_ordered = scan.contains("USING") && scan.contains("INDEX") && !sorts;
                assert!(is_ordered && sql.contains("LIMIT"), "{filter:?}: {sql}: {lines:#?}");
            }
        }
    }
}

#[test]
fn prompts_are_indexed_in_small_steps() {
    let (_dir, store, ada) = store();
    fill(&store, ada);
    let indexed = || first::<i64>(&store, "SELECT count(*) FROM indexed_prompts", &[]).unwrap();
    assert_eq!(indexed(), Some(3_000));
    let more = "INSERT INTO prompts SELECT id, interception_id, NULL, $1, created_at FROM prompts
        WHERE rowid <= 450";
    execute(&store, more, &["small".into()]).unwrap();
    let mut steps = Vec::new();
    for _ in 0..3 {
        steps.push(store.index_step().unwrap());
    }
    assert_eq!(steps, [IndexStep::Indexed(200), IndexStep::Indexed(200), IndexStep::Complete]);
    assert_eq!(indexed(), Some(3_450));
    // Two of these are more than one transaction takes.
    execute(&store, more, &["large ".repeat(15_000).into()]).unwrap();
    assert_eq!(store.index_step().unwrap(), IndexStep::Indexed(1));
}
