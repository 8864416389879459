use proptest::{collection::vec, prelude::*};

use super::{ChunkJoiner, Framing, MAX_INTERIM_RESPONSES};

/// Returns what comes out when a connection is read in these pieces.
fn through(pieces: &[&[u8]]) -> Vec<u8> {
    let (mut framing, mut out) = (Framing::begin(), Vec::new());
    for piece in pieces {
        let room = framing.held().len() + piece.len();
        let before = out.len();
        framing.process(piece, &mut |bytes| out.extend_from_slice(bytes));
        assert!(out.len() - before <= room, "more than was held and read");
    }
    out.extend_from_slice(framing.held());
    out
}

/// A body with chunks of these contents.
fn chunked(contents: &[&str]) -> String {
    let chunk = |content: &&str| format!("{:x}\r\n{content}\r\n", content.len());
    contents.iter().map(chunk).collect::<String>() + "0\r\n\r\n"
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Returns the joined contents of the chunks of a body, and the number of chunks.
fn contents(mut body: &[u8]) -> (Vec<u8>, usize) {
    let (mut all, mut count) = (Vec::new(), 0);
    loop {
        let line = body.iter().position(|byte| *byte == b'\n').unwrap();
        let digits = std::str::from_utf8(&body[..line]).unwrap().trim();
        let size = usize::from_str_radix(digits.split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            assert_eq!(body, b"0\r\n\r\n");
            return (all, count);
        }
        all.extend_from_slice(&body[line + 1..line + 1 + size]);
        assert_eq!(&body[line + 1 + size..line + 3 + size], b"\r\n");
        body = &body[line + 3 + size..];
        count += 1;
    }
}

#[test]
fn chunks_of_one_read_become_one() {
    let answer = HEAD.to_owned() + &chunked(&["event: a\n\n", "event: b\n\n", "c"]);
    let out = through(&[answer.as_bytes()]);
    let body = out.strip_prefix(HEAD.as_bytes()).unwrap();
    assert_eq!(body, b"15\r\nevent: a\n\nevent: b\n\nc\r\n0\r\n\r\n");
}

#[test]
fn a_single_chunk_passes_unchanged() {
    let answer = HEAD.to_owned() + "0005;name=value\r\nhello\r\n";
    assert_eq!(through(&[answer.as_bytes()]), answer.as_bytes());
}

#[test]
fn a_partial_chunk_is_not_held_back() {
    let (mut framing, mut out) = (Framing::begin(), Vec::new());
    framing.process(HEAD.as_bytes(), &mut |_| {});
    framing.process(b"1\r\na\r\n1\r\nb\r\n5\r\nhel", &mut |bytes| out.extend_from_slice(bytes));
    assert_eq!(out, b"2\r\nab\r\n5\r\nhel");
    out.clear();
    framing.process(b"lo\r\n1\r\nc\r\n2", &mut |bytes| out.extend_from_slice(bytes));
    assert_eq!(out, b"lo\r\n1\r\nc\r\n");
    assert_eq!(framing.held(), b"2", "half a size");
}

#[test]
fn the_next_answer_on_a_connection_is_joined_too() {
    let between = [
        "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n1\r\na\r\n1\r\nb\r\n".to_owned(),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"
            .to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
        HEAD.to_owned() + "1\r\na\r\n0\r\ntrailer: 1\r\nother: 2\r\n\r\n",
    ];
    for answer in between {
        let both = answer.clone() + HEAD + "1\r\na\r\n1\r\nb\r\n0\r\n\r\n";
        let expected = answer + HEAD + "2\r\nab\r\n0\r\n\r\n";
        assert_eq!(String::from_utf8(through(&[both.as_bytes()])).unwrap(), expected);
    }
}

#[test]
fn interim_responses_are_counted_for_each_request_however_they_are_spelled() {
    let spellings = [
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
        "HTTP/1.0 100 Continue\r\n\r\n",
        "\r\n\nHTTP/1.1 102 Processing\n\n",
        "HTTP/1.1 199 \r\nx: y\n\r\n",
    ];
    let most = usize::from(MAX_INTERIM_RESPONSES);
    for spelling in spellings {
        let mut framing = Framing::begin();
        for _request in 0..2 {
            framing.process(spelling.repeat(most).as_bytes(), &mut |_| {});
            assert!(matches!(framing, Framing::Head { .. }), "{spelling:?}: {framing:?}");
            framing.process(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", &mut |_| {});
        }
        framing.process(spelling.repeat(most + 1).as_bytes(), &mut |_| {});
        assert!(matches!(framing, Framing::Refused), "{spelling:?}: {framing:?}");
    }
}

#[test]
fn joining_begins_again_with_the_request_after_an_answer_that_was_not_understood() {
    let mut joiner = ChunkJoiner::new((), true);
    joiner.framing.process(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", &mut |_| {});
    assert!(matches!(joiner.framing, Framing::Off));
    joiner.observe_request(b"{\"a\":1}");
    assert!(matches!(joiner.framing, Framing::Off), "the rest of a body");
    joiner.observe_request(b"POST /v1/messages HTTP/1.1\r\n");
    assert!(matches!(joiner.framing, Framing::Head { .. }));
    joiner.observe_request(b"HEAD / HTTP/1.1\r\n");
    assert!(matches!(joiner.framing, Framing::Off));
    let mut http2 = ChunkJoiner::new((), false);
    http2.observe_request(b"POST /");
    assert!(matches!(http2.framing, Framing::Http2(_)));
}

#[test]
fn unknown_framing_passes_unchanged() {
    let rest = "1\r\na\r\n1\r\nb\r\n";
    let answers = [
        "SSH-2.0-OpenSSH\r\n\r\n".to_owned() + rest,
        "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned() + rest,
        "HTTP/1.1 200 OK\r\n\r\n".to_owned() + rest,
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned() + rest,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n".to_owned() + rest,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n".to_owned()
            + rest,
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 3\r\n\r\n".to_owned() + rest,
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n".to_owned() + rest,
        HEAD.to_owned() + "x\r\n" + rest,
        HEAD.to_owned() + "\r\n" + rest,
        HEAD.to_owned() + "ffffffffffffffffffff\r\n" + rest,
        HEAD.to_owned() + "1\n" + rest,
        HEAD.to_owned() + &"0".repeat(300) + rest,
        HEAD.to_owned() + "1\r\nabc\r\n" + rest,
        "x".repeat(70_000) + rest,
    ];
    for answer in answers {
        assert_eq!(through(&[answer.as_bytes()]), answer.as_bytes(), "{answer:.120}");
    }
}

proptest! {
    /// However a connection is cut into reads, the content of each answer stays the same.
    #[test]
    fn the_content_is_the_same_however_it_is_cut(
        texts in vec("[a-z\r\n0-9]{1,40}", 1..20),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let one = HEAD.to_owned() + &chunked(&texts);
        let answer = one.repeat(2);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len())).collect();
        at.extend([0, answer.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> =
            at.windows(2).map(|cut| &answer.as_bytes()[cut[0]..cut[1]]).collect();
        let out = through(&pieces);
        let bodies: Vec<&[u8]> = split(&out);
        prop_assert_eq!(bodies.len(), 2);
        for body in bodies {
            let (all, count) = contents(body);
            prop_assert_eq!(all, texts.concat().into_bytes());
            prop_assert!(count <= texts.len());
        }
    }

    #[test]
    fn arbitrary_bytes_are_neither_lost_nor_cause_a_panic(pieces in vec(vec(any::<u8>(), 0..60), 0..10)) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(through(&pieces), pieces.concat());
    }
}

/// Returns the body after each head.
fn split(mut out: &[u8]) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while let Some(rest) = out.strip_prefix(HEAD.as_bytes()) {
        let next = memchr::memmem::find(rest, HEAD.as_bytes()).unwrap_or(rest.len());
        let (body, after) = rest.split_at(next);
        bodies.push(body);
        out = after;
    }
    assert!(out.is_empty());
    bodies
}
