//! The scenarios and the usage they report.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Value, json};

use crate::turns;

/// The input tokens of every response, without cached ones.
pub const INPUT_TOKENS: u64 = 25;
/// The output tokens of every response.
pub const OUTPUT_TOKENS: u64 = 12;
/// Input tokens read from the cache in the scenario `cached`.
pub const CACHE_READ_TOKENS: u64 = 1_000;
/// Input tokens written to the five-minute cache in the scenario `cached`.
pub const CACHE_WRITE_5M_TOKENS: u64 = 150;
/// Input tokens written to the one-hour cache in the scenario `cached`.
pub const CACHE_WRITE_1H_TOKENS: u64 = 50;
/// The output tokens spent on reasoning, in scenarios with reasoning.
pub const REASONING_TOKENS: u64 = 7;

/// Defines the enum of scenarios with their names and descriptions.
macro_rules! scenarios {
    ($($variant:ident = $word:literal, $sentence:literal;)+) => {
        /// A feature of a response; several can be combined.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Scenario { $(#[doc = $sentence] $variant),+ }

        impl Scenario {
            /// All scenarios with their names and descriptions.
            pub const ALL: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$variant, $word, $sentence)),+];
        }
    };
}

scenarios! {
    Agent = "agent", "Calls one of the client's tools if the prompt contains the word tool, then replies with text once it has the result.";
    Turns = "turns", "Plays the turns in the header x-sim-turns; the header alone selects this.";
    Text = "text", "A short text.";
    Thinking = "thinking", "Thinking with a signature, then text.";
    Redacted = "redacted", "A redacted thinking block, then text.";
    Tool = "tool", "One tool call.";
    ParallelTools = "parallel-tools", "Two tool calls.";
    NonzeroIndex = "nonzero-index", "A tool call whose index does not start at 0.";
    EmptyArguments = "empty-arguments", "A tool call without arguments.";
    CustomTool = "custom-tool", "A call of a custom tool with free-form input (Responses).";
    Reasoning = "reasoning", "Reasoning with summaries (Responses, Chat Completions).";
    Commentary = "commentary", "A commentary before the reply (Responses).";
    WebSearch = "web-search", "A web search by the provider.";
    Cached = "cached", "Usage with cache reads and writes.";
    RejectedRequest = "refusal", "The model declines.";
    MaxTokens = "max-tokens", "The response is truncated by its token limit.";
    ErrorMidStream = "error-mid-stream", "An error event after some text.";
    OverloadedMidStream = "overloaded-mid-stream", "An overload event after some text.";
    Broken = "broken", "The connection is aborted inside an event.";
    BrokenBetween = "broken-between", "The connection is aborted between two events.";
    Truncated = "truncated", "The stream ends cleanly without its last events.";
    TruncatedMidEvent = "truncated-mid-event", "The stream ends cleanly inside an event.";
    Stalled = "stalled", "Some events, then silence until the client disconnects.";
    NoHead = "no-head", "No response at all until the client disconnects.";
    Slow = "slow", "A token every 2 s, 5 of them; see x-sim-delay-ms and x-sim-tokens.";
    HugeEvent = "huge-event", "One event of 17 MiB.";
    BigEvent = "big-event", "One event of 1 MiB.";
    Long = "long", "2,000 small events.";
    NonJson = "non-json", "200 with an HTML page.";
    EmptyBody = "empty-body", "200 with an empty body.";
    Crlf = "crlf", "CRLF line endings, comments and a byte order mark.";
    GzipResponse = "gzip-answer", "A complete response in gzip, if accepted.";
    Split = "split", "Events split into writes of 7 bytes.";
    Background = "background", "A queued response, fetched by its id (Responses).";
    NoUsage = "no-usage", "A response without usage.";
    UnknownEvents = "unknown-events", "Unknown events and fields.";
}

/// The statuses available as the scenario `error-<status>`.
const ERRORS: [u16; 16] =
    [400, 401, 402, 403, 404, 408, 409, 413, 422, 424, 429, 500, 502, 503, 504, 529];

/// What a response plays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Playback {
    pub(crate) scenarios: Vec<Scenario>,
    /// The error status to respond with.
    pub(crate) error: Option<u16>,
    /// The pause before each piece of text.
    pub(crate) delay: Duration,
    /// The number of pieces of text.
    pub(crate) tokens: usize,
    /// A name that is not a scenario.
    pub(crate) unknown: Option<String>,
}

impl Playback {
    /// Reads the scenarios of a request from its header or its model.
    pub(crate) fn from_request(headers: &HeaderMap, model: &str) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let last = model.rsplit(':').next().unwrap_or(model);
        let words = header("x-sim-scenario").or_else(|| last.strip_prefix("sim-"));
        let scripted = turns::has_script(headers).then_some(Scenario::Turns);
        let mut play =
            Self { tokens: 3, scenarios: scripted.into_iter().collect(), ..Self::default() };
        let words = words.unwrap_or(if scripted.is_some() { "turns" } else { "agent" });
        for word in words.split('+').map(str::trim) {
            let status = word.strip_prefix("error-").and_then(|status| status.parse().ok());
            if let Some(status) = status.filter(|status| ERRORS.contains(status)) {
                play.error = Some(status);
            } else if let Some((scenario, ..)) = Scenario::ALL.iter().find(|row| row.1 == word) {
                play.scenarios.push(*scenario);
            } else {
                // A misspelt scenario must not be taken for a plain response.
                play.unknown = Some(word.to_owned());
            }
        }
        if play.has(Scenario::Slow) {
            (play.delay, play.tokens) = (Duration::from_secs(2), 5);
        }
        if play.has(Scenario::Long) {
            play.tokens = 2_000;
        }
        if let Some(ms) = header("x-sim-delay-ms").and_then(|ms| ms.parse().ok()) {
            play.delay = Duration::from_millis(ms);
        }
        if let Some(tokens) = header("x-sim-tokens").and_then(|tokens| tokens.parse().ok()) {
            play.tokens = tokens;
        }
        play
    }

    pub(crate) fn has(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario)
    }

    /// The text of the response in pieces.
    pub(crate) fn pieces(&self) -> Vec<String> {
        let size = if self.has(Scenario::HugeEvent) {
            17 << 20
        } else if self.has(Scenario::BigEvent) {
            1 << 20
        } else {
            0
        };
        let words = ["Hello from", " the simulated", " provider."];
        let mut pieces: Vec<String> =
            words.iter().cycle().take(self.tokens).map(|word| (*word).to_owned()).collect();
        if size > 0 {
            pieces.push("x".repeat(size));
        }
        pieces
    }

    /// The tool calls of the response.
    pub(crate) fn tools(&self) -> Vec<Call> {
        let call = |n: u64, arguments: &str| Call {
            id: format!("{n}"),
            name: "get_weather".into(),
            arguments: arguments.into(),
        };
        let paris = r#"{"city":"Paris","unit":"celsius"}"#;
        if self.has(Scenario::ParallelTools) {
            vec![call(1, paris), call(2, r#"{"city":"Rome"}"#)]
        } else if self.has(Scenario::EmptyArguments) {
            vec![call(1, "")]
        } else if self.has(Scenario::Tool) || self.has(Scenario::NonzeroIndex) {
            vec![call(1, paris)]
        } else {
            Vec::new()
        }
    }
}

/// A tool call of the model.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The end of the call id, unique within the response.
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON, or nothing.
    pub(crate) arguments: String,
}

impl Call {
    /// The arguments in two pieces.
    pub(crate) fn halves(&self) -> (&str, &str) {
        let half = self.arguments.floor_char_boundary(self.arguments.len() / 2);
        self.arguments.split_at(half)
    }
}

/// Lists the scenarios with their descriptions.
pub(crate) fn list() -> Value {
    let mut list: Vec<Value> = Scenario::ALL
        .iter()
        .map(|(_, word, sentence)| json!({ "scenario": word, "plays": sentence }))
        .collect();
    for status in ERRORS {
        let plays = format!("The provider responds with {status} and its usual headers.");
        list.push(json!({ "scenario": format!("error-{status}"), "plays": plays }));
    }
    Value::Array(list)
}
