//! Injected tools: put into requests, called, and answered in further turns.

pub(crate) mod edits;
pub(crate) mod stream;
pub(crate) mod turns;
pub(crate) mod whole;
