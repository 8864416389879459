use std::{fs, path::Path};

use jiff::Timestamp;
use uuid::Uuid;

use super::{SpoolFileKind, SpoolReplay, export_spool, replay, spool_files, spool_leftovers};
use crate::{
    LedgerError, Settlement,
    record::Outcome,
    store::{Receipt, StoreWriter, Write},
    write::{
        aside::{self, Refused},
        entries::EntryFormat,
        files::{ASIDE, new_path},
    },
};

/// A store that refuses odd numbers of attempts and 20 before 22, and takes too long over a batch with 10.
#[derive(Default)]
struct OddStore {
    committed: Vec<u32>,
}

impl StoreWriter for OddStore {
    fn commit(
        &mut self,
        batch: &[Write],
    ) -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError> {
        let attempts: Vec<u32> = batch.iter().map(attempts).collect();
        if attempts.contains(&10) {
            return Err(LedgerError::slow_commit(std::time::Duration::from_secs(60)));
        }
        let mut receipts = Vec::new();
        for attempts in attempts {
            let is_early = attempts == 20 && !self.committed.contains(&22);
            receipts.push(if attempts % 2 == 1 || is_early {
                Err(LedgerError::Conflict("odd".into()))
            } else {
                self.committed.push(attempts);
                Ok(Receipt::default())
            });
        }
        Ok(receipts)
    }

    fn probe(&mut self) -> Result<(), LedgerError> {
        Ok(())
    }
}

fn settle(attempts: u32) -> Write {
    let settlement =
        Settlement { attempts, ..Settlement::new(Timestamp::now(), Outcome::Completed) };
    Write::Settle(Uuid::now_v7(), Box::new(settlement))
}

fn attempts(write: &Write) -> u32 {
    match write {
        Write::Settle(_, settlement) => settlement.attempts,
        other => panic!("{other:?}"),
    }
}

/// Writes a file with entries of these numbers of attempts.
fn write_file(path: &Path, numbers: &[u32]) {
    let mut bytes = Vec::new();
    for number in numbers {
        EntryFormat::of(path).push(&mut bytes, &settle(*number)).unwrap();
    }
    fs::write(path, bytes).unwrap();
}

fn set_aside(path: &Path, numbers: &[u32]) {
    let writes: Vec<Write> = numbers.iter().map(|number| settle(*number)).collect();
    let refused = writes.iter().map(|write| Refused { write, reason: "as before".into() });
    aside::append(path, &refused.collect::<Vec<_>>()).unwrap();
}

#[test]
fn what_is_still_refused_stays_with_its_new_reason() {
    let dir = tempfile::tempdir().unwrap();
    let [ours, theirs] = [(); 2].map(|()| Some(Uuid::now_v7()));
    set_aside(&new_path(dir.path(), ours, ASIDE), &[1, 2, 3, 4, 10]);
    set_aside(&new_path(dir.path(), theirs, ASIDE), &[6]);
    write_file(&dir.path().join("old.rejected"), &[7, 8]);
    write_file(&dir.path().join("left.journal"), &[12]);
    let mut store = OddStore::default();
    let replay = |store: &mut OddStore, of| replay(dir.path(), &[ours, of], store).unwrap();
    let done = replay(&mut store, None);
    let expected = SpoolReplay { committed: 4, refused: 4, foreign_files: 1, ..done.clone() };
    assert_eq!(done, expected);
    store.committed.sort_unstable();
    assert_eq!(store.committed, [2, 4, 8, 12]);
    assert_eq!(spool_leftovers(dir.path(), ours).unwrap(), 4);
    let mut reasons = Vec::new();
    export_spool(dir.path(), &mut |entry| {
        reasons.extend(entry.reason.filter(|_| entry.store_id != theirs));
        Ok(())
    })
    .unwrap();
    reasons.sort_unstable();
    let slow = "the commit failed: it took longer than 60 s";
    assert_eq!(reasons, ["odd", "odd", "odd", slow]);
    assert_eq!(replay(&mut store, theirs).committed, 1, "files of another store, where asked for");
    assert_eq!(spool_leftovers(dir.path(), theirs).unwrap(), 1, "and of the file without a store");
}

#[test]
fn files_with_damage_and_files_in_use_stay() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = new_path(dir.path(), None, ASIDE);
    set_aside(&damaged, &[2]);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes.extend_from_slice(b"damaged\n");
    fs::write(&damaged, &bytes).unwrap();
    let used = new_path(dir.path(), None, ASIDE);
    set_aside(&used, &[4]);
    let user = fs::File::open(&used).unwrap();
    user.lock().unwrap();
    let mut store = OddStore::default();
    let done = replay(dir.path(), &[None], &mut store).unwrap();
    let expected = SpoolReplay { committed: 1, damaged: 1, files_in_use: 1, ..done.clone() };
    assert_eq!(done, expected);
    assert_eq!(fs::read(&damaged).unwrap(), bytes);
    let listed = spool_files(dir.path()).unwrap();
    let of = |path: &Path| listed.iter().find(|file| file.path == *path).unwrap();
    assert_eq!((of(&damaged).damaged, of(&used).in_use), (1, true));
    assert!(listed.iter().all(|file| file.kind == SpoolFileKind::Aside));
    // A process that sets something aside meanwhile takes another file.
    set_aside(&used, &[6]);
    assert_eq!(spool_files(dir.path()).unwrap().len(), 3);
}

#[test]
fn a_settlement_in_a_file_before_that_of_its_opening_is_returned_too() {
    let dir = tempfile::tempdir().unwrap();
    for numbers in [[20, 2], [22, 4]] {
        set_aside(&new_path(dir.path(), None, ASIDE), &numbers);
    }
    let done = replay(dir.path(), &[None], &mut OddStore::default()).unwrap();
    assert_eq!(done, SpoolReplay { committed: 4, ..SpoolReplay::default() });
    assert_eq!(spool_leftovers(dir.path(), None).unwrap(), 0);
}
