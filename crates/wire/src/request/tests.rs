use proptest::prelude::*;
use serde_json::json;

use super::{
    Attachment, AttachmentContent, HostedServer, MAX_ATTACHMENTS, MAX_TOOL_RESULTS, MAX_VALUES,
    RequestError, RequestView, ToolResult, add_include_usage, read_content,
};
use crate::Dialect;

const DIALECTS: [Dialect; 3] = [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses];

fn read(dialect: Dialect, body: &serde_json::Value) -> RequestView {
    RequestView::read(dialect, body.to_string().as_bytes()).unwrap()
}

fn messages(messages: &serde_json::Value) -> RequestView {
    read(Dialect::Messages, &json!({"messages": messages}))
}

fn chat(messages: &serde_json::Value) -> RequestView {
    read(Dialect::ChatCompletions, &json!({"messages": messages}))
}

fn responses(input: &serde_json::Value) -> RequestView {
    read(Dialect::Responses, &json!({"input": input}))
}

/// Results without the places of their contents.
fn measured(results: Vec<ToolResult>) -> Vec<ToolResult> {
    results.into_iter().map(|result| ToolResult { content: None, ..result }).collect()
}

fn result(id: &str, bytes: u64, is_error: Option<bool>) -> ToolResult {
    ToolResult { tool_call_id: id.into(), bytes, is_error, approved: None, content: None }
}

#[test]
fn model_and_streaming_are_read_in_every_dialect() {
    for dialect in DIALECTS {
        let view = read(dialect, &json!({"stream": true, "model": "m-1"}));
        let empty =
            RequestView { is_stored: dialect == Dialect::Responses, ..RequestView::default() };
        let expected = RequestView { model: Some("m-1".into()), streaming: true, ..empty.clone() };
        assert_eq!(view, expected);
        let odd = json!({"stream": "yes", "model": 5, "messages": 3, "input": {}, "metadata": []});
        assert_eq!(read(dialect, &odd), empty);
    }
}

#[test]
fn a_body_that_is_not_an_object_is_rejected() {
    for dialect in DIALECTS {
        let error = |body: &[u8]| RequestView::read(dialect, body).unwrap_err();
        assert_eq!(error(b""), RequestError::Empty);
        assert_eq!(error(b" \r\n"), RequestError::Empty);
        assert_eq!(error(b"[1]"), RequestError::NotAnObject);
        assert_eq!(error(b"null"), RequestError::NotAnObject);
        assert!(matches!(error(b"{\"model\":"), RequestError::NotJson(_)));
        assert!(matches!(error(b"model=x"), RequestError::NotJson(_)));
        assert_eq!(
            error(b"{\"messages\":[\"\xff\"]}").to_string(),
            "the request body is not valid JSON: invalid UTF-8 at byte 14"
        );
        let deep = format!("{{\"messages\":{}", "[".repeat(200_000));
        assert_eq!(error(deep.as_bytes()), RequestError::TooDeep);
    }
}

#[test]
fn a_key_that_the_bridge_relies_on_may_occur_only_once() {
    for dialect in DIALECTS {
        for (key, escaped) in [
            ("model", "mod\\u0065l"),
            ("stream", "\\u0073tream"),
            ("messages", "message\\u0073"),
            ("input", "\\u0069nput"),
            ("tools", "t\\u006fols"),
        ] {
            for (first, second) in [(key, key), (escaped, key), (key, escaped), (escaped, escaped)]
            {
                let body = format!("{{\"{first}\":[],\"x\":0,\"x\":0,\"{second}\":null}}");
                assert_eq!(
                    RequestView::read(dialect, body.as_bytes()),
                    Err(RequestError::DuplicateKey(key.into())),
                    "{body}"
                );
            }
        }
        // Elsewhere, the provider decides.
        let elsewhere = br#"{"x":1,"x":2,"metadata":{"model":1,"model":2}}"#;
        assert!(RequestView::read(dialect, elsewhere).is_ok());
        let broken = br#"{"model":1,"model":2,"#;
        assert!(matches!(RequestView::read(dialect, broken), Err(RequestError::NotJson(_))));
    }
}

#[test]
fn an_escaped_key_counts_as_the_decoded_key() {
    let view = RequestView::read(Dialect::Messages, br#"{"mod\u0065l":"m\u002d1"}"#).unwrap();
    assert_eq!(view.model.unwrap(), "m-1");
}

#[test]
fn the_prompt_is_the_users_last_text() {
    for read in [messages, chat] {
        let user = |content: serde_json::Value| {
            read(&json!([{"role": "user", "content": "old"}, {"role": "user", "content": content}]))
        };
        let text = |text: &str| json!({"type": "text", "text": text});
        let reminder = text("<system-reminder>be nice</system-reminder>");
        let two =
            text(" <system-reminder>a</system-reminder>\n<system-reminder>b</system-reminder>");
        for (content, prompt) in [
            (json!("do it"), Some("do it")),
            (json!(" "), None),
            (json!([text("one"), text("two")]), Some("two")),
            (json!([text("one"), {"type": "image"}]), Some("one")),
            (json!([text("one"), reminder, two]), Some("one")),
            (json!([reminder, text("one")]), Some("one")),
            (json!([reminder]), Some("<system-reminder>be nice</system-reminder>")),
            (
                json!([text("<system-reminder>a</system-reminder> and b")]),
                Some("<system-reminder>a</system-reminder> and b"),
            ),
            (json!([{"type": "image"}]), None),
            (json!([]), None),
            (json!(null), None),
            (json!([1, {"type": "text", "text": 5}]), None),
        ] {
            assert_eq!(user(content.clone()).prompt.as_deref(), prompt, "{content}");
        }
    }
}

#[test]
fn instructions_are_not_the_last_message() {
    for read in [messages, chat] {
        let view = read(&json!([
            {"role": "user", "content": "do it"},
            {"role": "system", "content": "environment"},
            {"role": "developer", "content": [{"type": "text", "text": "more"}]},
        ]));
        assert_eq!(view.prompt.as_deref(), Some("do it"));
        let view = read(&json!([
            {"role": "user", "content": "do it"},
            {"role": "assistant", "content": "done"},
            {"role": "system", "content": "environment"},
        ]));
        assert_eq!(view.prompt, None);
    }
}

#[test]
fn messages_results_follow_the_last_assistant_turn() {
    let call = |id: &str| json!({"role": "assistant", "content": [{"type": "tool_use", "id": id}]});
    let view = messages(&json!([
        {"role": "user", "content": "go"},
        call("t0"),
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t0", "content": "old"}]},
        call("t1"),
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "caf\u{e9}\n"},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": true, "content": [
                {"type": "text", "text": "ab"}, {"type": "image"}]},
            {"type": "tool_result", "tool_use_id": "t3", "is_error": false},
            {"type": "tool_result", "content": "nobody's"},
            {"type": "text", "text": "<system-reminder>hint</system-reminder>"},
        ]},
        {"role": "system", "content": "environment"},
    ]));
    assert_eq!(view.correlating_tool_call_id.as_deref(), Some("t3"));
    let image = crate::count(r#"{"type":"image"}"#.len());
    assert_eq!(
        measured(view.tool_results),
        [result("t1", 6, None), result("t2", 2 + image, Some(true)), result("t3", 0, Some(false)),]
    );
    assert_eq!(view.prompt, None, "a reminder beside a result is not the user's");
}

#[test]
fn the_content_of_a_result_is_read_as_it_is_measured() {
    let image = json!({"type": "image", "data": "c\n"});
    let parts = json!([{"type": "text", "text": "a\nb"}, image, {"text": "d"}]);
    let of_parts = format!("a\nb{image}d");
    for (content, expected) in [
        (json!("caf\u{e9}\n\t\"\u{1f600}\" \\"), "caf\u{e9}\n\t\"\u{1f600}\" \\"),
        (parts, &*of_parts),
        (json!({"ok": true}), "{\"ok\":true}"),
        (json!(""), ""),
    ] {
        for (dialect, body) in [
            (
                Dialect::Messages,
                json!({"messages": [{"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": content}]}]}),
            ),
            (
                Dialect::ChatCompletions,
                json!({"messages": [{"role": "tool", "tool_call_id": "c", "content": content}]}),
            ),
            (
                Dialect::Responses,
                json!({"input": [
                    {"type": "function_call_output", "call_id": "c", "output": content}]}),
            ),
        ] {
            let body = body.to_string();
            let view = RequestView::read(dialect, body.as_bytes()).unwrap();
            let result = &view.tool_results[0];
            let mut text = Vec::new();
            let carried = &body.as_bytes()[result.content.clone().unwrap()];
            read_content(carried, |piece| text.extend_from_slice(piece));
            assert_eq!(String::from_utf8_lossy(&text), expected, "{dialect:?}");
            assert_eq!(crate::count(text.len()), result.bytes, "{dialect:?} {content}");
        }
    }
}

#[test]
fn text_beside_a_result_is_a_prompt() {
    let view = messages(&json!([{"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": ""},
        {"type": "text", "text": "stop"},
    ]}]));
    assert_eq!(view.prompt.as_deref(), Some("stop"));
    assert_eq!(view.correlating_tool_call_id.as_deref(), Some("t1"));
}

#[test]
fn chat_results_are_tool_messages() {
    let view = chat(&json!([
        {"role": "user", "content": "go"},
        {"role": "assistant", "tool_calls": []},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "\u{1f600}"}]},
    ]));
    assert_eq!(view.correlating_tool_call_id.as_deref(), Some("c2"));
    assert_eq!(measured(view.tool_results), [result("c1", 3, None), result("c2", 4, None)]);
    assert_eq!(view.prompt, None);

    let view = chat(&json!([
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "next"},
    ]));
    assert_eq!((view.correlating_tool_call_id, view.tool_results), (None, vec![]));
    assert_eq!(view.prompt.as_deref(), Some("next"));
}

#[test]
fn a_responses_prompt_is_the_input_or_its_last_item() {
    for (input, prompt) in [
        (json!("do it"), Some("do it")),
        (json!([{"role": "user", "content": "do it"}]), Some("do it")),
        (
            json!([{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "one"},
            {"type": "input_image"},
            {"type": "input_text", "text": "two"}]}]),
            Some("one\ntwo"),
        ),
        (
            json!([{"role": "user", "content": "do it"},
            {"role": "developer", "content": "be nice"},
            {"type": "additional_tools", "tools": []},
            {"type": "compaction_trigger"}]),
            Some("do it"),
        ),
        (
            json!([{"role": "user", "content": "do it"},
            {"type": "message", "role": "assistant", "content": []}]),
            None,
        ),
        (
            json!([{"role": "user", "content": "do it"},
            {"type": "function_call_output", "call_id": "c", "output": ""}]),
            None,
        ),
        (json!([]), None),
        (json!([3, null]), None),
    ] {
        assert_eq!(responses(&input).prompt.as_deref(), prompt, "{input}");
    }
}

#[test]
fn responses_results_follow_the_last_call() {
    let view = responses(&json!([
        {"type": "function_call", "call_id": "c0"},
        {"type": "function_call_output", "call_id": "c0", "output": "old"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1"},
        {"type": "custom_tool_call", "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [
            {"type": "input_text", "text": "three"}]},
        {"type": "compaction_trigger"},
    ]));
    assert_eq!(view.correlating_tool_call_id.as_deref(), Some("c2"));
    assert_eq!(measured(view.tool_results), [result("c1", 3, None), result("c2", 5, None)]);

    let view = read(
        Dialect::Responses,
        &json!({
            "previous_response_id": "resp_1", "background": true,
            "input": [{"type": "local_shell_call_output", "call_id": "c3", "output": "x"}],
        }),
    );
    assert_eq!(measured(view.tool_results), [result("c3", 1, None)]);
    assert_eq!(view.correlating_tool_call_id, None, "only functions and custom tools tie");
    assert_eq!(view.previous_response_id.as_deref(), Some("resp_1"));
    assert!(view.background);
}

#[test]
fn tool_results_beyond_the_maximum_are_counted_and_the_last_one_still_correlates() {
    let ids = || (0..MAX_TOOL_RESULTS + 5).map(|number| format!("c{number}"));
    let messages: Vec<_> =
        ids().map(|id| json!({"type": "tool_result", "tool_use_id": id})).collect();
    let chat: Vec<_> = ids().map(|id| json!({"role": "tool", "tool_call_id": id})).collect();
    let responses: Vec<_> =
        ids().map(|id| json!({"type": "function_call_output", "call_id": id})).collect();
    for (dialect, body) in [
        (Dialect::Messages, json!({"messages": [{"role": "user", "content": messages}]})),
        (Dialect::ChatCompletions, json!({"messages": chat})),
        (Dialect::Responses, json!({"input": responses})),
    ] {
        let view = read(dialect, &body);
        assert_eq!(view.tool_results.len(), MAX_TOOL_RESULTS, "{dialect:?}");
        assert_eq!(view.omitted_tool_results, 5, "{dialect:?}");
        assert_eq!(view.correlating_tool_call_id, ids().next_back(), "{dialect:?}");
    }
}

#[test]
fn a_body_with_too_many_values_is_rejected_however_they_are_nested() {
    let most = "0,".repeat(MAX_VALUES - 2) + "0";
    let more = format!("0,{most}");
    let nested = "[[0]],".repeat(MAX_VALUES / 3 + 1);
    for (content, is_accepted) in
        [(most.as_str(), true), (&more, false), (nested.trim_end_matches(','), false)]
    {
        let body = format!(r#"{{"input":[{content}],"stream":true}}"#);
        let read = RequestView::read(Dialect::Responses, body.as_bytes());
        let expected = if is_accepted { None } else { Some(RequestError::TooManyValues) };
        assert_eq!(read.err(), expected, "{} bytes", content.len());
    }
}

#[test]
fn the_session_is_in_the_user_id() {
    let session = |user_id: serde_json::Value| {
        read(Dialect::Messages, &json!({"metadata": {"user_id": user_id}})).metadata_session_id
    };
    for (user_id, found) in [
        (json!("{\"device_id\":\"d\",\"session_id\":\"s-1\"}"), Some("s-1")),
        (json!("user_ab_account__session_s-2"), Some("s-2")),
        (json!("user_ab_account_x_session_s_session_3"), Some("s_session_3")),
        (json!("{\"device_id\":\"d_session_x\"}"), None),
        (json!("user_ab_session_ "), None),
        (json!("somebody"), None),
        (json!(""), None),
        (json!(7), None),
    ] {
        assert_eq!(session(user_id.clone()).as_deref(), found, "{user_id}");
    }
    let other = read(Dialect::Responses, &json!({"metadata": {"user_id": "a_session_b"}}));
    assert_eq!(other.metadata_session_id, None);
}

#[test]
fn usage_is_requested_only_if_the_client_did_not() {
    let asked = |body: &str| {
        let edited = add_include_usage(body.as_bytes()).unwrap();
        edited.map(|body| String::from_utf8(body).unwrap())
    };
    let spliced = |body: &str| asked(body).unwrap();
    assert_eq!(
        spliced("{ \"stream\": true,\n \"messages\": [] }"),
        "{ \"stream\": true,\n \"messages\": [],\"stream_options\":{\"include_usage\":true} }"
    );
    assert_eq!(
        spliced(r#"{"stream_options": null, "stream": true}"#),
        r#"{"stream_options": {"include_usage":true}, "stream": true}"#
    );
    assert_eq!(
        spliced(r#"{"stream":true,"stream_options":{ "include_usage" : false }}"#),
        r#"{"stream":true,"stream_options":{ "include_usage" : true }}"#
    );
    assert_eq!(
        spliced(r#"{"stream":true,"stream_options":{"x":1}}"#),
        r#"{"stream":true,"stream_options":{"x":1,"include_usage":true}}"#
    );
    for unchanged in [
        r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"stream":false}"#,
        r#"{"stream":null}"#,
        "{}",
        r#"{"stream":true,"stream_options":7}"#,
    ] {
        assert_eq!(asked(unchanged), None, "{unchanged}");
    }
    assert!(add_include_usage(b"[]").is_err());
    let view = |body: &str| RequestView::read(Dialect::ChatCompletions, body.as_bytes()).unwrap();
    assert!(view(r#"{"stream_options":{"include_usage":true}}"#).include_usage);
    assert!(!view(r#"{"stream_options":{"include_usage":null}}"#).include_usage);
}

/// Values that could occur anywhere in a request.
fn odd_value() -> impl Strategy<Value = serde_json::Value> {
    let word = prop::sample::select(vec![
        "user",
        "assistant",
        "system",
        "tool",
        "text",
        "tool_result",
        "tool_use",
        "input_text",
        "function_call",
        "function_call_output",
        "message",
        "reasoning",
        "hello",
        "",
    ]);
    let key = prop::sample::select(vec![
        "role",
        "type",
        "content",
        "text",
        "tool_use_id",
        "tool_call_id",
        "call_id",
        "output",
        "is_error",
        "user_id",
    ]);
    let leaf = prop_oneof![
        word.prop_map(serde_json::Value::from),
        any::<bool>().prop_map(serde_json::Value::from),
        Just(serde_json::Value::Null),
        any::<i64>().prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            prop::collection::vec((key.clone(), inner), 0..5).prop_map(|members| members
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

proptest! {
    #[test]
    fn values_of_unexpected_types_are_not_an_error(value in odd_value(), metadata in odd_value()) {
        let body = json!({
            "messages": value, "input": value, "metadata": metadata, "stream_options": metadata,
            "model": metadata, "previous_response_id": value,
        });
        for dialect in DIALECTS {
            prop_assert!(RequestView::read(dialect, body.to_string().as_bytes()).is_ok());
        }
    }

    #[test]
    fn requesting_usage_changes_one_place(value in odd_value(), position in 0..3_usize) {
        let mut members = vec![format!("\"a\" : {value}"), format!("\"b\":{value}")];
        members.insert(position, "\"stream\":true".into());
        let body = format!("{{ {}\n}}", members.join(" ,"));
        let edited = add_include_usage(body.as_bytes()).unwrap().unwrap();
        let (before, after) = body.split_at(body.len() - "\n}".len());
        let expected = format!("{before},\"stream_options\":{{\"include_usage\":true}}{after}");
        prop_assert_eq!(String::from_utf8(edited.clone()).unwrap(), expected);
        prop_assert_eq!(add_include_usage(&edited).unwrap(), None);
    }

    #[test]
    fn arbitrary_bytes_are_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        for dialect in DIALECTS {
            let _ = RequestView::read(dialect, &body);
        }
    }
}

/// The kind, media type and content of each attachment; content in the body as the text there.
fn attachments(dialect: Dialect, body: &serde_json::Value) -> Vec<(String, String, String)> {
    let body = body.to_string();
    let view = RequestView::read(dialect, body.as_bytes()).unwrap();
    let content = |content: AttachmentContent| match content {
        AttachmentContent::Base64(range) => format!("base64 {}", body.get(range).unwrap()),
        AttachmentContent::Text(range) => format!("text {}", body.get(range).unwrap()),
        AttachmentContent::Url(url) => format!("url {url}"),
        AttachmentContent::File(id) => format!("file {id}"),
    };
    let all = view.attachments.list.into_iter();
    all.map(|Attachment { kind, media_type, content: place }| {
        (kind.into(), media_type.unwrap_or_default(), content(place))
    })
    .collect()
}

fn attached(kind: &str, media_type: &str, content: &str) -> Vec<(String, String, String)> {
    vec![(kind.to_owned(), media_type.to_owned(), content.to_owned())]
}

const PNG_URL: &str = "data:image/png;base64,aGk=";
const PDF_URL: &str = "data:application/pdf;base64,aGk=";

#[test]
fn attachments_of_messages_are_read_without_their_content() {
    let image = json!({"type": "image", "source": {
        "type": "base64", "media_type": "image/png", "data": "aGk="}});
    let document = |source: serde_json::Value| json!({"type": "document", "source": source});
    let png = attached("image", "image/png", "base64 aGk=");
    for (part, expected) in [
        (image.clone(), png.clone()),
        (json!({"type": "tool_result", "tool_use_id": "t", "content": [image]}), png.clone()),
        (document(json!({"type": "content", "content": [image]})), png),
        (
            document(json!({"type": "text", "media_type": "text/plain", "data": "hi"})),
            attached("document", "text/plain", "text hi"),
        ),
        (
            document(json!({"type": "url", "url": "https://me:pw@a.example/b.pdf?sig=1#x"})),
            attached("document", "", "url https://a.example/b.pdf"),
        ),
        (
            json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}}),
            attached("image", "", "file file_1"),
        ),
        (
            json!({"type": "container_upload", "file_id": "file_1"}),
            attached("file", "", "file file_1"),
        ),
    ] {
        let body = json!({"messages": [{"role": "user", "content": [part]}]});
        assert_eq!(attachments(Dialect::Messages, &body), expected, "{body}");
    }
}

#[test]
fn attachments_of_chat_are_read_without_their_content() {
    let png = attached("image", "image/png", "base64 aGk=");
    for (part, expected) in [
        (json!({"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}}), png.clone()),
        (json!({"type": "image_url", "image_url": PNG_URL}), png),
        (
            json!({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}),
            attached("audio", "audio/wav", "base64 aGk="),
        ),
        (
            json!({"type": "file", "file": {"file_data": PDF_URL, "filename": "a.pdf"}}),
            attached("file", "application/pdf", "base64 aGk="),
        ),
        (
            json!({"type": "file", "file": {"file_id": "file-1"}}),
            attached("file", "", "file file-1"),
        ),
        (
            json!({"type": "document_url", "document_url": "https://a.example/b"}),
            attached("document", "", "url https://a.example/b"),
        ),
    ] {
        let content = json!([{"type": "text", "text": "?"}, part]);
        let body = json!({"messages": [{"role": "user", "content": content}]});
        assert_eq!(attachments(Dialect::ChatCompletions, &body), expected, "{body}");
    }
}

#[test]
fn attachments_of_responses_are_read_without_their_content() {
    let user = |part: serde_json::Value| json!({"role": "user", "content": [part]});
    let png = attached("image", "image/png", "base64 aGk=");
    for (item, expected) in [
        (user(json!({"type": "input_image", "image_url": PNG_URL})), png.clone()),
        (
            user(json!({"type": "input_image", "image_url": null, "file_id": "file-1"})),
            attached("image", "", "file file-1"),
        ),
        (
            user(json!({"type": "input_file", "file_data": PDF_URL})),
            attached("file", "application/pdf", "base64 aGk="),
        ),
        (
            user(json!({"type": "input_file", "file_url": "https://a.example/b?k=1"})),
            attached("file", "", "url https://a.example/b"),
        ),
        (
            json!({"type": "computer_call_output", "call_id": "c", "output": {
                "type": "computer_screenshot", "image_url": PNG_URL}}),
            png,
        ),
    ] {
        let body = json!({"input": [item]});
        assert_eq!(attachments(Dialect::Responses, &body), expected, "{body}");
    }
}

#[test]
fn attachments_of_earlier_turns_are_passed_over_and_many_are_counted() {
    let image = json!({"type": "image", "source": {"type": "file", "file_id": "f"}});
    let earlier = json!({"role": "user", "content": [image]});
    let answer = json!({"role": "assistant", "content": "yes"});
    let many = vec![image; MAX_ATTACHMENTS + 3];
    let view = messages(&json!([earlier, answer, {"role": "user", "content": many}]));
    assert_eq!((view.attachments.list.len(), view.attachments.omitted), (MAX_ATTACHMENTS, 3));
    assert_eq!(messages(&json!([earlier, answer])).attachments.list, []);
}

#[test]
fn hosted_servers_are_read_without_their_credentials() {
    let wiki = HostedServer { name: "wiki".into(), url: "https://w.example/mcp".into() };
    let view = read(
        Dialect::Messages,
        &json!({"mcp_servers": [{"type": "url", "name": "wiki",
            "url": "https://w.example/mcp?key=1", "authorization_token": "secret"}]}),
    );
    assert_eq!(view.hosted_servers, std::slice::from_ref(&wiki));
    let view = read(
        Dialect::Responses,
        &json!({"store": false, "tools": [{"type": "function", "name": "f"},
            {"type": "mcp", "server_label": "wiki", "server_url": "https://u:p@w.example/mcp",
             "headers": {"authorization": "secret"}},
            {"type": "mcp", "server_label": "mail", "connector_id": "connector_mail"}]}),
    );
    let mail = HostedServer { name: "mail".into(), url: "connector_mail".into() };
    assert_eq!(view.hosted_servers, [wiki, mail]);
    assert_eq!(view.store, Some(false));
}

#[test]
fn the_answer_whether_a_tool_may_be_called_is_read() {
    let view = responses(&json!([
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": false,
         "reason": "no"}]));
    assert_eq!(view.correlating_tool_call_id.as_deref(), Some("mcpr_1"));
    let denied = ToolResult { approved: Some(false), ..result("mcpr_1", 2, None) };
    assert_eq!(measured(view.tool_results), [denied]);
}
