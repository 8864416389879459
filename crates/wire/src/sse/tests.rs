use proptest::prelude::*;

use super::{Beginning, Framer};

/// An event as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    name: Option<String>,
    data: String,
}

fn event(name: Option<&str>, data: &str) -> Event {
    Event { name: name.map(str::to_owned), data: data.to_owned() }
}

/// Reads a stream in chunks: its events, the incomplete last one, and the number of skipped ones.
fn read<'a>(
    framer: &mut Framer,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Vec<Event>) {
    let (mut events, mut left, mut raw, mut whole) = (vec![], vec![], vec![], vec![]);
    for chunk in chunks {
        whole.extend_from_slice(chunk);
        framer.push(chunk, |frame| {
            raw.extend_from_slice(frame.raw());
            assert!(frame.is_complete());
            if !frame.is_comment_only() && !frame.is_fragment() {
                events.push(seen(&frame));
            }
        });
        assert_eq!([&raw[..], framer.pending()].concat(), whole, "no byte is lost");
    }
    framer.finish(|frame| {
        assert!(!frame.is_complete());
        raw.extend_from_slice(frame.raw());
        left.push(seen(&frame));
    });
    assert_eq!(raw, whole);
    (events, left)
}

fn seen(frame: &super::Frame<'_>) -> Event {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Event { name: frame.event().map(text), data: text(&frame.data()) }
}

fn events(stream: &str) -> Vec<Event> {
    let (events, _) = read(&mut Framer::new(), [stream.as_bytes()]);
    for cut in 0..=stream.len() {
        let (one, two) = stream.as_bytes().split_at(cut);
        assert_eq!(read(&mut Framer::new(), [one, two]).0, events, "cut at {cut}");
    }
    let (bytewise, _) = read(&mut Framer::new(), stream.as_bytes().chunks(1));
    assert_eq!(bytewise, events, "byte by byte");
    events
}

#[test]
fn every_line_ending_is_recognised() {
    for end in ["\n", "\r\n", "\r"] {
        let stream = "event: a\ndata: 1\n\n: note\n\ndata: 2\n\n".replace('\n', end);
        assert_eq!(events(&stream), [event(Some("a"), "1"), event(None, "2")], "{end:?}");
    }
    let mixed = "data: 1\r\n\ndata: 2\n\r\ndata: 3\r\rdata: 4\n\r";
    let numbers: Vec<_> = events(mixed).into_iter().map(|event| event.data).collect();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
}

#[test]
fn fields_are_parsed_as_specified() {
    assert_eq!(events("data:x\n\n"), [event(None, "x")]);
    assert_eq!(events("data:  x\n\n"), [event(None, " x")]);
    assert_eq!(events("data\n\n"), [event(None, "")]);
    assert_eq!(events("data: a\ndata:\ndata: b:c\n\n"), [event(None, "a\n\nb:c")]);
    assert_eq!(events("event: x\nevent: y\ndata: 1\n\n"), [event(Some("y"), "1")]);
    assert_eq!(events("event:\nid: 7\nretry: 9\ndata: 1\n\n"), [event(None, "1")]);
    assert_eq!(events("Data: no\ndata : no\n\n"), [event(None, "")]);
    assert_eq!(events(": hello\n:\n\n\n\n"), []);
    assert_eq!(events(": hello\ndata: 1\n: bye\n\n"), [event(None, "1")]);
}

#[test]
fn a_byte_order_mark_counts_only_at_the_beginning() {
    assert_eq!(events("\u{feff}data: 1\n\n"), [event(None, "1")]);
    assert_eq!(events("\u{feff}\ndata: 1\n\n"), [event(None, "1")]);
    assert_eq!(events("data: 1\n\n\u{feff}data: 2\n\n"), [event(None, "1"), event(None, "")]);
}

#[test]
fn the_format_of_a_body_shows_in_its_first_bytes() {
    for (body, format) in [
        ("data: 1", Beginning::Events),
        (" \r\n\u{feff}", Beginning::Undecided),
        ("\u{feff}\nevent:x", Beginning::Events),
        ("\n\n: comment", Beginning::Events),
        ("id: 1", Beginning::Events),
        ("retry: 1", Beginning::Events),
        ("", Beginning::Undecided),
        ("dat", Beginning::Undecided),
        ("data", Beginning::Undecided),
        ("database error", Beginning::Other),
        ("<html>", Beginning::Other),
        (" {", Beginning::Json),
        ("\u{feff}[", Beginning::Json),
        ("\"data: 1\"", Beginning::Other),
    ] {
        assert_eq!(Beginning::of(body.as_bytes()), format, "{body:?}");
    }
    assert_eq!(Beginning::of(b"\xef\xbb"), Beginning::Undecided);
}

#[test]
fn one_line_of_data_is_borrowed() {
    Framer::new().push(b"event: x\ndata: 1\n\n", |frame| {
        assert!(matches!(frame.data(), std::borrow::Cow::Borrowed(b"1")));
    });
}

#[test]
fn an_event_without_its_blank_line_is_passed_on_at_the_end() {
    let mut framer = Framer::new();
    let (events, left) = read(&mut framer, [&b"data: 1\n\ndata: [DONE]"[..]]);
    assert_eq!(events, [event(None, "1")]);
    assert_eq!(left, [event(None, "[DONE]")]);
    assert!(framer.is_mid_event(), "the end of the stream ends no event");
    framer.finish(|_| panic!("nothing is given twice"));
}

#[test]
fn the_framer_knows_whether_it_is_inside_an_event() {
    let mut framer = Framer::new();
    for (chunk, is_mid_event) in [
        ("", false),
        ("data", true),
        (": 1\r\n", true),
        ("\r", false),
        ("\n", false),
        (": ping\n", true),
        ("\n", false),
    ] {
        framer.push(chunk.as_bytes(), |_| {});
        assert_eq!(framer.is_mid_event(), is_mid_event, "{chunk:?}");
    }
}

#[test]
fn an_oversized_event_passes_in_fragments() {
    let stream = format!("data: 1\n\ndata: {}\n\ndata: 2\n\n", "x".repeat(50));
    for size in 1..stream.len() {
        let mut framer = Framer::with_limit(20);
        let (events, left) = read(&mut framer, stream.as_bytes().chunks(size));
        let seen: Vec<_> = events.into_iter().map(|event| event.data).collect();
        assert_eq!(seen, ["1", "2"], "chunks of {size}");
        assert!(left.is_empty());
        assert_eq!(framer.skipped_events(), 1);
    }
}

#[test]
fn the_name_of_an_oversized_event_is_known() {
    let stream = format!("event: long\r\ndata: {}\n\n", "x".repeat(50));
    for size in 1..stream.len() {
        let (mut framer, mut names) = (Framer::with_limit(20), vec![]);
        for chunk in stream.as_bytes().chunks(size) {
            framer.push(chunk, |frame| {
                assert!(frame.is_fragment() && frame.data().is_empty());
                names.extend(frame.event().map(<[u8]>::to_vec));
            });
        }
        assert_eq!(names, [b"long"], "chunks of {size}");
    }
    Framer::with_limit(20).push(&b"data: event: x\n".repeat(3), |frame| {
        assert!(frame.is_fragment() && frame.event().is_none());
    });
}

#[test]
fn an_event_of_exactly_the_maximum_size_is_read() {
    for (limit, skipped) in [(8, 0), (7, 1)] {
        for size in 1..11 {
            let mut framer = Framer::with_limit(limit);
            read(&mut framer, b"data: 1\r\n\r\n".chunks(size));
            // The event is `data: 1` and its line ending: 9 bytes with CRLF.
            assert_eq!(framer.skipped_events(), 1, "chunks of {size}");
            let mut framer = Framer::with_limit(limit);
            read(&mut framer, b"data: 1\n\n".chunks(size));
            assert_eq!(framer.skipped_events(), skipped, "chunks of {size}");
        }
    }
}

#[test]
fn the_buffer_of_a_large_event_is_released() {
    let mut framer = Framer::new();
    framer.push(&b"data: ".repeat(100_000), |_| {});
    framer.push(b"\n\n", |_| {});
    framer.push(b"data", |_| {});
    assert!(framer.pending.capacity() < 1000);
}

fn stream() -> impl Strategy<Value = String> {
    let line = prop::sample::select(vec![
        "data: x", "data:", "data", "event: e", ": c", "id: 1", "", "", "", "\u{feff}", "é: 😀",
    ]);
    let end = prop::sample::select(vec!["\n", "\r\n", "\r"]);
    prop::collection::vec((line, end), 0..24)
        .prop_map(|lines| lines.into_iter().map(|(line, end)| format!("{line}{end}")).collect())
}

proptest! {
    #[test]
    fn any_split_gives_the_same_events(
        stream in stream(), limit in 4..40_usize,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let chunks = cuts.windows(2).map(|cut| &stream.as_bytes()[cut[0]..cut[1]]);
        let (mut whole, mut cut) = (Framer::with_limit(limit), Framer::with_limit(limit));
        let expected = read(&mut whole, [stream.as_bytes()]);
        prop_assert_eq!(read(&mut cut, chunks), expected);
        prop_assert_eq!(cut.skipped_events(), whole.skipped_events());
        prop_assert_eq!(cut.is_mid_event(), whole.is_mid_event());
    }

    #[test]
    fn arbitrary_bytes_come_out_unchanged(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..10)
    ) {
        read(&mut Framer::with_limit(16), chunks.iter().map(Vec::as_slice));
    }
}
