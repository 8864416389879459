//! The records of keybridge and their storage.
//!
//! [`Ledger`] reads and administers a store; [`Recorder`] is what the request path writes through:
//! [`Recorder::open`] waits until the record is durable, everything after it goes through capacity that
//! was reserved then. One writer thread commits all that waits in one transaction.

pub mod record;
pub mod token;

mod entries;
mod heart;
mod journal;
mod ledger;
mod metrics;
mod migrate;
mod outage;
mod postgres;
mod query;
mod queue;
mod recorder;
mod spool;
mod sql;
mod sqlite;
mod store;
mod writer;

pub use crate::{
    ledger::{Claim, Durability, Ledger, LedgerOptions, NewUser, Readiness},
    outage::{Condition, OutagePolicy},
    query::{
        Comparison, DEFAULT_LIMIT, HandedOut, InterceptionDetail, InterceptionFilter,
        InterceptionItem, Page, Recount, Session, SessionFilter, TokenCounts, TokenSums,
    },
    recorder::{
        Entry, NewThought, NewTokenUsage, NewToolUsage, Opening, Recorder, RecorderError, ServedBy,
        Settlement, ToolResult,
    },
    spool::{SpoolConfig, spool_leftovers},
    store::LedgerError,
};
