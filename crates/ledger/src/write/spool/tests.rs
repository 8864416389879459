use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{EntryFormat, Spool, SpoolConfig, Write};
use crate::{
    NewThought, NewTokenUsage, NewToolUsage, Opening, Settlement, ToolResult, fuzz,
    record::{Interception, Outcome},
    spool_files,
    write::{
        aside::Refused,
        entries::Entries,
        files::{ASIDE, files},
        room::MAX_WRITES,
    },
};

fn spool_leftovers(dir: &Path) -> std::io::Result<u64> {
    crate::spool_leftovers(dir, None)
}

fn new_spool(dir: &Path) -> Spool {
    Spool::new(config(dir), None)
}

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
    let mut spool = new_spool(dir);
    let writes: Vec<Write> = (1..=3).map(settle).collect();
    spool.append(writes.iter()).unwrap();
    files(dir, "spool").unwrap().pop().unwrap()
}

/// Everything that waits, committed.
fn replay(spool: &mut Spool) -> Vec<u32> {
    let mut found = Vec::new();
    while let Some(batch) = spool.next_batch(MAX_WRITES).unwrap() {
        found.extend(attempts(&batch.writes));
        spool.committed(&batch, Vec::new()).unwrap();
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
        tool_results: vec![ToolResult {
            tool_call_id: "c".into(),
            bytes: 3,
            is_error: None,
            approved: None,
            sha256: None,
            result: None,
        }],
        attachments: Vec::new(),
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
fn entries(bytes: &[u8], shape: EntryFormat) -> Vec<Option<Write>> {
    let mut entries = Entries::new(bytes, shape);
    let mut found = Vec::new();
    while let Some(piece) = entries.next().unwrap() {
        if !piece.is_torn() {
            found.push(piece.parse());
        }
    }
    found
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
    // A wrong length loses nothing: the entry says itself where it ends.
    let mut corrupt = bytes.clone();
    corrupt[ends[0]..ends[0] + 4].fill(0xff);
    assert_eq!(read(&corrupt), [Some(1), Some(2), Some(3)]);
    // Length, checksum and entry are wrong: the next one is found.
    let mut corrupt = bytes.clone();
    corrupt[ends[0]..ends[0] + 60].fill(0xff);
    assert_eq!(read(&corrupt), [Some(1), None, Some(3)]);
    // The last one is damaged, not cut off.
    let mut corrupt = bytes;
    corrupt[ends[1] + 40] ^= 1;
    assert_eq!(read(&corrupt), [Some(1), Some(2), None]);
}

#[test]
fn one_flipped_bit_damages_at_most_one_entry() {
    let writes: Vec<Write> = (1..=4).map(settle).collect();
    for shape in [EntryFormat::Lines, EntryFormat::Frames] {
        let mut bytes = Vec::new();
        for write in &writes {
            shape.push(&mut bytes, write).unwrap();
        }
        // Another bit in each byte.
        for bit in (0..bytes.len() * 8).step_by(9) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = entries(&flipped, shape).into_iter().flatten().collect::<Vec<_>>();
            let found = attempts(&found);
            assert!(found.len() >= 3, "bit {bit} of {shape:?}: {found:?}");
            assert!(found.is_sorted(), "{found:?}");
        }
    }
}

#[test]
fn zeros_that_a_power_cut_leaves_are_a_torn_end() {
    for shape in [EntryFormat::Lines, EntryFormat::Frames] {
        let read = |bytes: &[u8]| match shape {
            EntryFormat::Lines => fuzz::spool(bytes),
            EntryFormat::Frames => fuzz::journal(bytes),
        };
        let mut bytes = Vec::new();
        shape.push(&mut bytes, &settle(1)).unwrap();
        let whole = bytes.len();
        shape.push(&mut bytes, &settle(2)).unwrap();
        for cut in [whole, whole + 1, whole + 12, bytes.len() - 60] {
            let mut torn = bytes[..cut].to_vec();
            torn.resize(cut + 4_696, 0);
            let found = read(&torn);
            assert_eq!((found.entries.len(), &found.damaged[..]), (1, &[][..]), "{shape:?} {cut}");
            assert_eq!(usize::try_from(found.bytes), Ok(torn.len()));
        }
    }
}

#[test]
fn text_that_looks_like_entries_costs_a_bounded_search() {
    let frame = [&200_000_u32.to_le_bytes()[..], &[0; 4], &[0x81; 8]].concat();
    let line = b"00000000 [";
    for bytes in [frame.repeat(60_000), line.repeat(60_000)] {
        assert_eq!(fuzz::journal(&bytes).entries, Vec::<String>::new());
        assert_eq!(fuzz::spool(&bytes).entries, Vec::<String>::new());
    }
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
    let mut spool = new_spool(dir.path());
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
    let mut spool = new_spool(dir.path());
    spool.adopt().unwrap();
    assert_eq!(replay(&mut spool), [1, 3]);
    assert!(!path.exists());
    assert_eq!(fs::read(path.with_extension("corrupt")).unwrap(), text, "as it was found");
    assert_eq!(spool_leftovers(dir.path()).unwrap(), 1, "it needs attention");
    assert_eq!(new_spool(dir.path()).adopt().unwrap(), 0, "and it is not read again");
}

#[test]
fn a_damaged_line_end_does_not_stop_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let mut text = fs::read(&path).unwrap();
    let end = text.iter().position(|byte| *byte == b'\n').unwrap();
    text[end] = b' ';
    fs::write(&path, &text).unwrap();
    let mut spool = new_spool(dir.path());
    spool.adopt().unwrap();
    assert_eq!(replay(&mut spool), [1, 2, 3], "entries end by themselves");
    assert!(path.with_extension("corrupt").exists());
}

#[test]
fn refused_writes_are_set_aside_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let mut spool = new_spool(dir.path());
    spool.adopt().unwrap();
    let batch = spool.next_batch(MAX_WRITES).unwrap().unwrap();
    let refused = Refused { write: &batch.writes[1], reason: "no such user".into() };
    assert_eq!(spool.committed(&batch, vec![refused]).unwrap(), 1);
    assert!(spool.next_batch(MAX_WRITES).unwrap().is_none());
    assert_eq!(files(dir.path(), ASIDE).unwrap(), [path.with_extension(ASIDE)]);
    let listed = spool_files(dir.path()).unwrap();
    assert_eq!((listed.len(), listed[0].entries, listed[0].damaged), (1, 1, 0));
    assert_eq!(listed[0].reasons, [("no such user".to_owned(), 1)].into());
    assert_eq!(spool_leftovers(dir.path()).unwrap(), 1);
}

#[test]
fn a_file_of_another_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [ours, theirs] = [Uuid::now_v7(), Uuid::now_v7()].map(Some);
    let spool_of = |store| Spool::new(config(dir.path()), store);
    for store in [ours, theirs, None] {
        spool_of(store).append([settle(1)].iter()).unwrap();
    }
    let mut spool = spool_of(ours);
    assert_eq!(spool.adopt().unwrap(), 2, "its own, and one of an earlier release");
    assert_eq!(replay(&mut spool), [1, 1]);
    let left = spool_files(dir.path()).unwrap();
    assert_eq!((left.len(), left[0].store_id), (1, theirs));
    assert_eq!(crate::spool_leftovers(dir.path(), ours).unwrap(), 0);
    assert_eq!(crate::spool_leftovers(dir.path(), theirs).unwrap(), 1);
}

#[test]
fn what_is_no_file_keeps_no_other_from_its_replay() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("0.spool")).unwrap();
    left_behind(dir.path());
    let mut spool = new_spool(dir.path());
    assert_eq!(spool.adopt().unwrap(), 3);
    assert_eq!(replay(&mut spool), [1, 2, 3]);
}

#[test]
fn files_are_replayed_in_the_order_of_their_creation() {
    let dir = tempfile::tempdir().unwrap();
    left_behind(dir.path());
    left_behind(dir.path());
    let mut spool = new_spool(dir.path());
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
    let mut spool = new_spool(dir.path());
    let writes: Vec<Write> = (0..2_500).map(settle).collect();
    spool.append(writes.iter()).unwrap();
    let first = spool.next_batch(MAX_WRITES).unwrap().unwrap();
    let again = spool.next_batch(MAX_WRITES).unwrap().unwrap();
    assert_eq!(attempts(&first.writes), attempts(&again.writes), "not committed, so read again");
    spool.committed(&first, Vec::new()).unwrap();
    spool.append([settle(2_500)].iter()).unwrap();
    assert_eq!(replay(&mut spool), (1_000..=2_500).collect::<Vec<_>>());
}

#[test]
fn only_the_owner_reads_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mut spool = new_spool(&dir.path().join("s"));
    spool.append([settle(1)].iter()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("s")), 0o700);
    assert_eq!(mode(&files(&dir.path().join("s"), "spool").unwrap()[0]), 0o600);
}

#[test]
fn a_missing_directory_has_no_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    assert_eq!(new_spool(&nowhere).adopt().unwrap(), 0);
    assert_eq!(spool_leftovers(&nowhere).unwrap(), 0);
    fs::write(&nowhere, "").unwrap();
    assert!(new_spool(&nowhere).prepare().is_err());
}
