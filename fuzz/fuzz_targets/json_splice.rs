//! Arbitrary bytes: parsed as by serde_json, and a splice changes nothing outside its range.
#![no_main]

use keybridge_wire::json::{Edits, JsonError, Object, Value};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|source: &[u8]| {
    let is_json =
        std::str::from_utf8(source).is_ok() && serde_json::from_slice::<&RawValue>(source).is_ok();
    match Value::parse(source) {
        Err(JsonError::TooDeep) => return,
        value => assert_eq!(value.is_ok(), is_json),
    }
    let Ok(object) = Object::parse(source) else {
        return;
    };
    walk(object.value(), 0);
    append(source, &object);
    edit(source);
});

/// Visits everything that a value offers.
fn walk(value: Value<'_>, depth: u8) {
    let _ = (value.as_str(), value.as_u64(), value.as_bool(), value.kind());
    if depth == 8 {
        return;
    }
    for element in value.elements() {
        walk(element, depth + 1);
    }
    for (key, member) in value.as_object().iter().flat_map(Object::members) {
        assert!(value.get(&key).is_some());
        walk(member, depth + 1);
    }
}

/// A new member is added before the closing brace; everything else stays.
fn append(source: &[u8], object: &Object<'_>) {
    let key = "a key that the fuzzer does not find";
    if object.member(key).is_some() {
        return;
    }
    let mut edits = Edits::new();
    edits.set(&[key], "1");
    let result = edits.apply(source).unwrap();
    let last = object.members().map(|(_, value)| value.range().end).last();
    let at = last.unwrap_or(object.value().range().start + 1);
    let comma = if last.is_some() { "," } else { "" };
    let member = format!("{comma}\"{key}\":1");
    assert_eq!(result, [&source[..at], member.as_bytes(), &source[at..]].concat());
    // Removing it again restores the source.
    let mut edits = Edits::new();
    edits.remove(&[key]);
    assert_eq!(edits.apply(&result).unwrap(), source);
}

/// Several edits together produce valid JSON that contains them.
fn edit(source: &[u8]) {
    let mut edits = Edits::new();
    edits.remove(&["a"]);
    edits.set(&["b", "c"], "[true]");
    edits.prepend(&["tools"], "1");
    edits.append(&["tools"], "2");
    match edits.apply(source) {
        Ok(result) => {
            let object = Object::parse(&result).unwrap();
            assert!(object.member("a").is_none());
            let set = object.member("b").and_then(|value| value.get("c"));
            assert_eq!(set.unwrap().raw(), "[true]");
            let tools = object.member("tools").unwrap();
            assert_eq!(tools.elements().last().unwrap().raw(), "2");
        }
        Err(error) => assert!(matches!(error, JsonError::WrongKind { .. })),
    }
}
