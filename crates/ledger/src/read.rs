//! Reads of the store: lists, details, continuations and the recount.

pub(crate) mod continuations;
pub(crate) mod lists;
pub(crate) mod page;
pub(crate) mod query;
pub(crate) mod reader;
mod rows;
pub(crate) mod verify;
