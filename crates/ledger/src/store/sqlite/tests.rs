//! Tests of the writing connection and of retention.

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use uuid::Uuid;

use super::{SqliteStore, retention::FIND_OLD};
use crate::{
    record::{Interception, Opening},
    store::{
        COMMIT_TIMEOUT, Store, StoreWriter, Write,
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
