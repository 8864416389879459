//! How records get into the store: the recorder that the request path talks to, the thread that
//! commits, and what holds records while the store is down.

pub(crate) mod aside;
pub(crate) mod entries;
pub(crate) mod files;
pub(crate) mod heartbeat;
pub(crate) mod indexer;
pub(crate) mod journal;
pub(crate) mod metrics;
pub(crate) mod outage;
pub(crate) mod queue;
pub(crate) mod reap;
pub(crate) mod recent_objects;
pub(crate) mod recorder;
pub(crate) mod replay;
pub(crate) mod room;
pub(crate) mod segment;
pub(crate) mod sequencer;
pub(crate) mod spool;
pub(crate) mod spool_files;
pub(crate) mod writer;
