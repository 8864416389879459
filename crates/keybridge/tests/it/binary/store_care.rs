//! How the binary cares for its store: permissions, names of the file, what it remembers, retention.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use keybridge_ledger::record::time_text;
use rusqlite::{Connection, params};

use super::{Serving, json_lines, keybridge, read_until, records, settled};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Serves, sends a request and shuts down; returns the token of the administrator.
fn serve_once(dir: &Path, token: Option<&str>) -> String {
    let serving = Serving::start(dir, token);
    read_until(&mut serving.ask("text"), "message_stop");
    settled(dir);
    let token = serving.token.clone();
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
    token
}

/// The output of `serve` where it must not start.
fn refused_start(dir: &Path, args: &[&str]) -> String {
    let words = [&["serve", "--simulate", "--listen", "127.0.0.1:0"], args].concat();
    let output = keybridge(dir, &words);
    assert!(!output.status.success(), "it serves");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The file in which this machine remembers its store.
fn identity_file(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("spool")).unwrap().map(|entry| entry.unwrap().path());
    let is_identity = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("store-identity"))
    };
    files.into_iter().find(is_identity).unwrap()
}

fn remove_store(dir: &Path) {
    for name in ["keybridge.db", "keybridge.db-wal", "keybridge.db-shm"] {
        let _may_be_missing = fs::remove_file(dir.join(name));
    }
}

#[test]
fn only_the_owner_can_read_the_files_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("KEYBRIDGE_LEDGER__DURABILITY", "process")];
    let serving = Serving::start_with(dir.path(), None, &settings);
    let mut stream = serving.ask("stalled");
    read_until(&mut stream, "message_start");
    let files = ["keybridge.db", "keybridge.db-wal", "keybridge.db-shm", "keybridge.db-lock"];
    for name in files {
        assert_eq!(mode(&dir.path().join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&dir.path().join("spool")), 0o700);
    let spooled: Vec<PathBuf> = fs::read_dir(dir.path().join("spool"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(spooled.iter().any(|path| path.extension().is_some_and(|end| end == "journal")));
    for path in &spooled {
        assert_eq!(mode(path), 0o600, "{}", path.display());
    }
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn a_store_that_everyone_could_read_is_closed_to_others_and_a_group_keeps_its_access() {
    let dir = tempfile::tempdir().unwrap();
    let token = serve_once(dir.path(), None);
    let database = dir.path().join("keybridge.db");
    for (before, after) in [(0o644, 0o600), (0o640, 0o640)] {
        fs::set_permissions(&database, Permissions::from_mode(before)).unwrap();
        serve_once(dir.path(), Some(&token));
        assert_eq!(mode(&database), after);
    }
}

#[test]
fn a_configuration_with_secrets_that_everyone_can_read_gets_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let (file, key) = (dir.path().join("c.toml"), dir.path().join("key"));
    fs::write(&key, "sk-ant-2").unwrap();
    let text = format!(
        "[[providers]]\ntype = 'anthropic'\nkeys = [{{ value = 'sk-ant-1' }}, {{ name = 'b', file = '{}' }}]\n",
        key.display()
    );
    fs::write(&file, text).unwrap();
    let warnings = |mode: u32| {
        for path in [&file, &key] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let output = keybridge(dir.path(), &["check", "--config", "c.toml"]);
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let found = warnings(0o644);
    assert!(found.contains("warning: c.toml: every user of this machine can read"), "{found}");
    assert!(found.contains("providers[0].keys[0].value"), "{found}");
    assert!(found.contains("warning: providers[0].keys[1].file: every user"), "{found}");
    assert!(!found.contains("sk-ant"), "{found}");
    assert_eq!(warnings(0o640), "");
}

#[test]
fn no_other_name_of_a_store_lets_a_second_process_serve_it() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("keybridge.db"), dir.path().join("elsewhere/link.db")).unwrap();
    let error = refused_start(dir.path(), &["--store", "sqlite://elsewhere/link.db"]);
    assert!(error.contains("another keybridge process is using the store"), "{error}");
    fs::hard_link(dir.path().join("keybridge.db"), dir.path().join("elsewhere/hard.db")).unwrap();
    let error = refused_start(dir.path(), &["--store", "sqlite://elsewhere/hard.db"]);
    assert!(error.contains("has 2 hard links"), "{error}");
    read_until(&mut serving.ask("text"), "message_stop");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn records_written_after_a_reload_survive_another_program_that_reads_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    read_until(&mut serving.ask("text"), "message_stop");
    settled(dir.path());
    let reloaded = read_until(&mut serving.post("/api/v1/config/reload"), "restart_needed");
    assert!(reloaded.starts_with("HTTP/1.1 200"), "{reloaded}");
    // Such as a backup: closing the last connection that has a lock removes the write-ahead log.
    let other = Connection::open(dir.path().join("keybridge.db")).unwrap();
    let count =
        other.query_row("SELECT count(*) FROM interceptions", [], |row| row.get::<_, i64>(0));
    assert_eq!(count, Ok(1));
    drop(other);
    read_until(&mut serving.ask("stalled"), "message_start");
    serving.signal("-KILL");
    assert_eq!(serving.exit_code(), None);
    assert_eq!(records(dir.path()).len(), 2);
}

#[test]
fn an_exchanged_store_is_refused_until_the_operator_confirms_it() {
    let dir = tempfile::tempdir().unwrap();
    serve_once(dir.path(), None);
    remove_store(dir.path());
    let error = refused_start(dir.path(), &[]);
    let file = identity_file(dir.path());
    assert!(error.contains("was exchanged or emptied"), "{error}");
    let shown = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(error.contains(&shown), "{error}");
    let users = json_lines(&keybridge(dir.path(), &["--json", "user", "list"]));
    assert!(users.is_empty(), "no administrator was created: {users:?}");
    let verified = keybridge(dir.path(), &["ledger", "verify"]);
    assert_eq!(verified.status.code(), Some(1));
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(text.contains("finding: the store"), "{text}");

    // Another store is another matter: it has a file of its own.
    let words = [("KEYBRIDGE_STORE__URL", "sqlite://other.db")];
    let other = Serving::start_with(dir.path(), None, &words);
    other.signal("-TERM");
    assert_eq!(other.exit_code(), Some(0));

    fs::remove_file(file).unwrap();
    serve_once(dir.path(), None);
}

#[test]
fn a_store_that_was_set_back_is_reported_by_verify() {
    let dir = tempfile::tempdir().unwrap();
    let token = serve_once(dir.path(), None);
    let verify = || keybridge(dir.path(), &["ledger", "verify"]);
    assert_eq!(verify().status.code(), Some(0));
    let database = dir.path().join("keybridge.db");
    let checkpoint = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    let busy = Connection::open(&database).unwrap().query_row(
        "PRAGMA wal_checkpoint(TRUNCATE)",
        [],
        checkpoint,
    );
    assert_eq!(busy, Ok(0));
    fs::copy(&database, dir.path().join("backup.db")).unwrap();
    serve_once(dir.path(), Some(&token));
    remove_store(dir.path());
    fs::rename(dir.path().join("backup.db"), &database).unwrap();
    assert_eq!(verify().status.code(), Some(1));
    // It is served, and the gap stays known.
    serve_once(dir.path(), Some(&token));
    let found = verify();
    assert_eq!(found.status.code(), Some(1));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(text.contains("was in the store and is missing"), "{text}");
    fs::remove_file(identity_file(dir.path())).unwrap();
    assert_eq!(verify().status.code(), Some(0));
}

#[test]
fn verify_tells_findings_from_a_check_that_could_not_be_made() {
    let dir = tempfile::tempdir().unwrap();
    serve_once(dir.path(), None);
    let missing = keybridge(dir.path(), &["ledger", "verify", "--against", "nowhere.jsonl"]);
    assert_eq!(missing.status.code(), Some(2));
    fs::write(dir.path().join("log.jsonl"), "{\"response_id\":\"msg_of_nobody\"}\n").unwrap();
    let found = keybridge(dir.path(), &["ledger", "verify", "--against", "log.jsonl"]);
    assert_eq!(found.status.code(), Some(1));
    // A provider that gives an id twice is no fault of the records.
    let database = Connection::open(dir.path().join("keybridge.db")).unwrap();
    database
        .execute(
            "INSERT INTO token_usages
               (id, interception_id, provider_response_id, extra, quality, created_at)
             SELECT 'copy', interception_id, provider_response_id, extra, quality, created_at
             FROM token_usages LIMIT 1",
            [],
        )
        .unwrap();
    let verified = keybridge(dir.path(), &["ledger", "verify"]);
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(0), "{text}");
    assert!(text.contains("warning: 1 response ids occur more than once"), "{text}");
}

/// Moves all records and the last time that a process wrote down into the past: for retention, the same
/// as a clock that is ahead.
fn age_records(dir: &Path, days: i64) {
    let then = Timestamp::now() - SignedDuration::from_hours(24 * days);
    let database = Connection::open(dir.join("keybridge.db")).unwrap();
    let id = uuid::Uuid::from_u128(u128::try_from(then.as_millisecond()).unwrap() << 80);
    database.pragma_update(None, "foreign_keys", false).unwrap();
    for (table, column) in [
        ("interceptions", "id"),
        ("prompts", "interception_id"),
        ("token_usages", "interception_id"),
        ("upstream_attempts", "interception_id"),
    ] {
        database.execute(&format!("UPDATE {table} SET {column} = ?1"), [id.to_string()]).unwrap();
    }
    let then = time_text(then);
    // Their sums go with them: they are summed again.
    database
        .execute("UPDATE interceptions SET started_at = ?1, session_id = NULL", [&then])
        .unwrap();
    for rollups in ["usage_slots", "fleet_slots", "user_days", "latency_slots", "sessions"] {
        database.execute(&format!("DELETE FROM {rollups}"), []).unwrap();
    }
    database
        .execute(
            "UPDATE settings SET value = ?1 WHERE key = 'retention_clock'",
            params![then.as_bytes()],
        )
        .unwrap();
    fs::remove_file(identity_file(dir)).unwrap();
}

#[test]
fn a_clock_that_jumped_ahead_deletes_nothing_until_it_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let token = serve_once(dir.path(), None);
    age_records(dir.path(), 90);
    let serving = Serving::start(dir.path(), Some(&token));
    let metrics = super::read_metrics_until(&serving, "keybridge_ledger_retention_refused 1");
    assert!(metrics.contains("keybridge_ledger_retention_removed_total 0"), "{metrics}");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
    assert_eq!(records(dir.path()).len(), 1);
    let shown = keybridge(dir.path(), &["ledger", "retention"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("retention is not applied: the clock says"), "{text}");

    let confirmed = keybridge(dir.path(), &["ledger", "retention", "--confirm"]);
    assert!(confirmed.status.success());
    let serving = Serving::start(dir.path(), Some(&token));
    super::read_metrics_until(&serving, "keybridge_ledger_retention_removed_total 1");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
    assert!(records(dir.path()).is_empty());
    let verified = json_lines(&keybridge(dir.path(), &["--json", "ledger", "verify"])).remove(0);
    assert_eq!(verified["retention"]["removed_interceptions"], 1);
    let shown = json_lines(&keybridge(dir.path(), &["--json", "ledger", "retention"])).remove(0);
    assert_eq!(shown["runs"][0]["removed_rows"]["prompts"], 1);
    assert_eq!(shown["check"]["refusal"], serde_json::Value::Null);
}
