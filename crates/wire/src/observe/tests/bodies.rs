use serde_json::json;

use super::{
    Observation, Observer, ThoughtSource, call, error, own_call, thought, usage, without_raw,
};
use crate::{
    Dialect,
    observe::{Source, body::Body},
};

fn observed(mut observer: Observer, body: &serde_json::Value) -> Observation {
    for chunk in body.to_string().as_bytes().chunks(7) {
        observer.observe(chunk);
    }
    assert!(!observer.is_terminal());
    observer.finish();
    assert!(observer.is_terminal());
    observer.finish();
    without_raw(observer.take())
}

fn message() -> serde_json::Value {
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x-1",
        "content": [
            {"type": "thinking", "thinking": "So.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZW5j"},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}},
            {"type": "mcp_tool_use", "id": "mcp_1", "name": "find", "input": {"q": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3,
            "cache_creation_input_tokens": 4},
    })
}

fn completion() -> serde_json::Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-x-1",
        "choices": [
            {"index": 0, "finish_reason": "tool_calls", "message": {
                "role": "assistant", "content": null, "reasoning_content": "So.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "free"}}]}},
            {"index": 1, "finish_reason": "function_call", "message": {
                "function_call": {"name": "old", "arguments": "{"}}},
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 3}},
    })
}

fn response() -> serde_json::Value {
    json!({
        "id": "resp_1", "object": "response", "status": "completed", "model": "gpt-x-1",
        "error": null,
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So."}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "message", "phase": "final_answer", "content": [{"text": "Hi"}]},
        ],
        "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
    })
}

fn of_message() -> Observation {
    Observation {
        response_id: Some("msg_1".into()),
        model: Some("claude-x-1".into()),
        stop_reason: Some("tool_use".into()),
        usage: Some(usage([1, 2, 3, 4], [])),
        usage_is_final: true,
        tool_calls: vec![call("toolu_1", "now", "{}"), own_call("mcp_1", "find", r#"{"q":1}"#)],
        thoughts: vec![thought(ThoughtSource::Thinking, "So.")],
        redacted_thoughts: 1,
        is_json: true,
        ..Observation::default()
    }
}

fn of_completion() -> Observation {
    Observation {
        response_id: Some("chatcmpl-1".into()),
        model: Some("gpt-x-1".into()),
        stop_reason: Some("function_call".into()),
        usage: Some(usage([2, 2, 3, 0], [])),
        usage_is_final: true,
        tool_calls: vec![call("c1", "f", "{}"), call("c2", "g", "free"), call("", "old", "{")],
        thoughts: vec![thought(ThoughtSource::Reasoning, "So.")],
        is_json: true,
        ..Observation::default()
    }
}

fn of_response() -> Observation {
    Observation {
        response_id: Some("resp_1".into()),
        model: Some("gpt-x-1".into()),
        stop_reason: Some("completed".into()),
        status: Some("completed".into()),
        usage: Some(usage([5, 2, 0, 0], [("total_tokens", 7)])),
        usage_is_final: true,
        tool_calls: vec![call("c1", "f", "{}")],
        thoughts: vec![thought(ThoughtSource::ReasoningSummary, "So.")],
        is_json: true,
        ..Observation::default()
    }
}

#[test]
fn a_complete_body_yields_what_its_stream_would() {
    for (dialect, body, expected) in [
        (Dialect::Messages, message(), of_message()),
        (Dialect::ChatCompletions, completion(), of_completion()),
        (Dialect::Responses, response(), of_response()),
    ] {
        assert_eq!(observed(Observer::body(dialect), &body), expected, "{dialect}");
        let guessed = observed(Observer::any_body(), &body);
        // A body of any kind may be that of a stored object.
        assert_eq!(guessed.object.id, expected.response_id, "guessed: {dialect}");
        let expected = Observation { object: guessed.object.clone(), ..expected };
        assert_eq!(guessed, expected, "guessed: {dialect}");
    }
}

#[test]
fn the_dialect_of_a_body_without_usage_is_not_guessed() {
    for body in [
        json!({"input_tokens": 12}),
        json!({"object": "list", "data": [{"id": "gpt-x-1"}], "usage": null}),
        json!({"type": "error", "error": {"type": "not_found_error", "message": "no"}}),
        json!([1]),
    ] {
        let expected = Observation { is_json: true, ..Observation::default() };
        assert_eq!(observed(Observer::any_body(), &body), expected, "{body}");
    }
}

#[test]
fn a_compaction_is_recorded_with_its_tokens() {
    let body = json!({"id": "resp_9", "object": "response.compaction", "output": [],
        "usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 2},
            "output_tokens": 3}});
    assert_eq!(observed(Observer::any_body(), &body).usage, Some(usage([5, 3, 2, 0], [])));
}

#[test]
fn an_error_body_is_read_in_every_dialect() {
    for (dialect, body, expected) in [
        (
            Dialect::Messages,
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}),
            error("rate_limit_error", "slow"),
        ),
        (
            Dialect::ChatCompletions,
            json!({"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}),
            error("requests", "slow"),
        ),
        (
            Dialect::Responses,
            json!({"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}),
            error("rate_limit_exceeded", "slow"),
        ),
    ] {
        assert_eq!(observed(Observer::body(dialect), &body).error, Some(expected), "{dialect}");
    }
}

#[test]
fn a_background_response_is_pending() {
    let body = json!({"id": "resp_2", "status": "queued", "usage": null, "output": []});
    let seen = observed(Observer::body(Dialect::Responses), &body);
    assert_eq!(seen.status.as_deref(), Some("queued"));
    assert_eq!((seen.stop_reason, seen.usage), (None, None));
}

#[test]
fn a_body_that_is_not_json_is_not_complete() {
    for body in ["", "<html>", "{\"id\":\"msg_1\",\"usage\":{\"input_tok"] {
        let mut observer = Observer::body(Dialect::Messages);
        observer.observe(body.as_bytes());
        observer.finish();
        assert!(!observer.is_terminal(), "{body}");
        assert_eq!(observer.take(), Observation::default());
    }
}

#[test]
fn the_beginning_of_a_plain_text_is_kept() {
    let mut observer = Observer::body(Dialect::Messages);
    observer.observe(format!(" upstream overloaded {}", "!".repeat(2000)).as_bytes());
    observer.finish();
    let text = observer.take().plain_text.unwrap();
    assert!(text.starts_with("upstream overloaded") && text.len() < 1024, "{text}");
}

#[test]
fn an_oversized_body_is_read_without_its_long_strings() {
    for (dialect, mut body, expected) in [
        (Dialect::Messages, message(), of_message()),
        (Dialect::ChatCompletions, completion(), of_completion()),
        (Dialect::Responses, response(), of_response()),
    ] {
        body["image"] = "A".repeat(300_000).into();
        let limited = Observer::new(Source::Body(Body::new(Some(dialect), 10)));
        assert_eq!(observed(limited, &body), expected, "{dialect}");
    }
}

#[test]
fn a_body_that_is_too_large_even_so_passes_unread() {
    let mut observer = Observer::new(Source::Body(Body::new(Some(Dialect::Messages), 10)));
    (0..17).for_each(|_| observer.observe(&vec![b'['; 1 << 20]));
    observer.finish();
    assert!(observer.is_terminal());
    assert_eq!(observer.take(), Observation { skipped_events: 1, ..Observation::default() });
}

#[test]
fn what_other_apis_bill_is_read_without_making_tokens_of_it() {
    let rows = [
        (
            r#"{"id":"r1","results":[],"meta":{"billed_units":{"search_units":2}}}"#,
            (None, None),
            Some(("search_units", 2)),
        ),
        (
            r#"{"embeddings":{},"meta":{"billed_units":{"input_tokens":7,"images":1}}}"#,
            (Some(7), None),
            Some(("images", 1)),
        ),
        (
            r#"{"message":{},"usage":{"billed_units":{"input_tokens":3,"output_tokens":4},"tokens":{"input_tokens":90}}}"#,
            (Some(3), Some(4)),
            None,
        ),
        (r#"{"data":[{"url":"u"},{"b64_json":"A"}]}"#, (None, None), Some(("images", 2))),
        (r#"{"text":"x","duration":"9"}"#, (None, None), Some(("seconds", 9))),
        (
            r#"{"data":[{"embedding":[1]}],"usage":{"prompt_tokens":5,"total_tokens":5}}"#,
            (Some(5), Some(0)),
            Some(("total_tokens", 5)),
        ),
    ];
    for (answer, tokens, extra) in rows {
        let mut observer = Observer::any_body();
        observer.observe(answer.as_bytes());
        observer.finish();
        let usage = observer.take().usage.unwrap_or_else(|| panic!("{answer}"));
        assert_eq!((usage.input_tokens, usage.output_tokens), tokens, "{answer}");
        if let Some((name, figure)) = extra {
            assert_eq!(
                usage.extra.get(name).and_then(|one| one.as_u64()),
                Some(figure),
                "{answer}"
            );
        }
    }
    for answer in
        [r#"{"data":[{"id":"file_1"}]}"#, r#"{"text":"x"}"#, r#"{"duration":9}"#, "[]", "1"]
    {
        let mut observer = Observer::any_body();
        observer.observe(answer.as_bytes());
        observer.finish();
        assert_eq!(observer.take().usage, None, "{answer}");
    }
}

#[test]
fn a_body_that_is_no_json_is_not_held() {
    let mut observer = Observer::unread_body();
    observer.observe(br#"{"usage":{"prompt_tokens":5}}"#);
    observer.finish();
    assert!(observer.is_terminal());
    assert_eq!(observer.take(), Observation::default());
}
