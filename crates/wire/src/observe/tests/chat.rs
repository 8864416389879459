use super::{
    Observation, Observer, ThoughtSource, ToolCall, call, error, observed as observed_in, own_call,
    result, sse, thought, usage, without_raw,
};
use crate::Dialect;

fn observed(stream: &str) -> Observation {
    observed_in(Dialect::ChatCompletions, stream)
}

fn data(chunks: &[&str]) -> String {
    sse(chunks.iter().map(|chunk| ("", *chunk)))
}

/// A chunk with one choice, like most chunks of a stream.
fn chunk(delta: &str, finish_reason: &str) -> String {
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"gpt-x-1","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}],"usage":null}}"#
    )
}

pub(super) fn rich_stream() -> String {
    let chunks = [
        chunk(r#"{"role":"assistant","content":""}"#, "null"),
        chunk(r#"{"reasoning_content":"First, "}"#, "null"),
        chunk(r#"{"reasoning_content":"look."}"#, "null"),
        chunk(r#"{"content":"Hi"}"#, "null"),
        chunk(r#"{"content":" \"é\"\n"}"#, "null"),
        chunk(r#"{"content":" \ud83d\ude00"}"#, "null"),
        chunk(
            r#"{"tool_calls":[{"index":1,"id":"call_1","type":"function","function":{"name":"read","arguments":""}}]}"#,
            "null",
        ),
        chunk(r#"{"tool_calls":[{"index":1,"function":{"arguments":"{\"path\""}}]}"#, "null"),
        chunk(
            r#"{"tool_calls":[{"index":2,"id":"call_2","type":"function","function":{"name":"now","arguments":"{}"}},{"index":1,"function":{"arguments":":1}"}}]}"#,
            "null",
        ),
        chunk("{}", r#""tool_calls""#),
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"gpt-x-1","choices":[],"usage":{"prompt_tokens":120,"completion_tokens":30,"total_tokens":150,"prompt_tokens_details":{"cached_tokens":100,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":12,"audio_tokens":1,"accepted_prediction_tokens":2,"rejected_prediction_tokens":3}}}"#.to_owned(),
        "[DONE]".to_owned(),
    ];
    data(&chunks.each_ref().map(String::as_str))
}

#[test]
fn a_stream_is_observed() {
    let mut observer = Observer::stream(Dialect::ChatCompletions);
    observer.observe(rich_stream().as_bytes());
    assert!(observer.is_terminal());
    let text = "First, look.Hi \"é\"\n 😀{\"path\":1}{}";
    assert_eq!(
        without_raw(observer.take()),
        Observation {
            response_id: Some("chatcmpl-1".into()),
            model: Some("gpt-x-1".into()),
            stop_reason: Some("tool_calls".into()),
            usage: Some(usage(
                [20, 30, 100, 0],
                [
                    ("prompt_audio", 0),
                    ("completion_audio", 1),
                    ("completion_accepted_prediction", 2),
                    ("completion_rejected_prediction", 3),
                    ("completion_reasoning", 12),
                    ("total_tokens", 150),
                ]
            )),
            usage_is_final: true,
            relayed_text_bytes: crate::count(text.len()),
            tool_calls: vec![call("call_1", "read", "{\"path\":1}"), call("call_2", "now", "{}")],
            thoughts: vec![thought(ThoughtSource::Reasoning, "First, look.")],
            ..Observation::default()
        }
    );
}

#[test]
fn running_usage_becomes_final_at_the_end() {
    let running =
        r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}"#;
    let last = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}"#;
    assert!(!observed(&data(&[running])).usage_is_final);
    let seen = observed(&data(&[running, last]));
    assert_eq!(seen.usage, Some(usage([None, Some(2), None, None], [])));
    assert!(seen.usage_is_final);
    assert!(observed(&data(&[running, "[DONE]"])).usage_is_final);
}

#[test]
fn similar_deltas_are_recognised_by_their_form() {
    let filled = |text: &str, filling: &str| {
        format!(
            r#"{{"id":"c","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}],"obfuscation":"{filling}"}}"#
        )
    };
    let chunks =
        [filled("one", "aB3"), filled("two\\n", ""), filled("\\u00e9", "x"), filled("}", "9")];
    let seen = observed(&data(&chunks.each_ref().map(String::as_str)));
    assert_eq!(seen.relayed_text_bytes, 3 + 4 + 2 + 1);
    assert_eq!(seen.response_id.as_deref(), Some("c"));
}

#[test]
fn a_delta_that_differs_later_on_is_parsed() {
    let plain = chunk(r#"{"content":"a"}"#, "null");
    type Check = fn(&Observation) -> bool;
    let cases: [(String, Check); 5] = [
        (chunk(r#"{"content":"b"}"#, r#""length""#), |seen| {
            seen.stop_reason.as_deref() == Some("length")
        }),
        (chunk(r#"{"content":"b","reasoning":"hm"}"#, "null"), |seen| {
            seen.thoughts == [thought(ThoughtSource::Reasoning, "hm")]
        }),
        (
            chunk(r#"{"content":"b"}"#, "null")
                .replace(r#""usage":null"#, r#""usage":{"prompt_tokens":1}"#),
            |seen| seen.usage.is_some(),
        ),
        (chunk(r#"{"content":"b"}"#, "null").replace("gpt-x-1", "gpt-x-2"), |seen| {
            seen.model.as_deref() == Some("gpt-x-2")
        }),
        (
            chunk(r#"{"content":"b"}"#, "null")
                .replace(r#""usage":null"#, r#""error":{"message":"late"}"#),
            |seen| seen.error.is_some(),
        ),
    ];
    for (other, check) in cases {
        let seen = observed(&data(&[&plain, &plain, &other]));
        assert!(check(&seen), "{other}: {seen:?}");
    }
    let seen = observed(&data(&[&plain, &plain, &plain, &chunk(r#"{"content":"b"}"#, "null")]));
    assert_eq!(seen.relayed_text_bytes, 4);
}

#[test]
fn calls_are_distinguished_by_index_or_id() {
    let deltas = |deltas: &[&str]| {
        let chunks: Vec<_> = deltas
            .iter()
            .map(|call| chunk(&format!(r#"{{"tool_calls":[{call}]}}"#), "null"))
            .collect();
        observed(&data(&chunks.iter().map(String::as_str).collect::<Vec<_>>())).tool_calls
    };
    let two = [call("a", "f", "[1]"), call("b", "g", "[2]")];
    // By index, interleaved, the higher one first.
    assert_eq!(
        deltas(&[
            r#"{"index":7,"id":"a","function":{"name":"f","arguments":"["}}"#,
            r#"{"index":3,"id":"b","function":{"name":"g","arguments":"["}}"#,
            r#"{"index":7,"function":{"arguments":"1]"}}"#,
            r#"{"index":3,"id":"","function":{"name":"","arguments":"2]"}}"#,
        ]),
        two
    );
    // All numbered 0, or not numbered.
    for index in [r#""index":0,"#, ""] {
        assert_eq!(
            deltas(&[
                &format!(r#"{{{index}"id":"a","function":{{"name":"f","arguments":"[1"}}}}"#),
                &format!(r#"{{{index}"function":{{"arguments":"]"}}}}"#),
                &format!(r#"{{{index}"id":"b","function":{{"name":"g","arguments":"[2]"}}}}"#),
            ]),
            two
        );
    }
    // The id in each delta; an object as arguments; a custom tool.
    assert_eq!(
        deltas(&[
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":"[1"}}"#,
            r#"{"index":0,"id":"a","function":{"name":"f","arguments":"]"}}"#,
            r#"{"index":1,"id":"b","function":{"name":"g","arguments":{"x":1}}}"#,
            r#"{"index":2,"id":"c","type":"custom","custom":{"name":"h","input":"free"}}"#,
            r#"{"index":2,"custom":{"input":" text"}}"#,
        ]),
        [call("a", "f", "[1]"), call("b", "g", r#"{"x":1}"#), call("c", "h", "free text")]
    );
}

#[test]
fn every_choice_and_the_legacy_call_are_read() {
    let choice = |index: u8, delta: &str| {
        format!(r#"{{"choices":[{{"index":{index},"delta":{delta},"finish_reason":null}}]}}"#)
    };
    let chunks = [
        choice(
            0,
            r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"0"}}]}"#,
        ),
        choice(
            1,
            r#"{"tool_calls":[{"index":0,"id":"b","function":{"name":"f","arguments":"1"}}]}"#,
        ),
        choice(0, r#"{"tool_calls":[{"index":0,"function":{"arguments":"0"}}]}"#),
        choice(1, r#"{"reasoning":"one"}"#),
        choice(0, r#"{"reasoning":"zero"}"#),
        choice(2, r#"{"function_call":{"name":"old","arguments":"{"}}"#),
        choice(2, r#"{"function_call":{"arguments":"}"}}"#),
    ];
    let seen = observed(&data(&chunks.each_ref().map(String::as_str)));
    assert_eq!(seen.tool_calls, [call("a", "f", "00"), call("b", "f", "1"), call("", "old", "{}")]);
    let reasoning = |content| thought(ThoughtSource::Reasoning, content);
    assert_eq!(seen.thoughts, [reasoning("one"), reasoning("zero")]);
}

#[test]
fn a_thought_under_two_keys_is_recorded_once() {
    let both = chunk(r#"{"content":null,"reasoning":"so","reasoning_content":"so"}"#, "null");
    let empty = chunk(r#"{"reasoning_content":"","reasoning":null}"#, "null");
    let seen = observed(&data(&[&empty, &both, &both]));
    assert_eq!(seen.thoughts, [thought(ThoughtSource::Reasoning, "soso")]);
    assert_eq!(observed(&data(&[&empty])).thoughts, []);
}

#[test]
fn an_error_ends_the_stream() {
    for (stream, expected) in [
        (
            data(&[r#"{"error":{"message":"boom","type":"server_error","code":null}}"#]),
            error("server_error", "boom"),
        ),
        (data(&[r#"{"error":{"message":"boom","code":502}}"#]), error("502", "boom")),
        (data(&[r#"{"error":"boom"}"#]), error("error", "boom")),
        (sse([("error", r#"{"message":"boom","code":"c"}"#)]), error("c", "boom")),
    ] {
        let mut observer = Observer::stream(Dialect::ChatCompletions);
        observer.observe(stream.as_bytes());
        assert!(observer.is_terminal());
        assert_eq!(observer.take().error, Some(expected));
    }
    let null = chunk("{}", "null").replace(r#""usage":null"#, r#""error":null"#);
    assert_eq!(observed(&data(&[&null])).error, None);
}

/// The calls of a stream whose chunks have these parts of calls.
fn calls(parts: &[&str]) -> Vec<ToolCall> {
    let chunks: Vec<_> =
        parts.iter().map(|part| chunk(&format!(r#"{{"tool_calls":[{part}]}}"#), "null")).collect();
    observed(&data(&chunks.iter().map(String::as_str).collect::<Vec<_>>())).tool_calls
}

#[test]
fn whole_calls_without_ids_are_told_apart_and_parts_of_one_are_not() {
    let whole = |name: &str, index: &str| {
        format!(r#"{{{index}"id":"","function":{{"name":"{name}","arguments":{{"a":"}}{{"}}}}}}"#)
    };
    let arguments = r#"{"a":"}{"}"#;
    for index in [r#""index":0,"#, ""] {
        for second in ["g", "f"] {
            assert_eq!(
                calls(&[&whole("f", index), &whole(second, index)]),
                [call("", "f", arguments), call("", second, arguments)]
            );
        }
    }
    let parts = |first: &str, second: &str| {
        let part = |id: &str, arguments: &str| {
            format!(
                r#"{{"index":0,"id":"{id}","function":{{"name":"f","arguments":"{arguments}"}}}}"#
            )
        };
        calls(&[&part(first, r#"{\"a\":"#), &part(second, "1}")])
    };
    // Name, and id if there is one, in each part; another id in each part.
    for (first, second) in [("", ""), ("a", "a"), ("a", "b"), ("a", "")] {
        assert_eq!(parts(first, second), [call(first, "f", r#"{"a":1}"#)]);
    }
    // The first part may have no arguments yet; two calls without any are two.
    let part = |id: &str, arguments: &str| {
        format!(r#"{{"index":0,"id":"{id}","function":{{"name":"f","arguments":"{arguments}"}}}}"#)
    };
    assert_eq!(calls(&[&part("a", ""), &part("b", "{}")]), [call("a", "f", "{}")]);
    let two = [call("a", "f", ""), call("b", "f", "")];
    assert_eq!(calls(&[&part("a", ""), &part("b", "")]), two);
    let numbered = |arguments: &str| {
        format!(r#"{{"index":0,"id":"a","function":{{"name":"f","arguments":{arguments}}}}}"#)
    };
    let (one, two) = (numbered(r#"{"a":1}"#), numbered(r#"{"a":2}"#));
    let (first, second) = (call("a", "f", r#"{"a":1}"#), call("a", "f", r#"{"a":2}"#));
    assert_eq!(calls(&[&one, &one, &two]), [first, second], "one id for all");
    let nameless = r#"{"index":0,"id":"b","function":{"arguments":"]"}}"#;
    let named = r#"{"index":0,"id":"a","function":{"name":"f","arguments":"["}}"#;
    assert_eq!(calls(&[named, nameless]), [call("a", "f", "[]")]);
}

#[test]
fn tools_that_the_provider_ran_are_read_with_their_results() {
    let run = r#"{"index":0,"type":"search","arguments":"{}"}"#;
    let ended = r#"{"index":0,"type":"search","arguments":"{}","output":"four"}"#;
    let expected =
        [ToolCall { result: Some(result(4, false, None)), ..own_call("", "search", "{}") }];
    let delta = |tool: &str| chunk(&format!(r#"{{"executed_tools":[{tool}]}}"#), "null");
    assert_eq!(observed(&data(&[&delta(run), &delta(ended)])).tool_calls, expected);
    let mut observer = Observer::body(Dialect::ChatCompletions);
    let body = format!(r#"{{"choices":[{{"message":{{"executed_tools":[{ended}]}}}}]}}"#);
    observer.observe(body.as_bytes());
    observer.finish();
    assert_eq!(observer.take().tool_calls, expected);
}

#[test]
fn thoughts_are_read_in_every_form() {
    let detail = |text: &str| {
        format!(r#"{{"reasoning_details":[{{"type":"reasoning.text","text":"{text}"}}]}}"#)
    };
    let both = |text: &str| {
        format!(
            r#"{{"reasoning":"{text}","reasoning_details":[{{"type":"reasoning.summary","summary":"{text}"}}]}}"#
        )
    };
    let part = |text: &str| {
        format!(
            r#"{{"content":[{{"type":"thinking","thinking":[{{"type":"text","text":"{text}"}}]}}]}}"#
        )
    };
    for deltas in [
        [detail("one "), detail("two")],
        // All of it so far.
        [detail("one "), detail("one two")],
        [both("one "), both("two")],
        [part("one "), part("two")],
    ] {
        let chunks = deltas.each_ref().map(|delta| chunk(delta, "null"));
        let seen = observed(&data(&chunks.each_ref().map(String::as_str)));
        assert_eq!(seen.thoughts, [thought(ThoughtSource::Reasoning, "one two")], "{deltas:?}");
    }
    for message in [detail("one"), both("one"), part("one")] {
        let mut observer = Observer::body(Dialect::ChatCompletions);
        observer.observe(format!(r#"{{"choices":[{{"message":{message}}}]}}"#).as_bytes());
        observer.finish();
        assert_eq!(observer.take().thoughts, [thought(ThoughtSource::Reasoning, "one")]);
    }
}

#[test]
fn a_refusal_in_words_or_by_a_filter_is_observed() {
    let stream =
        data(&[&chunk(r#"{"refusal":"I "}"#, "null"), &chunk(r#"{"refusal":"cannot"}"#, "null")]);
    let refusal = observed(&stream).refusal.unwrap();
    assert_eq!(refusal.category.as_deref(), Some("refusal"));
    assert_eq!(refusal.explanation.as_deref(), Some("I cannot"));
    for (choice, category) in [
        (r#"{"finish_reason":"content_filter"}"#, "content_filter"),
        (
            r#"{"finish_reason":"content_filter","content_filter_results":{"hate":{"filtered":true},"violence":{"filtered":false}}}"#,
            "hate",
        ),
    ] {
        let body = format!(r#"{{"choices":[{choice}]}}"#);
        let mut observer = Observer::body(Dialect::ChatCompletions);
        observer.observe(body.as_bytes());
        observer.finish();
        let whole = observer.take().refusal;
        assert_eq!(observed(&data(&[&body])).refusal, whole);
        assert_eq!(whole.unwrap().category.as_deref(), Some(category));
    }
    let error = r#"{"error":{"code":"content_filter","message":"no","innererror":{"content_filter_result":{"jailbreak":{"filtered":true}}}}}"#;
    let refusal = observed(&data(&[error])).refusal.unwrap();
    assert_eq!(refusal.category.as_deref(), Some("jailbreak"));
}

#[test]
fn a_stream_is_complete_when_every_choice_has_finished() {
    let finish = |choice: u8, reason: &str| {
        format!(
            r#"{{"id":"c","choices":[{{"index":{choice},"delta":{{}},"finish_reason":{reason}}}]}}"#
        )
    };
    let (open, empty) = (|choice| finish(choice, "null"), |choice| finish(choice, r#""""#));
    let stop = |choice| finish(choice, r#""stop""#);
    for (chunks, is_complete) in [
        (vec![open(0), stop(0)], true),
        (vec![open(0), empty(0)], false),
        (vec![open(0), open(1), stop(1)], false),
        (vec![open(0), open(1), stop(1), stop(0)], true),
        (vec![stop(0), open(0)], true),
        (vec![stop(200), open(0)], false),
        (vec![stop(0), "{\"id\":\"c".to_owned()], false),
        (vec![], false),
    ] {
        let texts: Vec<&str> = chunks.iter().map(String::as_str).collect();
        let mut observer = Observer::stream(Dialect::ChatCompletions);
        observer.observe(data(&texts).as_bytes());
        assert!(!observer.is_terminal(), "more may follow");
        observer.finish();
        assert_eq!(observer.is_terminal(), is_complete, "{chunks:?}");
    }
}
