//! Arbitrary bytes as a file of the spool: see `stored_entries`.
#![no_main]

use keybridge_ledger::fuzz::{encode, spool};
use libfuzzer_sys::fuzz_target;

mod stored_entries;

fuzz_target!(|input: (u16, u8, &[u8])| {
    let (at, change, bytes) = input;
    let entries = stored_entries::check_any(spool, bytes);
    stored_entries::check_damaged(spool, encode(&entries).1, &entries, at, change);
});
