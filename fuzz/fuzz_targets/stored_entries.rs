//! What holds for the files of the journal and of the spool: all of their bytes are accounted for, what is
//! whole is found, and one wrong byte or a cut costs one entry at most.

use keybridge_ledger::fuzz::Found;

/// Reads arbitrary bytes; returns the entries in them.
pub fn check_any(read: fn(&[u8]) -> Found, bytes: &[u8]) -> Vec<String> {
    let found = read(bytes);
    assert_eq!(found.bytes, bytes.len() as u64);
    assert!(found.torn + found.damaged.iter().sum::<u64>() <= found.bytes);
    found.entries
}

/// Reads the file that these entries make, whole, with one byte changed, and cut.
pub fn check_damaged(
    read: fn(&[u8]) -> Found,
    mut file: Vec<u8>,
    entries: &[String],
    at: u16,
    change: u8,
) {
    let whole = read(&file);
    assert_eq!(whole.entries, entries);
    assert_eq!((whole.damaged.len(), whole.torn), (0, 0));
    if file.is_empty() {
        return;
    }
    let at = usize::from(at) % file.len();
    // The end of a file that is cut is torn, unless it is cut between two entries.
    let cut = read(&file[..at]);
    assert!(entries.starts_with(&cut.entries), "a cut changes nothing before it");
    assert_eq!(cut.bytes, at as u64);
    file[at] ^= change;
    let damaged = read(&file);
    assert_eq!(damaged.bytes, file.len() as u64);
    if change == 0 {
        assert_eq!(damaged.entries, entries);
        return;
    }
    assert!(damaged.entries.len() + 1 >= entries.len(), "one wrong byte costs one entry at most");
    let mut rest = damaged.entries.iter();
    let missing = entries.iter().filter(|entry| {
        let is_next = rest.clone().next() == Some(*entry);
        if is_next {
            rest.next();
        }
        !is_next
    });
    assert!(missing.count() <= 1, "the others are found, in their order");
}
