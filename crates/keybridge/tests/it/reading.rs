//! Reading the records does no harm: reads are limited in number and in time and are cancelled when
//! their client leaves, while model requests, authentication and health checks go on.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use keybridge::config::Config;
use keybridge_identity::Accounts;
use keybridge_ledger::{
    Opening, Settlement,
    record::{Interception, Outcome},
};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::support::{
    Answer, World, answer, body, client,
    slow_store::{Database, make_thoughts_endless},
    user_with_token,
};

const EXPORT: &str = "/api/v1/export";
const LIST: &str = "/api/v1/interceptions";
const MODEL_ENDPOINT: &str = "/anthropic/v1/messages";
/// As many clients as read at the same time in these tests.
const CLIENTS: usize = 16;
const DEADLINE: Duration = Duration::from_secs(30);

fn read(world: &World, path: &str) -> Request<Full<bytes::Bytes>> {
    let bearer = format!("Bearer {}", world.token);
    world.request(Method::GET, path, &[("authorization", &bearer)])
}

/// A world with one record, and the path under which it is read with all that belongs to it.
async fn world(read_timeout: Duration, change: impl FnOnce(&mut Config)) -> (World, String) {
    let world = World::with(|config| {
        config.ledger.reads.timeout = read_timeout;
        change(config);
    })
    .await;
    ask(&world, &world.token).await;
    let id = world.settled_record().await["id"].as_str().unwrap().to_owned();
    (world, format!("{LIST}/{id}"))
}

/// The same with a read that never ends by itself.
async fn world_with_endless_read(read_timeout: Duration) -> (World, String) {
    let (world, path) = world(read_timeout, |config| config.ledger.reads.max_concurrent = 1).await;
    make_thoughts_endless(&world.dir().join("keybridge.db"));
    (world, path)
}

/// A model request, which must be answered.
async fn ask(world: &World, token: &str) {
    let bearer = format!("Bearer {token}");
    let body = body(MODEL_ENDPOINT, "text", false);
    let answer = world.send(world.post(MODEL_ENDPOINT, &[("authorization", &bearer)], body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

/// Sixteen clients that read until they are stopped; gives their answers.
struct ReadingClients {
    stop: CancellationToken,
    clients: Vec<tokio::task::JoinHandle<Vec<Answer>>>,
}

impl ReadingClients {
    fn start(world: &World, path: &str) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let clients = (0..CLIENTS)
            .map(|_| {
                let (stop, request) = (stop.clone(), read(world, path));
                tasks.spawn(async move {
                    let mut answers = Vec::new();
                    while !stop.is_cancelled() {
                        let response = client(false).request(request.clone()).await.unwrap();
                        answers.push(answer(response).await);
                    }
                    answers
                })
            })
            .collect();
        Self { stop, clients }
    }

    async fn stop(self) -> Vec<Answer> {
        self.stop.cancel();
        let mut answers = Vec::new();
        for client in self.clients {
            answers.extend(client.await.unwrap());
        }
        answers
    }
}

/// Waits until every reader is busy: a list gets no answer then.
async fn until_readers_are_busy(world: &World) {
    let deadline = Instant::now() + DEADLINE;
    while timeout(Duration::from_millis(100), world.send(read(world, LIST))).await.is_ok() {
        assert!(Instant::now() < deadline, "the readers are not busy");
    }
}

/// Model requests, also with tokens that were never seen before, and health checks are answered while
/// clients read what never ends; each of these reads gets an error that says what to do.
async fn requests_pass_beside_reads(world: &World, endless_read: &str) {
    let clients = ReadingClients::start(world, endless_read);
    until_readers_are_busy(world).await;
    for number in 0..20 {
        ask(world, &world.token).await;
        ask(world, &user_with_token(&world.ledger, &format!("user-{number}"))).await;
        for path in ["/healthz", "/readyz", "/metrics"] {
            let answer = world.send(world.request(Method::GET, path, &[])).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        }
    }
    let answers = clients.stop().await;
    assert!(answers.iter().any(|answer| answer.status == StatusCode::GATEWAY_TIMEOUT));
    for answer in &answers {
        let error = &answer.json()["error"];
        let message = error["message"].as_str().unwrap();
        if answer.status == StatusCode::GATEWAY_TIMEOUT {
            assert_eq!(error["kind"], "timeout");
            assert!(message.contains("took longer than 2 s"), "{message}");
            assert!(message.contains("`since`"), "{message}");
        } else {
            assert_eq!(
                (answer.status, &error["kind"]),
                (StatusCode::SERVICE_UNAVAILABLE, &"busy".into())
            );
            assert!(message.contains("try again later"), "{message}");
            assert_eq!(answer.headers["retry-after"], "2");
        }
    }
    let list = world.send(read(world, LIST)).await;
    assert_eq!(list.status, StatusCode::OK, "the store serves on: {}", list.text());
    assert_eq!(list.json()["items"].as_array().unwrap().len(), 21);
}

#[tokio::test]
async fn model_requests_are_answered_while_every_reader_is_busy() {
    let (world, endless_read) = world_with_endless_read(Duration::from_secs(2)).await;
    requests_pass_beside_reads(&world, &endless_read).await;
}

#[tokio::test]
async fn a_read_is_cancelled_when_its_client_leaves() {
    let (world, endless_read) = world_with_endless_read(Duration::from_secs(3_600)).await;
    let reading = TaskTracker::new().spawn(client(false).request(read(&world, &endless_read)));
    until_readers_are_busy(&world).await;
    reading.abort();
    let list = timeout(DEADLINE, world.send(read(&world, LIST))).await;
    assert_eq!(list.expect("the reader stays busy").status, StatusCode::OK);
}

#[tokio::test]
async fn a_read_over_its_limit_ends_with_an_error() {
    let (world, endless_read) = world_with_endless_read(Duration::from_millis(200)).await;
    let answer = world.send(read(&world, &endless_read)).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{}", answer.text());
    assert_eq!(answer.json()["error"]["kind"], "timeout");
    assert_eq!(world.send(read(&world, LIST)).await.status, StatusCode::OK);
    ask(&world, &world.token).await;
}

/// A world on PostgreSQL where another session has locked the thoughts, so that reading them waits.
struct LockedWorld {
    world: World,
    endless_read: String,
    database: Database,
    lock: Client,
}

async fn world_with_locked_thoughts(read_timeout: Duration) -> LockedWorld {
    let database = Database::create().await;
    let url = database.url();
    let (world, endless_read) = world(read_timeout, |config| config.store_url = url).await;
    let lock = database.connect().await;
    lock.batch_execute("BEGIN; LOCK TABLE thoughts IN ACCESS EXCLUSIVE MODE").await.unwrap();
    LockedWorld { world, endless_read, database, lock }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn postgres_model_requests_are_answered_while_every_reader_is_busy() {
    let locked = world_with_locked_thoughts(Duration::from_secs(2)).await;
    requests_pass_beside_reads(&locked.world, &locked.endless_read).await;
    locked.database.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn postgres_cancels_a_read_whose_client_has_left() {
    let locked = world_with_locked_thoughts(Duration::from_secs(3_600)).await;
    let LockedWorld { world, endless_read, database, lock } = locked;
    let waiting = async |count: i64| {
        // The building of an index waits for the end of this transaction, which is no lock of a table.
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                   AND wait_event = 'relation' AND datname = current_database()";
        let deadline = Instant::now() + DEADLINE;
        while lock.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) != count {
            assert!(Instant::now() < deadline, "not {count} reads wait");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reading = TaskTracker::new().spawn(client(false).request(read(&world, &endless_read)));
    waiting(1).await;
    reading.abort();
    waiting(0).await;
    assert_eq!(world.send(read(&world, LIST)).await.status, StatusCode::OK);
    database.remove().await;
}

/// Records whose export is larger than all buffers between the ledger and a client.
async fn record_much(world: &World) {
    let user = Accounts::new(world.ledger.clone()).user("ada").unwrap();
    for _ in 0..40 {
        let interception = Interception::new(Uuid::now_v7(), user.id, Timestamp::now());
        let opening = Opening {
            interception,
            prompt: Some("x".repeat(1 << 20)),
            tool_results: Vec::new(),
            attachments: Vec::new(),
        };
        let settlement = Settlement::new(Timestamp::now(), Outcome::Completed);
        world.ledger.recorder().record(opening, settlement).await.unwrap();
    }
    world.ledger.recorder().drained().await;
}

#[tokio::test]
async fn an_export_that_fails_is_truncated_for_its_client() {
    for http2 in [false, true] {
        let world = World::start().await;
        record_much(&world).await;
        let whole = answer(client(http2).request(read(&world, EXPORT)).await.unwrap()).await;
        assert!(!whole.truncated && whole.body.iter().filter(|byte| **byte == b'\n').count() == 40);

        let mut response = client(http2).request(read(&world, EXPORT)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.body_mut().frame().await.unwrap().unwrap();
        world.ledger.cancel_reads();
        let cut = answer(response).await;
        assert!(cut.truncated && cut.body.len() < whole.body.len(), "http2: {http2}");
    }
}
