use super::{
    Observation, Observer, ThoughtSource, ToolCall, call, error, observed as observed_in, own_call,
    result, sse, thought, usage, without_raw,
};
use crate::Dialect;

fn observed(stream: &str) -> Observation {
    observed_in(Dialect::Messages, stream)
}

/// Events named after the type in their data.
fn events(events: &[&str]) -> String {
    let named = events.iter().map(|data| {
        let (_, rest) = data.split_once("\"type\":").unwrap();
        let name = rest.trim_start().trim_start_matches('"').split('"').next().unwrap();
        (name, *data)
    });
    sse(named)
}

pub(super) fn rich_stream() -> String {
    events(&[
        r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x-1","content":[],"stop_reason":null,"usage":{"input_tokens":20,"cache_creation_input_tokens":300,"cache_read_input_tokens":4000,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200},"output_tokens":2,"service_tier":"standard"}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
        r#"{"type": "ping"}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me \"see\""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":", caf\u00e9."}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"ZW5j"}}"#,
        r#"{"type":"content_block_stop","index":1}"#,
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"text","text":""}  }"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"Hi é\n"}      }"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"\ud83d\ude00"}}"#,
        r#"{"type":"content_block_stop","index":2}"#,
        r#"{"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_1","name":"read","input":{}}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":""}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{\"path\": \"a"}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":".txt\"}"}}"#,
        r#"{"type":"content_block_stop","index":3}"#,
        r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"toolu_2","name":"now","input":{}}}"#,
        r#"{"type":"content_block_stop","index":4}"#,
        r#"{"type":"content_block_start","index":5,"content_block":{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{}}}"#,
        r#"{"type":"content_block_delta","index":5,"delta":{"type":"input_json_delta","partial_json":"{\"query\":\"x\"}"}}"#,
        r#"{"type":"content_block_stop","index":5}"#,
        r#"{"type":"content_block_start","index":6,"content_block":{"type":"web_search_tool_result","tool_use_id":"srvtoolu_1","content":[]}}"#,
        r#"{"type":"content_block_stop","index":6}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":21,"output_tokens":55,"cache_read_input_tokens":4000,"server_tool_use":{"web_search_requests":1}}}"#,
        r#"{"type":"message_stop"}"#,
    ])
}

#[test]
fn a_stream_is_observed() {
    let mut observer = Observer::stream(Dialect::Messages);
    observer.observe(rich_stream().as_bytes());
    assert!(observer.is_terminal());
    assert_eq!(observer.next_sequence_number(), 0);
    let thinking = "Let me \"see\", café.";
    let text = "Hi é\n😀";
    let arguments = "{\"path\": \"a.txt\"}{\"query\":\"x\"}";
    assert_eq!(
        without_raw(observer.take()),
        Observation {
            response_id: Some("msg_1".into()),
            model: Some("claude-x-1".into()),
            service_tier: Some("standard".into()),
            stop_reason: Some("tool_use".into()),
            usage: Some(usage(
                [21, 55, 4000, 300],
                [
                    ("ephemeral_5m_input_tokens", 100),
                    ("ephemeral_1h_input_tokens", 200),
                    ("web_search_requests", 1),
                ]
            )),
            usage_is_final: true,
            relayed_text_bytes: crate::count(thinking.len() + text.len() + arguments.len()),
            tool_calls: vec![
                call("toolu_1", "read", "{\"path\": \"a.txt\"}"),
                call("toolu_2", "now", "{}"),
                ToolCall {
                    result: Some(result(0, false, None)),
                    ..own_call("srvtoolu_1", "web_search", "{\"query\":\"x\"}")
                },
            ],
            thoughts: vec![thought(ThoughtSource::Thinking, thinking)],
            redacted_thoughts: 1,
            ..Observation::default()
        }
    );
}

#[test]
fn usage_holds_the_latest_value_of_each_count() {
    let start = |figures: &str| {
        format!("{{\"type\":\"message_start\",\"message\":{{\"usage\":{{{figures}}}}}}}")
    };
    let delta = |figures: &str| {
        format!("{{\"type\":\"message_delta\",\"delta\":{{}},\"usage\":{{{figures}}}}}")
    };
    for (column, first, later, expected) in [
        ("input", "\"input_tokens\":5", "", usage([Some(5), None, None, None], [])),
        (
            "input",
            "\"input_tokens\":5",
            "\"input_tokens\":7",
            usage([Some(7), None, None, None], []),
        ),
        (
            "output",
            "\"output_tokens\":1",
            "\"output_tokens\":90",
            usage([None, Some(90), None, None], []),
        ),
        (
            "cache_read",
            "\"cache_read_input_tokens\":8",
            "\"cache_read_input_tokens\":null",
            usage([None, None, Some(8), None], []),
        ),
        (
            "cache_write",
            "\"cache_creation_input_tokens\":2",
            "\"cache_creation_input_tokens\":3",
            usage([None, None, None, Some(3)], []),
        ),
        (
            "extra",
            "\"cache_creation\":{\"ephemeral_5m_input_tokens\":1,\"ephemeral_1h_input_tokens\":2}",
            "\"server_tool_use\":{\"web_search_requests\":3,\"web_fetch_requests\":4}",
            usage(
                [None, None, None, Some(3)],
                [
                    ("ephemeral_5m_input_tokens", 1),
                    ("ephemeral_1h_input_tokens", 2),
                    ("web_search_requests", 3),
                    ("web_fetch_requests", 4),
                ],
            ),
        ),
    ] {
        let seen = observed(&events(&[&start(first), &delta(later)]));
        assert_eq!(seen.usage, Some(expected), "{column}");
        assert!(seen.usage_is_final);
    }
}

#[test]
fn the_first_usage_is_not_final() {
    let seen = observed(&events(&[
        r#"{"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}"#,
    ]));
    assert_eq!(seen.usage, Some(usage([Some(5), Some(1), None, None], [])));
    assert!(!seen.usage_is_final);
}

#[test]
fn a_delta_in_an_unusual_form_is_still_read() {
    for delta in [
        r#"{"index":0,"type":"content_block_delta","delta":{"text":"héllo","type":"text_delta"}}"#,
        r#"{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "héllo"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"h\u00e9llo"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"héllo"},"x":1}"#,
        r#"{"delta":{"text":"héllo"},"index":0}"#,
    ] {
        let stream = sse([("content_block_delta", delta)]);
        let expected = Observation { relayed_text_bytes: 6, ..Observation::default() };
        assert_eq!(observed(&stream), expected, "{delta}");
    }
    // Without a name, the type is in the data.
    let stream = rich_stream();
    let lines = stream.lines().filter(|line| !line.starts_with("event:"));
    let unnamed: String = lines.map(|line| format!("{line}\n")).collect();
    assert_eq!(observed(&unnamed), observed(&stream));
}

#[test]
fn interleaved_blocks_are_kept_apart() {
    let start = |index: u8| {
        format!(
            r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":"tool_use","id":"t{index}","name":"n"}}}}"#
        )
    };
    let delta = |index: u8, json: &str| {
        format!(
            r#"{{"type":"content_block_delta","index":{index},"delta":{{"partial_json":"{json}"}}}}"#
        )
    };
    let all = [start(0), start(1), delta(1, "[1"), delta(0, "[0"), delta(1, "]"), delta(0, "]")];
    let seen = observed(&events(&all.each_ref().map(String::as_str)));
    assert_eq!(seen.tool_calls, [call("t0", "n", "[0]"), call("t1", "n", "[1]")]);
}

#[test]
fn a_truncated_call_is_recorded_with_its_arguments_so_far() {
    let stream = events(&[
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t0","name":"n","input":{}}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}"#,
    ]);
    let mut observer = Observer::stream(Dialect::Messages);
    observer.observe(stream.as_bytes());
    assert!(!observer.is_terminal());
    assert_eq!(observer.take().tool_calls, [call("t0", "n", "{\"a\":")]);
    let (start, _) = stream.split_once("\n\n").unwrap();
    assert_eq!(observed(&format!("{start}\n\n")).tool_calls, [call("t0", "n", "")]);
}

#[test]
fn arguments_may_arrive_with_the_start_event() {
    let stream = events(&[
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"mcp_tool_use","id":"t0","name":"n","input":{"a": 1}}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
    ]);
    assert_eq!(observed(&stream).tool_calls, [own_call("t0", "n", "{\"a\": 1}")]);
}

#[test]
fn an_error_ends_the_stream() {
    for data in [
        r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
        r#"{"error":{"type":"overloaded_error","message":"Overloaded"},"type":"error"}"#,
    ] {
        let mut observer = Observer::stream(Dialect::Messages);
        observer.observe(sse([("error", data)]).as_bytes());
        assert!(observer.is_terminal());
        assert_eq!(observer.take().error, Some(error("overloaded_error", "Overloaded")));
    }
}

#[test]
fn the_result_of_a_tool_that_the_provider_ran_is_put_on_its_call() {
    for (block, expected) in [
        (
            r#"{"type":"mcp_tool_result","tool_use_id":"s","is_error":true,"content":[{"type":"text","text":"denied"}]}"#,
            result(6, true, Some("denied")),
        ),
        (
            r#"{"type":"web_search_tool_result","tool_use_id":"s","content":{"type":"web_search_tool_result_error","error_code":"max_uses_exceeded"}}"#,
            result(72, true, Some("max_uses_exceeded")),
        ),
        (
            r#"{"type":"bash_code_execution_tool_result","tool_use_id":"s","content":{"type":"bash_code_execution_result","return_code":2}}"#,
            result(53, true, None),
        ),
    ] {
        let start =
            r#"{"type":"server_tool_use","id":"s","name":"t","input":{},"server_name":"wiki"}"#;
        let expected = ToolCall {
            server_name: Some("wiki".into()),
            result: Some(expected),
            ..own_call("s", "t", "{}")
        };
        let body = format!(r#"{{"type":"message","content":[{start},{block}]}}"#);
        let mut observer = Observer::body(Dialect::Messages);
        observer.observe(body.as_bytes());
        observer.finish();
        let whole = observer.take().tool_calls;
        let started = |index: u64, block: &str| {
            format!(r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#)
        };
        let stop = r#"{"type":"content_block_stop","index":0}"#;
        let stream = events(&[&started(0, start), stop, &started(1, block)]);
        assert_eq!(whole, [expected], "{block}");
        assert_eq!(observed(&stream).tool_calls, whole, "{block}");
    }
}

#[test]
fn a_refusal_is_observed_without_the_credit_token_of_its_details() {
    let details = r#""stop_reason":"refusal","stop_details":{"type":"refusal","category":"bio","explanation":"no","fallback_credit_token":"fct_1"},"container":{"id":"box"}"#;
    let stream = events(&[&format!(r#"{{"type":"message_delta","delta":{{{details}}}}}"#)]);
    let mut observer = Observer::body(Dialect::Messages);
    observer.observe(format!(r#"{{"type":"message",{details}}}"#).as_bytes());
    observer.finish();
    for seen in [observed(&stream), observer.take()] {
        let refusal = seen.refusal.unwrap();
        assert_eq!(refusal.category.as_deref(), Some("bio"));
        assert_eq!(refusal.explanation.as_deref(), Some("no"));
        assert_eq!(seen.container_id.as_deref(), Some("box"));
    }
}
