//! The outcomes of injected tool calls, for the record.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use keybridge_mcp::{CallOutcome, Content, ToolResult};
use tokio::time::Instant;

/// The outcomes of the calls so far; shared with the record, which may be settled during a call.
#[derive(Debug, Clone)]
pub(crate) struct ToolCallLog {
    /// Whether the texts of results are kept.
    keeps_results: bool,
    calls: Arc<Mutex<HashMap<(u32, String), CallRecord>>>,
}

/// One injected call.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallRecord {
    started: Option<Instant>,
    /// `None` while the call is running.
    ended: Option<EndedCall>,
}

#[derive(Debug, Clone)]
struct EndedCall {
    error: Option<String>,
    duration: Duration,
    bytes: Option<u64>,
    is_error: Option<bool>,
    /// The text of the result, if that is kept.
    result: Option<String>,
}

impl CallRecord {
    /// A call that starts now.
    pub(crate) fn started() -> Self {
        Self { started: Some(Instant::now()), ended: None }
    }

    /// A call that was not made.
    pub(crate) const fn failed(error: String) -> Self {
        let ended = EndedCall {
            error: Some(error),
            duration: Duration::ZERO,
            bytes: None,
            is_error: None,
            result: None,
        };
        Self { started: None, ended: Some(ended) }
    }

    /// Why the call failed, if it did.
    pub(crate) fn error(&self) -> Option<String> {
        match (&self.ended, self.started) {
            (Some(ended), _) => ended.error.clone(),
            (None, Some(_)) => Some("the call was cancelled".into()),
            (None, None) => Some("the call was not made".into()),
        }
    }

    /// The duration of the call, so far if it is running.
    pub(crate) fn duration(&self) -> Option<Duration> {
        let running = || self.started.map(|started| started.elapsed());
        self.ended.as_ref().map(|ended| ended.duration).or_else(running)
    }

    pub(crate) fn result_bytes(&self) -> Option<u64> {
        self.ended.as_ref()?.bytes
    }

    pub(crate) fn result_is_error(&self) -> Option<bool> {
        self.ended.as_ref()?.is_error
    }

    /// The text of the result, if that is kept.
    pub(crate) fn result(&self) -> Option<String> {
        self.ended.as_ref()?.result.clone()
    }
}

impl ToolCallLog {
    pub(crate) fn new(keeps_results: bool) -> Self {
        Self { keeps_results, calls: Arc::default() }
    }

    /// Notes the end of a call.
    pub(crate) fn end(
        &self,
        turn: u32,
        id: &str,
        error: Option<String>,
        CallOutcome { result, duration }: &CallOutcome,
    ) {
        let result = result.as_ref().ok();
        let ended = EndedCall {
            error,
            duration: *duration,
            bytes: result.map(|result| u64::try_from(result.bytes).unwrap_or(u64::MAX)),
            is_error: result.map(|result| result.is_error),
            result: result.filter(|_| self.keeps_results).map(result_text),
        };
        self.put(turn, id, CallRecord { started: None, ended: Some(ended) });
    }

    /// The record of a call in a turn.
    pub(crate) fn find(&self, turn: u32, id: &str) -> Option<CallRecord> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.get(&(turn, id.to_owned())).cloned()
    }

    pub(crate) fn put(&self, turn: u32, id: &str, record: CallRecord) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.insert((turn, id.to_owned()), record);
    }
}

/// The texts of a result, and everything else in it as the server sent it.
fn result_text(result: &ToolResult) -> String {
    let blocks = result.content.iter().map(|block| match block {
        Content::Text(text) => text.as_str(),
        Content::Image { data, .. } => data,
        Content::Other { json, .. } => json,
    });
    blocks.collect::<Vec<_>>().join("\n")
}
