//! Reads of the store: lists, searches, details, continuations, the makers of objects, and the recount.

pub(crate) mod continuations;
pub(crate) mod export;
pub(crate) mod interceptions;
pub(crate) mod latencies;
pub(crate) mod lists;
pub(crate) mod objects;
pub(crate) mod page;
#[cfg(test)]
pub(crate) mod plans;
pub(crate) mod query;
pub(crate) mod reader;
mod rows;
mod search;
pub(crate) mod sessions;
pub(crate) mod trail;
pub(crate) mod usage;
pub(crate) mod verify;
mod walk;
