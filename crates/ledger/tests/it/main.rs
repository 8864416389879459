//! Tests of the public API: the contract of all stores, and the migrations.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod contract;
mod migrations;
mod records;
mod rollups;
mod search;
mod support;
mod trail;
