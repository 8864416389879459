//! Users, tokens and the directory over both stores.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod accounts;
mod directory;
#[path = "../../../ledger/tests/it/support.rs"]
mod support;
