//! What the request path hands over: the opening of a record and its settlement.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Interception, NewAnswer, NewAttachment, NewThought, NewTokenUsage, NewToolUsage,
    NewUpstreamAttempt, Outcome,
    columns::{ChildRow, interception_columns},
    text::{Cleaner, ContentLimits, Mask, clean_fields},
};

/// The opening of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// The record as far as it is known; the ledger finds its thread and parent.
    pub interception: Interception,
    /// The user's own words.
    pub prompt: Option<String>,
    /// Results of earlier tool calls that the request carries.
    pub tool_results: Vec<ToolResult>,
    /// The files that the request carries or names.
    #[serde(default)]
    pub attachments: Vec<NewAttachment>,
}

impl Opening {
    /// Masks its texts and bounds them and its lists; doing it again changes nothing.
    pub fn clean(&mut self, limits: &ContentLimits, mask: &impl Mask) {
        let mut cleaner = Cleaner::new(limits, mask);
        self.interception.clean_texts(&mut cleaner);
        clean_fields!(self, &mut cleaner, prompt);
        cleaner.rows(&mut self.tool_results, |result, cleaner| {
            clean_fields!(result, cleaner, tool_call_id, sha256, result);
        });
        cleaner.rows(&mut self.attachments, NewAttachment::clean_texts);
        report(cleaner.omitted_rows());
    }
}

/// The size of a tool's result, or the user's answer whether the provider may call it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// The call it answers.
    pub tool_call_id: String,
    /// Its size.
    pub bytes: u64,
    /// Whether the client marked it as an error.
    pub is_error: Option<bool>,
    /// Whether the user approved the call.
    #[serde(default)]
    pub approved: Option<bool>,
    /// SHA-256 of its text in hex, and of everything else in it as written.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Its text and everything else in it as written, if that is recorded.
    #[serde(default)]
    pub result: Option<String>,
}

impl ToolResult {
    /// The word for the user's answer.
    pub(crate) fn approval(&self) -> Option<&'static str> {
        self.approved.map(|approved| if approved { "approved" } else { "denied" })
    }
}

/// The settlement of a record: how its request ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settlement {
    /// When it ended.
    pub ended_at: Timestamp,
    /// When the first byte of the answer came.
    pub first_byte_at: Option<Timestamp>,
    /// When the caller was identified, in microseconds after the start of the request, as those that follow.
    #[serde(default)]
    pub identified_us: Option<u64>,
    /// When the whole body was read.
    #[serde(default)]
    pub body_read_us: Option<u64>,
    /// When the credential was chosen and the request was admitted.
    #[serde(default)]
    pub credential_us: Option<u64>,
    /// When the record was committed.
    #[serde(default)]
    pub opened_us: Option<u64>,
    /// When a connection to a provider first took the request.
    #[serde(default)]
    pub connected_us: Option<u64>,
    /// When the settlement was handed over.
    #[serde(default)]
    pub settled_us: Option<u64>,
    /// The server-sent events that were passed on, if the answer is a stream.
    #[serde(default)]
    pub events_relayed: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Status sent to the client.
    pub status_code: Option<u16>,
    /// Status of the provider.
    pub upstream_status: Option<u16>,
    /// When the request was sent to the provider, where that was once.
    #[serde(default)]
    pub upstream_started_at: Option<Timestamp>,
    /// The provider's id of the request; of several exchanges, the last one that has an id.
    #[serde(default)]
    pub upstream_request_id: Option<String>,
    /// Kind of the error.
    pub error_kind: Option<String>,
    /// Its message, without secrets.
    pub error_message: Option<String>,
    /// The model that the answer names.
    pub model_served: Option<String>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// What a refusal is about.
    #[serde(default)]
    pub refusal_category: Option<String>,
    /// The provider's explanation of a refusal, or the model's words.
    #[serde(default)]
    pub refusal_explanation: Option<String>,
    /// The provider's container in which tools ran.
    #[serde(default)]
    pub container_id: Option<String>,
    /// Number of exchanges with providers.
    pub attempts: u32,
    /// Further turns that called injected tools.
    pub inner_turns: u32,
    /// Bytes of the provider's answer that were relayed.
    pub response_bytes: u64,
    /// The provider's id of the answer, put on the prompt too.
    pub provider_response_id: Option<String>,
    /// Token counts, a row per answer of the provider.
    pub token_usages: Vec<NewTokenUsage>,
    /// Tool calls of the model.
    pub tool_usages: Vec<NewToolUsage>,
    /// Thoughts of the model.
    pub thoughts: Vec<NewThought>,
    /// The texts of the answers, if they are recorded.
    #[serde(default)]
    pub answers: Vec<NewAnswer>,
    /// The exchanges with providers, if there was more than one: a single exchange needs no row, which
    /// would cost a tenth of the request. At most [`crate::MAX_UPSTREAM_ATTEMPTS`] are stored: the first
    /// ones and the last.
    #[serde(default)]
    pub upstream_attempts: Vec<NewUpstreamAttempt>,
    /// The provider and credential that served, where they differ from those of the opening, or what an
    /// upload turned out to be.
    #[serde(default)]
    pub served_by: Option<ServedBy>,
}

/// The provider and the credential that answered a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedBy {
    /// The provider instance.
    pub provider: String,
    /// `pool:<key name>`.
    pub credential_source: String,
    /// The masked credential.
    pub credential_hint: String,
    /// Its length in Unicode scalar values.
    pub credential_length: u32,
    /// Its keyed fingerprint, 16 hex digits.
    pub credential_fingerprint: String,
    /// `api_key` or `bearer`; `None` keeps that of the opening.
    #[serde(default)]
    pub credential_scheme: Option<String>,
    /// The type of the instance; `None` keeps that of the opening.
    #[serde(default)]
    pub provider_type: Option<String>,
    /// Names of the edits to the request body; `None` keeps that of the opening.
    #[serde(default)]
    pub body_edits: Option<Vec<String>>,
    /// The size of a request that was sent while it arrived; `None` keeps that of the opening.
    #[serde(default)]
    pub request_bytes: Option<u64>,
    /// The SHA-256 of such a request in hex; `None` keeps that of the opening.
    #[serde(default)]
    pub request_sha256: Option<String>,
}

impl Settlement {
    /// A settlement of which only time and outcome are known.
    pub fn new(ended_at: Timestamp, outcome: Outcome) -> Self {
        Self {
            ended_at,
            first_byte_at: None,
            identified_us: None,
            body_read_us: None,
            credential_us: None,
            opened_us: None,
            connected_us: None,
            settled_us: None,
            events_relayed: None,
            outcome,
            status_code: None,
            upstream_status: None,
            upstream_started_at: None,
            upstream_request_id: None,
            error_kind: None,
            error_message: None,
            model_served: None,
            stop_reason: None,
            refusal_category: None,
            refusal_explanation: None,
            container_id: None,
            attempts: 0,
            inner_turns: 0,
            response_bytes: 0,
            provider_response_id: None,
            token_usages: Vec::new(),
            tool_usages: Vec::new(),
            thoughts: Vec::new(),
            answers: Vec::new(),
            upstream_attempts: Vec::new(),
            served_by: None,
        }
    }

    /// Masks its texts and bounds them and its lists; doing it again changes nothing.
    pub fn clean(&mut self, limits: &ContentLimits, mask: &impl Mask) {
        let attempts = &mut self.upstream_attempts;
        if attempts.len() > crate::MAX_UPSTREAM_ATTEMPTS {
            // The last one has the answer.
            attempts.drain(crate::MAX_UPSTREAM_ATTEMPTS - 1..attempts.len() - 1);
        }
        let mut cleaner = Cleaner::new(limits, mask);
        self.clean_texts(&mut cleaner);
        clean_fields!(self, &mut cleaner, provider_response_id);
        cleaner.rows(&mut self.token_usages, NewTokenUsage::clean_texts);
        cleaner.rows(&mut self.tool_usages, NewToolUsage::clean_texts);
        cleaner.rows(&mut self.thoughts, NewThought::clean_texts);
        cleaner.rows(&mut self.upstream_attempts, NewUpstreamAttempt::clean_texts);
        if let Some(served_by) = &mut self.served_by {
            served_by.clean_texts(&mut cleaner);
        }
        report(cleaner.omitted_rows());
        if !self.answers.is_empty() {
            // They have a limit of their own, and together the same one as the other contents.
            let limits = ContentLimits { thought: limits.answer, ..*limits };
            let mut cleaner = Cleaner::new(&limits, mask);
            cleaner.rows(&mut self.answers, NewAnswer::clean_texts);
            report(cleaner.omitted_rows());
        }
    }
}

impl NewTokenUsage {
    /// Masks and bounds its texts; doing it again changes nothing.
    pub fn clean(&mut self, mask: &impl Mask) {
        self.clean_texts(&mut Cleaner::new(&ContentLimits::MAX, mask));
    }
}

/// Logs how many rows of a record were left out.
fn report(omitted_rows: usize) {
    if omitted_rows > 0 {
        tracing::warn!(
            omitted_rows,
            "a record has more rows than are stored; the rest were left out"
        );
    }
}

interception_columns!(Settlement {
    model_served,
    first_byte_at,
    ended_at,
    identified_us,
    body_read_us,
    credential_us,
    opened_us,
    connected_us,
    settled_us,
    events_relayed,
    outcome,
    status_code,
    upstream_status,
    upstream_started_at,
    upstream_request_id,
    error_kind,
    error_message,
    stop_reason,
    refusal_category,
    refusal_explanation,
    container_id,
    attempts,
    inner_turns,
    response_bytes,
});

interception_columns!(ServedBy {
    provider,
    provider_type,
    credential_source,
    credential_hint,
    credential_length,
    credential_fingerprint,
    credential_scheme,
    body_edits,
    request_bytes,
    request_sha256,
});

#[cfg(test)]
mod tests {
    use super::{Interception, ServedBy, Settlement};

    #[test]
    fn what_is_written_at_the_settlement_is_part_of_it() {
        let mut settled = Settlement::COLUMNS.to_vec();
        settled.sort_unstable();
        let mut columns = Interception::settled_columns();
        columns.sort_unstable();
        assert_eq!(settled, columns);
        let opened = Interception::opened_columns();
        for column in ServedBy::COLUMNS {
            assert!(opened.contains(column), "{column}");
        }
    }
}
