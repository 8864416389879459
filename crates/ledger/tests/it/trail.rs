//! Each record that ends is in the trail once, and a reader that remembers its position reads it once.

use std::{collections::HashMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use keybridge_ledger::{
    Entry, Ledger, LedgerOptions, NewTokenUsage, Recount, Settlement, SpoolConfig, TrailEntry,
    TrailKind,
    record::{Outcome, Quality},
    spool_files,
    store::{Value, all, execute},
};
use uuid::Uuid;

use crate::{
    records::{User, contract, opening, opening_at, settled, user},
    support::Fixture,
};

/// Gives positions to all that waits for one, as the sequencer of a serving process does.
fn order(ledger: &Ledger) {
    while ledger.order_trail(1_000).unwrap() > 0 {}
}

/// Reads what is new after a position, in small pages.
fn read_from(ledger: &Ledger, position: &mut u64) -> Vec<TrailEntry> {
    let mut entries = Vec::new();
    loop {
        let page = ledger.trail(*position, 7).unwrap();
        for entry in &page.items {
            *position += 1;
            assert_eq!(entry.position, *position, "positions are dense");
        }
        entries.extend(page.items);
        if page.next_cursor.is_none() {
            return entries;
        }
    }
}

fn read_all(ledger: &Ledger) -> Vec<TrailEntry> {
    order(ledger);
    read_from(ledger, &mut 0)
}

/// The kinds of the entries of a record, in order.
fn kinds_of(entries: &[TrailEntry], id: Uuid) -> Vec<&'static str> {
    let of_record = entries.iter().filter(|entry| entry.interception_id == Some(id));
    of_record.map(|entry| entry.kind.as_str()).collect()
}

/// Missing positions, records without an entry, and repeated entries.
fn problems(recount: &Recount) -> [u64; 3] {
    [recount.trail_gaps, recount.trail_without_entry, recount.trail_repeated]
}

/// Checks that the trail is sound and complete, and returns the recount.
#[track_caller]
fn check(ledger: &Ledger) -> Recount {
    let recount = ledger.recount().unwrap();
    assert_eq!((recount.trail_not_in_order, problems(&recount)), (0, [0; 3]), "{recount:?}");
    assert_eq!(recount.trail_entries, ledger.trail_head().unwrap());
    recount
}

fn run(ledger: &Ledger, sql: &str) {
    execute(ledger.database(), sql, &[]).unwrap();
}

/// A reader that remembers the last value of a column of ended records.
struct ByColumn<T> {
    column: &'static str,
    last: T,
    found: usize,
}

impl<T: keybridge_ledger::store::FromRow + Clone + Into<Value>> ByColumn<T> {
    fn read(&mut self, ledger: &Ledger) {
        let column = self.column;
        let sql = format!(
            "SELECT {column} FROM interceptions WHERE outcome <> 'in_progress' AND {column} > $1
             ORDER BY {column}"
        );
        let rows: Vec<T> = all(ledger.database(), &sql, &[self.last.clone().into()]).unwrap();
        self.found += rows.len();
        self.last = rows.last().cloned().unwrap_or(self.last.clone());
    }
}

const WRITERS: usize = 6;
const ROUNDS: usize = 40;

async fn a_reader_by_position_misses_no_record_of_six_writers(fixture: &impl Fixture) {
    let ledgers: Vec<Ledger> = (0..WRITERS).map(|_| fixture.open()).collect();
    let ada = user(&ledgers[0], "ada");
    let mut writers: Vec<Vec<(Entry, Timestamp)>> = Vec::new();
    let start = Timestamp::now();
    for ledger in &ledgers {
        let mut open = Vec::new();
        for _ in 0..ROUNDS {
            let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
            // Requests end in this order, and are settled in another one.
            let end = i64::try_from(open.len() + 1).unwrap();
            let end = start.checked_add(SignedDuration::from_millis(end)).unwrap();
            open.push((entry, end));
        }
        writers.push(open);
    }
    let reader = fixture.open();
    let (mut position, mut seen) = (0, HashMap::new());
    let mut by_id = ByColumn { column: "id", last: Uuid::nil(), found: 0 };
    let mut by_end = ByColumn { column: "ended_at", last: Timestamp::UNIX_EPOCH, found: 0 };
    for round in 0..ROUNDS {
        // Without a pattern: 29 and 7 have no common divisor with 40.
        let settling = writers.iter_mut().zip(&ledgers).enumerate().map(|(number, writer)| {
            let (open, ledger) = writer;
            let (entry, ended_at) = open.swap_remove((round * 29 + number * 7) % open.len());
            entry.settle(Settlement { ended_at, ..settled(Outcome::Completed) });
            let sequencer = ledger.clone();
            tokio::task::spawn_blocking(move || sequencer.order_trail(10))
        });
        let settling: Vec<_> = settling.collect();
        // While they commit.
        for entry in read_from(&reader, &mut position) {
            *seen.entry(entry.interception_id.unwrap()).or_insert(0) += 1;
        }
        by_id.read(&reader);
        by_end.read(&reader);
        for (sequencing, ledger) in settling.into_iter().zip(&ledgers) {
            sequencing.await.unwrap().unwrap();
            ledger.recorder().drained().await;
        }
        for entry in read_from(&reader, &mut position) {
            let item = entry.interception.unwrap();
            assert_eq!(item.interception.outcome, Outcome::Completed);
            *seen.entry(item.interception.id).or_insert(0) += 1;
        }
        by_id.read(&reader);
        by_end.read(&reader);
    }
    order(&reader);
    for entry in read_from(&reader, &mut position) {
        *seen.entry(entry.interception_id.unwrap()).or_insert(0) += 1;
    }
    let all = WRITERS * ROUNDS;
    assert_eq!(seen.len(), all);
    assert!(seen.values().all(|times| *times == 1));
    assert!(by_id.found < all / 2 && by_end.found < all / 2, "{} {}", by_id.found, by_end.found);
    assert_eq!(check(&reader).trail_entries, u64::try_from(all).unwrap());
}

async fn concurrent_sequencers_give_each_entry_one_position(fixture: &impl Fixture) {
    let ledgers = [fixture.open(), fixture.open()];
    let ada = user(&ledgers[0], "ada");
    for _ in 0..60 {
        for ledger in &ledgers {
            let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
            entry.settle(settled(Outcome::Completed));
        }
    }
    for ledger in &ledgers {
        ledger.recorder().drained().await;
    }
    let sequencing = ledgers.clone().map(|ledger| {
        tokio::task::spawn_blocking(move || while ledger.order_trail(3).unwrap() > 0 {})
    });
    for sequencer in sequencing {
        sequencer.await.unwrap();
    }
    assert_eq!(read_all(&ledgers[0]).len(), 120);
    assert_eq!(check(&ledgers[0]).trail_entries, 120);
}

async fn a_serving_process_gives_positions_by_itself(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let settle_one = || async {
        ledger.recorder().open(opening(&ada)).await.unwrap().settle(settled(Outcome::Failed));
        ledger.recorder().drained().await;
    };
    settle_one().await;
    as_an_earlier_release_left_it(&ledger, fixture.url().starts_with("postgres"));
    let claim = ledger.claim().unwrap();
    settle_one().await;
    let mut position = 0;
    while position < 2 {
        read_from(&ledger, &mut position);
        tokio::task::yield_now().await;
    }
    drop(claim);
    check(&ledger);
}

fn usage(output: u64) -> NewTokenUsage {
    NewTokenUsage {
        quality: Quality::Partial,
        output_tokens: Some(output),
        ..NewTokenUsage::default()
    }
}

async fn what_is_marked_as_interrupted_is_settled_and_what_comes_later_amends_it(
    fixture: &impl Fixture,
) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let [dead, late] = [opening(&ada), opening(&ada)];
    let ids = [dead.interception.id, late.interception.id];
    let dead = ledger.recorder().open(dead).await.unwrap();
    let late = ledger.recorder().open(late).await.unwrap();
    dead.note(usage(1));
    ledger.recorder().drained().await;
    assert_eq!(read_all(&ledger), [], "nothing has ended");
    // As if the process had died before it settled them.
    assert_eq!(fixture.open().claim().unwrap().interrupted, 2);
    let entries = read_all(&ledger);
    assert_eq!(ids.map(|id| kinds_of(&entries, id)), [["settled"], ["settled"]]);
    assert_eq!(fixture.open().claim().unwrap().interrupted, 0);
    dead.note(usage(5));
    late.settle(settled(Outcome::Completed));
    ledger.recorder().drained().await;
    let entries = read_all(&ledger);
    assert_eq!(ids.map(|id| kinds_of(&entries, id)), [["settled", "amended"]; 2]);
    // An entry has the newest state of its record.
    let of_late = entries.iter().filter(|entry| entry.interception_id == Some(ids[1]));
    for entry in of_late {
        let item = entry.interception.as_ref().unwrap();
        assert_eq!(item.interception.outcome, Outcome::Completed);
    }
    check(&ledger);
    drop(dead);
}

async fn a_repeated_write_appends_nothing(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let opening = opening(&ada);
    for outcome in [Outcome::Completed, Outcome::Completed, Outcome::Failed] {
        ledger.recorder().record(opening.clone(), settled(outcome)).await.unwrap();
        ledger.recorder().drained().await;
    }
    assert_eq!(kinds_of(&read_all(&ledger), opening.interception.id), ["settled"]);
    check(&ledger);
}

async fn what_is_replayed_from_a_spool_is_appended_once(fixture: &impl Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let (max_bytes, max_age) = (1 << 30, Duration::from_secs(3_600));
    let spool = Some(SpoolConfig { dir: dir.path().into(), max_bytes, max_age });
    let ledger = fixture.open_with(&LedgerOptions { spool, ..LedgerOptions::default() });
    let ada = user(&ledger, "ada");
    let bob = User { id: Uuid::now_v7() };
    let [first, spooled] = [&ada, &bob].map(opening);
    let ids = [first.interception.id, spooled.interception.id];
    for opening in [first, spooled] {
        ledger.recorder().record(opening, settled(Outcome::Completed)).await.unwrap();
    }
    ledger.recorder().drained().await;
    let kept = std::fs::read(&spool_files(dir.path()).unwrap()[0].path).unwrap();
    let path = spool_files(dir.path()).unwrap()[0].path.clone();
    let insert = "INSERT INTO users (id, name, role, status, created_at)
                  VALUES ($1, 'bob', 'member', 'active', $2)";
    let values = [bob.id.into(), Timestamp::now().into()];
    execute(ledger.database(), insert, &values).unwrap();
    assert_eq!(ledger.replay_spool(dir.path(), None).unwrap().committed, 1);
    // As after a commit whose response was lost.
    std::fs::write(path, kept).unwrap();
    assert_eq!(ledger.replay_spool(dir.path(), None).unwrap().committed, 1);
    let entries = read_all(&ledger);
    assert_eq!(ids.map(|id| kinds_of(&entries, id)), [["settled"], ["settled"]]);
    check(&ledger);
}

async fn what_is_rolled_back_leaves_no_gap(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let stranger = User { id: Uuid::now_v7() };
    let recorder = ledger.recorder();
    for _ in 0..5 {
        let before = recorder.open(opening(&ada)).await.unwrap();
        before.settle(settled(Outcome::Completed));
        let refused = recorder.open(opening(&stranger));
        let stored = recorder.open(opening(&ada));
        let (refused, stored) = tokio::join!(refused, stored);
        assert!(refused.is_err());
        stored.unwrap().settle(settled(Outcome::Completed));
    }
    recorder.drained().await;
    assert_eq!(read_all(&ledger).len(), 10);
    check(&ledger);
}

async fn a_run_of_retention_is_one_entry_and_outlives_the_records(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let now = Timestamp::now();
    let cutoff = now.checked_sub(SignedDuration::from_hours(24)).unwrap();
    for hours in [48; 120].into_iter().chain([1; 3]) {
        let at = now.checked_sub(SignedDuration::from_hours(hours)).unwrap();
        let entry = ledger.recorder().open(opening_at(&ada, at)).await.unwrap();
        entry.settle(settled(Outcome::Completed));
    }
    ledger.recorder().drained().await;
    order(&ledger);
    assert_eq!(ledger.trail_position_before(cutoff).unwrap(), 120);
    assert_eq!(ledger.trail_position_before(now).unwrap(), 123, "the ids are an hour older");
    // In several transactions.
    assert_eq!(ledger.apply_retention(cutoff).unwrap(), 120);
    assert_eq!(ledger.apply_retention(cutoff).unwrap(), 0);
    let entries = read_all(&ledger);
    assert_eq!(entries.len(), 124);
    let last = entries.last().unwrap();
    let run = ledger.retention_runs().unwrap()[0].id;
    assert_eq!((last.kind, last.retention_run_id), (TrailKind::Dropped, Some(run)));
    assert_eq!((last.interception_id, &last.interception), (None, &None));
    let removed = entries.iter().filter(|entry| entry.interception.is_none());
    assert_eq!(removed.count(), 121);
    assert!(check(&ledger).is_sound());
}

/// Takes the trail away, as a store of an earlier release has none.
fn as_an_earlier_release_left_it(ledger: &Ledger, is_postgres: bool) {
    run(ledger, "DELETE FROM trail");
    run(ledger, "UPDATE interceptions SET in_trail = NULL");
    if is_postgres {
        run(ledger, "DELETE FROM outbox");
        run(ledger, "UPDATE trail_head SET position = 0");
    }
}

async fn records_of_an_earlier_release_get_positions_in_steps(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let mut old = Vec::new();
    for _ in 0..60 {
        let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
        old.push(entry.id());
        entry.settle(settled(Outcome::Completed));
    }
    let open = ledger.recorder().open(opening(&ada)).await.unwrap();
    ledger.recorder().drained().await;
    let is_postgres = fixture.url().starts_with("postgres");
    as_an_earlier_release_left_it(&ledger, is_postgres);
    let recount = ledger.recount().unwrap();
    assert_eq!((recount.trail_entries, recount.trail_not_in_order), (0, 60));
    assert_eq!(problems(&recount), [0; 3]);
    assert!(ledger.order_trail(25).unwrap() >= 25);
    // What ends meanwhile comes before the rest.
    let new = open.id();
    open.settle(settled(Outcome::Completed));
    ledger.recorder().drained().await;
    assert_eq!(problems(&ledger.recount().unwrap()), [0; 3]);
    let entries = read_all(&ledger);
    let ids: Vec<Uuid> = entries.iter().map(|entry| entry.interception_id.unwrap()).collect();
    let expected = [&old[..25], &[new], &old[25..]].concat();
    assert_eq!(ids, expected);
    assert_eq!(check(&ledger).trail_entries, 61);
    assert_eq!(ledger.order_trail(25).unwrap(), 0);
}

async fn a_change_of_what_an_earlier_release_marked_is_its_first_entry(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let [late, noted] = [opening(&ada), opening(&ada)];
    let ids = [late.interception.id, noted.interception.id];
    let late = ledger.recorder().open(late).await.unwrap();
    let noted = ledger.recorder().open(noted).await.unwrap();
    ledger.recorder().drained().await;
    // As a process of the release before marks it, during a rollout.
    run(&ledger, "UPDATE interceptions SET outcome = 'interrupted', ended_at = started_at");
    late.settle(settled(Outcome::Completed));
    noted.note(usage(3));
    ledger.recorder().drained().await;
    noted.note(usage(4));
    ledger.recorder().drained().await;
    let entries = read_all(&ledger);
    assert_eq!(kinds_of(&entries, ids[0]), ["settled"]);
    assert_eq!(kinds_of(&entries, ids[1]), ["settled", "amended"]);
    check(&ledger);
    drop(noted);
}

async fn a_recount_finds_what_is_wrong_with_the_trail(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    for _ in 0..5 {
        let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
        entry.settle(settled(Outcome::Completed));
    }
    ledger.recorder().drained().await;
    order(&ledger);
    assert!(check(&ledger).is_sound());
    run(&ledger, "DELETE FROM trail WHERE position IN (2, 3)");
    run(
        &ledger,
        "INSERT INTO trail (position, kind, interception_id)
         SELECT 3, kind, interception_id FROM trail WHERE position = 1",
    );
    let recount = ledger.recount().unwrap();
    assert_eq!((recount.trail_entries, problems(&recount)), (4, [1, 2, 1]));
    assert!(!recount.is_sound());
}

contract! {
    a_reader_by_position_misses_no_record_of_six_writers,
    concurrent_sequencers_give_each_entry_one_position,
    a_serving_process_gives_positions_by_itself,
    what_is_marked_as_interrupted_is_settled_and_what_comes_later_amends_it,
    a_repeated_write_appends_nothing,
    what_is_replayed_from_a_spool_is_appended_once,
    what_is_rolled_back_leaves_no_gap,
    a_run_of_retention_is_one_entry_and_outlives_the_records,
    records_of_an_earlier_release_get_positions_in_steps,
    a_change_of_what_an_earlier_release_marked_is_its_first_entry,
    a_recount_finds_what_is_wrong_with_the_trail,
}
