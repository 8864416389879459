use super::{InjectableTools, Injection, ToolDefinition};
use crate::Dialect;

fn tool(id: &str) -> ToolDefinition {
    ToolDefinition {
        id: id.into(),
        description: Some(format!("about \"{id}\"")),
        input_schema: r#"{"type":"object","properties":{"z":{},"a":{}}}"#.into(),
    }
}

fn offer(ids: &[&str]) -> InjectableTools {
    InjectableTools::new(&ids.iter().map(|id| tool(id)).collect::<Vec<_>>())
}

fn inject(dialect: Dialect, body: &str) -> Option<Injection> {
    offer(&["bmcp_b", "bmcp_a"]).inject(dialect, body.as_bytes()).unwrap()
}

fn injected(dialect: Dialect, body: &str) -> String {
    String::from_utf8(inject(dialect, body).unwrap().body).unwrap()
}

#[test]
fn tools_are_spliced_in_and_everything_else_stays() {
    let bare = offer(&["bmcp_a"]);
    let body = |dialect, text: &str| {
        let made = bare.inject(dialect, text.as_bytes()).unwrap().unwrap();
        String::from_utf8(made.body).unwrap()
    };
    insta::assert_snapshot!(body(Dialect::Messages, r#"{ "model" : "m", "tools" : [ {"name":"Bash"} ], "x":1.0 }"#), @r#"{ "model" : "m", "tools" : [{"name":"bmcp_a","description":"about \"bmcp_a\"","input_schema":{"type":"object","properties":{"z":{},"a":{}}}}, {"name":"Bash"} ], "x":1.0,"tool_choice":{"type":"auto","disable_parallel_tool_use":true} }"#);
    insta::assert_snapshot!(body(Dialect::ChatCompletions, r#"{"tools":[{"type":"function","function":{"name":"bash"}}],"messages":[]}"#), @r#"{"tools":[{"type":"function","function":{"name":"bash"}},{"type":"function","function":{"name":"bmcp_a","description":"about \"bmcp_a\"","parameters":{"type":"object","properties":{"z":{},"a":{}}}}}],"messages":[],"parallel_tool_calls":false}"#);
    insta::assert_snapshot!(body(Dialect::Responses, r#"{"input":"hi"}"#), @r#"{"input":"hi","tools":[{"type":"function","name":"bmcp_a","description":"about \"bmcp_a\"","parameters":{"type":"object","properties":{"z":{},"a":{}}},"strict":false}],"parallel_tool_calls":false}"#);
    insta::assert_snapshot!(body(Dialect::Responses, r#"{"tools":null,"parallel_tool_calls":true}"#), @r#"{"tools":[{"type":"function","name":"bmcp_a","description":"about \"bmcp_a\"","parameters":{"type":"object","properties":{"z":{},"a":{}}},"strict":false}],"parallel_tool_calls":false}"#);
}

#[test]
fn the_same_tools_render_to_the_same_bytes() {
    let body = br#"{"messages":[]}"#;
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        let one = offer(&["bmcp_a", "bmcp_c", "bmcp_b"]).inject(dialect, body).unwrap();
        let other = offer(&["bmcp_c", "bmcp_b", "bmcp_a"]).inject(dialect, body).unwrap();
        assert_eq!(one, other);
        let text = String::from_utf8(one.unwrap().body).unwrap();
        let places =
            ["bmcp_a", "bmcp_b", "bmcp_c"].map(|id| text.find(&format!("\"name\":\"{id}\"")));
        assert!(places.is_sorted() && places[0].is_some(), "{text}");
    }
}

#[test]
fn a_client_tool_of_the_same_name_takes_precedence() {
    for (dialect, own) in [
        (Dialect::Messages, r#"{"tools":[{"name":"bmcp_a"}]}"#),
        (
            Dialect::ChatCompletions,
            r#"{"tools":[{"type":"function","function":{"name":"bmcp_a"}}]}"#,
        ),
        (Dialect::Responses, r#"{"tools":[{"type":"function","name":"bmcp_\u0061"}]}"#),
    ] {
        let made = inject(dialect, own).unwrap();
        assert_eq!(made.omitted, ["bmcp_a"], "{dialect}");
        assert_eq!(made.injected, ["bmcp_b".to_owned()].into());
    }
    let both = r#"{"tools":[{"name":"bmcp_a"},{"name":"bmcp_b"}]}"#;
    assert_eq!(inject(Dialect::Messages, both), None, "nothing is left to put in");
}

#[test]
fn tools_beyond_openais_maximum_are_omitted() {
    let own = |count: usize| {
        let tools: Vec<String> = (0..count).map(|n| format!(r#"{{"name":"t{n}"}}"#)).collect();
        format!(r#"{{"tools":[{}]}}"#, tools.join(","))
    };
    for dialect in [Dialect::ChatCompletions, Dialect::Responses] {
        assert!(inject(dialect, &own(126)).unwrap().omitted.is_empty());
        assert_eq!(inject(dialect, &own(127)).unwrap().omitted, ["bmcp_b"]);
        assert_eq!(inject(dialect, &own(128)), None);
        assert_eq!(inject(dialect, &own(500)), None);
    }
    assert!(inject(Dialect::Messages, &own(500)).unwrap().omitted.is_empty());
}

#[test]
fn parallel_calls_are_disabled_where_possible() {
    let choice = |given: &str| {
        let made = inject(Dialect::Messages, &format!(r#"{{"tool_choice":{given}}}"#)).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&made.body).unwrap();
        (body["tool_choice"].to_string(), made.disabled_parallel_calls)
    };
    for (given, expected, is_changed) in [
        ("null", r#"{"type":"auto","disable_parallel_tool_use":true}"#, true),
        (r#"{"type":"any"}"#, r#"{"type":"any","disable_parallel_tool_use":true}"#, true),
        (
            r#"{"type":"tool","name":"x"}"#,
            r#"{"type":"tool","name":"x","disable_parallel_tool_use":true}"#,
            true,
        ),
        (
            r#"{"type":"auto","disable_parallel_tool_use":false}"#,
            r#"{"type":"auto","disable_parallel_tool_use":true}"#,
            true,
        ),
        (
            r#"{"type":"auto","disable_parallel_tool_use":true}"#,
            r#"{"type":"auto","disable_parallel_tool_use":true}"#,
            false,
        ),
        (r#"{"type":"none"}"#, r#"{"type":"none"}"#, false),
        (r#""odd""#, r#""odd""#, false),
    ] {
        assert_eq!(choice(given), (expected.to_owned(), is_changed), "{given}");
    }
    assert!(
        !inject(Dialect::Responses, r#"{"parallel_tool_calls":false}"#)
            .unwrap()
            .disabled_parallel_calls
    );
    let free = offer(&["bmcp_a"]).with_parallel_calls(true);
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        let made = free.inject(dialect, b"{}").unwrap().unwrap();
        assert!(!made.disabled_parallel_calls);
        assert!(!String::from_utf8(made.body).unwrap().contains("parallel"));
    }
}

#[test]
fn everything_else_stays_byte_for_byte() {
    let body = "\n{ \"tools\" :\t[ ] , \"e\\u0078tra\":[1.00,{ }],\"model\":\"\\u00e9\" }\r\n";
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        let made = injected(dialect, body);
        let (before, after) = body.split_once(" ] , ").unwrap();
        assert!(made.starts_with(before), "{made}");
        let rest = made.split_once(after.trim_end().trim_end_matches('}').trim_end());
        assert!(rest.is_some_and(|(_, tail)| tail.ends_with(" }\r\n")), "{made}");
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert_eq!(made["tools"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn each_valid_tool_is_injected_once() {
    let described = |id: &str, description: Option<&str>, schema: &str| ToolDefinition {
        id: id.into(),
        description: description.map(Into::into),
        input_schema: schema.into(),
    };
    let offer = InjectableTools::new(&[
        described("bmcp_b", Some("first"), "{}"),
        described("bmcp_a", None, r#"{"type":"object"}"#),
        described("bmcp_b", Some("second"), "{}"),
        described("bmcp_c", None, "[]"),
        described("bmcp_d", None, "{\"a\":"),
    ]);
    let made = offer.inject(Dialect::Messages, b"{}").unwrap().unwrap();
    assert_eq!(made.injected, ["bmcp_a".to_owned(), "bmcp_b".to_owned()].into());
    insta::assert_snapshot!(String::from_utf8(made.body).unwrap(), @r#"{"tools":[{"name":"bmcp_a","input_schema":{"type":"object"}},{"name":"bmcp_b","description":"first","input_schema":{}}],"tool_choice":{"type":"auto","disable_parallel_tool_use":true}}"#);
}

#[test]
fn unusual_client_tools_are_counted() {
    let own = r#"{"tools":[{"type":"custom","custom":{"name":"bmcp_a"}},7,null,{"name":7},{}]}"#;
    let made = inject(Dialect::ChatCompletions, own).unwrap();
    assert_eq!(made.omitted, ["bmcp_a"], "a custom tool has a name too");
    let body: serde_json::Value = serde_json::from_slice(&made.body).unwrap();
    let tools = body["tools"].as_array().unwrap();
    assert_eq!(
        (tools.len(), &tools[1], &tools[5]["function"]["name"]),
        (6, &7.into(), &"bmcp_b".into())
    );
    for odd in ["{}", "7", "true", "\"auto\""] {
        assert_eq!(inject(Dialect::Responses, &format!(r#"{{"tools":{odd}}}"#)), None);
    }
}

#[test]
fn a_tool_choice_without_a_type_gets_one() {
    let made = injected(Dialect::Messages, r#"{"tool_choice":{"x":1},"tools":[]}"#);
    assert!(
        made.contains(r#""tool_choice":{"x":1,"type":"auto","disable_parallel_tool_use":true}"#),
        "{made}"
    );
    for (given, is_changed) in [("true", true), ("null", true), ("7", true), ("false", false)] {
        let body = format!(r#"{{"parallel_tool_calls":{given},"tool_choice":"none"}}"#);
        for dialect in [Dialect::ChatCompletions, Dialect::Responses] {
            let made = inject(dialect, &body).unwrap();
            assert_eq!(made.disabled_parallel_calls, is_changed, "{given}");
            let body: serde_json::Value = serde_json::from_slice(&made.body).unwrap();
            assert_eq!(
                (&body["parallel_tool_calls"], &body["tool_choice"]),
                (&false.into(), &"none".into())
            );
        }
    }
}

#[test]
fn requests_that_cannot_have_tools_are_left_alone() {
    assert_eq!(inject(Dialect::Messages, r#"{"tools":"odd"}"#), None);
    assert_eq!(inject(Dialect::ChatCompletions, r#"{"functions":[]}"#), None);
    assert_eq!(
        inject(Dialect::ChatCompletions, r#"{"n":2}"#),
        None,
        "each choice would go its own way"
    );
    assert!(inject(Dialect::ChatCompletions, r#"{"n":1}"#).is_some());
    let stream = r#"{"stream":true,"n":3}"#;
    assert!(injected(Dialect::ChatCompletions, stream).contains(r#""n":1,"#));
    assert!(inject(Dialect::ChatCompletions, stream).unwrap().limited_choices);
    assert_eq!(InjectableTools::default().inject(Dialect::Messages, b"{}").unwrap(), None);
    assert!(InjectableTools::default().is_empty());
    assert!(offer(&["bmcp_a"]).inject(Dialect::Messages, b"[]").is_err());
}
