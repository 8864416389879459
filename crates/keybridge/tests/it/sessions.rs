//! A session belongs to one user: clients choose its id, and nobody can hide or join another's.

use http::{Method, StatusCode};
use keybridge_identity::{Accounts, NewUser, Role};
use serde_json::Value;

use crate::support::{World, body, user_with_token};

const MESSAGES: &str = "/anthropic/v1/messages";

/// Sends a request of Claude Code with a session id.
async fn ask(world: &World, token: &str, session: &str) {
    let bearer = format!("Bearer {token}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("user-agent", "claude-cli/2.1.0"),
        ("x-claude-code-session-id", session),
    ];
    let answer = world.send(world.post(MESSAGES, &headers, body(MESSAGES, "text", false))).await;
    assert_status!(answer, StatusCode::OK);
}

async fn read(world: &World, token: &str, path: &str) -> (StatusCode, Value) {
    let bearer = format!("Bearer {token}");
    let request = world.request(Method::GET, path, &[("authorization", &bearer)]);
    let answer = world.send(request).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_member_cannot_hide_the_session_of_another_by_sending_its_id() {
    let world = World::start().await;
    let accounts = Accounts::new(world.ledger.clone());
    let auditor = NewUser { name: "eve".into(), email: None, role: Role::Auditor };
    accounts.create_user(&auditor).unwrap();
    let eve = accounts.create_token("eve", None, None).unwrap().1.expose().to_owned();
    let mallory = user_with_token(&world.ledger, "mallory");
    ask(&world, &world.token, "s-1").await;
    ask(&world, &world.token, "s-1").await;
    world.settled_records(2).await;
    let (status, alone) = read(&world, &eve, "/api/v1/sessions/s-1").await;
    assert_eq!((status, &alone["requests"]), (StatusCode::OK, &2.into()));

    ask(&world, &mallory, "s-1").await;
    world.settled_records(3).await;
    let (status, several) = read(&world, &eve, "/api/v1/sessions/s-1").await;
    assert_eq!((status, &several["error"]["kind"]), (StatusCode::CONFLICT, &"ambiguous".into()));
    let choices = several["error"]["sessions"].as_array().unwrap();
    let users: Vec<&str> = choices.iter().map(|choice| choice["user"].as_str().unwrap()).collect();
    assert_eq!(users, ["mallory", "ada"], "latest activity first");
    for (user, requests) in [("ada", 2), ("mallory", 1)] {
        let path = format!("/api/v1/sessions/s-1?user={user}");
        let (status, one) = read(&world, &eve, &path).await;
        assert_eq!(
            (status, &one["user"], &one["requests"]),
            (StatusCode::OK, &user.into(), &requests.into())
        );
        let shown = one["interceptions"].as_array().unwrap();
        assert_eq!(shown.len(), requests);
        assert!(shown.iter().all(|request| request["user"] == user), "{one}");
    }
    // Members see their own, whatever they ask for.
    let (status, own) = read(&world, &mallory, "/api/v1/sessions/s-1").await;
    assert_eq!((status, &own["requests"]), (StatusCode::OK, &1.into()));
    let (status, _) = read(&world, &mallory, "/api/v1/sessions/s-1?user=ada").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, listed) = read(&world, &eve, "/api/v1/sessions?user=ada").await;
    assert_eq!((status, listed["items"].as_array().unwrap().len()), (StatusCode::OK, 1));
    let (status, _) = read(&world, &eve, "/api/v1/sessions/s-1?colour=red").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_requests_of_a_thread_stay_visible_when_its_id_is_claimed_as_a_session() {
    let world = World::start().await;
    let bearer = format!("Bearer {}", world.token);
    let plain = world.post(MESSAGES, &[("authorization", &bearer)], body(MESSAGES, "text", false));
    assert_status!(world.send(plain).await, StatusCode::OK);
    let thread = world.settled_record().await["thread_id"].as_str().unwrap().to_owned();
    ask(&world, &world.token, &thread).await;
    world.settled_records(2).await;
    let (status, session) = read(&world, &world.token, &format!("/api/v1/sessions/{thread}")).await;
    assert_eq!((status, &session["requests"]), (StatusCode::OK, &2.into()));
    assert_eq!(session["interceptions"].as_array().unwrap().len(), 2);
}
