//! The views have the names and the form of the records that they show, as before they had types of their
//! own.

use keybridge_ledger::{
    InterceptionDetail, InterceptionItem, Session, TokenSums,
    record::{
        Answer, Attachment, Prompt, Thought, TokenUsage, ToolUsage, UpstreamAttempt, UsageKind,
    },
};
use serde::Serialize;

use super::{
    super::views::{InterceptionDetailView, SessionView},
    *,
};

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

fn token_usage(id: Uuid, at: Timestamp) -> TokenUsage {
    TokenUsage {
        id,
        interception_id: id,
        kind: UsageKind::Advisor,
        provider_response_id: Some("r".into()),
        model: None,
        service_tier: None,
        speed: None,
        region: None,
        input_tokens: Some(u64::MAX),
        output_tokens: None,
        cache_read_input_tokens: None,
        cache_write_input_tokens: None,
        cache_write_long_tokens: None,
        extra: json!({ "x": 1 }),
        raw: Some(json!({ "y": [2] })),
        quality: Quality::Partial,
        created_at: at,
    }
}

fn tool_usage(id: Uuid, at: Timestamp) -> ToolUsage {
    ToolUsage {
        id,
        interception_id: id,
        provider_response_id: None,
        tool_call_id: None,
        tool: "t".into(),
        arguments: Some(json!({ "z": null })),
        injected: true,
        server_url: None,
        invocation_error: None,
        duration_ms: Some(5),
        result_bytes: None,
        result_is_error: Some(false),
        result_interception_id: Some(id),
        result_sha256: Some("ab".into()),
        result: Some("text".into()),
        provider_executed: None,
        server_name: None,
        caller: None,
        caller_tool_call_id: None,
        approval: None,
        created_at: at,
    }
}

fn detail() -> InterceptionDetail {
    let (id, at) = (Uuid::now_v7(), Timestamp::now());
    let interception = Interception::new(id, Uuid::now_v7(), at);
    InterceptionDetail {
        item: InterceptionItem {
            interception: Interception { first_byte_at: Some(at), ..interception },
            user: "ada".into(),
            tokens: TokenSums { unknown_usages: 3, ..TokenSums::default() },
            tool_calls: 7,
        },
        token_usages: vec![token_usage(id, at)],
        prompts: vec![Prompt {
            id,
            interception_id: id,
            provider_response_id: None,
            prompt: "p".into(),
            created_at: at,
        }],
        tool_usages: vec![tool_usage(id, at)],
        thoughts: vec![Thought {
            id,
            interception_id: id,
            source: "thinking".into(),
            content: "c".into(),
            created_at: at,
        }],
        answers: vec![Answer {
            id,
            interception_id: id,
            provider_response_id: None,
            content: "text".into(),
            created_at: at,
        }],
        attachments: vec![Attachment {
            id,
            interception_id: id,
            kind: "image".into(),
            media_type: None,
            size_bytes: Some(1),
            sha256: None,
            file_id: None,
            url: None,
            created_at: at,
        }],
        upstream_attempts: vec![UpstreamAttempt {
            id,
            interception_id: id,
            number: 1,
            turn: 0,
            provider: "p".into(),
            key_name: None,
            credential_kind: None,
            body_edits: vec!["e".into()],
            status: Some(200),
            error_kind: None,
            provider_request_id: None,
            started_at: at,
            duration_ms: None,
            created_at: at,
        }],
        size_bytes: 9,
    }
}

#[test]
fn an_interception_is_shown_as_it_is_recorded() {
    let detail = detail();
    assert_eq!(text(&detail), text(&InterceptionDetailView::from(detail.clone())));
}

#[test]
fn a_session_is_shown_as_it_is_read() {
    let at = Timestamp::now();
    let session = Session {
        id: "s".into(),
        user: "ada".into(),
        client: None,
        first_at: at,
        last_at: at,
        ended_at: Some(at),
        models: vec!["m".into()],
        providers: vec!["p".into()],
        agents: 1,
        first_prompt: Some("first".into()),
        last_prompt: None,
        requests: 9,
        completed: 1,
        failed: 2,
        cancelled: 1,
        refused: 2,
        interrupted: 1,
        tokens: TokenSums::default(),
        tools: 2,
    };
    let shown: Value = serde_json::to_value(SessionView::from(session.clone())).unwrap();
    let mut read: Value = serde_json::to_value(session).unwrap();
    read["in_progress"] = 2.into();
    assert_eq!(shown, read);
}

#[tokio::test]
async fn the_caller_is_shown_with_the_same_names_as_before() {
    let (api, _dir) = api_fixture().await;
    let (_, me) = get(&api, "/api/v1/me", Some("ada")).await;
    let names =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(names(&me), ["user", "role", "token"]);
    assert_eq!(names(&me["user"]), ["id", "name", "email", "role", "status", "created_at"]);
    let token =
        ["id", "user_id", "name", "hint", "created_at", "expires_at", "last_used_at", "revoked_at"];
    assert_eq!(names(&me["token"]), token);
}
