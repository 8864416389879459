//! What clients see when a provider fails, and what is recorded: faults × dialects × streaming. The
//! table in `docs/reliability.md` is generated from this one.

mod upstream;

use std::{collections::HashMap, fmt::Write, path::PathBuf, time::Duration};

use keybridge_providers::config::Timeouts;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use upstream::{Fault, Good, Goods, HTML, Upstream, gzip, is_http2};

use crate::support::{Answer, ENDPOINTS, World, answer, body, client, provider};

/// What a client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The provider's response, unchanged.
    Same,
    /// An error of the bridge in the client's dialect.
    Error(u16),
    /// The beginning of the response, then an error event of the dialect.
    ErrorEvent,
    /// The beginning of the response, then the connection is closed.
    Truncated,
}

impl Seen {
    fn text(self) -> String {
        match self {
            Self::Same => "the response, unchanged".into(),
            Self::Error(status) => format!("error {status} in the dialect"),
            Self::ErrorEvent => "the beginning, then an error event".into(),
            Self::Truncated => "the beginning, then a closed connection".into(),
        }
    }
}

/// One row of the matrix.
struct Row {
    fault: Fault,
    what: &'static str,
    stream: Seen,
    whole: Seen,
    /// Number of attempts, with one retry allowed.
    attempts: u32,
    /// Duration with the default timeouts.
    seconds: u64,
    outcome: &'static str,
    error_kind: &'static str,
}

const FAILED: Row = Row {
    fault: Fault::Refused,
    what: "",
    stream: Seen::Error(502),
    whole: Seen::Error(502),
    attempts: 2,
    seconds: 0,
    outcome: "failed",
    error_kind: "api_error",
};
const SILENT: Row = Row {
    stream: Seen::Error(504),
    whole: Seen::Error(504),
    attempts: 1,
    error_kind: "timeout_error",
    ..FAILED
};
const BROKEN: Row = Row { stream: Seen::ErrorEvent, whole: Seen::Truncated, attempts: 1, ..FAILED };
const PASSES: Row = Row {
    stream: Seen::Same,
    whole: Seen::Same,
    attempts: 1,
    outcome: "completed",
    error_kind: "",
    ..FAILED
};

const ROWS: &[Row] = &[
    Row { fault: Fault::Refused, what: "connection refused", ..FAILED },
    Row { fault: Fault::NoName, what: "host name does not exist", ..FAILED },
    Row { fault: Fault::NoTls, what: "plain HTTP instead of TLS", ..FAILED },
    Row { fault: Fault::SilentTls, what: "no TLS handshake", seconds: 10, ..SILENT },
    Row { fault: Fault::ResetBeforeHead, what: "connection reset before the response", ..FAILED },
    Row { fault: Fault::ClosedBeforeHead, what: "connection closed before the response", ..FAILED },
    Row { fault: Fault::SilentBeforeHead, what: "no response", seconds: 600, ..SILENT },
    Row {
        fault: Fault::SilentInHead,
        what: "pause within the response headers",
        seconds: 600,
        ..SILENT
    },
    Row { fault: Fault::Garbage, what: "not HTTP", ..FAILED },
    Row { fault: Fault::EndlessHead, what: "endless response headers", ..FAILED },
    Row { fault: Fault::ResetInBody, what: "connection reset within the response", ..BROKEN },
    Row {
        fault: Fault::ClosedInBody,
        what: "connection closed within a chunked response",
        ..BROKEN
    },
    Row {
        fault: Fault::TooShort,
        what: "fewer bytes than `Content-Length`",
        stream: Seen::Truncated,
        ..BROKEN
    },
    Row {
        fault: Fault::SilentInBody,
        what: "pause within the response",
        seconds: 300,
        error_kind: "timeout_error",
        ..BROKEN
    },
    Row {
        fault: Fault::Html,
        what: "HTML page with status 200",
        outcome: "failed",
        error_kind: "api_error",
        ..PASSES
    },
    Row { fault: Fault::Redirect, what: "redirect to another address", attempts: 1, ..FAILED },
    Row {
        fault: Fault::TruncatedGzip,
        what: "truncated gzip",
        outcome: "failed",
        error_kind: "api_error",
        ..PASSES
    },
    Row { fault: Fault::Continue, what: "100 Continue before the response", ..PASSES },
    Row { fault: Fault::EarlyHints, what: "103 Early Hints before the response", ..PASSES },
    Row { fault: Fault::RefusedStream, what: "HTTP/2: stream refused", ..FAILED },
    Row { fault: Fault::GoAway, what: "HTTP/2: GOAWAY before the response", ..FAILED },
    Row { fault: Fault::GoAwayGracefully, what: "HTTP/2: GOAWAY, the stream continues", ..PASSES },
    Row { fault: Fault::ResetStream, what: "HTTP/2: RST_STREAM within the response", ..BROKEN },
];

/// The responses without faults, from the simulated provider.
async fn goods(world: &World) -> Goods {
    let mut goods = HashMap::new();
    for path in ENDPOINTS {
        for stream in [true, false] {
            let mut request = world.post(
                path,
                &[("x-api-key", "k"), ("authorization", "Bearer k")],
                body(path, "text", stream),
            );
            *request.uri_mut() = format!("{}{path}", world.sim_base()).parse().unwrap();
            let got = answer(client(false).request(request).await.unwrap()).await;
            assert_status!(got, 200);
            let content_type = got.headers["content-type"].to_str().unwrap().to_owned();
            let end = path.rsplit_once("/v1").unwrap().1.to_owned();
            goods.insert((end, stream), Good { content_type, body: got.body });
        }
    }
    goods
}

/// A bridge in front of a provider with a fault.
async fn world(fault: Fault, upstream: &Upstream) -> World {
    let base = match fault {
        Fault::NoName => "http://no-such-name.invalid".into(),
        Fault::NoTls | Fault::SilentTls => format!("https://{}", upstream.address),
        _ => format!("http://{}", upstream.address),
    };
    World::with(|config| {
        for one in &mut config.providers {
            *one = provider(one.kind, &base);
            one.max_retries = 1;
            one.http2 = is_http2(fault);
            one.timeouts = Timeouts {
                connect: Duration::from_secs(10),
                head: Duration::from_secs(600),
                idle: Duration::from_secs(300),
            };
        }
    })
    .await
}

/// The result of one cell.
struct Cell {
    path: &'static str,
    stream: bool,
    answer: Answer,
    took: Duration,
}

/// Sends a request in each dialect, whole and as a stream, concurrently.
async fn ask_all(world: &World, row: &Row, upstream: &Upstream) -> Vec<Cell> {
    let ask = |path: &'static str, stream: bool| async move {
        let began = Instant::now();
        let answer = world.send(world.centralized(path, &body(path, "text", stream))).await;
        Cell { path, stream, answer, took: began.elapsed() }
    };
    let ways = ENDPOINTS.into_iter().flat_map(|path| [(path, true), (path, false)]);
    let asking = futures_util::future::join_all(ways.map(|(path, stream)| ask(path, stream)));
    tokio::pin!(asking);
    if row.seconds == 0 {
        return asking.await;
    }
    // Once all requests wait for a timeout, the clock is advanced.
    tokio::select! {
        _ended = &mut asking => panic!("a request ended before its timeout"),
        waiting = upstream.waiting.acquire_many(6) => waiting.unwrap().forget(),
    }
    tokio::time::pause();
    let cells = asking.await;
    tokio::time::resume();
    cells
}

fn check(row: &Row, cell: &Cell, good: &Good, record: &Value) {
    let what = format!("{:?} {} stream={}", row.fault, cell.path, cell.stream);
    let (answer, seen) = (&cell.answer, if cell.stream { row.stream } else { row.whole });
    let text = answer.text();
    let sent = match row.fault {
        Fault::Html => HTML.into(),
        Fault::TruncatedGzip => gzip(&good.body),
        _ if seen == Seen::Same => good.body.to_vec(),
        _ => good.body[..good.body.len() / 2].to_vec(),
    };
    match seen {
        Seen::Same => {
            assert_status!(answer, 200, "{what}");
            assert!(answer.body == sent && !answer.truncated, "{what}: {text}");
        }
        Seen::Error(status) => {
            assert_status!(answer, status, "{what}");
            let error = &answer.json()["error"];
            assert!(error["message"].is_string() && error["type"].is_string(), "{what}: {text}");
            let is_anthropic = answer.json()["type"] == "error";
            assert_eq!(is_anthropic, cell.path.starts_with("/anthropic"), "{what}: {text}");
        }
        Seen::ErrorEvent => {
            assert!(answer.status.as_u16() == 200 && !answer.truncated, "{what}: {text}");
            assert!(answer.body.starts_with(&sent), "{what}: {text}");
            let added = text.get(sent.len()..).unwrap();
            let expected =
                if cell.path.ends_with("/completions") { "{\"error\":" } else { "event: error\n" };
            assert_eq!(added.matches(expected).count(), 1, "{what}: {added}");
        }
        Seen::Truncated => {
            assert!(answer.status.as_u16() == 200 && answer.truncated, "{what}: {text}");
            assert!(sent.starts_with(&answer.body), "{what}: {text}");
        }
    }
    let took = cell.took.as_secs_f64();
    let least = f64::from(u32::try_from(row.seconds).unwrap());
    // Real time before the clock is paused, or a retry's delay.
    assert!((least..least + 3.0).contains(&took), "{what}: {took} s");
    assert_eq!(record["outcome"], row.outcome, "{what}: {record:#}");
    assert_eq!(record["attempts"], row.attempts, "{what}");
    assert_eq!(
        record["error_kind"].as_str().unwrap_or_default(),
        row.error_kind,
        "{what}: {record:#}"
    );
    assert!(record["ended_at"].is_string(), "{what}");
}

/// The table of the documentation.
fn table() -> String {
    let (faults, cells) = (ROWS.len(), ROWS.len() * 6);
    let mut text = format!("{cells} cells: {faults} faults, 3 dialects, streaming and not.\n\n");
    text.push_str("| fault | the client sees, streaming | not streaming | attempts | after | recorded |\n|---|---|---|--:|--:|---|\n");
    for row in ROWS {
        let (stream, whole) = (row.stream.text(), row.whole.text());
        let after = if row.seconds == 0 { "0 s".into() } else { format!("{} s", row.seconds) };
        let kind = if row.error_kind.is_empty() {
            String::new()
        } else {
            format!(", `{}`", row.error_kind)
        };
        let Row { what, attempts, outcome, .. } = row;
        writeln!(
            text,
            "| {what} | {stream} | {whole} | {attempts} | {after} | `{outcome}`{kind} |"
        )
        .unwrap();
    }
    text
}

#[tokio::test]
async fn each_fault_is_seen_and_recorded_as_expected() {
    let goods = goods(&World::start().await).await;
    let mut cells = 0;
    for row in ROWS {
        let upstream = Upstream::start(row.fault, goods.clone()).await;
        let world = world(row.fault, &upstream).await;
        let seen = ask_all(&world, row, &upstream).await;
        let records = world.settled_records(seen.len()).await;
        for cell in &seen {
            let is_its = |record: &&Value| {
                cell.path.ends_with(record["endpoint"].as_str().unwrap())
                    && record["streaming"] == cell.stream
            };
            let its: Vec<&Value> = records.iter().filter(is_its).collect();
            assert_eq!(its.len(), 1, "one record: {records:#?}");
            let end = cell.path.rsplit_once("/v1").unwrap().1.to_owned();
            check(row, cell, &goods[&(end, cell.stream)], its[0]);
            cells += 1;
        }
    }
    assert_eq!(cells, ROWS.len() * 6);
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_has_disconnected() {
    let world = World::start().await;
    for (count, path) in ENDPOINTS.into_iter().enumerate() {
        let mut socket = TcpStream::connect(world.address).await.unwrap();
        let (token, body) = (&world.token, body(path, "stalled", true));
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 16];
        socket.read_exact(&mut first).await.unwrap();
        assert!(first.starts_with(b"HTTP/1.1 200 OK"), "{path}");
        socket.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let reading = socket.read_to_end(&mut rest);
        tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap().unwrap();
        let record = world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!(record["outcome"], "cancelled", "{path}");
    }
}

#[test]
fn the_table_in_the_documentation_is_up_to_date() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reliability.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- faults -->\n").unwrap();
    let (_old, after) = rest.split_once("<!-- end of faults -->").unwrap();
    let expected = format!("{before}<!-- faults -->\n{}<!-- end of faults -->{after}", table());
    if std::env::var_os("KEYBRIDGE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    } else {
        assert_eq!(page, expected, "run this test with KEYBRIDGE_WRITE_DOCS=1 to update it");
    }
}
