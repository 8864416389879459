//! The scenarios and the figures they answer with.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Value, json};

use crate::turns;

/// Input tokens of every answer, cached ones not counted.
pub const INPUT_TOKENS: u64 = 25;
/// Output tokens of every answer.
pub const OUTPUT_TOKENS: u64 = 12;
/// Input tokens read from the cache in the scenario `cached`.
pub const CACHE_READ_TOKENS: u64 = 1_000;
/// Input tokens written to the five-minute cache in the scenario `cached`.
pub const CACHE_WRITE_5M_TOKENS: u64 = 150;
/// Input tokens written to the one-hour cache in the scenario `cached`.
pub const CACHE_WRITE_1H_TOKENS: u64 = 50;
/// Output tokens spent on reasoning where there is any.
pub const REASONING_TOKENS: u64 = 7;

/// Makes the scenarios' enum with their words and sentences.
macro_rules! scenarios {
    ($($variant:ident = $word:literal, $sentence:literal;)+) => {
        /// A part of what an answer plays; several can be joined.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Scenario { $(#[doc = $sentence] $variant),+ }

        impl Scenario {
            /// All of them with the words that choose them and what they play.
            pub const ALL: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$variant, $word, $sentence)),+];
        }
    };
}

scenarios! {
    Agent = "agent", "Calls one tool that the client offers when the prompt has the word tool, and answers with text once its result is there.";
    Turns = "turns", "What the header x-sim-turns says, turn by turn; the header alone chooses this.";
    Text = "text", "A short text.";
    Thinking = "thinking", "Thinking with a signature, then text.";
    Redacted = "redacted", "A redacted thinking block, then text.";
    Tool = "tool", "One tool call.";
    ParallelTools = "parallel-tools", "Two tool calls.";
    NonzeroIndex = "nonzero-index", "A tool call whose index does not begin at 0.";
    EmptyArguments = "empty-arguments", "A tool call without arguments.";
    CustomTool = "custom-tool", "A call of a custom tool with free-form input (Responses).";
    Reasoning = "reasoning", "Reasoning with summaries (Responses, Chat Completions).";
    Commentary = "commentary", "A commentary before the answer (Responses).";
    WebSearch = "web-search", "A search by the provider itself.";
    Cached = "cached", "Usage with cache reads and writes.";
    Refusal = "refusal", "The model declines.";
    MaxTokens = "max-tokens", "The answer is cut by its token limit.";
    ErrorMidStream = "error-mid-stream", "An error event after some text.";
    OverloadedMidStream = "overloaded-mid-stream", "An overload event after some text.";
    Broken = "broken", "The connection breaks off within an event.";
    BrokenBetween = "broken-between", "The connection breaks off between two events.";
    Truncated = "truncated", "The stream ends cleanly without its last events.";
    TruncatedMidEvent = "truncated-mid-event", "The stream ends cleanly within an event.";
    Stalled = "stalled", "Some events, then silence until the client leaves.";
    NoHead = "no-head", "No answer at all until the client leaves.";
    Slow = "slow", "A token every 2 s, 5 of them; see x-sim-delay-ms and x-sim-tokens.";
    HugeEvent = "huge-event", "One event of 17 MiB.";
    BigEvent = "big-event", "One event of 1 MiB.";
    Long = "long", "2,000 small events.";
    NonJson = "non-json", "200 with a page of HTML.";
    EmptyBody = "empty-body", "200 with nothing.";
    Crlf = "crlf", "CRLF line ends, comments and a byte order mark.";
    GzipAnswer = "gzip-answer", "A whole answer in gzip, where accepted.";
    Split = "split", "Events cut into writes of 7 bytes.";
    Background = "background", "A queued answer, fetched by its id (Responses).";
    NoUsage = "no-usage", "An answer without usage.";
    UnknownEvents = "unknown-events", "Events and fields that nobody knows yet.";
}

/// The status answered by the scenario `error-<status>`.
const ERRORS: [u16; 16] =
    [400, 401, 402, 403, 404, 408, 409, 413, 422, 424, 429, 500, 502, 503, 504, 529];

/// What one answer plays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Play {
    pub(crate) scenarios: Vec<Scenario>,
    /// Answer with this error status.
    pub(crate) error: Option<u16>,
    /// Pause before each piece of text.
    pub(crate) delay: Duration,
    /// Pieces of text.
    pub(crate) tokens: usize,
    /// A word that names no scenario.
    pub(crate) unknown: Option<String>,
}

impl Play {
    /// The scenarios of a request, by its header or its model.
    pub(crate) fn of(headers: &HeaderMap, model: &str) -> Self {
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
                // A misspelt scenario must not pass for a plain answer.
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

    /// The answer's text in pieces.
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

    /// How many tool calls are made, with the index of the first.
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
    /// End of the call's id, unique within the answer.
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

/// The scenarios with a sentence each.
pub(crate) fn list() -> Value {
    let mut list: Vec<Value> = Scenario::ALL
        .iter()
        .map(|(_, word, sentence)| json!({ "scenario": word, "plays": sentence }))
        .collect();
    for status in ERRORS {
        let plays = format!("The provider answers {status} with its usual headers.");
        list.push(json!({ "scenario": format!("error-{status}"), "plays": plays }));
    }
    Value::Array(list)
}
