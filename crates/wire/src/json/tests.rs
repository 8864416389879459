use std::borrow::Cow;

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{Edits, JsonError, Kind, MAX_DEPTH, Object, Value, string};

fn value(source: &str) -> Value<'_> {
    Value::parse(source.as_bytes()).unwrap()
}

fn edited(source: &str, edit: impl FnOnce(&mut Edits)) -> String {
    let mut edits = Edits::new();
    edit(&mut edits);
    String::from_utf8(edits.apply(source.as_bytes()).unwrap()).unwrap()
}

#[test]
fn members_are_slices_of_the_source() {
    let source = r#" { "a" : 1e400 , "b":[ true,null ],"c\u0020d" : "x\/y" } "#;
    let object = Object::parse(source.as_bytes()).unwrap();
    let members: Vec<_> = object.members().map(|(key, value)| (key, value.raw())).collect();
    assert_eq!(
        members,
        [
            (Cow::Borrowed("a"), "1e400"),
            (Cow::Borrowed("b"), "[ true,null ]"),
            (Cow::Borrowed("c d"), r#""x\/y""#)
        ]
    );
    for (_, value) in object.members() {
        assert_eq!(source.get(value.range()).unwrap(), value.raw());
    }
    let inner = object.member("b").unwrap().elements().next().unwrap();
    assert_eq!(source.get(inner.range()).unwrap(), "true");
}

#[test]
fn anything_but_an_object_is_rejected_with_a_reason() {
    for (source, error) in [
        (&b""[..], JsonError::Empty),
        (b" \n\t ", JsonError::Empty),
        (b"[]", JsonError::NotAnObject),
        (b" \"{}\"", JsonError::NotAnObject),
        (b"12", JsonError::NotAnObject),
        (b"{} x", JsonError::Syntax { offset: 3, expected: "the end" }),
        (b"{}{}", JsonError::Syntax { offset: 2, expected: "the end" }),
        (b"{\"a\xff\":1}", JsonError::InvalidUtf8 { offset: 3 }),
        (b"{\"a\":}", JsonError::Syntax { offset: 5, expected: "a value" }),
        (b"{\"a\" 1}", JsonError::Syntax { offset: 5, expected: "`:`" }),
        (b"{a:1}", JsonError::Syntax { offset: 1, expected: "a key" }),
        (b"{\"a\":1,}", JsonError::Syntax { offset: 7, expected: "a key" }),
    ] {
        assert_eq!(Object::parse(source).unwrap_err(), error, "{}", source.escape_ascii());
    }
    assert!(Object::parse(b"[1,").is_err_and(|error| error != JsonError::NotAnObject));
}

#[test]
fn every_truncated_document_is_rejected() {
    let source = r#"{"a":[1,-2.5e-3,{"b":"\u00e9\n"}],"c":true,"d":null}"#;
    for end in 0..source.len() {
        assert!(Value::parse(&source.as_bytes()[..end]).is_err(), "{end}");
    }
}

#[test]
fn string_escapes_are_decoded() {
    for (literal, decoded) in [
        (r#""""#, ""),
        (r#""plain é""#, "plain é"),
        (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r#""\u00e9\u20AC""#, "é€"),
        (r#""\ud83d\ude00!""#, "😀!"),
        (r#""\ud83d""#, "\u{fffd}"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
        (r#""\ude00x""#, "\u{fffd}x"),
        (r#""\u0000""#, "\0"),
    ] {
        assert_eq!(value(literal).as_str().unwrap(), decoded, "{literal}");
        assert_eq!(string::literal_length(literal), crate::count(decoded.len()), "{literal}");
    }
    assert!(matches!(value(r#""plain""#).as_str(), Some(Cow::Borrowed("plain"))));
}

#[test]
fn only_integers_are_read_as_numbers() {
    for (source, number) in [
        ("0", Some(0)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("12.000", Some(12)),
        ("12.5", None),
        ("-1", None),
        ("1e3", Some(1000)),
        ("3.4E+1", Some(34)),
        ("1200e-2", Some(12)),
        ("0.0", Some(0)),
        ("1.25e1", None),
        ("1e-1", None),
        ("1e20", None),
        ("-1.0", None),
        ("1e99999999999", None),
        ("\"5\"", None),
    ] {
        assert_eq!(value(source).as_u64(), number, "{source}");
    }
}

#[test]
fn value_kinds_are_distinguished() {
    for (source, kind) in [
        ("{}", Kind::Object),
        ("[]", Kind::Array),
        ("\"\"", Kind::String),
        ("-1", Kind::Number),
        ("0", Kind::Number),
        ("true", Kind::Bool),
        ("false", Kind::Bool),
        ("null", Kind::Null),
    ] {
        assert_eq!(value(source).kind(), kind);
    }
    assert_eq!(value("true").as_bool(), Some(true));
    assert_eq!(value("false").as_bool(), Some(false));
    assert_eq!(value("0").as_bool(), None);
    assert!(value("null").is_null());
    assert_eq!(value("{}").elements().count(), 0);
    assert!(value("[]").as_object().is_none());
    assert!(value("[{\"a\":1}]").get("a").is_none());
}

#[test]
fn duplicate_keys_are_found_however_they_are_escaped() {
    let source = br#"{"model":"a","x":1,"x":2,"mo\u0064el":"b"}"#;
    let object = Object::parse(source).unwrap();
    assert_eq!(object.first_duplicate(&["stream", "model"]), Some("model"));
    assert_eq!(object.first_duplicate(&["stream"]), None);
    assert_eq!(object.member("model").unwrap().as_str().unwrap(), "b");
    assert_eq!(object.value().get("model").unwrap().as_str().unwrap(), "b");
    assert_eq!(object.member("x").unwrap().as_u64(), Some(2));
}

#[test]
fn nesting_is_bounded_without_recursion() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(Value::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert_eq!(Value::parse(nested(MAX_DEPTH + 1).as_bytes()), Err(JsonError::TooDeep));
    assert_eq!(Value::parse(nested(200_000).as_bytes()), Err(JsonError::TooDeep));
    assert_eq!(Value::parse("{\"a\":".repeat(200_000).as_bytes()), Err(JsonError::TooDeep));

    let within = |depth: usize| format!("{{\"a\":{}}}", nested(depth));
    assert!(Object::parse(within(MAX_DEPTH - 1).as_bytes()).is_ok());
    assert_eq!(Object::parse(within(MAX_DEPTH).as_bytes()).unwrap_err(), JsonError::TooDeep);
    // A wide document is not a deep one.
    let wide = format!("[{}0]", "[],{},".repeat(10_000));
    assert_eq!(value(&wide).elements().count(), 20_001);
}

#[test]
fn control_characters_must_be_escaped() {
    for length in 0..20 {
        let before = "x".repeat(length);
        for byte in 0..=0x7f_u8 {
            let text = format!("\"{before}{}after, and more\"", char::from(byte));
            let is_plain = !matches!(byte, 0..0x20 | b'"' | b'\\');
            assert_eq!(Value::parse(text.as_bytes()).is_ok(), is_plain, "{byte} after {length}");
        }
        assert!(Value::parse(format!("\"{before}é😀\"").as_bytes()).is_ok());
    }
}

#[test]
fn brackets_must_match() {
    for source in ["[}", "{]", "[{]}", "{\"a\":[}]", "[[]", "{\"a\":{}", "]", "}", "[,]", "[1,]"] {
        assert!(Value::parse(source.as_bytes()).is_err(), "{source}");
    }
}

#[test]
fn a_member_is_set_in_place_or_at_the_end() {
    let source = "{ \"a\" : 1 ,\n \"b\":{\"c\":[ 2 ]} \n}";
    assert_eq!(
        edited(source, |edits| edits.set(&["a"], "\"x\"")),
        "{ \"a\" : \"x\" ,\n \"b\":{\"c\":[ 2 ]} \n}"
    );
    assert_eq!(
        edited(source, |edits| edits.set(&["b", "d"], "true")),
        "{ \"a\" : 1 ,\n \"b\":{\"c\":[ 2 ],\"d\":true} \n}"
    );
    assert_eq!(
        edited(source, |edits| edits.set(&["e", "f \"g\""], "null")),
        "{ \"a\" : 1 ,\n \"b\":{\"c\":[ 2 ]},\"e\":{\"f \\\"g\\\"\":null} \n}"
    );
    assert_eq!(edited("{ }", |edits| edits.set(&["a"], "1")), "{\"a\":1 }");
    assert_eq!(edited("{\"a\":null}", |edits| edits.set(&["a", "b"], "1")), "{\"a\":{\"b\":1}}");
    // An escaped key is the same key, and a duplicate key is set at each occurrence.
    assert_eq!(
        edited("{\"\\u0061\":0,\"a\":1}", |edits| edits.set(&["a"], "2")),
        "{\"\\u0061\":2,\"a\":2}"
    );
}

#[test]
fn new_members_follow_the_order_of_the_edits() {
    let set = |edits: &mut Edits| {
        edits.set(&["z"], "1");
        edits.set(&["a"], "2");
        edits.append(&["m"], "3");
    };
    assert_eq!(edited("{\"x\":0}", set), "{\"x\":0,\"z\":1,\"a\":2,\"m\":[3]}");
}

#[test]
fn a_removed_member_takes_one_comma_with_it() {
    let source = "{ \"a\": 1, \"b\": 2, \"c\": 3 }";
    for (keys, result) in [
        (&["a"][..], "{ \"b\": 2, \"c\": 3 }"),
        (&["b"], "{ \"a\": 1, \"c\": 3 }"),
        (&["c"], "{ \"a\": 1, \"b\": 2 }"),
        (&["a", "b"], "{ \"c\": 3 }"),
        (&["b", "c"], "{ \"a\": 1 }"),
        (&["a", "c"], "{ \"b\": 2 }"),
        (&["a", "b", "c"], "{  }"),
        (&["d"], source),
    ] {
        let remove = |edits: &mut Edits| keys.iter().for_each(|key| edits.remove(&[key]));
        assert_eq!(edited(source, remove), result);
        let and_set = |edits: &mut Edits| {
            remove(edits);
            edits.set(&["new"], "0");
        };
        let both: serde_json::Value = serde_json::from_str(&edited(source, and_set)).unwrap();
        assert_eq!(both["new"], 0);
    }
    assert_eq!(edited("{\"a\":1}", |edits| edits.remove(&["b", "c"])), "{\"a\":1}");
}

#[test]
fn elements_are_added_at_both_ends() {
    let add = |edits: &mut Edits| {
        edits.prepend(&["t"], "1");
        edits.prepend(&["t"], "2");
        edits.append(&["t"], "3");
    };
    for (source, result) in [
        ("{\"t\":[ 0 , 9 ]}", "{\"t\":[1,2, 0 , 9,3 ]}"),
        ("{\"t\":[ ]}", "{\"t\":[1,2,3 ]}"),
        ("{\"t\":null}", "{\"t\":[1,2,3]}"),
        ("{}", "{\"t\":[1,2,3]}"),
    ] {
        assert_eq!(edited(source, add), result);
    }
}

#[test]
fn later_edits_override_earlier_ones() {
    let source = "{\"a\":{\"b\":1},\"t\":[0]}";
    let result = edited(source, |edits| {
        edits.set(&["a", "c"], "2");
        edits.set(&["a"], "{\"x\":1}");
        edits.set(&["a", "d"], "3");
        edits.remove(&["t"]);
        edits.append(&["t"], "4");
    });
    assert_eq!(result, "{\"a\":{\"x\":1,\"d\":3},\"t\":[4]}");
    let result = edited(source, |edits| {
        edits.set(&["a"], "1");
        edits.remove(&["a"]);
    });
    assert_eq!(result, "{\"t\":[0]}");
}

#[test]
fn an_edit_through_the_wrong_kind_is_rejected() {
    let apply = |source: &str, edit: fn(&mut Edits)| {
        let mut edits = Edits::new();
        edit(&mut edits);
        edits.apply(source.as_bytes()).unwrap_err()
    };
    assert_eq!(
        apply("{\"a\":{\"b\":3}}", |edits| edits.set(&["a", "b", "c"], "1")),
        JsonError::WrongKind { path: "a.b".into(), expected: "object" }
    );
    assert_eq!(
        apply("{\"a\":{}}", |edits| edits.append(&["a"], "1")),
        JsonError::WrongKind { path: "a".into(), expected: "array" }
    );
    assert!(matches!(apply("{}", |edits| edits.set(&["a"], "{")), JsonError::Syntax { .. }));
    assert!(matches!(
        apply("{\"a\":[]}", |edits| edits.append(&["a"], "1,2")),
        JsonError::Syntax { .. }
    ));
    assert_eq!(apply("[]", |edits| edits.set(&["a"], "1")), JsonError::NotAnObject);
}

#[test]
fn an_empty_set_of_edits_changes_nothing() {
    assert!(Edits::new().is_empty());
    assert_eq!(edited(" { } ", |_| {}), " { } ");
    let mut edits = Edits::new();
    edits.remove(&["a"]);
    assert!(!edits.is_empty());
}

/// JSON text with unusual white space, escapes and big numbers.
fn json_text() -> impl Strategy<Value = String> {
    let space = prop::sample::select(vec!["", " ", "\n", "\t ", " \r\n"]);
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-0.0e+10".to_owned()),
        "[1-9][0-9]{0,30}(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
        "\"([a-zé😀 {}\\[\\],:]|\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}){0,12}\"",
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let key = "\"([a-d]|\\\\u006[1-4]){0,2}\"";
        let member = (key, space.clone(), inner.clone())
            .prop_map(|(key, space, value)| format!("{key}{space}:{space}{value}"));
        prop_oneof![
            (prop::collection::vec(inner, 0..4), space.clone()).prop_map(|(elements, space)| {
                format!("[{space}{}{space}]", elements.join(&format!("{space},")))
            }),
            (prop::collection::vec(member, 0..4), space.clone()).prop_map(|(members, space)| {
                format!("{{{space}{}{space}}}", members.join(&format!(",{space}")))
            }),
        ]
    })
}

fn object_text() -> impl Strategy<Value = String> {
    json_text()
        .prop_map(|inner| format!(" {{\"a\": {inner} ,\"k\":{{ \"b\":{inner}}}, \"l\":[0]}}"))
}

proptest! {
    #[test]
    fn valid_json_is_accepted(text in json_text()) {
        let value = Value::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(value.raw(), text.trim());
    }

    #[test]
    fn the_scanner_agrees_with_serde_json_on_what_is_valid(text in "[\\[\\]{}\",:0-9eE.+\\-\\\\utrufalsn \n]{0,24}") {
        let is_json = serde_json::from_str::<&RawValue>(&text).is_ok();
        prop_assert_eq!(Value::parse(text.as_bytes()).is_ok(), is_json, "{}", text);
    }

    #[test]
    fn the_scanner_agrees_with_serde_json_on_a_changed_byte(
        text in json_text(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let is_json = std::str::from_utf8(&bytes).is_ok()
            && serde_json::from_slice::<&RawValue>(&bytes).is_ok();
        prop_assert_eq!(Value::parse(&bytes).is_ok(), is_json);
    }

    #[test]
    fn arbitrary_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Object::parse(&bytes);
    }

    #[test]
    fn strings_decode_as_in_serde_json(text in any::<String>(), ascii in any::<bool>()) {
        let mut literal = serde_json::to_string(&text).unwrap();
        if ascii {
            literal = literal.chars().map(|c| if c.is_ascii() { c.to_string() } else {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            }).collect();
        }
        prop_assert_eq!(value(&literal).as_str().unwrap(), text.as_str());
        prop_assert_eq!(string::literal_length(&literal), crate::count(text.len()));
    }

    #[test]
    fn a_splice_changes_nothing_outside_its_range(source in object_text(), new in json_text()) {
        let object = Object::parse(source.as_bytes()).unwrap();
        let place = object.member("k").unwrap().get("b").unwrap().range();
        let result = edited(&source, |edits| edits.set(&["k", "b"], &new));
        prop_assert_eq!(result, format!("{}{new}{}", source.get(..place.start).unwrap(), source.get(place.end..).unwrap()));

        let end = object.member("k").unwrap().range().end - 1;
        let result = edited(&source, |edits| edits.set(&["k", "new"], &new));
        prop_assert_eq!(
            result, format!("{},\"new\":{new}{}", source.get(..end).unwrap(), source.get(end..).unwrap())
        );
        let end = object.member("l").unwrap().range().end - 1;
        let result = edited(&source, |edits| edits.append(&["l"], &new));
        prop_assert_eq!(result, format!("{},{new}{}", source.get(..end).unwrap(), source.get(end..).unwrap()));
    }

    #[test]
    fn combined_edits_equal_edits_of_a_document_tree(
        source in json_text(), new in json_text(), which in 0..64_u8
    ) {
        // A tree can hold neither a lone surrogate nor duplicate keys, although both are valid JSON.
        prop_assume!(!source.contains("\\u") && !new.contains("\\u"));
        let source = format!("{{\"b\":{source}, \"a\":[{source}],\"c\":{{\"d\":0}} }}");
        let (Ok(mut tree), Ok(value)) = (
            serde_json::from_str::<serde_json::Value>(&source),
            serde_json::from_str::<serde_json::Value>(&new),
        ) else { return Err(TestCaseError::reject("a number that no tree can hold")) };
        let result = edited(&source, |edits| {
            if which & 1 != 0 { edits.remove(&["b"]); }
            if which & 2 != 0 { edits.prepend(&["a"], &new); }
            if which & 4 != 0 { edits.append(&["a"], &new); }
            if which & 8 != 0 { edits.set(&["c", "d"], &new); }
            if which & 16 != 0 { edits.remove(&["c", "d"]); }
            if which & 32 != 0 { edits.set(&["e", "f"], &new); }
        });
        let members = tree.as_object_mut().unwrap();
        if which & 1 != 0 { members.shift_remove("b"); }
        let elements = members["a"].as_array_mut().unwrap();
        if which & 2 != 0 { elements.insert(0, value.clone()); }
        if which & 4 != 0 { elements.push(value.clone()); }
        if which & 8 != 0 { members["c"]["d"] = value.clone(); }
        if which & 16 != 0 { members["c"].as_object_mut().unwrap().shift_remove("d"); }
        if which & 32 != 0 { members.insert("e".into(), serde_json::json!({"f": value})); }
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&result).unwrap(), tree);
    }
}
