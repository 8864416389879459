use super::{
    Approval, CallResult, Observation, Observer, ThoughtSource, ToolCall, call, error,
    observed as observed_in, own_call, result, sse, thought, usage, without_raw,
};
use crate::{Dialect, sse::Framer};

fn observed(stream: &str) -> Observation {
    observed_in(Dialect::Responses, stream)
}

/// Events named after the type, the first member of their data.
fn events(events: &[&str]) -> String {
    sse(events.iter().map(|data| (data.split('"').nth(3).unwrap(), *data)))
}

const COMPLETED: &str = r#"{"type":"response.completed","sequence_number":40,"response":{"id":"resp_1","object":"response","status":"completed","error":null,"incomplete_details":null,"model":"gpt-x-1","output":[{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"**Plan**"},{"type":"summary_text","text":"Read it."}]},{"id":"msg_1","type":"message","role":"assistant","phase":"commentary","content":[{"type":"output_text","text":"Reading é."}]},{"id":"fc_1","type":"function_call","call_id":"call_1","name":"read","arguments":"{\"path\":1}"},{"id":"ct_1","type":"custom_tool_call","call_id":"call_2","name":"exec","input":"ls -l"},{"id":"ws_1","type":"web_search_call","status":"completed","action":{"type":"search","query":"x"}},{"id":"msg_2","type":"message","role":"assistant","content":[{"type":"output_text","text":"Done \"it\"."}]}],"usage":{"input_tokens":90,"input_tokens_details":{"cached_tokens":64},"output_tokens":33,"output_tokens_details":{"reasoning_tokens":20},"total_tokens":123}}}"#;

pub(super) fn rich_stream() -> String {
    events(&[
        r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","model":"gpt-x-1","output":[],"usage":null}}"#,
        r#"{"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_1","status":"in_progress"}}"#,
        r#"{"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[]}}"#,
        r#"{"type":"response.reasoning_summary_text.delta","sequence_number":3,"item_id":"rs_1","output_index":0,"summary_index":0,"delta":"**Plan**"}"#,
        r#"{"type":"response.output_item.done","sequence_number":4,"output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"**Plan**"},{"type":"summary_text","text":"Read it."}]}}"#,
        r#"{"type":"response.output_item.added","sequence_number":5,"output_index":1,"item":{"id":"msg_1","type":"message","role":"assistant","phase":"commentary","content":[]}}"#,
        r#"{"type":"response.output_text.delta","sequence_number":6,"item_id":"msg_1","output_index":1,"content_index":0,"delta":"Reading é."}"#,
        r#"{"type":"response.output_item.done","sequence_number":7,"output_index":1,"item":{"id":"msg_1","type":"message","role":"assistant","phase":"commentary","content":[{"type":"output_text","text":"Reading é."}]}}"#,
        r#"{"type":"response.output_item.added","sequence_number":8,"output_index":2,"item":{"id":"fc_1","type":"function_call","status":"in_progress","arguments":"","call_id":"call_1","name":"read"}}"#,
        r#"{"type":"response.function_call_arguments.delta","sequence_number":9,"item_id":"fc_1","output_index":2,"delta":"{\"path\""}"#,
        r#"{"type":"response.function_call_arguments.delta","sequence_number":10,"item_id":"fc_1","output_index":2,"delta":":1}"}"#,
        r#"{"type":"response.function_call_arguments.done","sequence_number":11,"item_id":"fc_1","output_index":2,"arguments":"{\"path\":1}"}"#,
        r#"{"type":"response.output_item.done","sequence_number":12,"output_index":2,"item":{"id":"fc_1","type":"function_call","status":"completed","arguments":"{\"path\":1}","call_id":"call_1","name":"read"}}"#,
        r#"{"type":"response.output_item.done","sequence_number":13,"output_index":3,"item":{"id":"ct_1","type":"custom_tool_call","call_id":"call_2","name":"exec","input":"ls -l"}}"#,
        r#"{"type":"response.output_item.done","sequence_number":14,"output_index":4,"item":{"id":"ws_1","type":"web_search_call","status":"completed","action":{"type":"search","query":"x"}}}"#,
        r#"{"type":"response.output_text.delta","item_id":"msg_2","output_index":5,"content_index":0,"delta":"Done \"it\".","logprobs":[],"sequence_number":30,"obfuscation":"abc"}"#,
        COMPLETED,
    ])
}

fn everything(relayed_text_bytes: u64) -> Observation {
    Observation {
        response_id: Some("resp_1".into()),
        model: Some("gpt-x-1".into()),
        stop_reason: Some("completed".into()),
        status: Some("completed".into()),
        usage: Some(usage([26, 33, 64, 0], [("output_reasoning", 20), ("total_tokens", 123)])),
        usage_is_final: true,
        relayed_text_bytes,
        tool_calls: vec![
            call("call_1", "read", "{\"path\":1}"),
            call("call_2", "exec", "ls -l"),
            own_call("ws_1", "web_search_call", r#"{"type":"search","query":"x"}"#),
        ],
        thoughts: vec![
            thought(ThoughtSource::ReasoningSummary, "**Plan**"),
            thought(ThoughtSource::ReasoningSummary, "Read it."),
            thought(ThoughtSource::Commentary, "Reading é."),
        ],
        ..Observation::default()
    }
}

#[test]
fn a_stream_is_observed() {
    let mut observer = Observer::stream(Dialect::Responses);
    observer.observe(rich_stream().as_bytes());
    assert!(observer.is_terminal());
    assert_eq!(observer.next_sequence_number(), 41);
    let text = "**Plan**Reading é.{\"path\":1}Done \"it\".";
    assert_eq!(without_raw(observer.take()), everything(crate::count(text.len())));
}

#[test]
fn the_terminal_event_completes_what_the_stream_omitted() {
    assert_eq!(observed(&events(&[COMPLETED])), everything(0));
    // Each event but the last is omitted in turn: nothing is lost, nothing is duplicated.
    let stream = rich_stream();
    let all: Vec<_> = stream.split_inclusive("\n\n").collect();
    for missing in 0..all.len() - 1 {
        let rest = all.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, event)| *event);
        let mut seen = observed(&rest.collect::<String>());
        seen.relayed_text_bytes = 0;
        let mut expected = everything(0);
        seen.tool_calls.sort_by(|one, other| one.id.cmp(&other.id));
        seen.thoughts.sort_by(|one, other| one.content.cmp(&other.content));
        expected.tool_calls.sort_by(|one, other| one.id.cmp(&other.id));
        expected.thoughts.sort_by(|one, other| one.content.cmp(&other.content));
        assert_eq!(seen, expected, "without {}", all[missing]);
    }
}

#[test]
fn items_without_an_index_are_identified_by_their_id() {
    let stream = rich_stream();
    let unnumbered: String = (0..9)
        .fold(stream, |stream, index| stream.replace(&format!("\"output_index\":{index},"), ""));
    let mut seen = observed(&unnumbered);
    seen.relayed_text_bytes = 0;
    assert_eq!(seen, everything(0));
}

#[test]
fn a_text_delta_in_an_unusual_form_is_still_read() {
    for (delta, next) in [
        (r#"{"type":"response.output_text.delta","delta":"héllo","sequence_number":7}"#, 8),
        (r#"{"type":"response.output_text.delta","sequence_number":7,"delta":"héllo"}"#, 8),
        (r#"{"delta":"héllo","type":"response.output_text.delta","sequence_number":7}"#, 8),
        (
            r#"{"type": "response.output_text.delta", "delta": "h\u00e9llo", "sequence_number": 7}"#,
            8,
        ),
        (
            r#"{"type":"response.output_text.delta","delta":"héllo","logprobs":[{"token":"\"sequence_number\":99"}]}"#,
            0,
        ),
        (r#"{"type":"response.output_text.delta","delta":"héllo"}"#, 0),
        (r#"{"type":"response.refusal.delta","delta":"héllo","sequence_number":0}"#, 1),
        (r#"{"delta":"héllo"}"#, 0),
    ] {
        let mut observer = Observer::stream(Dialect::Responses);
        observer.observe(sse([("response.output_text.delta", delta)]).as_bytes());
        assert_eq!(observer.next_sequence_number(), next, "{delta}");
        let expected = Observation { relayed_text_bytes: 6, ..Observation::default() };
        assert_eq!(observer.take(), expected, "{delta}");
    }
}

#[test]
fn a_truncated_stream_is_recorded_as_far_as_it_arrived() {
    let item = |index: u8, item: &str| {
        format!(r#"{{"type":"response.output_item.added","output_index":{index},"item":{item}}}"#)
    };
    let delta = |kind: &str, index: u8, text: &str| {
        format!(r#"{{"type":"response.{kind}.delta","output_index":{index},"delta":"{text}"}}"#)
    };
    let all = [
        item(0, r#"{"type":"reasoning","summary":[]}"#),
        delta("reasoning_summary_text", 0, "Pl"),
        delta("reasoning_summary_text", 0, "an"),
        item(1, r#"{"type":"message","phase":"commentary","content":[]}"#),
        delta("output_text", 1, "Rea"),
        delta("output_text", 1, "ding"),
        item(2, r#"{"type":"function_call","call_id":"c","name":"f","arguments":""}"#),
        delta("function_call_arguments", 2, "{"),
        item(3, r#"{"type":"custom_tool_call","call_id":"d","name":"g","input":""}"#),
        delta("custom_tool_call_input", 3, "l"),
        delta("custom_tool_call_input", 3, "s"),
    ];
    let mut observer = Observer::stream(Dialect::Responses);
    observer.observe(events(&all.each_ref().map(String::as_str)).as_bytes());
    assert!(!observer.is_terminal());
    let seen = observer.take();
    assert_eq!(seen.tool_calls, [call("c", "f", "{"), call("d", "g", "ls")]);
    assert_eq!(
        seen.thoughts,
        [
            thought(ThoughtSource::ReasoningSummary, "Plan"),
            thought(ThoughtSource::Commentary, "Reading"),
        ]
    );
    assert_eq!(seen.usage, None);
}

#[test]
fn tools_that_the_provider_runs_are_marked_and_have_their_results() {
    let server = |call: ToolCall| ToolCall { server_name: Some("s".into()), ..call };
    let with = |result: CallResult, call: ToolCall| ToolCall { result: Some(result), ..call };
    let cases = [
        (
            r#"{"type":"local_shell_call","id":"l","call_id":"c","action":{"command":["ls"]}}"#,
            call("c", "local_shell_call", r#"{"command":["ls"]}"#),
        ),
        (
            r#"{"type":"computer_call","call_id":"c","actions":[{"type":"click"}],"action":null}"#,
            call("c", "computer_call", r#"[{"type":"click"}]"#),
        ),
        (
            r#"{"type":"shell_call","call_id":"c","action":{},"environment":{"type":"container_reference","container_id":"x"}}"#,
            ToolCall { container_id: Some("x".into()), ..own_call("c", "shell_call", "{}") },
        ),
        (
            r#"{"type":"tool_search_call","id":"t","call_id":null,"execution":"client","arguments":{"q":1}}"#,
            call("t", "tool_search_call", r#"{"q":1}"#),
        ),
        (
            r#"{"type":"file_search_call","id":"f","queries":["q"],"results":null}"#,
            own_call("f", "file_search_call", r#"["q"]"#),
        ),
        (
            r#"{"type":"code_interpreter_call","id":"i","code":"1+1","container_id":"x"}"#,
            ToolCall {
                container_id: Some("x".into()),
                ..own_call("i", "code_interpreter_call", "1+1")
            },
        ),
        (
            r#"{"type":"mcp_call","id":"m","name":"search","server_label":"s","arguments":"{\"q\":1}","output":"\u00e9!"}"#,
            with(result(3, false, None), server(own_call("m", "search", r#"{"q":1}"#))),
        ),
        (
            r#"{"type":"mcp_call","id":"m","name":"search","server_label":"s","arguments":"{}","approval_request_id":"r","error":{"type":"http_error","code":500,"message":"gone"}}"#,
            ToolCall {
                approval: Some(Approval::Approved),
                result: Some(CallResult {
                    bytes: None,
                    is_error: Some(true),
                    error: Some("gone".into()),
                }),
                ..server(own_call("m", "search", "{}"))
            },
        ),
        (
            r#"{"type":"mcp_approval_request","id":"r","name":"drop","server_label":"s","arguments":"{}"}"#,
            ToolCall { approval: Some(Approval::Requested), ..server(own_call("r", "drop", "{}")) },
        ),
        (
            r#"{"type":"image_generation_call","id":"g","result":"cGlj"}"#,
            with(result(4, false, None), own_call("g", "image_generation_call", "{}")),
        ),
    ];
    for (item, expected) in cases {
        let stream = events(&[&format!(
            r#"{{"type":"response.output_item.done","output_index":0,"item":{item}}}"#
        )]);
        assert_eq!(observed(&stream).tool_calls, [expected]);
    }
    let list = r#"{"type":"mcp_list_tools","id":"m","server_label":"s","tools":[],"error":null}"#;
    let item = format!(r#"{{"type":"response.output_item.done","item":{list}}}"#);
    assert_eq!(observed(&events(&[&item])).tool_calls, []);
}

#[test]
fn the_output_of_a_shell_at_the_provider_is_put_on_its_call() {
    let items = [
        r#"{"type":"shell_call","id":"s","call_id":"c","action":{},"environment":{"type":"container_auto"}}"#,
        r#"{"type":"shell_call_output","call_id":"c","output":[{"stdout":"","outcome":{"type":"exit","exit_code":1}}]}"#,
    ];
    let done = |(index, item): (usize, &&str)| {
        format!(r#"{{"type":"response.output_item.done","output_index":{index},"item":{item}}}"#)
    };
    let stream: Vec<String> = items.iter().enumerate().map(done).collect();
    let seen = observed(&events(&stream.iter().map(String::as_str).collect::<Vec<_>>()));
    let mut observer = Observer::body(Dialect::Responses);
    observer.observe(format!(r#"{{"output":[{}]}}"#, items.join(",")).as_bytes());
    observer.finish();
    for seen in [seen, observer.take()] {
        assert_eq!(seen.tool_calls[0].result, Some(result(53, true, None)));
    }
}

#[test]
fn readable_reasoning_is_a_thought_beside_its_summary() {
    let item = r#"{"type":"reasoning","id":"r","summary":[{"type":"summary_text","text":"short"}],"content":[{"type":"reasoning_text","text":"long"}]}"#;
    let added = r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"reasoning","summary":[]}}"#;
    let summary =
        r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"delta":"short"}"#;
    let text = |delta: &str| {
        format!(r#"{{"type":"response.reasoning_text.delta","output_index":0,"delta":"{delta}"}}"#)
    };
    let deltas = [added, summary, &text("lo"), &text("ng")];
    let done = |item: &str| {
        format!(r#"{{"type":"response.output_item.done","output_index":0,"item":{item}}}"#)
    };
    let expected = [
        thought(ThoughtSource::ReasoningSummary, "short"),
        thought(ThoughtSource::Reasoning, "long"),
    ];
    for end in [done(item), done(r#"{"type":"reasoning","id":"r","summary":[]}"#)] {
        let stream: Vec<_> = deltas.iter().copied().chain([end.as_str()]).collect();
        assert_eq!(observed(&events(&stream)).thoughts, expected, "{end}");
    }
    assert_eq!(observed(&events(&deltas)).thoughts, expected);
}

#[test]
fn a_refusal_in_words_or_by_a_filter_is_observed() {
    let whole = |body: &str| {
        let mut observer = Observer::body(Dialect::Responses);
        observer.observe(body.as_bytes());
        observer.finish();
        *observer.take().refusal.unwrap()
    };
    let words = whole(
        r#"{"output":[{"type":"message","content":[{"type":"refusal","refusal":"I cannot"}]}]}"#,
    );
    let stream = events(&[r#"{"type":"response.refusal.done","refusal":"I cannot"}"#]);
    assert_eq!(words, *observed(&stream).refusal.unwrap());
    assert_eq!(words.category.as_deref(), Some("refusal"));
    assert_eq!(words.explanation.as_deref(), Some("I cannot"));
    let filter = whole(
        r#"{"status":"incomplete","incomplete_details":{"reason":"content_filter"},"output":[]}"#,
    );
    assert_eq!(filter.category.as_deref(), Some("content_filter"));
}

#[test]
fn a_response_that_ends_early_says_why() {
    let end = |name: &str, response: &str| {
        let mut observer = Observer::stream(Dialect::Responses);
        let data = format!(r#"{{"type":"response.{name}","response":{response}}}"#);
        observer.observe(events(&[&data]).as_bytes());
        assert!(observer.is_terminal());
        without_raw(observer.take())
    };
    let incomplete = end(
        "incomplete",
        r#"{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"usage":{"output_tokens":5}}"#,
    );
    assert_eq!(incomplete.stop_reason.as_deref(), Some("max_output_tokens"));
    assert_eq!(incomplete.status.as_deref(), Some("incomplete"));
    assert_eq!(incomplete.usage, Some(usage([None, Some(5), None, None], [])));
    let failed = end(
        "failed",
        r#"{"status":"failed","error":{"code":"server_error","message":"boom"},"usage":null}"#,
    );
    assert_eq!(failed.error, Some(error("server_error", "boom")));
    assert_eq!(failed.stop_reason.as_deref(), Some("failed"));
    assert_eq!((failed.usage, failed.usage_is_final), (None, false));
}

#[test]
fn an_error_ends_the_stream() {
    for (data, kind) in [
        (
            r#"{"type":"error","code":"rate_limit_exceeded","message":"boom","param":null,"sequence_number":4}"#,
            "rate_limit_exceeded",
        ),
        (
            r#"{"type":"error","error":{"type":"server_error","code":null,"message":"boom"},"sequence_number":4}"#,
            "server_error",
        ),
        (r#"{"type":"error","code":null,"message":"boom","sequence_number":4}"#, "error"),
    ] {
        let mut observer = Observer::stream(Dialect::Responses);
        observer.observe(sse([("error", data)]).as_bytes());
        assert!(observer.is_terminal());
        assert_eq!(observer.next_sequence_number(), 5);
        assert_eq!(observer.take().error, Some(error(kind, "boom")));
    }
}

#[test]
fn a_response_too_long_to_read_is_known_to_be_complete() {
    let long = "x".repeat(500);
    let text = format!(r#"{{"type":"response.output_text.done","text":"{long}"}}"#);
    let last = format!(r#"{{"type":"response.completed","response":{{"x":"{long}"}}}}"#);
    for size in [1, 7, 5000] {
        let mut observer = Observer::framed(Dialect::Responses, Framer::with_limit(200));
        let feed = |observer: &mut Observer, stream: &str| {
            stream.as_bytes().chunks(size).for_each(|chunk| observer.observe(chunk));
        };
        feed(&mut observer, &events(&[&text]));
        assert!(!observer.is_terminal(), "only the last event ends the stream");
        feed(&mut observer, &events(&[&last]));
        assert!(observer.is_terminal());
        assert_eq!(observer.take(), Observation { skipped_events: 2, ..Observation::default() });
    }
}

#[test]
fn a_background_response_has_not_ended_yet() {
    let mut observer = Observer::stream(Dialect::Responses);
    let queued = r#"{"type":"response.queued","response":{"id":"resp_2","status":"queued"}}"#;
    observer.observe(events(&[queued]).as_bytes());
    assert!(!observer.is_terminal());
    let seen = observer.take();
    assert_eq!(seen.status.as_deref(), Some("queued"));
    assert_eq!(seen.stop_reason, None);
}

#[test]
fn a_long_call_is_buffered_once() {
    let long = "x".repeat(9 << 20);
    let all = [
        r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","call_id":"c","name":"f","arguments":""}}"#.to_owned(),
        format!(r#"{{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{long}"}}"#),
        format!(r#"{{"type":"response.function_call_arguments.done","output_index":0,"arguments":"{long}"}}"#),
        format!(r#"{{"type":"response.output_item.done","output_index":0,"item":{{"type":"function_call","call_id":"c","name":"f","arguments":"{long}"}}}}"#),
    ];
    let seen = observed(&events(&all.each_ref().map(String::as_str)));
    assert_eq!(seen.tool_calls.len(), 1);
    assert_eq!(seen.tool_calls[0].arguments.len(), long.len());
}
