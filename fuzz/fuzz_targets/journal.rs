//! Arbitrary bytes as a file of the journal: see `stored_entries`.
#![no_main]

use keybridge_ledger::fuzz::{encode, journal};
use libfuzzer_sys::fuzz_target;

mod stored_entries;

fuzz_target!(|input: (u16, u8, &[u8])| {
    let (at, change, bytes) = input;
    let entries = stored_entries::check_any(journal, bytes);
    stored_entries::check_damaged(journal, encode(&entries).0, &entries, at, change);
});
