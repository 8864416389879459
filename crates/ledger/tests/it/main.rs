//! The ledger from outside: the contract of the stores, and what only one of them has.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod contract;
mod migrations;
mod support;
