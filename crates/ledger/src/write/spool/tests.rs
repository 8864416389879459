use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Entries, EntryFormat, Spool, SpoolConfig, Write, files, spool_leftovers};
use crate::{
    NewThought, NewTokenUsage, NewToolUsage, Opening, Settlement, ToolResult,
    record::{Interception, Outcome},
};

fn config(dir: &Path) -> SpoolConfig {
    SpoolConfig { dir: dir.into(), max_bytes: 1 << 20, max_age: Duration::from_secs(60) }
}

fn settle(attempts: u32) -> Write {
    let settlement =
        Settlement { attempts, ..Settlement::new(Timestamp::now(), Outcome::Completed) };
    Write::Settle(Uuid::now_v7(), Box::new(settlement))
}

fn attempts(writes: &[Write]) -> Vec<u32> {
    writes
        .iter()
        .map(|write| match write {
            Write::Settle(_, settlement) => settlement.attempts,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Three records that a process left behind, and their file.
fn left_behind(dir: &Path) -> PathBuf {
    let mut spool = Spool::new(config(dir));
    let writes: Vec<Write> = (1..=3).map(settle).collect();
    spool.append(writes.iter()).unwrap();
    files(dir, "spool").unwrap().pop().unwrap()
}

/// Everything that waits, committed.
fn replay(spool: &mut Spool) -> Vec<u32> {
    let mut found = Vec::new();
    while let Some(batch) = spool.next_batch().unwrap() {
        found.extend(attempts(&batch.writes));
        spool.committed(&batch, &[]).unwrap();
    }
    found
}

#[test]
fn every_kind_of_write_reads_back_unchanged() {
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap();
    let mut interception = Interception::new(Uuid::now_v7(), Uuid::now_v7(), now);
    interception.body_edits = vec!["include_usage".into()];
    let opening = Opening {
        interception,
        prompt: Some("line one\nline two \0 \u{1F600}".into()),
        tool_results: vec![ToolResult { tool_call_id: "c".into(), bytes: 3, is_error: None }],
    };
    let mut settlement = Settlement::new(now, Outcome::Cancelled);
    let usage = NewTokenUsage { input_tokens: Some(u64::MAX), ..NewTokenUsage::default() };
    settlement.token_usages = vec![usage.clone()];
    settlement.tool_usages = vec![NewToolUsage { tool: "t".into(), ..NewToolUsage::default() }];
    settlement.thoughts = vec![NewThought { source: "s".into(), content: "c".into() }];
    let writes = [
        Write::Open(Uuid::now_v7(), Box::new(opening.clone())),
        Write::Note(Uuid::now_v7(), Box::new(usage)),
        Write::Settle(Uuid::now_v7(), Box::new(settlement.clone())),
        Write::Record(Box::new(opening), Box::new(settlement)),
    ];
    for write in writes {
        for shape in [EntryFormat::Lines, EntryFormat::Frames] {
            let mut bytes = Vec::new();
            shape.push(&mut bytes, &write).unwrap();
            let line_ends = bytes.iter().filter(|byte| **byte == b'\n').count();
            assert!(shape == EntryFormat::Frames || line_ends == 1);
            shape.push(&mut bytes, &write).unwrap();
            let read = entries(&bytes, shape);
            assert_eq!(format!("{read:?}"), format!("{:?}", [Some(&write), Some(&write)]));
        }
    }
}

#[test]
fn writes_of_the_first_release_are_read() {
    let spool = include_bytes!("../../../tests/fixtures/writes_0001.spool").as_slice();
    let journal = include_bytes!("../../../tests/fixtures/writes_0001.journal").as_slice();
    for (bytes, shape) in [(spool, EntryFormat::Lines), (journal, EntryFormat::Frames)] {
        let writes: Vec<Write> = entries(bytes, shape).into_iter().map(Option::unwrap).collect();
        let [Write::Open(_, opening), Write::Note(_, note), Write::Settle(_, settlement)] =
            &writes[..]
        else {
            panic!("{writes:?}");
        };
        assert_eq!(opening.prompt.as_deref(), Some("hello"));
        assert_eq!(opening.tool_results[0].bytes, 3);
        assert_eq!(opening.interception.body_edits, ["include_usage"]);
        let figures = [
            note.input_tokens,
            note.output_tokens,
            note.cache_read_input_tokens,
            note.cache_write_input_tokens,
        ];
        assert_eq!(figures, [Some(1), Some(2), Some(3), Some(4)]);
        assert_eq!(settlement.token_usages[..], [(**note).clone()]);
        assert_eq!((settlement.attempts, settlement.upstream_attempts.len()), (2, 0));
        let served_by = settlement.served_by.as_ref().unwrap();
        assert_eq!(served_by.provider, "spare");
        assert_eq!((&served_by.credential_scheme, &served_by.body_edits), (&None, &None));
    }
}

/// What stands in the bytes of a file; none for what is corrupt.
fn entries(mut bytes: &[u8], shape: EntryFormat) -> Vec<Option<Write>> {
    let mut entries = Entries::new(&mut bytes, shape);
    std::iter::from_fn(|| entries.next().unwrap().map(|_| entries.parsed())).collect()
}

#[test]
fn torn_frames_differ_from_corrupt_frames() {
    let settle = |attempts| {
        let settlement = Settlement::new(Timestamp::now(), Outcome::Completed);
        Write::Settle(Uuid::now_v7(), Box::new(Settlement { attempts, ..settlement }))
    };
    let mut bytes = Vec::new();
    let ends = [1, 2, 3].map(|attempts| {
        EntryFormat::Frames.push(&mut bytes, &settle(attempts)).unwrap();
        bytes.len()
    });
    let read = |bytes: &[u8]| {
        let read = entries(bytes, EntryFormat::Frames).into_iter();
        read.map(|write| write.map(|write| attempts(&[write])[0])).collect::<Vec<_>>()
    };
    for end in 0..=bytes.len() {
        let whole: Vec<_> = (1..=3).zip(ends).filter(|(_, at)| *at <= end).collect();
        let expected: Vec<_> = whole.into_iter().map(|(number, _)| Some(number)).collect();
        assert_eq!(read(&bytes[..end]), expected, "cut at {end}");
    }
    let mut corrupt = bytes.clone();
    corrupt[ends[0] + 40] ^= 1;
    assert_eq!(read(&corrupt), [Some(1), None, Some(3)]);
    // A length that cannot be is the end of what can be read.
    let mut corrupt = bytes;
    corrupt[ends[0]..ends[0] + 4].fill(0xff);
    assert_eq!(read(&corrupt), [Some(1)]);
}

#[test]
fn a_torn_last_line_loses_no_other_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let text = fs::read(&path).unwrap();
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&text[..40]).unwrap();
    drop(file);
    assert_eq!(spool_leftovers(dir.path()).unwrap(), 3);
    let mut spool = Spool::new(config(dir.path()));
    assert_eq!(spool.adopt().unwrap(), 3);
    assert_eq!(replay(&mut spool), [1, 2, 3]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_corrupt_line_is_set_aside_and_the_others_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let mut text = fs::read(&path).unwrap();
    let middle = text.len() / 2;
    text[middle] ^= 1;
    fs::write(&path, &text).unwrap();
    let mut spool = Spool::new(config(dir.path()));
    spool.adopt().unwrap();
    assert_eq!(replay(&mut spool), [1, 3]);
    assert!(!path.exists());
    assert_eq!(fs::read(path.with_extension("corrupt")).unwrap(), text, "as it was found");
    assert_eq!(spool_leftovers(dir.path()).unwrap(), 3, "they need attention");
    assert_eq!(Spool::new(config(dir.path())).adopt().unwrap(), 0, "and it is not read again");
}

#[test]
fn a_damaged_line_end_does_not_stop_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let mut text = fs::read(&path).unwrap();
    let end = text.iter().position(|byte| *byte == b'\n').unwrap();
    text[end] = b' ';
    fs::write(&path, &text).unwrap();
    let mut spool = Spool::new(config(dir.path()));
    spool.adopt().unwrap();
    assert_eq!(replay(&mut spool), [3]);
    assert!(path.with_extension("corrupt").exists());
}

#[test]
fn rejected_writes_are_kept_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let mut spool = Spool::new(config(dir.path()));
    spool.adopt().unwrap();
    let batch = spool.next_batch().unwrap().unwrap();
    spool.committed(&batch, &[&batch.writes[1]]).unwrap();
    assert!(spool.next_batch().unwrap().is_none());
    let rejected = fs::read(path.with_extension("rejected")).unwrap();
    let rejected: Vec<_> = entries(&rejected, EntryFormat::Lines).into_iter().flatten().collect();
    assert_eq!(attempts(&rejected), [2]);
}

#[test]
fn files_are_replayed_in_the_order_of_their_creation() {
    let dir = tempfile::tempdir().unwrap();
    left_behind(dir.path());
    left_behind(dir.path());
    let mut spool = Spool::new(config(dir.path()));
    spool.append([settle(9)].iter()).unwrap();
    assert_eq!(spool.adopt().unwrap(), 6, "its own file is not adopted");
    assert_eq!(spool.backlog().records, 7);
    assert_eq!(replay(&mut spool), [1, 2, 3, 1, 2, 3, 9]);
    assert_eq!(spool.backlog().records, 0);
    spool.retire().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn reading_resumes_after_the_last_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(config(dir.path()));
    let writes: Vec<Write> = (0..2_500).map(settle).collect();
    spool.append(writes.iter()).unwrap();
    let first = spool.next_batch().unwrap().unwrap();
    let again = spool.next_batch().unwrap().unwrap();
    assert_eq!(attempts(&first.writes), attempts(&again.writes), "not committed, so read again");
    spool.committed(&first, &[]).unwrap();
    spool.append([settle(2_500)].iter()).unwrap();
    assert_eq!(replay(&mut spool), (1_000..=2_500).collect::<Vec<_>>());
}

#[test]
fn only_the_owner_reads_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(config(&dir.path().join("s")));
    spool.append([settle(1)].iter()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("s")), 0o700);
    assert_eq!(mode(&files(&dir.path().join("s"), "spool").unwrap()[0]), 0o600);
}

#[test]
fn a_missing_directory_has_no_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    assert_eq!(Spool::new(config(&nowhere)).adopt().unwrap(), 0);
    assert_eq!(spool_leftovers(&nowhere).unwrap(), 0);
    fs::write(&nowhere, "").unwrap();
    assert!(Spool::new(config(&nowhere)).prepare().is_err());
}
