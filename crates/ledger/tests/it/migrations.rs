//! A new binary migrates an old schema and reads the records in it. An old binary refuses a schema of a higher
//! level, on which its statements would fail.

use keybridge_ledger::{InterceptionFilter, Ledger, LedgerError, LedgerOptions, record::Outcome};
use rusqlite::Connection;

const OLD_SCHEMA: &str = include_str!("../../migrations/sqlite/0001_records.sql");
const OLD_STATEMENTS: &str = include_str!("../fixtures/sqlite_0001_statements.sql");

fn url(path: &std::path::Path) -> String {
    format!("sqlite://{}", path.display())
}

/// Checks that this release reads the record that the old statements have written.
fn check_old_record(ledger: &Ledger) {
    let items = ledger.interceptions(&InterceptionFilter::default()).unwrap().items;
    assert_eq!(items.len(), 1, "{items:?}");
    let item = &items[0];
    assert_eq!((item.user.as_str(), item.interception.outcome), ("old", Outcome::Completed));
    assert_eq!((item.tokens.exact.input_tokens, item.tokens.exact.output_tokens), (25, 12));
    let detail = ledger.interception(item.interception.id).unwrap().unwrap();
    assert_eq!(detail.prompts.len() + detail.tool_usages.len() + detail.thoughts.len(), 3);
    assert!(ledger.recount().unwrap().is_sound());
}

#[test]
fn an_old_schema_is_migrated_and_keeps_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(OLD_SCHEMA).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    old.execute_batch(OLD_STATEMENTS).unwrap();
    let pending = Ledger::pending_migrations(&url(&path)).unwrap();
    assert_eq!(pending[0], "0002_replicas", "the first one is already applied");
    let error = Ledger::open_existing(&url(&path), &LedgerOptions::default()).unwrap_err();
    assert!(
        matches!(&error, LedgerError::OutOfDate { pending: found, .. } if *found == pending),
        "{error}"
    );
    assert_eq!(Ledger::migrate(&url(&path)).unwrap(), pending);
    let ledger = Ledger::open_existing(&url(&path), &LedgerOptions::default()).unwrap();
    assert!(Ledger::pending_migrations(&url(&path)).unwrap().is_empty());
    check_old_record(&ledger);
    assert_eq!(ledger.claim().unwrap().interrupted, 0);
}

#[test]
fn a_missing_store_is_not_created_by_open_existing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.db");
    let error = Ledger::open_existing(&url(&path), &LedgerOptions::default()).unwrap_err();
    assert!(matches!(error, LedgerError::NoStore { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_schema_on_which_earlier_statements_fail_has_a_higher_level() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.db");
    Ledger::open(&url(&path)).unwrap();
    let store = Connection::open(&path).unwrap();
    let level: u32 = store.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(level, 2, "a release that knows level 1 refuses it");
    store.execute_batch(OLD_STATEMENTS).unwrap();
    let replace = "INSERT INTO token_usages (id, interception_id, extra, quality, created_at)
        SELECT id, interception_id, extra, quality, created_at FROM token_usages WHERE true
        ON CONFLICT (id) DO UPDATE SET quality = excluded.quality";
    assert!(store.execute_batch(replace).is_err(), "with level 1 it works: lower the level");
}
