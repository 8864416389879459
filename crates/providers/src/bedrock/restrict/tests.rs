use serde_json::{Value as Json, json};

use super::restrict;
use crate::bedrock::rules::Rules;
use keybridge_wire::json::Object;

const HAIKU_4_5: &str = "eu.anthropic.claude-haiku-4-5-20251001-v1:0";
const SONNET_4: &str = "anthropic.claude-sonnet-4-20250514-v1:0";
const SONNET_4_5: &str = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0";
const OPUS_4_5: &str = "global.anthropic.claude-opus-4-5-20251101-v1:0";
const OPUS_4_6: &str = "us.anthropic.claude-opus-4-6-v1";
const OPUS_4_7: &str = "us.anthropic.claude-opus-4-7";
const OPUS_4_8: &str = "us.anthropic.claude-opus-4-8";
const SONNET_5: &str = "us.anthropic.claude-sonnet-5";
const OPUS_5: &str = "us.anthropic.claude-opus-5";

/// What remains of a request.
fn text_of(model: &str, flags: &[&str], request: &str) -> String {
    let rules = Rules::built_in().unwrap();
    let schema = rules.schema(model, flags);
    let object = Object::parse(request.as_bytes()).unwrap();
    let rest = restrict(&schema, &object, request.as_bytes());
    rest.map_or_else(|| request.to_owned(), |rest| String::from_utf8(rest).unwrap())
}

fn rest(model: &str, flags: &[&str], request: &Json) -> Json {
    serde_json::from_str(&text_of(model, flags, &request.to_string())).unwrap()
}

/// What remains of a conversation.
fn conversation(model: &str, messages: &Json) -> Json {
    rest(model, &[], &json!({ "messages": messages }))["messages"].take()
}

fn call(id: &str) -> Json {
    json!({ "role": "assistant", "content": [{ "type": "tool_use", "id": id, "name": "Bash", "input": {} }] })
}

fn result(id: &str) -> Json {
    json!({ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": id, "content": "ok" }] })
}

#[test]
fn each_rule_that_rests_on_a_report_has_its_day() {
    let file: toml::Table = include_str!("../rules.toml").parse().unwrap();
    let day = |value: &toml::Value| value.as_str().unwrap().parse::<jiff::civil::Date>().unwrap();
    let reviewed = day(&file["as_of"]);
    let rules = file["fields"].as_array().unwrap();
    assert!(rules.len() > 10);
    for rule in rules {
        assert_eq!(rule.get("source").is_some(), rule.get("checked").is_some(), "{rule}");
        assert!(rule.get("checked").is_none_or(|checked| day(checked) <= reviewed), "{rule}");
    }
}

#[test]
fn fields_at_the_top_that_bedrock_does_not_know_are_removed() {
    let unknown = json!({
        "speed": "fast", "fallbacks": [{ "model": "x" }], "diagnostics": {}, "thread": { "type": "create" },
        "mcp_servers": [{ "name": "w", "type": "url", "url": "https://w.example" }], "user_profile_id": "up_1",
        "cache_control": { "type": "ephemeral" }, "service_tier": "auto", "metadata": { "user_id": "u" },
        "safeguards": {}, "output_format": { "type": "json_schema" }, "context_management": { "edits": [] },
    });
    let known = json!({
        "max_tokens": 9, "messages": [], "system": "s", "temperature": 1, "top_p": 1, "top_k": 2,
        "stop_sequences": ["x"], "tools": [], "tool_choice": { "type": "auto" }, "thinking": { "type": "disabled" },
    });
    let mut request = known.clone();
    request.as_object_mut().unwrap().extend(unknown.as_object().unwrap().clone());
    for model in [SONNET_4, HAIKU_4_5, SONNET_4_5, OPUS_4_7, SONNET_5, OPUS_5] {
        assert_eq!(rest(model, &[], &request), known, "{model}");
        assert_eq!(rest(model, &[], &known), known, "{model}");
    }
}

#[test]
fn fields_of_tools_go_with_the_flag_that_is_dropped() {
    let fields = json!({
        "eager_input_streaming": true, "strict": true, "defer_loading": true,
        "input_examples": [{ "command": "ls" }], "allowed_callers": ["direct"],
    });
    let tool = json!({ "name": "Bash", "description": "d", "input_schema": { "type": "object", "strict": true } });
    let flags = [
        "fine-grained-tool-streaming-2025-05-14",
        "tool-search-tool-2025-10-19",
        "tool-examples-2025-10-29",
    ];
    for (model, flags, kept) in [
        (HAIKU_4_5, &flags[..], &[][..]),
        (SONNET_4_5, &flags, &[]),
        (SONNET_4, &[], &[]),
        (OPUS_4_5, &flags, &["defer_loading", "input_examples"]),
        (OPUS_4_5, &["advanced-tool-use-2025-11-20"], &["defer_loading", "input_examples"]),
        (OPUS_4_5, &flags[1..2], &["defer_loading"]),
        (OPUS_4_5, &[], &[]),
        (OPUS_4_6, &flags, &["strict"]),
        (OPUS_4_7, &flags, &[]),
        (OPUS_4_8, &flags, &[]),
        (SONNET_5, &flags, &[]),
        (OPUS_5, &flags, &["strict"]),
    ] {
        let (mut sent, mut expected) = (tool.clone(), tool.clone());
        for (name, value) in fields.as_object().unwrap() {
            sent[name] = value.clone();
            if kept.contains(&name.as_str()) {
                expected[name] = value.clone();
            }
        }
        let own = json!({ "type": "bash_20250124", "name": "bash", "defer_loading": true, "strict": true });
        let left = rest(model, flags, &json!({ "tools": [sent, own] }));
        assert_eq!(left["tools"][0], expected, "{model} {flags:?}");
        let own = left["tools"][1].as_object().unwrap();
        assert_eq!(own.contains_key("defer_loading"), kept.contains(&"defer_loading"), "{model}");
        assert_eq!(own["type"], "bash_20250124");
    }
}

#[test]
fn tools_of_a_type_that_is_not_accepted_are_removed() {
    let request = json!({ "tools": [
        { "type": "mcp_toolset", "mcp_server_name": "w" },
        { "type": "tool_search_tool_regex_20251119", "name": "search" },
        { "name": "Bash", "input_schema": {} },
        { "type": "computer_20250124", "name": "computer", "display_width_px": 9, "display_height_px": 9 },
    ] });
    let names = |model: &str, flags: &[&str]| -> Vec<String> {
        let left = rest(model, flags, &request);
        let tools = left["tools"].as_array().unwrap().iter();
        tools.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(HAIKU_4_5, &["tool-search-tool-2025-10-19"]), ["Bash", "computer"]);
    assert_eq!(names(OPUS_4_5, &["tool-search-tool-2025-10-19"]), ["search", "Bash", "computer"]);
}

#[test]
fn breakpoints_of_the_cache_lose_only_what_is_not_accepted() {
    let control = json!({ "type": "ephemeral", "ttl": "1h", "scope": "global" });
    let text = |control: &Json| json!({ "type": "text", "text": "t", "cache_control": control });
    let request = |control: &Json| {
        json!({
            "system": [text(control)],
            "messages": [
                { "role": "user", "content": [text(control)] },
                call("toolu_1"),
                { "role": "user", "content": [{
                    "type": "tool_result", "tool_use_id": "toolu_1", "content": [text(control)],
                    "cache_control": control,
                }] },
            ],
            "tools": [{ "name": "Bash", "input_schema": {}, "cache_control": control }],
        })
    };
    for (model, left) in [
        (SONNET_4, json!({ "type": "ephemeral" })),
        (HAIKU_4_5, json!({ "type": "ephemeral", "ttl": "1h" })),
        (OPUS_5, json!({ "type": "ephemeral", "ttl": "1h" })),
    ] {
        assert_eq!(rest(model, &[], &request(&control)), request(&left), "{model}");
    }
}

#[test]
fn an_entry_of_the_role_system_becomes_a_user_turn_where_it_stands() {
    let messages = json!([
        { "role": "user", "content": "Which ferry?" },
        { "role": "system", "content": "Today is Friday.", "output_config": { "effort": "low" } },
        { "role": "assistant", "content": "The first." },
        { "role": "system", "content": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral", "scope": "global" } }] },
    ]);
    let as_user = json!([
        { "role": "user", "content": "Which ferry?" },
        { "role": "user", "content": "Today is Friday." },
        { "role": "assistant", "content": "The first." },
        { "role": "user", "content": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }] },
    ]);
    for model in [SONNET_4, HAIKU_4_5, SONNET_4_5, OPUS_4_5, OPUS_4_6, OPUS_4_7] {
        assert_eq!(conversation(model, &messages), as_user, "{model}");
    }
    for model in [OPUS_4_8, SONNET_5, OPUS_5, "anthropic.claude-fable-6"] {
        let mut kept = as_user.clone();
        kept[1]["role"] = "system".into();
        kept[3]["role"] = "system".into();
        assert_eq!(conversation(model, &messages), kept, "{model}");
    }
}

#[test]
fn the_bytes_before_and_after_an_entry_of_the_role_system_stay() {
    let request = r#"{ "system":"s" , "messages":[{"role":"user","content":"h\u0069"}, {"content":"now", "r\u006fle" : "system"} ,{"role":"assistant","content":[ ]}],"max_tokens":1e3}"#;
    let expected = request.replace(r#""system"}"#, r#""user"}"#);
    assert_eq!(text_of(HAIKU_4_5, &[], request), expected);
    assert_eq!(text_of(OPUS_5, &[], request), request);
}

#[test]
fn nothing_comes_between_calls_and_their_results() {
    let note = |text: &str, role: &str| json!({ "role": role, "content": text });
    let messages = json!([
        note("hi", "user"),
        call("toolu_1"),
        note("one", "system"),
        note("two", "system"),
        result("toolu_1"),
        note("three", "system"),
        call("toolu_2"),
        note("four", "system"),
    ]);
    let expected = json!([
        note("hi", "user"),
        call("toolu_1"),
        result("toolu_1"),
        note("one", "user"),
        note("two", "user"),
        note("three", "user"),
        call("toolu_2"),
        note("four", "user"),
    ]);
    assert_eq!(conversation(HAIKU_4_5, &messages), expected);
}

#[test]
fn entries_that_only_direct_are_dropped() {
    for content in [json!([]), json!("")] {
        let messages = json!([
            { "role": "user", "content": "hi" },
            { "role": "system", "content": content, "output_config": { "effort": "low" } },
        ]);
        for model in [HAIKU_4_5, OPUS_5] {
            assert_eq!(
                conversation(model, &messages),
                json!([{ "role": "user", "content": "hi" }]),
                "{model}"
            );
        }
    }
}

#[test]
fn output_settings_and_thinking_lose_what_the_model_does_not_know() {
    let request = json!({
        "output_config": { "effort": "high", "format": { "type": "json_schema" }, "task_budget": { "total": 9 } },
        "thinking": { "type": "adaptive", "display": "updates" },
    });
    let effort = json!({ "effort": "high" });
    let both = json!({ "effort": "high", "format": { "type": "json_schema" } });
    for (model, flags, left) in [
        (HAIKU_4_5, &["effort-2025-11-24"][..], Json::Null),
        (OPUS_4_5, &["effort-2025-11-24"], effort.clone()),
        (OPUS_4_5, &[], Json::Null),
        (OPUS_4_6, &[], both.clone()),
        (OPUS_4_8, &[], effort.clone()),
        (OPUS_5, &[], both),
    ] {
        let rest = rest(model, flags, &request);
        assert_eq!(rest.get("output_config").unwrap_or(&Json::Null), &left, "{model}");
        assert_eq!(rest["thinking"], json!({ "type": "adaptive" }), "{model}");
    }
    let shown = json!({ "thinking": { "type": "adaptive", "display": "omitted" } });
    assert_eq!(rest(OPUS_5, &[], &shown), shown);
    assert_eq!(rest(SONNET_4_5, &[], &shown)["thinking"], json!({ "type": "adaptive" }));
}

#[test]
fn blocks_of_a_dropped_flag_become_text() {
    let messages = |block: Json| json!([call("toolu_1"), { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "toolu_1", "content": [block] }] }]);
    let reference = messages(json!({ "type": "tool_reference", "tool_name": "WebFetch" }));
    let text = messages(json!({ "type": "text", "text": "WebFetch" }));
    assert_eq!(conversation(HAIKU_4_5, &reference), text);
    let mut made = call("toolu_1");
    made["content"][0]["caller"] = json!({ "type": "direct" });
    assert_eq!(conversation(OPUS_5, &json!([made])), json!([call("toolu_1")]));
}
