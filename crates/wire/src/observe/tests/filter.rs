use bytes::Bytes;
use proptest::prelude::*;

use super::{chat::rich_stream, cut_at};
use crate::observe::UsageChunkFilter;

fn filtered<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut filter = UsageChunkFilter::new();
    let mut passed = Vec::new();
    for chunk in chunks {
        passed.extend_from_slice(&filter.push(&Bytes::copy_from_slice(chunk)));
    }
    passed.extend_from_slice(&filter.finish());
    String::from_utf8(passed).unwrap()
}

fn expected(stream: &str) -> String {
    let is_usage = |event: &&str| event.contains("\"choices\":[]") && event.contains("\"usage\":{");
    stream.split_inclusive("\n\n").filter(|event| !is_usage(event)).collect()
}

#[test]
fn only_the_usage_chunk_is_withheld() {
    let stream = rich_stream();
    let passed = filtered([stream.as_bytes()]);
    assert_eq!(passed, expected(&stream));
    assert!(passed.len() < stream.len());
    assert!(passed.ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_chunk_that_only_resembles_a_usage_chunk_passes() {
    for event in [
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[],\"usage\":null,\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[]}\n\n",
        "data: {\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"choices\\\":[],\\\"usage\\\":{}\"}}]}\n\n",
        ": \"usage\"\n\n",
        "data: \"usage\"\n\n",
        "data: {\"choices\":[],\"usage\":{}\n\n",
    ] {
        assert_eq!(filtered([event.as_bytes()]), event);
    }
    let spaced = "data: { \"usage\" : {}, \"choices\" : [ ] }\n\n";
    assert_eq!(filtered([spaced.as_bytes()]), "");
}

#[test]
fn complete_events_pass_without_a_copy() {
    let chunk = Bytes::from_static(b"data: {\"choices\":[{}]}\n\ndata: 2\n\ndata: 3");
    let mut filter = UsageChunkFilter::new();
    let passed = filter.push(&chunk);
    assert_eq!(passed, "data: {\"choices\":[{}]}\n\ndata: 2\n\n");
    assert_eq!(passed.as_ptr(), chunk.as_ptr());
    assert_eq!(filter.push(&Bytes::from_static(b"3\n\n")), "data: 33\n\n");
    assert_eq!(filter.push(&Bytes::from_static(b": ")), "");
    assert_eq!(filter.finish(), ": ");
    assert_eq!(filter.finish(), "");
}

#[test]
fn a_usage_chunk_without_its_blank_line_is_withheld_too() {
    assert_eq!(filtered([&b"data: {\"choices\":[],\"usage\":{}}\n"[..]]), "");
}

#[test]
fn a_split_inside_a_line_ending_leaves_nothing_behind() {
    let (stream, expected) = (rich_stream(), expected(&rich_stream()));
    for end in ["\r\n", "\r"] {
        let (stream, expected) = (stream.replace('\n', end), expected.replace('\n', end));
        assert_eq!(filtered(stream.as_bytes().chunks(1)), expected, "{end:?}");
    }
}

proptest! {
    #[test]
    fn any_split_passes_the_same_bytes(
        crlf in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)
    ) {
        let (mut stream, mut expected) = (rich_stream(), expected(&rich_stream()));
        if crlf {
            (stream, expected) = (stream.replace('\n', "\r\n"), expected.replace('\n', "\r\n"));
        }
        prop_assert_eq!(filtered(cut_at(stream.as_bytes(), &cuts)), expected);
    }
}
