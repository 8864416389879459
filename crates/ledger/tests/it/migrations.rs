//! Releases can be mixed while they are rolled out: old schema and new binary, new schema and old
//! statements.

use keybridge_ledger::{InterceptionFilter, Ledger, LedgerError, LedgerOptions, record::Outcome};
use rusqlite::Connection;

const OLD_SCHEMA: &str = include_str!("../../migrations/sqlite/0001_records.sql");
const OLD_STATEMENTS: &str = include_str!("../fixtures/sqlite_0001_statements.sql");

fn url(path: &std::path::Path) -> String {
    format!("sqlite://{}", path.display())
}

/// The record that the old statements write, as this release reads it.
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
fn an_old_schema_is_brought_up_to_date_with_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(OLD_SCHEMA).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    old.execute_batch(OLD_STATEMENTS).unwrap();
    let pending = Ledger::pending_migrations(&url(&path)).unwrap();
    assert_eq!(pending[0], "0002_replicas", "the first is applied already");
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
fn opening_an_existing_store_creates_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.db");
    let error = Ledger::open_existing(&url(&path), &LedgerOptions::default()).unwrap_err();
    assert!(matches!(error, LedgerError::NoStore { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn the_statements_of_the_release_before_work_on_the_new_schema() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.db");
    let ledger = Ledger::open(&url(&path)).unwrap();
    let old = Connection::open(&path).unwrap();
    // The release before refuses a store whose number is greater than this.
    let level: u32 = old.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(level, 1);
    old.execute_batch(OLD_STATEMENTS).unwrap();
    check_old_record(&ledger);
}
