//! A client receives the same whether responses are handed off or hyper writes all of them.

use std::{
    collections::VecDeque,
    future::pending,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use proptest::{collection::vec, option, prelude::*, sample::select};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::Notify,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::listener::{
    connections::Connections,
    context::{ConnectionContext, ConnectionSettings},
    http1,
};

const NEXT_REQUEST: &[u8] = b"GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// What a response's body does next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Gives a frame of this size, which may be 0.
    Data(usize),
    /// Is pending once, and ready when it is polled again.
    Yield,
    /// Is pending for a second.
    Pause,
    /// Gives trailers, which end it.
    Trailers,
    /// Fails.
    Fail,
}

/// What a response's body says of its end before it is polled to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    Nothing,
    /// After the last frame, that it has ended.
    End,
    /// At first, its length.
    Length,
}

/// When the client sends the request after the first, up to a byte; the rest follows the response.
#[derive(Debug, Clone, Copy)]
enum Pipelining {
    WithFirst(usize),
    DuringResponse(usize),
}

#[derive(Debug, Clone)]
struct Case {
    method: &'static str,
    version: &'static str,
    /// The request's header `connection`.
    connection: Option<&'static str>,
    request_size: usize,
    is_request_chunked: bool,
    is_request_read: bool,
    pipelining: Pipelining,
    /// Bytes that the connection holds in either direction.
    socket_buffer: usize,
    status: u16,
    response_headers: Vec<(&'static str, &'static str)>,
    hint: Hint,
    steps: Vec<Step>,
}

/// What the client received.
#[derive(Debug, Default)]
struct Received {
    head: Vec<String>,
    body: Vec<u8>,
    chunk_sizes: Vec<usize>,
    is_complete: bool,
    /// The response to the next request, head and body; empty if the connection was closed.
    next: String,
}

struct ScriptedBody {
    steps: VecDeque<Step>,
    given: usize,
    hint: Hint,
    pause: Option<Pin<Box<Sleep>>>,
}

fn content(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn size(steps: impl IntoIterator<Item = Step>) -> usize {
    let sizes = steps.into_iter().map(|step| if let Step::Data(size) = step { size } else { 0 });
    sizes.sum()
}

impl HttpBody for ScriptedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let Some(step) = self.steps.pop_front() else { return Poll::Ready(None) };
        match step {
            Step::Data(size) => {
                let data = content(self.given..self.given + size);
                self.given += size;
                Poll::Ready(Some(Ok(Frame::data(data.into()))))
            }
            Step::Yield => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Step::Pause => {
                self.pause = Some(Box::pin(sleep(Duration::from_secs(1))));
                self.poll_frame(cx)
            }
            Step::Trailers => {
                self.steps.clear();
                let trailers =
                    HeaderMap::from_iter([("x-a".parse().unwrap(), "b".parse().unwrap())]);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Step::Fail => Poll::Ready(Some(Err(io::Error::other("the body failed")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.hint == Hint::End && self.steps.is_empty() && self.pause.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = u64::try_from(size(self.steps.iter().copied())).unwrap();
        if self.hint == Hint::Length { SizeHint::with_exact(left) } else { SizeHint::new() }
    }
}

impl Case {
    fn request(&self) -> Vec<u8> {
        let Self { method, version, request_size: size, .. } = self;
        let mut request = format!("{method} / HTTP/{version}\r\nhost: a\r\n");
        if let Some(option) = self.connection {
            request += &format!("connection: {option}\r\n");
        }
        let body = "r".repeat(*size);
        request += &if self.is_request_chunked && *version == "1.1" {
            let chunk = if body.is_empty() { body } else { format!("{size:x}\r\n{body}\r\n") };
            format!("transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")
        } else {
            format!("content-length: {size}\r\n\r\n{body}")
        };
        request.into_bytes()
    }

    fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::new(ScriptedBody {
            steps: self.steps.clone().into(),
            given: 0,
            hint: self.hint,
            pause: None,
        }));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap();
        for (name, value) in &self.response_headers {
            response.headers_mut().append(*name, value.parse().unwrap());
        }
        response
    }

    fn router(&self) -> Router {
        let case = self.clone();
        let respond = move |request: Request<Body>| async move {
            if case.is_request_read {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body.len(), case.request_size);
            }
            case.response()
        };
        Router::new()
            .route("/", routing::any(respond))
            .route("/next", routing::any(|| async { "next" }))
    }

    /// What is received, with handoff or by hyper alone.
    fn run(&self, idle_stream_handoff: bool) -> Received {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let settings = ConnectionSettings { idle_stream_handoff, ..ConnectionSettings::default() };
        runtime.block_on(async {
            let (client, server) = duplex(self.socket_buffer);
            let context = ConnectionContext {
                peer: ([127, 0, 0, 1], 1).into(),
                slot: Connections::default().admit([127, 0, 0, 1].into()).unwrap(),
                site: self.router().into(),
                settings,
                shutdown: CancellationToken::new(),
                tasks: TaskTracker::new(),
                request_received: Notify::new(),
            };
            let serving = async {
                let deadline = Instant::now() + Duration::from_secs(10);
                let (server, drain) = (Box::pin(server), pin!(pending()));
                // It fails where the body does.
                let _ended = http1::serve(&context, server, Bytes::new(), deadline, drain).await;
            };
            let both = async { tokio::join!(serving, Client::new(client).exchange(self)).1 };
            timeout(Duration::from_secs(3_600), both).await.expect("the connection hangs")
        })
    }
}

struct Client {
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    received: Vec<u8>,
}

impl Client {
    fn new(stream: DuplexStream) -> Self {
        let (reader, writer) = split(stream);
        Self { reader, writer, received: Vec::new() }
    }

    async fn exchange(mut self, case: &Case) -> Received {
        let (split, is_with_first) = match case.pipelining {
            Pipelining::WithFirst(split) => (split, true),
            Pipelining::DuringResponse(split) => (split, false),
        };
        let (early, late) = NEXT_REQUEST.split_at(split);
        let mut first = case.request();
        if is_with_first {
            first.extend_from_slice(early);
        }
        // The server may close the connection before it has read all, which is to be compared as well.
        let writer = &mut self.writer;
        let writing = async {
            let _written = writer.write_all(&first).await;
            if !is_with_first {
                sleep(Duration::from_millis(500)).await;
                let _written = writer.write_all(early).await;
            }
        };
        let received = &mut self.received;
        let reader = &mut self.reader;
        let reading = async {
            loop {
                if let Some(parsed) = parse(received, false) {
                    return parsed;
                }
                if !matches!(reader.read_buf(received).await, Ok(read) if read > 0) {
                    return parse(received, true).expect("a response");
                }
            }
        };
        let ((), (mut response, length)) = tokio::join!(writing, reading);
        let _written = self.writer.write_all(late).await;
        let _read = self.reader.read_to_end(&mut self.received).await;
        let rest = &self.received[length..];
        // After a body that failed there may be the beginning of a chunk.
        if response.is_complete && !rest.is_empty() {
            let (next, length) = parse(rest, true).unwrap();
            assert!(next.is_complete && length == rest.len(), "{next:?}");
            response.next = next.head.join("\n") + std::str::from_utf8(&next.body).unwrap();
        }
        response
    }
}

/// Parses a response strictly; returns it with its length once it is complete, or as far as it goes
/// when the connection is closed.
fn parse(bytes: &[u8], is_closed: bool) -> Option<(Received, usize)> {
    let head_length = memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4);
    let Some(head_length) = head_length else {
        return is_closed.then(|| (Received::default(), bytes.len()));
    };
    let head = std::str::from_utf8(&bytes[..head_length - 4]).unwrap();
    let head: Vec<String> =
        head.split("\r\n").filter(|line| !line.starts_with("date: ")).map(Into::into).collect();
    assert!(head.iter().all(|line| !line.contains('\n')), "a bare line feed in {head:?}");
    let value = |name: &str| head.iter().find_map(|line| line.strip_prefix(name));
    let (rest, mut chunk_sizes) = (&bytes[head_length..], Vec::new());
    let (body, used, is_complete) = if value("transfer-encoding: ") == Some("chunked") {
        assert_eq!(value("content-length: "), None);
        parse_chunks(rest, &mut chunk_sizes)
    } else if let Some(length) = value("content-length: ") {
        let length: usize = length.parse().unwrap();
        let body = &rest[..length.min(rest.len())];
        (body.to_vec(), body.len(), body.len() == length)
    } else {
        (rest.to_vec(), rest.len(), is_closed)
    };
    let received = Received { head, body, chunk_sizes, is_complete, next: String::new() };
    (is_complete || is_closed).then_some((received, head_length + used))
}

/// Parses chunks without extensions or trailers, whose sizes it appends to `sizes`; returns their
/// content, how many bytes they take, and whether the last chunk is among them.
fn parse_chunks(bytes: &[u8], sizes: &mut Vec<usize>) -> (Vec<u8>, usize, bool) {
    let (mut content, mut used) = (Vec::new(), 0);
    loop {
        let rest = &bytes[used..];
        let Some(line) = memchr::memmem::find(rest, b"\r\n") else {
            assert!(rest.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'\r'), "{rest:?}");
            return (content, used, false);
        };
        let digits = std::str::from_utf8(&rest[..line]).unwrap();
        assert!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let size = usize::from_str_radix(digits, 16).unwrap();
        let (data, end) = (line + 2, line + 2 + size);
        if rest.len() < end + 2 {
            let partial = &rest[data..end.min(rest.len())];
            content.extend_from_slice(partial);
            return (content, bytes.len(), false);
        }
        assert_eq!(&rest[end..end + 2], b"\r\n", "a chunk of {size} bytes has no end");
        content.extend_from_slice(&rest[data..end]);
        sizes.push(size);
        used += end + 2;
        if size == 0 {
            return (content, used, true);
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..200).prop_map(Step::Data),
        1 => select(vec![Step::Data(0), Step::Data(15_000), Step::Data(70_000)]),
        3 => select(vec![Step::Yield, Step::Pause]),
    ];
    let ending = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Step::Trailers)),
        1 => Just(Some(Step::Fail)),
    ];
    (vec(step, 0..12), ending).prop_map(|(mut steps, ending)| {
        steps.extend(ending);
        steps
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let request = (
        select(vec!["POST", "POST", "POST", "PUT"]),
        select(vec!["1.1", "1.1", "1.1", "1.0"]),
        option::weighted(0.3, select(vec!["close", "keep-alive", "Keep-Alive, x"])),
        select(vec![0_usize, 2, 100, 50_000]),
        any::<bool>(),
        prop::bool::weighted(0.8),
    );
    let split = 0..=NEXT_REQUEST.len();
    let pipelining = prop_oneof![
        split.clone().prop_map(Pipelining::WithFirst),
        split.prop_map(Pipelining::DuringResponse),
    ];
    let header = select(vec![("x-a", "b"), ("connection", "close"), ("trailer", "x-a")]);
    let response = (
        prop_oneof![6 => Just(200_u16), 1 => Just(429)],
        option::weighted(0.2, header).prop_map(|header| header.into_iter().collect()),
        select(vec![Hint::Nothing, Hint::Nothing, Hint::End, Hint::End, Hint::Length]),
        steps(),
    );
    (request, pipelining, select(vec![64_usize, 1_000, 100_000]), response).prop_map(
        |(request, pipelining, socket_buffer, response)| Case {
            method: request.0,
            version: request.1,
            connection: request.2,
            request_size: request.3,
            is_request_chunked: request.4,
            is_request_read: request.5,
            pipelining,
            socket_buffer,
            status: response.0,
            response_headers: response.1,
            hint: response.2,
            steps: response.3,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_client_receives_what_hyper_would_have_sent(case in cases()) {
        let (handed_off, by_hyper) = (case.run(true), case.run(false));
        let sent = content(0..size(case.steps.iter().copied()));
        prop_assert_eq!(handed_off.is_complete, by_hyper.is_complete);
        prop_assert_eq!(&handed_off.next, &by_hyper.next);
        if case.steps.iter().any(|step| matches!(step, Step::Fail)) {
            // hyper may close the connection before it has written all, even the head.
            prop_assert!(by_hyper.head.is_empty() || by_hyper.head == handed_off.head);
            prop_assert!(handed_off.body.starts_with(&by_hyper.body));
            prop_assert!(sent.starts_with(&handed_off.body));
        } else {
            prop_assert!(handed_off.is_complete);
            prop_assert_eq!(&handed_off.head, &by_hyper.head);
            prop_assert_eq!(&handed_off.body, &by_hyper.body);
            prop_assert_eq!(&handed_off.body, &sent);
        }
    }
}

/// A plain streaming response to a plain request.
fn streaming(steps: Vec<Step>) -> Case {
    Case {
        method: "POST",
        version: "1.1",
        connection: None,
        request_size: 2,
        is_request_chunked: false,
        is_request_read: true,
        pipelining: Pipelining::DuringResponse(0),
        socket_buffer: 100_000,
        status: 200,
        response_headers: Vec::new(),
        hint: Hint::Nothing,
        steps,
    }
}

#[test]
fn frames_share_a_chunk_after_a_pause_only_where_handoff_is_enabled() {
    let case = streaming(vec![Step::Data(3), Step::Pause, Step::Data(4), Step::Data(5)]);
    assert_eq!(case.run(true).chunk_sizes, [3, 9, 0]);
    assert_eq!(case.run(false).chunk_sizes, [3, 4, 5, 0]);
}

#[test]
fn what_a_failing_body_gave_is_written_before_the_connection_is_closed() {
    let received = streaming(vec![Step::Data(3), Step::Pause, Step::Data(4), Step::Fail]).run(true);
    assert_eq!((received.body, received.is_complete), (content(0..7), false));
    assert_eq!(received.next, "");
}

#[test]
fn a_body_that_fails_while_the_head_of_a_chunk_is_half_sent_is_truncated() {
    let (data, pause) = (Step::Data(91), Step::Yield);
    let steps = vec![data, pause, pause, pause, Step::Data(16), pause, Step::Fail];
    let case = Case {
        request_size: 100,
        is_request_chunked: true,
        pipelining: Pipelining::WithFirst(0),
        socket_buffer: 64,
        response_headers: vec![("x-a", "b")],
        ..streaming(steps)
    };
    for idle_stream_handoff in [true, false] {
        let received = case.run(idle_stream_handoff);
        assert_eq!((received.is_complete, received.next), (false, String::new()));
    }
}

#[test]
fn a_response_that_declares_more_than_chunks_stays_with_hyper() {
    let steps = vec![Step::Data(3), Step::Pause, Step::Data(4), Step::Data(5)];
    let streaming = streaming(steps);
    for (case, reason) in [
        (Case { method: "PUT", ..streaming.clone() }, "not a POST"),
        (Case { status: 429, ..streaming.clone() }, "not 200"),
        (
            Case { connection: Some("close"), ..streaming.clone() },
            "the request ends the connection",
        ),
        (Case { response_headers: vec![("connection", "close")], ..streaming.clone() }, "response"),
        (Case { response_headers: vec![("trailer", "x-a")], ..streaming }, "trailers"),
    ] {
        assert_eq!(case.run(true).chunk_sizes, [3, 4, 5, 0], "{reason}");
    }
}
