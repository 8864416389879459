//! The export.

use std::{collections::BTreeSet, sync::mpsc, time::Duration};

use axum::body::BodyDataStream;
use futures_util::{StreamExt, future::join_all};
use keybridge_ledger::{LedgerOptions, NewThought, NewToolUsage, ReadOptions};

use super::*;

/// Enough for a page on a busy machine.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// An API over many records, with one reader.
struct World {
    api: Api,
    ledger: Ledger,
    _dir: tempfile::TempDir,
}

impl World {
    /// With so many records of ada, and two of bob, of which one has a formula for a name.
    async fn with(records: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/k.db", dir.path().display());
        let reads =
            ReadOptions { max_concurrent: 1, timeout: READ_TIMEOUT, ..ReadOptions::default() };
        let options = LedgerOptions { reads, ..LedgerOptions::default() };
        let ledger = Ledger::open_with(&url, &options).unwrap();
        let accounts = Accounts::new(ledger.clone());
        let mut tokens = HashMap::new();
        for (name, role) in [("ada", Role::Member), ("bob", Role::Member), ("eve", Role::Auditor)] {
            let user = NewUser { name: name.into(), email: None, role };
            let user = accounts.create_user(&user).unwrap();
            let (_token, secret) = accounts.create_token(name, None, None).unwrap();
            tokens.insert(name.to_owned(), secret.expose().to_owned());
            let numbers: Vec<usize> = match name {
                "ada" => (0..records).collect(),
                "bob" => (0..2).collect(),
                _ => Vec::new(),
            };
            for batch in numbers.chunks(500) {
                join_all(batch.iter().map(|number| record(&ledger, user.id, *number))).await;
            }
        }
        ledger.recorder().drained().await;
        let directory = Arc::new(Directory::new(ledger.clone()));
        let (registry, data_path) = (Arc::default(), Arc::new(StaticDataPath::default()));
        let router = router(ledger.clone(), directory, registry, data_path, MetricsAccess::Local);
        Self { api: Api { router, ledger: ledger.clone(), tokens }, ledger, _dir: dir }
    }

    async fn export(&self, query: &str, bearer: &str) -> (StatusCode, BodyDataStream) {
        let request = Request::get(format!("/api/v1/export?{query}"))
            .header("authorization", self.api.authorization(bearer))
            .body(Body::empty())
            .unwrap();
        let response = self.api.router.clone().oneshot(request).await.unwrap();
        (response.status(), response.into_body().into_data_stream())
    }

    async fn text(&self, query: &str, bearer: &str) -> String {
        let (status, mut body) = self.export(query, bearer).await;
        assert_eq!(status, StatusCode::OK, "{query}");
        let mut text = Vec::new();
        while let Some(chunk) = body.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    async fn records(&self, query: &str, bearer: &str) -> Vec<Value> {
        let text = self.text(query, bearer).await;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

async fn record(ledger: &Ledger, user: Uuid, number: usize) {
    let mut interception = Interception::new(Uuid::now_v7(), user, Timestamp::now());
    interception.provider = if number.is_multiple_of(2) { "anthropic" } else { "openai" }.into();
    interception.model = Some(format!("model-{}", number % 10));
    interception.client = Some(if number == 1 { "=cmd()".into() } else { "sdk".into() });
    interception.credential_kind = Some("byok".into());
    let prompt = Some(format!("prompt, \"{number}\""));
    let (tool_results, attachments) = (Vec::new(), Vec::new());
    let opening = Opening { interception, prompt, tool_results, attachments };
    let mut settlement = Settlement::new(Timestamp::now(), Outcome::Completed);
    settlement.thoughts.push(NewThought { source: "thinking".into(), content: "hm".into() });
    settlement.tool_usages.push(NewToolUsage { tool: "search".into(), ..NewToolUsage::default() });
    settlement.token_usages.push(NewTokenUsage {
        input_tokens: Some(10),
        quality: Quality::Exact,
        ..NewTokenUsage::default()
    });
    ledger.recorder().record(opening, settlement).await.unwrap();
}

#[tokio::test]
async fn an_export_of_very_many_records_has_each_once_in_bounded_pieces() {
    const RECORDS: usize = 20_500;
    let world = World::with(RECORDS).await;
    let (_, mut body) = world.export("", "ada").await;
    let (mut ids, mut line, mut pieces) = (BTreeSet::new(), Vec::new(), 0);
    let mut last = String::new();
    while let Some(piece) = body.next().await {
        let piece = piece.unwrap();
        pieces += 1;
        assert!(piece.len() < 70 << 10, "{}", piece.len());
        for byte in piece {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let record: Value = serde_json::from_slice(&std::mem::take(&mut line)).unwrap();
            let id = record["id"].as_str().unwrap().to_owned();
            assert!(id > last, "oldest first");
            last.clone_from(&id);
            assert!(ids.insert(id), "once");
        }
    }
    assert!(line.is_empty() && pieces > 100);
    assert_eq!(ids.len(), RECORDS);
}

#[tokio::test]
async fn a_line_is_the_record_as_it_is_shown() {
    let world = World::with(3).await;
    let lines = world.records("format=jsonl&user=ada", "eve").await;
    assert_eq!(lines.len(), 3);
    for line in lines {
        let path = format!("/api/v1/interceptions/{}", line["id"].as_str().unwrap());
        assert_eq!(get(&world.api, &path, Some("eve")).await.1, line);
    }
}

#[tokio::test]
async fn an_export_is_filtered_and_a_member_gets_their_own() {
    let world = World::with(30).await;
    let rows = [
        ("", "ada", 30),
        ("", "bob", 2),
        ("", "eve", 32),
        ("user=bob", "eve", 2),
        ("user=bob", "ada", 0),
        ("provider=openai", "ada", 15),
        ("model=model-3", "ada", 3),
        ("client=sdk", "bob", 1),
        ("credential_kind=centralized", "eve", 0),
        ("credential_kind=byok&outcome=completed", "eve", 32),
        ("outcome=failed", "eve", 0),
        ("since=1h", "eve", 32),
        ("since=now", "eve", 0),
        ("until=yesterday", "eve", 0),
        ("since=yesterday&until=now", "eve", 32),
    ];
    for (query, bearer, count) in rows {
        assert_eq!(world.records(query, bearer).await.len(), count, "{query} {bearer}");
        let csv = world.text(&format!("format=csv&{query}"), bearer).await;
        assert_eq!(csv.lines().count(), count + 1, "{query} {bearer}");
    }
    for query in ["format=xml", "since=soon", "limit=5", "cursor=x", "q=x", "outcome=fine"] {
        assert_eq!(world.export(query, "eve").await.0, StatusCode::BAD_REQUEST, "{query}");
    }
    assert_eq!(world.export("", "nobody").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_table_has_no_contents_and_no_formulas() {
    let world = World::with(0).await;
    let csv = world.text("format=csv", "bob").await;
    let mut lines = csv.split_terminator("\r\n");
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    let column = |name| header.iter().position(|column| *column == name).unwrap();
    assert_eq!(rows[1][column("client")], "'=cmd()");
    assert_eq!((rows[0][column("user")], rows[0][column("input_tokens")]), ("bob", "10"));
    assert_eq!(rows[0][column("estimated_input_tokens")], "0");
    assert!(!csv.contains("prompt") && !csv.contains("hm"), "{csv}");
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_no_reader() {
    let world = World::with(1_000).await;
    let (status, mut body) = world.export("", "eve").await;
    assert_eq!(status, StatusCode::OK);
    let _first = body.next().await.unwrap().unwrap();
    // There is one reader.
    for _ in 0..3 {
        let (status, _) = get(&world.api, "/api/v1/interceptions", Some("ada")).await;
        assert_eq!(status, StatusCode::OK);
    }
    let rest = StreamExt::collect::<Vec<_>>(body).await;
    assert!(rest.iter().all(Result::is_ok));
}

#[tokio::test]
async fn an_export_waits_while_all_readers_are_busy() {
    let world = World::with(1_000).await;
    let (_, mut body) = world.export("", "eve").await;
    let first = body.next().await.unwrap().unwrap();
    let (release, released) = mpsc::channel::<()>();
    let busy = world.ledger.read(move |_reader| {
        released.recv().unwrap();
        Ok(())
    });
    let release_after_refusal = async {
        // It began to wait after the export, and gives up after it.
        assert_eq!(world.export("", "ada").await.0, StatusCode::SERVICE_UNAVAILABLE);
        release.send(()).unwrap();
    };
    let rest = StreamExt::collect::<Vec<_>>(body);
    let (read, rest, ()) = futures_util::join!(busy, rest, release_after_refusal);
    read.unwrap();
    let rest: Vec<u8> = rest.into_iter().flat_map(|piece| piece.unwrap()).collect();
    let lines = first.iter().chain(&rest).filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, 1_002);
}

#[tokio::test]
async fn an_export_that_fails_does_not_end_like_a_complete_one() {
    let world = World::with(1_000).await;
    let (status, mut body) = world.export("", "eve").await;
    assert_eq!(status, StatusCode::OK);
    let _first = body.next().await.unwrap().unwrap();
    world.ledger.cancel_reads();
    let rest = StreamExt::collect::<Vec<_>>(body).await;
    assert!(rest.last().unwrap().is_err(), "the connection is closed");
    // What fails before the first record has an error.
    assert_eq!(world.export("", "eve").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn whoever_loses_access_gets_no_further_page() {
    let world = World::with(1_000).await;
    let (_, mut body) = world.export("", "ada").await;
    let _first = body.next().await.unwrap().unwrap();
    let accounts = Accounts::new(world.ledger.clone());
    let token = accounts.tokens_before("ada", Uuid::max(), 1).unwrap().remove(0);
    accounts.revoke_token(token.id).unwrap();
    let rest = StreamExt::collect::<Vec<_>>(body).await;
    assert!(rest.last().unwrap().is_err());
}
