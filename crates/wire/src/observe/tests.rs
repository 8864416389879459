use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Approval, CallResult, IterationKind, Observation, Observer, ProviderError, Thought,
    ThoughtSource, ToolCall, Usage,
};
use crate::{Dialect, sse::Framer};

mod answers;
mod bodies;
mod chat;
mod filter;
mod messages;
mod responses;
mod usage;

/// Events as a provider sends them: a name, unless empty, and data.
fn sse<'a>(events: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let event = |(name, data): (&str, &str)| match name {
        "" => format!("data: {data}\n\n"),
        name => format!("event: {name}\ndata: {data}\n\n"),
    };
    events.into_iter().map(event).collect()
}

/// Observes a whole stream.
fn observed(dialect: Dialect, stream: &str) -> Observation {
    let mut observer = Observer::stream(dialect);
    observer.observe(stream.as_bytes());
    observer.finish();
    without_raw(observer.take())
}

/// Known figures, without the object that they were read from.
fn usage<T: Into<Option<u64>>, const N: usize>(
    figures: [T; 4],
    extra: [(&str, u64); N],
) -> Box<Usage> {
    let [input_tokens, output_tokens, cache_read_input_tokens, cache_write_input_tokens] =
        figures.map(Into::into);
    let long = extra.iter().find(|(name, _)| *name == "ephemeral_1h_input_tokens");
    Box::new(Usage {
        input_tokens,
        output_tokens,
        cache_read_input_tokens,
        cache_write_input_tokens,
        cache_write_long_tokens: long.map(|(_, figure)| *figure),
        extra: extra.map(|(name, figure)| (name.to_owned(), figure.into())).into(),
        ..Usage::default()
    })
}

/// What was observed, without the provider's usage object.
fn without_raw(mut observation: Observation) -> Observation {
    if let Some(usage) = &mut observation.usage {
        usage.raw.clear();
    }
    observation
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall {
        id: id.into(),
        name: name.into(),
        arguments: arguments.into(),
        ..ToolCall::default()
    }
}

fn own_call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { provider_executed: true, ..call(id, name, arguments) }
}

fn result(bytes: u64, is_error: bool, error: Option<&str>) -> CallResult {
    CallResult { bytes: Some(bytes), is_error: Some(is_error), error: error.map(str::to_owned) }
}

fn thought(source: ThoughtSource, content: &str) -> Thought {
    Thought { source, content: content.into() }
}

fn error(kind: &str, message: &str) -> ProviderError {
    ProviderError { kind: kind.into(), message: message.into() }
}

/// A stream of a dialect that contains everything that can be observed.
fn rich_stream(dialect: Dialect) -> String {
    match dialect {
        Dialect::Messages => messages::rich_stream(),
        Dialect::ChatCompletions => chat::rich_stream(),
        Dialect::Responses => responses::rich_stream(),
    }
}

fn dialects() -> impl Strategy<Value = Dialect> {
    prop::sample::select(vec![Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses])
}

fn cut_at<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    cuts.extend([0, stream.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect()
}

#[test]
fn thought_sources_have_names() {
    let sources = [
        (ThoughtSource::Thinking, "thinking"),
        (ThoughtSource::ReasoningSummary, "reasoning_summary"),
        (ThoughtSource::Commentary, "commentary"),
        (ThoughtSource::Reasoning, "reasoning"),
    ];
    for (source, name) in sources {
        assert_eq!(source.as_str(), name);
    }
}

#[test]
fn an_oversized_event_is_observed_without_its_long_strings() {
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        let stream = rich_stream(dialect);
        for end in ["\n", "\r\n", "\r"] {
            // Every event is over the limit.
            let mut observer = Observer::framed(dialect, Framer::with_limit(1));
            for chunk in stream.replace('\n', end).as_bytes().chunks(5) {
                observer.observe(chunk);
            }
            assert!(observer.is_terminal(), "{dialect}");
            observer.finish();
            let skipped_events = observer.observation().skipped_events;
            assert!(skipped_events > 5);
            let expected = Observation { skipped_events, ..observed(dialect, &stream) };
            assert_eq!(without_raw(observer.take()), expected, "{dialect} {end:?}");
        }
    }
}

#[test]
fn comments_and_foreign_data_are_ignored() {
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        let stream = ": keep-alive\n\nevent: ping\ndata: {}\n\ndata: not json\n\ndata: [1,2]\n\n\
                      data: \"text\"\n\ndata: {\"type\":7,\"choices\":{},\"output_index\":-1}\n\n";
        assert_eq!(observed(dialect, stream), Observation::default());
    }
}

#[test]
fn finishing_twice_changes_nothing() {
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        let mut observer = Observer::stream(dialect);
        observer.observe(rich_stream(dialect).as_bytes());
        observer.finish();
        let once = observer.observation().clone();
        observer.finish();
        assert_eq!(*observer.observation(), once);
        assert_eq!(observer.take(), once);
    }
}

#[test]
fn a_terminal_event_counts_without_its_blank_line() {
    for (dialect, event) in [
        (Dialect::Messages, "event: message_stop\ndata: {\"type\":\"message_stop\"}"),
        (Dialect::ChatCompletions, "data: [DONE]"),
        (Dialect::Responses, "data: {\"type\":\"response.completed\",\"response\":{}}\n"),
    ] {
        let mut observer = Observer::stream(dialect);
        observer.observe(event.as_bytes());
        assert!(!observer.is_terminal());
        assert!(observer.is_mid_event());
        observer.finish();
        assert!(observer.is_terminal(), "{event}");

        let mut observer = Observer::stream(dialect);
        observer.observe(&event.as_bytes()[..event.len() - 2]);
        observer.finish();
        assert!(!observer.is_terminal(), "a part of it is no terminal event");
        assert!(observer.is_mid_event());
    }
}

#[test]
fn invalid_utf8_does_not_hide_the_usage() {
    let chunk = b"data: {\"choices\":[],\"system\":\"\xff\",\"usage\":{\"prompt_tokens\":3}}\n\n";
    let mut observer = Observer::stream(Dialect::ChatCompletions);
    observer.observe(chunk);
    assert_eq!(observer.observation().usage.as_ref().unwrap().input_tokens, Some(3));
}

#[test]
fn buffering_of_a_stream_is_bounded() {
    let piece = "x".repeat(1 << 20);
    let mut observer = Observer::stream(Dialect::Messages);
    let start = "data: {\"type\":\"content_block_start\",\"index\":0,\
                 \"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"n\"}}\n\n";
    observer.observe(start.as_bytes());
    let delta = format!(
        "data: {{\"type\":\"content_block_delta\",\"index\":0,\
         \"delta\":{{\"type\":\"input_json_delta\",\"partial_json\":\"{piece}\"}}}}\n\n"
    );
    for _ in 0..20 {
        observer.observe(delta.as_bytes());
    }
    let observed = observer.take();
    assert_eq!(observed.relayed_text_bytes, 20 << 20);
    let held = observed.tool_calls[0].arguments.len();
    assert!((15 << 20..=16 << 20).contains(&held), "{held}");
}

#[test]
fn a_stream_is_read_as_one_whatever_was_announced() {
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        let stream = format!("\n: hi\n\n{}", rich_stream(dialect));
        let mut observer = Observer::stream(dialect);
        observer.observe(stream.as_bytes());
        observer.finish();
        let expected = observer.take();
        for size in [1, 2, 7, stream.len()] {
            let mut observer = Observer::body(dialect);
            stream.as_bytes().chunks(size).for_each(|chunk| observer.observe(chunk));
            observer.finish();
            assert!(observer.is_event_stream() && observer.is_terminal());
            assert_eq!(observer.take(), expected, "{dialect} in chunks of {size}");
        }
    }
}

#[test]
fn a_body_is_read_as_one_whatever_was_announced() {
    let body = "\n {\"error\":{\"message\":\"why\",\"type\":\"kind\"}}";
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        for size in [1, 3, body.len()] {
            let mut observer = Observer::stream(dialect);
            body.as_bytes().chunks(size).for_each(|chunk| observer.observe(chunk));
            assert!(!observer.is_event_stream() && !observer.is_terminal());
            observer.finish();
            assert!(observer.is_terminal());
            assert_eq!(observer.take().error, Some(error("kind", "why")), "{dialect}");
        }
    }
}

proptest! {
    #[test]
    fn any_split_gives_the_same_observation(
        dialect in dialects(),
        crlf in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)
    ) {
        let mut stream = rich_stream(dialect);
        if crlf {
            stream = stream.replace('\n', "\r\n");
        }
        let mut observer = Observer::stream(dialect);
        for chunk in cut_at(stream.as_bytes(), &cuts) {
            observer.observe(chunk);
        }
        prop_assert!(observer.is_terminal());
        prop_assert!(!observer.is_mid_event());
        observer.finish();
        prop_assert_eq!(without_raw(observer.take()), observed(dialect, &stream));
    }

    #[test]
    fn a_truncated_stream_is_observed_as_far_as_it_arrived(
        dialect in dialects(), end in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)
    ) {
        let stream = rich_stream(dialect);
        let part = &stream.as_bytes()[..end.index(stream.len())];
        let (mut whole, mut cut) = (Observer::stream(dialect), Observer::stream(dialect));
        whole.observe(part);
        cut_at(part, &cuts).into_iter().for_each(|chunk| cut.observe(chunk));
        whole.finish();
        cut.finish();
        prop_assert_eq!(cut.is_terminal(), whole.is_terminal());
        prop_assert_eq!(cut.is_mid_event(), whole.is_mid_event());
        prop_assert_eq!(cut.next_sequence_number(), whole.next_sequence_number());
        let all = observed(dialect, &stream);
        let (whole, cut) = (whole.take(), cut.take());
        prop_assert_eq!(&whole, &cut);
        prop_assert!(whole.relayed_text_bytes <= all.relayed_text_bytes);
        prop_assert!(whole.tool_calls.len() <= all.tool_calls.len());
    }

    #[test]
    fn arbitrary_bytes_are_observed_without_a_panic(
        dialect in dialects(),
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6)
    ) {
        let mut observers =
            [Observer::stream(dialect), Observer::body(dialect), Observer::any_body()];
        for observer in &mut observers {
            chunks.iter().for_each(|chunk| observer.observe(chunk));
            observer.finish();
            let _ = observer.take();
        }
    }

    #[test]
    fn a_changed_byte_is_observed_without_a_panic(
        dialect in dialects(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut stream = rich_stream(dialect).into_bytes();
        let at = at.index(stream.len());
        stream[at] = byte;
        let mut observer = Observer::stream(dialect);
        observer.observe(&stream);
        observer.finish();
        let mut filter = super::UsageChunkFilter::new();
        let mut passed = filter.push(&Bytes::from(stream)).to_vec();
        passed.extend_from_slice(&filter.finish());
    }
}
