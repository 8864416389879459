//! The records of keybridge and their storage.
//!
//! [`Ledger`] reads and administers a store. The request path writes through [`Recorder`]:
//! [`Recorder::open`] waits until the record is durable, and reserves the capacity for all later writes
//! of that record. One writer thread commits all queued jobs in one transaction.

pub mod parse;
pub mod private_file;
pub mod record;

#[doc(hidden)]
pub mod fuzz;
mod ledger;
mod read;
mod remembered;
mod retention;
pub mod store;
mod words;
mod write;

pub use crate::{
    ledger::{Claim, Durability, KnownStore, Ledger, LedgerOptions, Readiness},
    read::continuations::ContinuationStore,
    read::objects::{ObjectName, ObjectStore},
    read::page::MAX_PAGE_BYTES,
    read::query::{
        Comparison, DEFAULT_LIMIT, GroupBy, InterceptionDetail, InterceptionFilter,
        InterceptionItem, Page, ProviderLatency, ProviderLogEntry, Recount, Session, SessionFilter,
        TokenCounts, TokenSums, Usage, UsageFilter, UsageGroup, UsageSums,
    },
    read::reader::Reader,
    read::trail::TrailEntry,
    read::usage::MAX_USAGE_GROUPS,
    record::{
        NewAnswer, NewAttachment, NewThought, NewTokenUsage, NewToolUsage, NewUpstreamAttempt,
        Opening, ServedBy, Settlement, ToolResult,
    },
    remembered::{RememberedStore, StoreCheck},
    retention::{RetentionCheck, RetentionPolicy},
    store::{
        LedgerError,
        read_limit::{ReadOptions, WalkBudget},
        retention_run::RecordedRun,
        rollups::rebuild::Rebuilt,
        trail::TrailKind,
    },
    write::{
        outage::{Condition, OutagePolicy},
        recorder::{Entry, MAX_UPSTREAM_ATTEMPTS, Recorder, RecorderError},
        spool::SpoolConfig,
        spool_files::{
            ExportedEntry, SpoolFile, SpoolFileKind, SpoolReplay, export_spool, spool_files,
            spool_leftovers,
        },
    },
};
