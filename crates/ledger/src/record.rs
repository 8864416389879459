//! The types of every record, with the names they have in the store, the API and exports.

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::Serializer;
use uuid::Uuid;

mod children;
pub(crate) mod columns;
mod new;
pub mod objects;
pub mod text;

use self::columns::interceptions_table;
pub use self::{
    children::{
        Answer, Attachment, NewAnswer, NewAttachment, NewPrompt, NewThought, NewTokenUsage,
        NewToolUsage, NewUpstreamAttempt, Prompt, Thought, TokenUsage, ToolUsage, UpstreamAttempt,
    },
    new::{Opening, ServedBy, Settlement, ToolResult},
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
    #[derive(Default)]
    Outcome {
        /// It has not.
        #[default]
        InProgress = "in_progress",
        /// The whole answer was relayed.
        Completed = "completed",
        /// The provider answered with an error, its answer was truncated, or the bridge failed.
        Failed = "failed",
        /// The client left first.
        Cancelled = "cancelled",
        /// The bridge refused it.
        Refused = "refused",
        /// The process died.
        Interrupted = "interrupted",
    }
}

word_enum! {
    /// How far a row of token counts can be trusted.
    #[derive(Default)]
    Quality {
        /// The provider's final figures.
        Exact = "exact",
        /// First figures, or an estimate whose method `extra` names.
        Partial = "partial",
        /// Nothing is known.
        #[default]
        Unknown = "unknown",
    }
}

word_enum! {
    /// What tokens were spent on.
    #[derive(Default)]
    UsageKind {
        /// The answer.
        #[default]
        Answer = "answer",
        /// A summary of the conversation that the provider made for it.
        Compaction = "compaction",
        /// Another model that the provider asked for advice.
        Advisor = "advisor",
        /// A model that the provider asked before or after the one that answered.
        Fallback = "fallback",
    }
}

interceptions_table! {
    /// One request for a model, and what became of it.
    pub struct Interception {
        /// Id, also the `x-keybridge-interception-id` of the answer.
        opened id: Uuid,
        /// The user.
        opened user_id: Uuid,
        /// The token.
        opened token_id: Option<Uuid>,
        /// Name of the provider instance.
        opened provider: String,
        /// Its kind.
        opened provider_type: String,
        /// The endpoint's path at the provider.
        opened endpoint: String,
        /// The API dialect.
        opened dialect: String,
        /// The requested model.
        opened model: Option<String>,
        /// The model that the answer names.
        settled model_served: Option<String>,
        /// Whether a stream was requested.
        opened streaming: bool,
        /// Whether the provider was told to store the response; `None` if the request does not say.
        opened store: Option<bool>,
        /// Whether the response was to be generated in the background; `None` where there is no such choice.
        opened background: Option<bool>,
        /// Name of the agent or SDK.
        opened client: Option<String>,
        /// Its `User-Agent`.
        opened user_agent: Option<String>,
        /// How many times it had sent the request before, as its SDK says.
        opened client_retry_count: Option<u32>,
        /// The session it claims.
        opened client_session_id: Option<String>,
        /// The sub-agent it claims.
        opened agent_id: Option<String>,
        /// That one's parent.
        opened parent_agent_id: Option<String>,
        /// First interception of the thread this one belongs to.
        opened thread_id: Option<Uuid>,
        /// The session it belongs to: the client's, else the thread's id, else its own. The ledger fixes it when
        /// the record is opened; none where a release that did not know it wrote the record and it is not
        /// summed yet.
        opened session_id: Option<String>,
        /// The interception whose tool call this one answers.
        opened parent_id: Option<Uuid>,
        /// The tool call that ties it to its parent.
        opened correlating_tool_call_id: Option<String>,
        /// `centralized` or `byok`.
        opened credential_kind: Option<String>,
        /// `pool:<key name>`, `request`, `stored`, or `none` if the provider needs no credential.
        opened credential_source: Option<String>,
        /// `api_key` or `bearer`.
        opened credential_scheme: Option<String>,
        /// The masked credential.
        opened credential_hint: Option<String>,
        /// Its length in Unicode scalar values.
        opened credential_length: Option<u32>,
        /// Its keyed fingerprint, 16 hex digits.
        opened credential_fingerprint: Option<String>,
        /// When the request arrived.
        #[serde(serialize_with = "serialize_time")]
        opened started_at: Timestamp,
        /// When the first byte of the answer came.
        #[serde(serialize_with = "serialize_optional_time")]
        settled first_byte_at: Option<Timestamp>,
        /// When it ended.
        #[serde(serialize_with = "serialize_optional_time")]
        settled ended_at: Option<Timestamp>,
        /// When its caller was identified, in microseconds after `started_at`, as those that follow. They come in
        /// this order, and each is at least the one before.
        settled identified_us: Option<u64>,
        /// When the whole body was read; none for an upload that is sent while it arrives.
        settled body_read_us: Option<u64>,
        /// When its credential was chosen and it was admitted.
        settled credential_us: Option<u64>,
        /// When its record was committed; none where that was not waited for before it was sent.
        settled opened_us: Option<u64>,
        /// When a connection to a provider first took it: a new one or an idle one, which begins to send it then.
        settled connected_us: Option<u64>,
        /// When its settlement was handed over.
        settled settled_us: Option<u64>,
        /// The server-sent events that were passed on; none where the answer is no stream. An error event of the
        /// bridge itself does not count.
        settled events_relayed: Option<u64>,
        /// How it ended.
        both outcome: Outcome,
        /// Status sent to the client.
        settled status_code: Option<u16>,
        /// Status of the provider.
        settled upstream_status: Option<u16>,
        /// When the request was sent to the provider, where that was once.
        #[serde(serialize_with = "serialize_optional_time")]
        settled upstream_started_at: Option<Timestamp>,
        /// The provider's id of the request; of several exchanges, the last one that has an id.
        settled upstream_request_id: Option<String>,
        /// Kind of the error.
        settled error_kind: Option<String>,
        /// Its message, without secrets.
        settled error_message: Option<String>,
        /// Why the model stopped.
        settled stop_reason: Option<String>,
        /// What a refusal is about: the provider's category, the filters that matched, or `refusal`.
        settled refusal_category: Option<String>,
        /// The provider's explanation of a refusal, or the model's words.
        settled refusal_explanation: Option<String>,
        /// The provider's container in which tools ran.
        settled container_id: Option<String>,
        /// Number of exchanges with providers.
        both attempts: u32,
        /// Further turns that called injected tools.
        both inner_turns: u32,
        /// Size of the request body as it came.
        opened request_bytes: u64,
        /// Bytes of the provider's answer that were relayed.
        both response_bytes: u64,
        /// Names of the edits to the request body.
        opened body_edits: Vec<String>,
        /// SHA-256 of the request body as it came, in hex.
        opened request_sha256: Option<String>,
    }
}

impl Interception {
    /// A record of which only its user and the time of the request are known.
    pub fn new(id: Uuid, user_id: Uuid, started_at: Timestamp) -> Self {
        Self { id, user_id, started_at, ..Self::default() }
    }
}

/// A time as it is stored and shown: RFC 3339, UTC, six digits of a second.
pub fn time_text(time: Timestamp) -> String {
    // Several are written per request: without the machinery of `format!`.
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    PRINTER.timestamp_to_string(&time)
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
