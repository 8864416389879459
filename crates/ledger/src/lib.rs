//! The records of keybridge and their storage.
//!
//! [`Ledger`] reads and administers a store; [`Recorder`] is what the request path writes through:
//! [`Recorder::open`] waits for the commit, everything after it goes through capacity that was
//! reserved then. One writer thread commits all that waits in one transaction.

pub mod record;
pub mod token;

mod ledger;
mod query;
mod recorder;
mod sqlite;
mod store;
mod writer;

pub use crate::{
    ledger::{Claim, Ledger, NewUser},
    query::{
        DEFAULT_LIMIT, InterceptionDetail, InterceptionFilter, InterceptionItem, Page, Session,
        SessionFilter,
    },
    recorder::{
        Entry, NewThought, NewTokenUsage, NewToolUsage, Opening, Recorder, RecorderError,
        Settlement, ToolResult,
    },
    store::{LedgerError, Store, StoreWriter},
    writer::{Receipt, Write},
};
