//! Open requests end when their token is revoked or their user is suspended.

use std::{path::Path, time::Duration};

use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use keybridge::serve::{Server, StartOptions};
use keybridge_identity::{Accounts, UserStatus};
use keybridge_ledger::{Ledger, LedgerOptions};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    endings::assert_ends_with_error,
    support::{
        Answer, ENDPOINTS, World, answer, body, client, slow_store::Database, user_with_token,
    },
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Revokes the only token of a user.
fn revoke(accounts: &Accounts, user: &str) {
    let token = accounts.tokens(Some(user)).unwrap().remove(0);
    accounts.revoke_token(token.id).unwrap();
}

fn suspend(accounts: &Accounts, user: &str) {
    accounts.set_user_status(user, UserStatus::Suspended).unwrap();
}

type End = fn(&Accounts, &str);

/// Both ways to end a user's requests, with the error kind of the record.
const ENDS: [(End, &str); 2] = [(revoke, "token_revoked"), (suspend, "user_suspended")];

/// Sends a request whose answer begins and then stalls, and reads its first bytes.
async fn open_stream(
    world: &World,
    path: &str,
    http2: bool,
) -> http::Response<hyper::body::Incoming> {
    let request = world.centralized(path, &body(path, "stalled", true));
    let mut response = client(http2).request(request).await.unwrap();
    let first = timeout(DEADLINE, response.body_mut().frame()).await.unwrap().unwrap().unwrap();
    assert!(!first.into_data().unwrap().is_empty());
    response
}

async fn ended(response: http::Response<hyper::body::Incoming>) -> Answer {
    timeout(DEADLINE, answer(response)).await.unwrap()
}

/// Waits until the provider sees that its client has left.
async fn upstream_is_cancelled(world: &World) {
    let deadline = Instant::now() + DEADLINE;
    while !world.last_exchange().client_left {
        assert!(Instant::now() < deadline, "the request to the provider goes on");
        sleep(Duration::from_millis(5)).await;
    }
}

fn assert_failed(record: &Value, error_kind: &str) {
    assert_eq!(record["outcome"], "failed", "{record:#}");
    assert_eq!(record["error_kind"], error_kind, "{record:#}");
    assert!(record["ended_at"].is_string(), "{record:#}");
}

/// Calls the API with a token, and expects a status.
async fn call(
    world: &World,
    (method, path): (Method, &str),
    (token, body): (&str, &'static str),
    expected: u16,
) -> Value {
    let request = Request::builder()
        .method(method)
        .uri(world.url(path))
        .header("authorization", format!("Bearer {token}"))
        .body(Full::from(body))
        .unwrap();
    let answer = world.send(request).await;
    assert_eq!(answer.status, expected, "{}", answer.text());
    if answer.text().is_empty() { Value::Null } else { answer.json() }
}

#[tokio::test]
async fn an_administrator_lets_a_person_in_and_out_through_the_api() {
    let world = World::start().await;
    let accounts = Accounts::new(world.ledger.clone());
    accounts.create_first_admin("root").unwrap();
    let (_token, root) = accounts.create_token("root", None, None).unwrap();
    let root = root.expose();
    let create = r#"{"name":"carol"}"#;
    call(&world, (Method::POST, "/api/v1/users"), (root, create), 201).await;
    let tokens = (Method::POST, "/api/v1/users/carol/tokens");
    let created = call(&world, tokens, (root, r#"{"expires_in":"1h"}"#), 201).await;
    let carol = created["token"].as_str().unwrap();
    call(&world, (Method::GET, "/api/v1/me"), (carol, ""), 200).await;
    let path = ENDPOINTS[0];
    let request = || world.post(path, &[("x-api-key", carol)], body(path, "text", false));
    assert_eq!(world.send(request()).await.status, 200);
    let record = world.settled_record().await;
    assert_eq!((&record["user"], &record["outcome"]), (&"carol".into(), &"completed".into()));
    let revoke = format!("/api/v1/tokens/{}", created["id"].as_str().unwrap());
    call(&world, (Method::DELETE, &revoke), (root, ""), 204).await;
    assert_eq!(world.send(request()).await.status, 401);
}

#[tokio::test]
async fn a_silent_stream_ends_with_an_error_when_its_token_is_revoked_or_its_user_suspended() {
    for http2 in [false, true] {
        for path in ENDPOINTS {
            for (end, error_kind) in ENDS {
                let world = World::start().await;
                let stream = open_stream(&world, path, http2).await;
                end(&Accounts::new(world.ledger.clone()), "ada");
                let answer = ended(stream).await;
                assert!(!answer.truncated, "{path}");
                assert_ends_with_error(&answer.text(), path);
                upstream_is_cancelled(&world).await;
                assert_failed(&world.settled_record().await, error_kind);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_never_silent_ends_too_and_those_of_others_go_on() {
    let world = World::start().await;
    let path = ENDPOINTS[0];
    let bob = format!("Bearer {}", user_with_token(&world.ledger, "bob"));
    let other = world.post(path, &[("authorization", &bob)], body(path, "stalled", true));
    let mut other = client(false).request(other).await.unwrap();
    let ada = format!("Bearer {}", world.token);
    let headers = [
        ("authorization", ada.as_str()),
        ("x-sim-scenario", "slow"),
        ("x-sim-delay-ms", "1"),
        ("x-sim-tokens", "20000"),
    ];
    let endless = world.post(path, &headers, body(path, "slow", true));
    let endless = client(false).request(endless).await.unwrap();
    revoke(&Accounts::new(world.ledger.clone()), "ada");
    assert_ends_with_error(&ended(endless).await.text(), path);

    let refused = world.send(world.centralized(path, &body(path, "text", true))).await;
    assert_status!(refused, 401);
    let stays = async {
        while let Some(frame) = other.body_mut().frame().await {
            let text = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
            assert!(!text.contains("event: error"), "{text}");
        }
    };
    assert!(timeout(Duration::from_millis(300), stays).await.is_err(), "bob's stream ended");
}

#[tokio::test]
async fn a_request_that_waits_for_the_provider_is_answered_with_401() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let request = world.centralized(path, &body(path, "no-head", true));
        let asking = TaskTracker::new().spawn(client(false).request(request));
        let deadline = Instant::now() + DEADLINE;
        while world.sim.exchanges().is_empty() {
            assert!(Instant::now() < deadline, "nothing was sent");
            sleep(Duration::from_millis(5)).await;
        }
        revoke(&Accounts::new(world.ledger.clone()), "ada");
        let answer = ended(timeout(DEADLINE, asking).await.unwrap().unwrap().unwrap()).await;
        assert_status!(answer, 401, "{path}");
        assert_eq!(answer.headers["x-keybridge-error"], "authentication_error");
        assert!(answer.text().contains("the bridge token was revoked"), "{}", answer.text());
        upstream_is_cancelled(&world).await;
        let record = world.settled_record().await;
        assert_failed(&record, "token_revoked");
        assert_eq!(record["status_code"], 401);
    }
}

/// A change by a command on the same file, which tells the serving process nothing.
#[tokio::test]
async fn a_revocation_by_another_process_ends_streams_over_sqlite() {
    for (end, error_kind) in ENDS {
        let world = World::start().await;
        let path = ENDPOINTS[2];
        let stream = open_stream(&world, path, false).await;
        let url = format!("sqlite://{}", world.dir().join("keybridge.db").display());
        let command = Ledger::open_existing(&url, &LedgerOptions::default()).unwrap();
        end(&Accounts::new(command), "ada");
        assert_ends_with_error(&ended(stream).await.text(), path);
        assert_failed(&world.settled_record().await, error_kind);
    }
}

#[tokio::test]
async fn a_token_that_expires_does_not_end_its_stream() {
    let world = World::start().await;
    let accounts = Accounts::new(world.ledger.clone());
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    let (_token, secret) = accounts.create_token("ada", None, Some(soon)).unwrap();
    let path = ENDPOINTS[0];
    let bearer = format!("Bearer {}", secret.expose());
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-sim-scenario", "slow"),
        ("x-sim-delay-ms", "700"),
        ("x-sim-tokens", "5"),
    ];
    let response =
        client(false).request(world.post(path, &headers, body(path, "slow", true))).await.unwrap();
    assert!(ended(response).await.text().contains("message_stop"));
    let refused = world.send(world.post(path, &headers, body(path, "text", true))).await;
    assert_status!(refused, 401);
}

/// Another server on the store of a world.
async fn second_server(url: &str, base: &str, dir: &Path) -> (Server, Ledger) {
    let mut config = crate::support::configuration(base, dir);
    config.store_url = url.into();
    let ledger = Ledger::open_with(url, &config.ledger).unwrap();
    let simulated = keybridge::simulate::Simulated::Nothing;
    let server = Server::start(config, ledger, simulated, StartOptions::default()).await.unwrap();
    let ledger = server.ledger.clone();
    (server, ledger)
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn postgres_a_revocation_at_one_server_ends_the_streams_of_another() {
    for (end, error_kind) in ENDS {
        let database = Database::create().await;
        let url = database.url();
        let world = World::with(|config| config.store_url.clone_from(&url)).await;
        let (server, other) = second_server(&url, &world.sim_base(), world.dir()).await;
        let (shutdown, serving) = (CancellationToken::new(), TaskTracker::new());
        let ending = shutdown.clone();
        serving.spawn(async move { server.serve(ending).await.unwrap() });
        let path = ENDPOINTS[1];
        let stream = open_stream(&world, path, false).await;
        let started = Instant::now();
        end(&Accounts::new(other), "ada");
        assert_ends_with_error(&ended(stream).await.text(), path);
        println!("{error_kind}: ended after {:?}", started.elapsed());
        upstream_is_cancelled(&world).await;
        assert_failed(&world.settled_record().await, error_kind);
        shutdown.cancel();
        serving.close();
        serving.wait().await;
        world.shutdown.cancel();
        world.serving.wait().await;
        database.remove().await;
    }
}
