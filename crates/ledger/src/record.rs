//! The types of every record, with the names they have in the store, the API and exports.

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

mod new;

pub use self::new::{
    NewThought, NewTokenUsage, NewToolUsage, Opening, ServedBy, Settlement, ToolResult,
};

/// Defines an enum whose values are stored and serialized as words.
#[macro_export]
macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// The word for this value.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Every word, in order.
            pub const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::record::UnknownWord;

            fn from_str(word: &str) -> Result<Self, $crate::record::UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::record::UnknownWord::new(word, Self::WORDS)),
                }
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as ::serde::Deserialize>::deserialize(deserializer)?
                    .parse()
                    .map_err(::serde::de::Error::custom)
            }
        }
    };
}

/// A word that is none of an enum's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of {list}", list = .1.join(", "))]
pub struct UnknownWord(String, &'static [&'static str]);

impl UnknownWord {
    /// The error for a word that is none of `words`.
    pub fn new(word: &str, words: &'static [&'static str]) -> Self {
        Self(word.into(), words)
    }
}

word_enum! {
    /// How a request ended.
    Outcome {
        /// It has not.
        InProgress = "in_progress",
        /// The whole answer was relayed.
        Completed = "completed",
        /// The provider answered an error or broke off, or the bridge failed.
        Failed = "failed",
        /// The client left first.
        Cancelled = "cancelled",
        /// The bridge said no.
        Refused = "refused",
        /// The process died.
        Interrupted = "interrupted",
    }
}

word_enum! {
    /// How far a row of token counts can be trusted.
    Quality {
        /// The provider's final figures.
        Exact = "exact",
        /// First figures, or an estimate whose method `extra` names.
        Partial = "partial",
        /// Nothing is known.
        Unknown = "unknown",
    }
}

/// One request for a model, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interception {
    /// Id, also the `x-keybridge-interception-id` of the answer.
    pub id: Uuid,
    /// Who asked.
    pub user_id: Uuid,
    /// With which token.
    pub token_id: Option<Uuid>,
    /// Name of the provider instance.
    pub provider: String,
    /// Its kind.
    pub provider_type: String,
    /// The endpoint's path at the provider.
    pub endpoint: String,
    /// The API dialect.
    pub dialect: String,
    /// The model as asked for.
    pub model: Option<String>,
    /// The model as answered.
    pub model_served: Option<String>,
    /// Whether a stream was asked for.
    pub streaming: bool,
    /// Name of the agent or SDK.
    pub client: Option<String>,
    /// Its `User-Agent`.
    pub user_agent: Option<String>,
    /// The session it claims.
    pub client_session_id: Option<String>,
    /// The sub-agent it claims.
    pub agent_id: Option<String>,
    /// That one's parent.
    pub parent_agent_id: Option<String>,
    /// First interception of the thread this one belongs to.
    pub thread_id: Option<Uuid>,
    /// The interception whose tool call this one answers.
    pub parent_id: Option<Uuid>,
    /// The tool call that ties it to its parent.
    pub correlating_tool_call_id: Option<String>,
    /// `centralized` or `byok`.
    pub credential_kind: Option<String>,
    /// `pool:<key name>`, `request` or `stored`.
    pub credential_source: Option<String>,
    /// `api_key` or `bearer`.
    pub credential_scheme: Option<String>,
    /// The masked credential.
    pub credential_hint: Option<String>,
    /// Its length in Unicode scalar values.
    pub credential_length: Option<u32>,
    /// Its keyed fingerprint, 16 hex digits.
    pub credential_fingerprint: Option<String>,
    /// When the request arrived.
    #[serde(serialize_with = "serialize_time")]
    pub started_at: Timestamp,
    /// When the first byte of the answer came.
    #[serde(serialize_with = "serialize_optional_time")]
    pub first_byte_at: Option<Timestamp>,
    /// When it was over.
    #[serde(serialize_with = "serialize_optional_time")]
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// Status sent to the client.
    pub status_code: Option<u16>,
    /// Status of the provider.
    pub upstream_status: Option<u16>,
    /// Kind of the error.
    pub error_kind: Option<String>,
    /// Its message, without secrets.
    pub error_message: Option<String>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// How often the provider was asked.
    pub attempts: u32,
    /// Further turns that called injected tools.
    pub inner_turns: u32,
    /// Size of the request body as it came.
    pub request_bytes: u64,
    /// Bytes of the provider's answer that were relayed.
    pub response_bytes: u64,
    /// Names of the edits to the request body.
    pub body_edits: Vec<String>,
    /// SHA-256 of the request body as it came, in hex.
    pub request_sha256: Option<String>,
}

impl Interception {
    /// An interception of which nothing is known yet but who asked and when.
    pub fn new(id: Uuid, user_id: Uuid, started_at: Timestamp) -> Self {
        Self {
            id,
            user_id,
            token_id: None,
            provider: String::new(),
            provider_type: String::new(),
            endpoint: String::new(),
            dialect: String::new(),
            model: None,
            model_served: None,
            streaming: false,
            client: None,
            user_agent: None,
            client_session_id: None,
            agent_id: None,
            parent_agent_id: None,
            thread_id: None,
            parent_id: None,
            correlating_tool_call_id: None,
            credential_kind: None,
            credential_source: None,
            credential_scheme: None,
            credential_hint: None,
            credential_length: None,
            credential_fingerprint: None,
            started_at,
            first_byte_at: None,
            ended_at: None,
            outcome: Outcome::InProgress,
            status_code: None,
            upstream_status: None,
            error_kind: None,
            error_message: None,
            stop_reason: None,
            attempts: 0,
            inner_turns: 0,
            request_bytes: 0,
            response_bytes: 0,
            body_edits: Vec::new(),
            request_sha256: None,
        }
    }
}

/// The tokens of one answer of a provider; `None` is "not known", never zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenUsage {
    /// Id.
    pub id: Uuid,
    /// The interception it belongs to.
    pub interception_id: Uuid,
    /// The provider's id of the answer.
    pub provider_response_id: Option<String>,
    /// Input that was not cached.
    pub input_tokens: Option<u64>,
    /// Output.
    pub output_tokens: Option<u64>,
    /// Input read from the provider's cache.
    pub cache_read_input_tokens: Option<u64>,
    /// Input written to the provider's cache.
    pub cache_write_input_tokens: Option<u64>,
    /// Further counts by name.
    pub extra: serde_json::Value,
    /// How far the figures can be trusted.
    pub quality: Quality,
    /// When the row was made.
    #[serde(serialize_with = "serialize_time")]
    pub created_at: Timestamp,
}

/// The user's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prompt {
    /// Id.
    pub id: Uuid,
    /// The interception it belongs to.
    pub interception_id: Uuid,
    /// The provider's id of the answer.
    pub provider_response_id: Option<String>,
    /// The text.
    pub prompt: String,
    /// When the row was made.
    #[serde(serialize_with = "serialize_time")]
    pub created_at: Timestamp,
}

/// One tool call of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolUsage {
    /// Id.
    pub id: Uuid,
    /// The interception it belongs to.
    pub interception_id: Uuid,
    /// The provider's id of the answer.
    pub provider_response_id: Option<String>,
    /// The call's id.
    pub tool_call_id: Option<String>,
    /// The tool's name.
    pub tool: String,
    /// Its arguments: JSON, or a string when they are none.
    pub arguments: Option<serde_json::Value>,
    /// Whether the bridge injected the tool.
    pub injected: bool,
    /// The MCP server of an injected tool.
    pub server_url: Option<String>,
    /// Why an injected tool's call failed.
    pub invocation_error: Option<String>,
    /// How long an injected tool's call took.
    pub duration_ms: Option<u64>,
    /// Size of the result that a later request carried.
    pub result_bytes: Option<u64>,
    /// Whether that result was an error.
    pub result_is_error: Option<bool>,
    /// When the row was made.
    #[serde(serialize_with = "serialize_time")]
    pub created_at: Timestamp,
}

/// Thinking, a reasoning summary or a commentary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thought {
    /// Id.
    pub id: Uuid,
    /// The interception it belongs to.
    pub interception_id: Uuid,
    /// `thinking`, `reasoning_summary`, `commentary` or `reasoning`.
    pub source: String,
    /// The text.
    pub content: String,
    /// When the row was made.
    #[serde(serialize_with = "serialize_time")]
    pub created_at: Timestamp,
}

/// A time as it is stored and shown: RFC 3339, UTC, six digits of a second.
pub fn time_text(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Serializes a time as [`time_text`] writes it.
///
/// # Errors
///
/// When the serializer fails.
pub fn serialize_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time_text(*time))
}

/// Serializes a time that may not be known, as [`time_text`] writes it.
///
/// # Errors
///
/// When the serializer fails.
pub fn serialize_optional_time<S: Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_str(&time_text(*time)),
        None => serializer.serialize_none(),
    }
}

/// What stands for the key of a continuation in the store: keys are of any length.
pub(crate) fn key_hash(key: &str) -> String {
    hex::encode(digest(&SHA256, key.as_bytes()))
}
