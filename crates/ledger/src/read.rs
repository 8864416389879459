//! Reads of the store: lists, details, continuations, the makers of objects, and the recount.

pub(crate) mod continuations;
pub(crate) mod lists;
pub(crate) mod objects;
pub(crate) mod page;
pub(crate) mod query;
pub(crate) mod reader;
mod rows;
pub(crate) mod sessions;
pub(crate) mod trail;
pub(crate) mod usage;
pub(crate) mod verify;
