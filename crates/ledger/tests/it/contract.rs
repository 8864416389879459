//! The contract of a store, tested with each kind of store.

use std::{collections::BTreeMap, path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};
use keybridge_ledger::{
    InterceptionDetail, InterceptionFilter, Ledger, LedgerError, LedgerOptions,
    MAX_UPSTREAM_ATTEMPTS, NewAnswer, NewAttachment, NewThought, NewTokenUsage, NewToolUsage,
    NewUpstreamAttempt, ObjectName, ProviderLogEntry, RetentionPolicy, ServedBy, SessionFilter,
    Settlement, SpoolConfig, SpoolFileKind, SpoolReplay, TokenCounts, ToolResult, export_spool,
    fuzz,
    record::{
        Outcome, Quality, UsageKind,
        objects::{NewObject, ObjectChanges, ObjectMaker},
        time_text,
    },
    spool_files, spool_leftovers,
    store::{Cells, execute},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    records::{User, contract, opening, opening_at, settled, user},
    support::{Fixture, Postgres, Sqlite},
};

/// A settlement whose usage counts once for a response, however often it is recorded.
fn settled_with_usage_of(response: &str) -> Settlement {
    let usage = NewTokenUsage {
        provider_response_id: Some(response.into()),
        output_tokens: Some(7),
        quality: Quality::Exact,
        once_per_response: true,
        ..NewTokenUsage::default()
    };
    Settlement { token_usages: vec![usage], ..settled(Outcome::Completed) }
}

fn calls(ids: &[&str]) -> Vec<NewToolUsage> {
    let call = |id: &&str| NewToolUsage {
        tool_call_id: Some((*id).into()),
        tool: "Bash".into(),
        arguments: Some("{\"command\": \"ls\"}".into()),
        ..NewToolUsage::default()
    };
    ids.iter().map(call).collect()
}

async fn the_provider_that_served_is_recorded(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let mut switched = settled(Outcome::Completed);
    switched.served_by = Some(ServedBy {
        provider: "spare".into(),
        provider_type: Some("bedrock".into()),
        credential_source: "pool:second".into(),
        credential_hint: "sk-...cdef".into(),
        credential_length: 51,
        credential_fingerprint: "0123456789abcdef".into(),
        credential_scheme: Some("bearer".into()),
        body_edits: Some(vec!["include_usage".into()]),
        request_bytes: Some(1 << 33),
        request_sha256: None,
    });
    // Settled in one commit, to show that the values of one record are not written to the other.
    let mut ids = Vec::new();
    for settlement in [settled(Outcome::Completed), switched] {
        let mut opening = opening(&ada);
        opening.interception.provider = "main".into();
        opening.interception.credential_kind = Some("centralized".into());
        opening.interception.credential_source = Some("pool:first".into());
        opening.interception.credential_scheme = Some("api_key".into());
        opening.interception.body_edits = vec!["inject_tools".into()];
        opening.interception.request_bytes = 7;
        opening.interception.request_sha256 = Some("ab".into());
        let entry = ledger.recorder().open(opening).await.unwrap();
        ids.push(entry.id());
        entry.settle(settlement);
    }
    ledger.recorder().drained().await;
    let read = |id| ledger.interception(id).unwrap().unwrap().item.interception;
    let (unchanged, switched) = (read(ids[0]), read(ids[1]));
    assert_eq!(unchanged.provider, "main");
    assert_eq!(unchanged.credential_source.unwrap(), "pool:first");
    assert_eq!(unchanged.credential_length, None);
    assert_eq!(unchanged.body_edits, ["inject_tools"]);
    assert_eq!(unchanged.request_bytes, 7);
    assert_eq!((switched.outcome, switched.provider.as_str()), (Outcome::Completed, "spare"));
    assert_eq!(switched.provider_type, "bedrock");
    assert_eq!(switched.credential_kind.unwrap(), "centralized");
    assert_eq!(switched.credential_source.unwrap(), "pool:second");
    assert_eq!(switched.credential_hint.unwrap(), "sk-...cdef");
    assert_eq!(switched.credential_length, Some(51));
    assert_eq!(switched.credential_scheme.unwrap(), "bearer");
    assert_eq!(switched.body_edits, ["include_usage"]);
    assert_eq!(switched.credential_fingerprint.unwrap(), "0123456789abcdef");
    assert_eq!(switched.request_bytes, 1 << 33);
    assert_eq!(switched.request_sha256.unwrap(), "ab", "not known at the end");
}

/// An attempt with all fields set.
fn attempt(number: u32, status: u16) -> NewUpstreamAttempt {
    NewUpstreamAttempt {
        number,
        turn: 1,
        provider: "main".into(),
        key_name: Some("first".into()),
        credential_kind: Some("centralized".into()),
        body_edits: vec!["include_usage".into()],
        status: Some(status),
        error_kind: (status != 200).then(|| "overloaded".into()),
        provider_request_id: Some(format!("req_{number}")),
        started_at: "2026-11-24T10:00:00.000001Z".parse().unwrap(),
        duration_ms: Some(7),
    }
}

async fn every_attempt_is_a_row_of_its_record(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let opening = opening(&ada);
    let id = opening.interception.id;
    let mut settlement = settled(Outcome::Completed);
    settlement.attempts = 2;
    settlement.upstream_attempts = vec![attempt(1, 529), attempt(2, 200)];
    // Twice, as when a spool is replayed after a commit whose response was lost.
    for _ in 0..2 {
        ledger.recorder().record(opening.clone(), settlement.clone()).await.unwrap();
    }
    ledger.recorder().drained().await;
    let detail = serde_json::to_value(ledger.interception(id).unwrap().unwrap()).unwrap();
    assert_eq!(detail["attempts"], 2);
    let mut rows = detail["upstream_attempts"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 2, "{rows:?}");
    for (row, written) in rows.iter_mut().zip(&settlement.upstream_attempts) {
        let row = row.as_object_mut().unwrap();
        for column in ["id", "interception_id", "created_at"] {
            row.remove(column).unwrap();
        }
        assert_eq!(Value::Object(row.clone()), serde_json::to_value(written).unwrap());
    }
    assert!(ledger.recount().unwrap().is_sound());
}

async fn a_single_attempt_is_read_from_its_interception(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let mut opening = opening(&ada);
    let id = opening.interception.id;
    opening.interception.provider = "main".into();
    opening.interception.credential_kind = Some("centralized".into());
    opening.interception.credential_source = Some("pool:first".into());
    opening.interception.body_edits = vec!["include_usage".into()];
    let mut settlement = settled(Outcome::Completed);
    settlement.attempts = 1;
    settlement.upstream_status = Some(529);
    settlement.error_kind = Some("overloaded".into());
    let only = NewUpstreamAttempt { turn: 0, ..attempt(1, 529) };
    settlement.upstream_started_at = Some(only.started_at);
    settlement.upstream_request_id = only.provider_request_id.clone();
    ledger.recorder().record(opening, settlement).await.unwrap();
    ledger.recorder().drained().await;
    let detail = serde_json::to_value(ledger.interception(id).unwrap().unwrap()).unwrap();
    let rows = detail["upstream_attempts"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let mut expected = serde_json::to_value(only).unwrap();
    // Computed from the end of the record.
    expected["duration_ms"] = rows[0]["duration_ms"].clone();
    assert!(expected["duration_ms"].is_u64());
    for (column, value) in expected.as_object().unwrap() {
        assert_eq!(rows[0][column], *value, "{column}");
    }
}

async fn the_number_of_stored_attempts_is_limited(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
    let id = entry.id();
    let mut settlement = settled(Outcome::Completed);
    settlement.attempts = 250;
    settlement.upstream_attempts = (1..=250).map(|number| attempt(number, 200)).collect();
    entry.settle(settlement);
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    let numbers: Vec<_> = detail.upstream_attempts.iter().map(|row| row.number).collect();
    assert_eq!(numbers.len(), MAX_UPSTREAM_ATTEMPTS);
    assert_eq!((numbers[0], numbers[98], numbers[99]), (1, 99, 250), "the last one is values");
    assert_eq!(detail.item.interception.attempts, 250, "the count is exact");
}

async fn everything_written_can_be_read(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let mut opening = opening(&ada);
    opening.interception.model = Some("m".into());
    opening.interception.body_edits = vec!["include_usage".into()];
    let id = opening.interception.id;
    let entry = ledger.recorder().open(opening).await.unwrap();
    assert_eq!((entry.id(), entry.thread_id()), (id, Some(id)));
    assert_eq!(
        ledger.interception(id).unwrap().unwrap().item.interception.outcome,
        Outcome::InProgress,
        "an open record is committed"
    );
    let mut settlement = settled(Outcome::Completed);
    settlement.provider_response_id = Some("msg_1".into());
    settlement.token_usages = vec![NewTokenUsage {
        provider_response_id: Some("msg_1".into()),
        input_tokens: Some(u64::from(u32::MAX) * 1000),
        extra: BTreeMap::from([("web_search_requests".into(), 2.into())]),
        quality: Quality::Partial,
        ..NewTokenUsage::default()
    }];
    settlement.tool_usages = calls(&["c1"]);
    settlement.tool_usages[0].arguments = Some("no json".into());
    settlement.thoughts = vec![NewThought { source: "thinking".into(), content: "hm".into() }];
    settlement.answers =
        vec![NewAnswer { provider_response_id: Some("msg_1".into()), content: "well".into() }];
    settlement.identified_us = Some(1);
    settlement.body_read_us = Some(2);
    settlement.credential_us = Some(3);
    settlement.opened_us = Some(4);
    settlement.connected_us = Some(5);
    settlement.settled_us = Some(u64::from(u32::MAX) + 6);
    settlement.events_relayed = Some(7);
    entry.settle(settlement);
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    let read = &detail.item.interception;
    assert_eq!(
        [read.identified_us, read.body_read_us, read.credential_us, read.opened_us],
        [1, 2, 3, 4].map(Some)
    );
    assert_eq!(
        (read.connected_us, read.settled_us, read.events_relayed),
        (Some(5), Some(u64::from(u32::MAX) + 6), Some(7))
    );
    assert_eq!(detail.item.interception.body_edits, ["include_usage"]);
    assert_eq!(detail.item.user, "ada");
    assert_eq!(detail.item.tokens.estimated.input_tokens, u64::from(u32::MAX) * 1000);
    assert_eq!(detail.prompts[0].provider_response_id.as_deref(), Some("msg_1"));
    assert_eq!(detail.token_usages[0].output_tokens, None, "unknown is not zero");
    assert_eq!(detail.token_usages[0].extra["web_search_requests"], 2);
    assert_eq!(detail.tool_usages[0].arguments, Some("no json".into()));
    assert_eq!(detail.thoughts[0].content, "hm");
    assert_eq!(detail.answers[0].content, "well");
    assert_eq!(detail.answers[0].provider_response_id.as_deref(), Some("msg_1"));
}

async fn a_record_is_settled_once(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let opening = opening(&ada);
    let id = opening.interception.id;
    let mut settlement = settled(Outcome::Completed);
    settlement.tool_usages = calls(&["c1"]);
    let twice = opening.clone();
    ledger.recorder().record(opening, settlement.clone()).await.unwrap();
    ledger.recorder().record(twice, settled(Outcome::Failed)).await.unwrap();
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    assert_eq!(detail.item.interception.outcome, Outcome::Completed);
    assert_eq!((detail.tool_usages.len(), detail.prompts.len()), (1, 1));
}

async fn an_invalid_record_does_not_affect_others(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let unknown_user = User { id: Uuid::now_v7() };
    let recorder = ledger.recorder();
    let bad = recorder.open(opening(&unknown_user));
    let good = recorder.open(opening(&ada));
    let (bad, good) = tokio::join!(bad, good);
    assert!(bad.is_err() && good.is_ok());
}

/// Options with a spool in a directory.
fn with_spool(dir: &Path) -> LedgerOptions {
    let (max_bytes, max_age) = (1 << 30, Duration::from_secs(3_600));
    let spool = Some(SpoolConfig { dir: dir.into(), max_bytes, max_age });
    LedgerOptions { spool, ..LedgerOptions::default() }
}

async fn what_the_store_refuses_is_set_aside_and_can_be_returned(fixture: &impl Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = fixture.open_with(&with_spool(dir.path()));
    let ada = user(&ledger, "ada");
    let nobody = User { id: Uuid::now_v7() };
    let [accepted, refused] = [&ada, &nobody].map(opening);
    let ids = [accepted.interception.id, refused.interception.id];
    for opening in [accepted, refused] {
        ledger.recorder().record(opening, settled(Outcome::Completed)).await.unwrap();
    }
    ledger.recorder().drained().await;
    let is_stored = |id| ledger.interception(id).unwrap().is_some();
    assert_eq!(ids.map(is_stored), [true, false]);
    let store = Some(ledger.store_id().unwrap());
    let leftovers = || spool_leftovers(dir.path(), store).unwrap();
    let [file] = &spool_files(dir.path()).unwrap()[..] else { panic!("one file") };
    assert_eq!((file.kind, file.store_id, file.entries), (SpoolFileKind::Aside, store, 1));

    let replayed = || ledger.replay_spool(dir.path(), None).unwrap();
    assert_eq!(replayed(), SpoolReplay { refused: 1, ..SpoolReplay::default() });
    assert_eq!(leftovers(), 1, "it stays set aside");
    execute(
        ledger.database(),
        "INSERT INTO users (id, name, role, status, created_at)
         VALUES ($1, 'nobody', 'member', 'active', $2)",
        &[nobody.id.into(), Timestamp::now().into()],
    )
    .unwrap();
    assert_eq!(replayed(), SpoolReplay { committed: 1, ..SpoolReplay::default() });
    assert_eq!((ids.map(is_stored), leftovers()), ([true, true], 0));
    assert_eq!(replayed(), SpoolReplay::default());
}

async fn a_settlement_without_its_record_is_set_aside(fixture: &impl Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = fixture.open_with(&with_spool(dir.path()));
    let ada = user(&ledger, "ada");
    for (outcome, attempts) in [(Outcome::Refused, 0), (Outcome::Completed, 1)] {
        let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
        let delete = "DELETE FROM interceptions WHERE id = $1";
        execute(ledger.database(), delete, &[entry.id().into()]).unwrap();
        entry.settle(Settlement { attempts, ..settled(outcome) });
    }
    ledger.recorder().drained().await;
    let [file] = &spool_files(dir.path()).unwrap()[..] else { panic!("one file") };
    assert_eq!(file.entries, 1, "what was never sent need not be there");
    assert!(file.reasons.contains_key("its record is not in the store"), "{file:?}");
}

async fn a_start_adopts_only_files_of_its_store(fixture: &impl Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let options = with_spool(dir.path());
    let ledger = fixture.open_with(&options);
    let nobody = User { id: Uuid::now_v7() };
    ledger.recorder().record(opening(&nobody), settled(Outcome::Completed)).await.unwrap();
    ledger.recorder().drained().await;
    ledger.close();
    // As if the process had left it in the spool.
    let [file] = &spool_files(dir.path()).unwrap()[..] else { panic!("one file") };
    let mut entry = Value::Null;
    export_spool(dir.path(), &mut |exported| {
        entry = exported.write.unwrap_or_default();
        Ok(())
    })
    .unwrap();
    std::fs::remove_file(&file.path).unwrap();
    let (_, spool) = fuzz::encode(&[entry.to_string()]);
    let names = [
        format!("a.{}.spool", ledger.store_id().unwrap()),
        format!("b.{}.spool", Uuid::now_v7()),
        "c.spool".to_owned(),
    ];
    for name in &names {
        std::fs::write(dir.path().join(name), &spool).unwrap();
    }
    let next = fixture.open_with(&options);
    let claim = next.claim().unwrap();
    assert_eq!(claim.replayed, 2, "its own, and one of an earlier release");
    let left = spool_files(dir.path()).unwrap();
    let left: Vec<_> = left.iter().map(|file| (file.kind, file.store_id)).collect();
    let other = names[1].split('.').nth(1).unwrap().parse().unwrap();
    assert!(left.contains(&(SpoolFileKind::Spool, Some(other))), "{left:?}");
    assert_eq!(left.len(), 2, "what the store refuses is set aside once: {left:?}");
}

async fn threads_and_results_belong_to_one_user(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada"), user(&ledger, "bob"));
    let first = opening(&ada);
    let first_id = first.interception.id;
    let mut settlement = settled(Outcome::Completed);
    settlement.tool_usages = calls(&["c1", "c2"]);
    ledger.recorder().record(first, settlement).await.unwrap();
    let mut next = opening(&ada);
    next.interception.correlating_tool_call_id = Some("c2".into());
    next.tool_results = vec![
        ToolResult {
            tool_call_id: "c1".into(),
            bytes: 3,
            is_error: Some(true),
            approved: None,
            sha256: Some("ab".into()),
            result: Some("abc".into()),
        },
        ToolResult {
            tool_call_id: "c2".into(),
            bytes: 5,
            is_error: None,
            approved: None,
            sha256: None,
            result: None,
        },
    ];
    let mut of_bob = opening(&bob);
    of_bob.interception.correlating_tool_call_id = Some("c2".into());
    of_bob.tool_results = vec![ToolResult {
        tool_call_id: "c2".into(),
        bytes: 99,
        is_error: None,
        approved: None,
        sha256: None,
        result: None,
    }];
    let of_bob = ledger.recorder().open(of_bob).await.unwrap();
    assert_eq!(of_bob.thread_id(), Some(of_bob.id()));
    let entry = ledger.recorder().open(next).await.unwrap();
    assert_eq!(entry.thread_id(), Some(first_id));
    let calls = ledger.interception(first_id).unwrap().unwrap().tool_usages;
    let results: Vec<_> = calls.iter().map(|c| (c.result_bytes, c.result_is_error)).collect();
    assert_eq!(results, [(Some(3), Some(true)), (Some(5), None)]);
    let carriers: Vec<_> =
        calls.iter().map(|c| (c.result_interception_id, c.result_sha256.as_deref())).collect();
    assert_eq!(carriers, [(Some(entry.id()), Some("ab")), (Some(entry.id()), None)]);
    assert_eq!(calls[0].result.as_deref(), Some("abc"));
    let mut again = opening(&ada);
    again.tool_results = vec![ToolResult {
        tool_call_id: "c1".into(),
        bytes: 9,
        is_error: None,
        approved: None,
        sha256: Some("cd".into()),
        result: Some("def".into()),
    }];
    ledger.recorder().record(again, settled(Outcome::Completed)).await.unwrap();
    let calls = ledger.interception(first_id).unwrap().unwrap().tool_usages;
    assert_eq!(calls[0].result_interception_id, Some(entry.id()), "only the first one counts");
    assert_eq!((calls[0].result_bytes, calls[0].result_sha256.as_deref()), (Some(3), Some("ab")));
    let next = ledger.interception(entry.id()).unwrap().unwrap().item.interception;
    assert_eq!((next.thread_id, next.parent_id), (Some(first_id), Some(first_id)));
}

async fn attachments_and_hosted_calls_are_stored(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let mut first = opening(&ada);
    let id = first.interception.id;
    first.interception.store = Some(false);
    first.interception.client_retry_count = Some(2);
    let image = NewAttachment {
        kind: "image".into(),
        media_type: Some("image/png".into()),
        size_bytes: Some(3),
        sha256: Some("ab".into()),
        ..NewAttachment::default()
    };
    let file = NewAttachment {
        kind: "file".into(),
        file_id: Some("f".into()),
        ..NewAttachment::default()
    };
    first.attachments = vec![image, file];
    let mut settlement = settled(Outcome::Completed);
    settlement.refusal_category = Some("bio".into());
    settlement.container_id = Some("box".into());
    let request = |id: &str| NewToolUsage {
        tool_call_id: Some(id.into()),
        tool: "drop".into(),
        provider_executed: Some(true),
        server_name: Some("wiki".into()),
        caller: Some("code_execution".into()),
        approval: Some("requested".into()),
        ..NewToolUsage::default()
    };
    settlement.tool_usages = ["r1", "r2", "r3"].map(request).to_vec();
    ledger.recorder().record(first, settlement).await.unwrap();
    let mut next = opening(&ada);
    next.tool_results = [("r1", Some(true)), ("r2", Some(false))]
        .map(|(call, approved)| ToolResult {
            tool_call_id: call.into(),
            bytes: 0,
            is_error: None,
            approved,
            sha256: None,
            result: None,
        })
        .to_vec();
    ledger.recorder().record(next, settled(Outcome::Completed)).await.unwrap();
    ledger.recorder().drained().await;
    let detail = serde_json::to_value(ledger.interception(id).unwrap().unwrap()).unwrap();
    for (path, expected) in [
        ("/store", json!(false)),
        ("/background", Value::Null),
        ("/client_retry_count", json!(2)),
        ("/refusal_category", json!("bio")),
        ("/container_id", json!("box")),
        ("/attachments/0/sha256", json!("ab")),
        ("/attachments/0/size_bytes", json!(3)),
        ("/attachments/1/file_id", json!("f")),
        ("/tool_usages/0/approval", json!("approved")),
        ("/tool_usages/1/approval", json!("denied")),
        ("/tool_usages/2/approval", json!("requested")),
        ("/tool_usages/2/server_name", json!("wiki")),
        ("/tool_usages/2/provider_executed", json!(true)),
        ("/tool_usages/2/caller", json!("code_execution")),
    ] {
        assert_eq!(detail.pointer(path), Some(&expected), "{path}");
    }
    assert!(ledger.recount().unwrap().is_sound());
}

async fn usage_of_a_response_fetched_again_is_counted_once(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada"), user(&ledger, "bob"));
    let mut settlement = settled_with_usage_of("resp_1");
    settlement.token_usages.push(NewTokenUsage {
        kind: UsageKind::Compaction,
        output_tokens: Some(3),
        part: 1,
        ..settlement.token_usages[0].clone()
    });
    for user in [&ada, &ada, &bob, &ada] {
        ledger.recorder().record(opening(user), settlement.clone()).await.unwrap();
    }
    ledger.recorder().drained().await;
    let sum = |user: &User| -> u64 {
        let filter = InterceptionFilter { user_id: Some(user.id), ..InterceptionFilter::default() };
        ledger
            .interceptions(&filter)
            .unwrap()
            .items
            .iter()
            .map(|item| item.tokens.exact.output_tokens)
            .sum()
    };
    assert_eq!((sum(&ada), sum(&bob)), (10, 10));
    assert_eq!(ledger.recount().unwrap().duplicate_response_ids, 0);
}

async fn open_records_of_a_dead_process_are_marked_interrupted(fixture: &impl Fixture) {
    let (id, done) = {
        let ledger = fixture.open();
        let claim = ledger.claim().unwrap();
        assert_eq!(claim.interrupted, 0);
        let ada = user(&ledger, "ada");
        let open = ledger.recorder().open(opening(&ada)).await.unwrap();
        let done = opening(&ada);
        let done_id = done.interception.id;
        ledger.recorder().record(done, settled(Outcome::Completed)).await.unwrap();
        ledger.close();
        (open.id(), done_id)
    };
    let ledger = fixture.open();
    assert_eq!(ledger.claim().unwrap().interrupted, 1);
    let outcome = |id| ledger.interception(id).unwrap().unwrap().item.interception.outcome;
    assert_eq!((outcome(id), outcome(done)), (Outcome::Interrupted, Outcome::Completed));
}

async fn retention_deletes_old_records_with_their_child_rows(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let old = Timestamp::now() - SignedDuration::from_hours(48);
    let mut ids = Vec::new();
    for number in 0..1_201 {
        let opening = if number > 0 { opening_at(&ada, old) } else { opening(&ada) };
        ids.push(opening.interception.id);
        let mut settlement = settled(Outcome::Completed);
        settlement.upstream_attempts = vec![attempt(1, 200), attempt(2, 200)];
        settlement.answers = vec![NewAnswer { content: "hi".into(), ..NewAnswer::default() }];
        ledger.recorder().record(opening, settlement).await.unwrap();
    }
    let still_open = ledger.recorder().open(opening_at(&ada, old)).await.unwrap();
    let day_ago = Timestamp::now() - SignedDuration::from_hours(24);
    assert_eq!(ledger.apply_retention(day_ago).unwrap(), 1_200);
    let run = ledger.retention_runs().unwrap().remove(0);
    let rows = ["interceptions", "prompts", "upstream_attempts", "answers", "token_usages"]
        .map(|table| run.removed_rows.get(table).copied());
    assert_eq!(rows, [Some(1_200), Some(1_200), Some(2_400), Some(1_200), None]);
    let removed = &ids[1..];
    assert_eq!(
        (run.first_id, run.last_id),
        (removed.iter().min().copied(), removed.iter().max().copied())
    );
    assert_eq!((run.kind.as_str(), run.cutoff.as_second()), ("records", day_ago.as_second()));
    assert_eq!(ledger.apply_retention(day_ago).unwrap(), 0);
    assert_eq!(
        ledger.retention_runs().unwrap().len(),
        1,
        "a run that removes nothing leaves no row"
    );
    assert!(ledger.interception(ids[0]).unwrap().is_some());
    assert!(ledger.interception(ids[1]).unwrap().is_none());
    assert!(ledger.interception(still_open.id()).unwrap().is_some());
    assert_eq!(ledger.recount().unwrap().usages_without_interception, 0, "child rows too");
}

async fn every_store_has_one_secret_and_one_id(fixture: &impl Fixture) {
    let secret = || fixture.open().server_secret().unwrap();
    assert_eq!(secret(), secret());
    let id = || fixture.open().store_id().unwrap();
    assert_eq!(id(), id());
}

async fn a_thousand_concurrent_records_are_all_committed(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let recorder = ledger.recorder();
    let opens = (0..1_000).map(|_| recorder.open(opening(&ada)));
    let mut settled_entries = 0;
    for entry in open_all(opens).await {
        entry.settle(settled(Outcome::Completed));
        settled_entries += 1;
    }
    recorder.drained().await;
    let mut filter = InterceptionFilter { limit: 500, ..InterceptionFilter::default() };
    let mut read = 0;
    loop {
        let page = ledger.interceptions(&filter).unwrap();
        read += page.items.len();
        assert!(page.items.iter().all(|i| i.interception.outcome == Outcome::Completed));
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    assert_eq!((read, settled_entries), (1_000, 1_000));
    let session = ledger.sessions(&SessionFilter { limit: 3, ..SessionFilter::default() }).unwrap();
    assert_eq!((session.items.len(), session.next_cursor.is_some()), (3, true));
}

/// Drives all openings concurrently and returns their entries.
async fn open_all<F>(opens: impl Iterator<Item = F>) -> Vec<keybridge_ledger::Entry>
where
    F: Future<Output = Result<keybridge_ledger::Entry, keybridge_ledger::RecorderError>>,
{
    let mut opens: Vec<_> = opens.map(Box::pin).collect();
    let mut entries = Vec::new();
    std::future::poll_fn(|cx| {
        opens.retain_mut(|open| match open.as_mut().poll(cx) {
            std::task::Poll::Ready(entry) => {
                entries.push(entry.unwrap());
                false
            }
            std::task::Poll::Pending => true,
        });
        if opens.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    entries
}

async fn tokens_are_recorded_while_a_response_streams(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
    let id = entry.id();
    let note = NewTokenUsage {
        provider_response_id: Some("msg_1".into()),
        input_tokens: Some(25),
        quality: Quality::Partial,
        ..NewTokenUsage::default()
    };
    entry.note(note.clone());
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    assert_eq!(detail.token_usages[0].provider_response_id.as_deref(), Some("msg_1"));
    assert_eq!(detail.item.tokens.estimated.input_tokens, 25);
    let mut settlement = settled(Outcome::Completed);
    settlement.token_usages =
        vec![NewTokenUsage { output_tokens: Some(12), quality: Quality::Exact, ..note }];
    entry.settle(settlement);
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    assert_eq!(detail.token_usages.len(), 1, "the settlement replaces the note");
    assert_eq!(detail.token_usages[0].output_tokens, Some(12));
    assert_eq!(
        (detail.item.tokens.exact.input_tokens, detail.item.tokens.estimated),
        (25, TokenCounts::default())
    );
}

/// Two valid values of a column of any type.
fn two_values(column: &str) -> [Value; 2] {
    let candidates = [
        [json!(1), json!(2)],
        [json!({ "a": 1, "c": 0.0042 }), json!({ "b": -2.5 })],
        // Texts that are also valid as a quality.
        [json!("partial"), json!("exact")],
        [json!("compaction"), json!("advisor")],
        [json!(false), json!(true)],
    ];
    let fits = |values: &[Value; 2]| {
        let usage = json!({ column: values[0] });
        serde_json::from_value::<NewTokenUsage>(usage).is_ok()
    };
    candidates.into_iter().find(fits).unwrap_or_else(|| panic!("no value for `{column}`"))
}

/// The only token row of a record as JSON, without the columns that every row has.
fn token_columns(ledger: &Ledger, id: Uuid) -> serde_json::Map<String, Value> {
    let rows = ledger.interception(id).unwrap().unwrap().token_usages;
    assert_eq!(rows.len(), 1);
    let Value::Object(mut row) = serde_json::to_value(&rows[0]).unwrap() else {
        panic!("not an object")
    };
    for column in ["id", "interception_id", "created_at"] {
        row.remove(column).unwrap();
    }
    row
}

async fn a_settlement_replaces_every_column_of_a_note(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
    let id = entry.id();
    entry.note(NewTokenUsage::default());
    ledger.recorder().drained().await;
    let columns: Vec<String> =
        token_columns(&ledger, id).into_iter().map(|(name, _)| name).collect();
    let usage = |of: usize| -> NewTokenUsage {
        let values = columns.iter().map(|name| (name.clone(), two_values(name)[of].clone()));
        serde_json::from_value(Value::Object(values.collect())).unwrap()
    };
    entry.note(usage(0));
    ledger.recorder().drained().await;
    for (name, value) in token_columns(&ledger, id) {
        assert_eq!(value, two_values(&name)[0], "`{name}` of the note");
    }
    let mut settlement = settled(Outcome::Completed);
    settlement.token_usages = vec![usage(1)];
    entry.settle(settlement);
    ledger.recorder().drained().await;
    for (name, value) in token_columns(&ledger, id) {
        assert_eq!(value, two_values(&name)[1], "`{name}` of the settlement");
    }
}

async fn a_note_and_its_settlement_can_share_a_batch(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
    let id = entry.id();
    let usage =
        NewTokenUsage { provider_response_id: Some("m".into()), ..NewTokenUsage::default() };
    entry.note(usage.clone());
    let mut settlement = settled(Outcome::Completed);
    settlement.token_usages = vec![
        usage.clone(),
        NewTokenUsage { provider_response_id: Some("n".into()), turn: 1, ..usage },
    ];
    entry.settle(settlement);
    ledger.recorder().drained().await;
    let usages = ledger.interception(id).unwrap().unwrap().token_usages;
    let ids: Vec<_> = usages.iter().filter_map(|row| row.provider_response_id.clone()).collect();
    assert_eq!(ids, ["m", "n"]);
}

async fn each_turn_of_a_response_has_its_own_token_row(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let entry = ledger.recorder().open(opening(&ada)).await.unwrap();
    let id = entry.id();
    let usage = |turn: u16, input| NewTokenUsage {
        provider_response_id: Some(format!("msg_{turn}")),
        input_tokens: Some(input),
        quality: Quality::Exact,
        turn,
        ..NewTokenUsage::default()
    };
    for turn in 0..3 {
        entry.note(usage(turn, 10));
    }
    // A later count of a turn replaces an earlier one.
    entry.note(usage(1, 11));
    ledger.recorder().drained().await;
    let rows = ledger.interception(id).unwrap().unwrap().token_usages;
    let inputs: Vec<_> = rows.iter().map(|row| row.input_tokens).collect();
    assert_eq!(inputs, [Some(10), Some(11), Some(10)]);
    let mut settlement = settled(Outcome::Completed);
    settlement.inner_turns = 2;
    settlement.token_usages = (0..3).map(|turn| usage(turn, 20)).collect();
    settlement.tool_usages = vec![NewToolUsage {
        tool: "bmcp_wiki_search".into(),
        injected: true,
        server_url: Some("http://wiki/mcp".into()),
        duration_ms: Some(7),
        result_bytes: Some(120),
        result_is_error: Some(false),
        ..NewToolUsage::default()
    }];
    entry.settle(settlement);
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    assert_eq!(detail.item.interception.inner_turns, 2);
    assert_eq!((detail.token_usages.len(), detail.item.tokens.exact.input_tokens), (3, 60));
    let tool = &detail.tool_usages[0];
    assert!(tool.injected);
    assert_eq!((tool.result_bytes, tool.result_is_error), (Some(120), Some(false)));
    assert!(ledger.recount().unwrap().is_sound());
}

async fn continuations_are_stored_per_user(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada"), user(&ledger, "bob"));
    let old = opening_at(&ada, Timestamp::now() - SignedDuration::from_hours(48));
    let entry = ledger.recorder().open(old).await.unwrap();
    let long = format!("call:{}", "x".repeat(10_000));
    let values = [("call:1".to_owned(), "a".to_owned()), (long.clone(), "b".to_owned())];
    entry.keep(ada.id, &values).await.unwrap();
    entry.keep(ada.id, &[("call:1".to_owned(), "later".to_owned())]).await.unwrap();
    let keys = vec!["call:1".to_owned(), long.clone(), "call:2".to_owned()];
    let found = ledger.continuations().find(ada.id, keys.clone()).await.unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found["call:1"].as_str(), found[&long].as_str()), ("later", "b"));
    assert!(
        ledger.continuations().find(bob.id, keys.clone()).await.unwrap().is_empty(),
        "it belongs to another user"
    );
    assert!(ledger.continuations().find(ada.id, Vec::new()).await.unwrap().is_empty());
    entry.settle(settled(Outcome::Completed));
    ledger.recorder().drained().await;
    ledger.apply_retention(Timestamp::now() - SignedDuration::from_hours(24)).unwrap();
    assert!(
        ledger.continuations().find(ada.id, keys.clone()).await.unwrap().is_empty(),
        "it is deleted with its record"
    );
}

fn made(user: &User, ids: &[&str]) -> ObjectChanges {
    let object = |id: &&str| NewObject { kind: "response".into(), id: (*id).into() };
    ObjectChanges {
        provider: "openai".into(),
        key: Some("main".into()),
        user_id: user.id,
        at: Timestamp::now(),
        made: ids.iter().map(object).collect(),
        deleted: Vec::new(),
    }
}

fn names(ids: &[&str]) -> Vec<ObjectName> {
    ids.iter().map(|id| ObjectName { id: (*id).into(), is_response: true }).collect()
}

async fn objects_are_found_at_once_and_keep_their_maker(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada"), user(&ledger, "bob"));
    let old = opening_at(&ada, Timestamp::now() - SignedDuration::from_hours(48));
    let id = old.interception.id;
    let entry = ledger.recorder().open(old).await.unwrap();
    let later = ledger.recorder().open(opening(&bob)).await.unwrap();
    entry.keep_objects(made(&ada, &["resp_1", "resp_2", &"x".repeat(2_000)]));
    let objects = ledger.objects();
    let found = objects.find("openai", &names(&["resp_1", "resp_3"])).await.unwrap();
    let maker = ObjectMaker { user_id: ada.id, key: Some("main".into()), interception_id: id };
    assert_eq!(found, [("resp_1".to_owned(), maker.clone())].into(), "before it is committed");
    later.keep_objects(made(&bob, &["resp_1"]));
    later.keep_objects(ObjectChanges { deleted: vec!["resp_2".into()], ..made(&bob, &[]) });
    entry.keep_objects(ObjectChanges { deleted: vec!["resp_1".into()], ..made(&ada, &[]) });
    ledger.recorder().drained().await;
    assert_eq!(text_of(&ledger, "SELECT CAST(count(*) AS TEXT) FROM objects"), "2");
    let deleted = "SELECT id FROM objects WHERE deleted_at IS NOT NULL";
    assert_eq!(text_of(&ledger, deleted), "resp_1", "what another user deletes is not deleted");
    // Another process, which has nothing in memory.
    let other = fixture.open();
    let all = names(&["resp_1", "resp_2"]);
    let found = other.objects().find("openai", &all).await.unwrap();
    assert_eq!((found.len(), found.get("resp_1")), (2, Some(&maker)));
    assert!(other.objects().find("azure", &all).await.unwrap().is_empty());
    entry.settle(settled(Outcome::Completed));
    ledger.recorder().drained().await;
    ledger.apply_retention(Timestamp::now() - SignedDuration::from_hours(24)).unwrap();
    assert_eq!(
        text_of(&ledger, "SELECT CAST(count(*) AS TEXT) FROM objects"),
        "0",
        "gone with its record"
    );
}

async fn responses_from_before_there_were_objects_are_found(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada"), user(&ledger, "bob"));
    let mut first = opening(&ada);
    first.interception.provider = "openai".into();
    first.interception.endpoint = "/v1/responses".into();
    first.interception.credential_source = Some("pool:second".into());
    let id = first.interception.id;
    let mut fetched = opening(&bob);
    fetched.interception.provider = "openai".into();
    fetched.interception.endpoint = "/v1/responses/resp_other".into();
    for (opening, response) in [(first, "resp_old"), (fetched, "resp_other")] {
        let settlement = settled_with_usage_of(response);
        ledger.recorder().record(opening, settlement).await.unwrap();
    }
    let all = names(&["resp_old", "resp_other"]);
    let found = ledger.objects().find("openai", &all).await.unwrap();
    let maker = ObjectMaker { user_id: ada.id, key: Some("second".into()), interception_id: id };
    assert_eq!(
        found,
        [("resp_old".to_owned(), maker)].into(),
        "fetching it makes no one its maker"
    );
    let file = ObjectName { id: "resp_old".into(), is_response: false };
    assert!(fixture.open().objects().find("openai", &[file]).await.unwrap().is_empty());
}

async fn a_record_follows_the_one_that_it_names(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada"), user(&ledger, "bob"));
    let (first, mut second, mut third, mut foreign) =
        (opening(&ada), opening(&ada), opening(&ada), opening(&bob));
    let ids = [&first, &second, &third, &foreign].map(|opening| opening.interception.id);
    second.interception.parent_id = Some(ids[0]);
    third.interception.parent_id = Some(ids[1]);
    foreign.interception.parent_id = Some(ids[0]);
    // In one commit.
    for opening in [first, second, third, foreign] {
        ledger.recorder().record(opening, settled(Outcome::Completed)).await.unwrap();
    }
    ledger.recorder().drained().await;
    let thread = |id: Uuid| {
        let detail = ledger.interception(id).unwrap().unwrap();
        (detail.item.interception.thread_id, detail.item.interception.parent_id)
    };
    assert_eq!(ids[..3].iter().map(|id| thread(*id).0).collect::<Vec<_>>(), [Some(ids[0]); 3]);
    assert_eq!(thread(ids[2]).1, Some(ids[1]));
    assert_eq!(thread(ids[3]), (Some(ids[3]), None), "another user's record is no parent");
}

async fn what_an_answer_says_is_recorded_once(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let mut ids = Vec::new();
    for _fetched in 0..3 {
        let opening = opening(&ada);
        ids.push(opening.interception.id);
        let settlement = Settlement {
            tool_usages: calls(&["call_1"]),
            thoughts: vec![NewThought { source: "thinking".into(), content: "boats".into() }],
            ..settled_with_usage_of("resp_1")
        };
        ledger.recorder().record(opening, settlement).await.unwrap();
    }
    ledger.recorder().drained().await;
    let rows = |id: &Uuid| {
        let detail = ledger.interception(*id).unwrap().unwrap();
        (detail.token_usages.len(), detail.tool_usages.len(), detail.thoughts.len())
    };
    assert_eq!(ids.iter().map(rows).collect::<Vec<_>>(), [(1, 1, 1), (0, 0, 0), (0, 0, 0)]);
}

/// The only cell of a statement's only row, as text.
fn text_of(ledger: &Ledger, sql: &str) -> String {
    let mut found = None;
    let read = &mut |row: &mut dyn Cells| {
        found = row.text()?;
        Ok(())
    };
    ledger.database().run(Duration::from_secs(10), sql, &[], read).unwrap();
    found.unwrap()
}

async fn exact_and_estimated_tokens_are_summed_separately(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    for (quality, output) in
        [(Quality::Exact, Some(100)), (Quality::Partial, Some(7)), (Quality::Unknown, None)]
    {
        let mut opening = opening(&ada);
        opening.interception.client_session_id = Some("s".into());
        let mut settlement = settled(Outcome::Cancelled);
        settlement.token_usages =
            vec![NewTokenUsage { output_tokens: output, quality, ..NewTokenUsage::default() }];
        ledger.recorder().record(opening, settlement).await.unwrap();
    }
    ledger.recorder().drained().await;
    let session = &ledger.sessions(&SessionFilter::default()).unwrap().items[0];
    assert_eq!((session.id.as_str(), session.requests), ("s", 3));
    let sums = session.tokens;
    assert_eq!((sums.exact.output_tokens, sums.estimated.output_tokens), (100, 7));
    assert_eq!(sums.unknown_usages, 1);
    let json = serde_json::to_value(session).unwrap();
    assert_eq!(
        (&json["output_tokens"], &json["estimated"]["output_tokens"]),
        (&100.into(), &7.into())
    );
}

async fn unusual_texts_are_stored_within_bounds(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let long = "x".repeat(100_000);
    let mut opening = opening(&ada);
    opening.prompt = Some("a\0b \u{1F600}".into());
    opening.interception.client_session_id = Some(long.clone());
    let id = opening.interception.id;
    let mut settlement = settled(Outcome::Completed);
    settlement.provider_response_id = Some(long.clone());
    settlement.token_usages = vec![NewTokenUsage {
        provider_response_id: Some(long.clone()),
        ..NewTokenUsage::default()
    }];
    settlement.tool_usages = calls(&[long.as_str()]);
    settlement.tool_usages[0].arguments = Some("[".repeat(50_000));
    ledger.recorder().record(opening, settlement).await.unwrap();
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    assert!(detail.prompts[0].prompt.ends_with("b \u{1F600}"));
    assert_eq!(detail.tool_usages[0].arguments, Some("[".repeat(50_000).into()));
    let session = detail.item.interception.client_session_id.unwrap();
    for id in [&session, detail.token_usages[0].provider_response_id.as_ref().unwrap()] {
        assert!(id.len() <= 1_024 && id.contains("x…[cut: 100000 bytes, sha256 "), "{id}");
    }
    let filter = SessionFilter { session: Some(session), ..SessionFilter::default() };
    assert_eq!(ledger.sessions(&filter).unwrap().items.len(), 1);
}

async fn the_rows_and_contents_of_one_record_are_bounded(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let opening = opening(&ada);
    let id = opening.interception.id;
    let mut settlement = settled(Outcome::Completed);
    settlement.tool_usages = calls(&["c"; 1_500]);
    settlement.thoughts =
        vec![NewThought { source: "thinking".into(), content: "t".repeat(1 << 20) }; 20];
    ledger.recorder().record(opening, settlement).await.unwrap();
    ledger.recorder().drained().await;
    let detail = ledger.interception(id).unwrap().unwrap();
    assert_eq!((detail.tool_usages.len(), detail.thoughts.len()), (1_000, 20));
    let total: usize = detail.thoughts.iter().map(|thought| thought.content.len()).sum();
    assert!((15 << 20..17 << 20).contains(&total), "{total}");
    assert!(detail.size_bytes > total);
}

async fn a_tool_call_and_its_result_can_share_a_batch(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let recorder = ledger.recorder();
    let mut ids = Vec::new();
    for number in 0..20 {
        let mut next = opening(&ada);
        ids.push(next.interception.id);
        if number > 0 {
            let call = format!("c{}", number - 1);
            next.interception.correlating_tool_call_id = Some(call.clone());
            next.tool_results = vec![ToolResult {
                tool_call_id: call,
                bytes: number,
                is_error: None,
                approved: None,
                sha256: None,
                result: None,
            }];
        }
        let mut settlement = settled(Outcome::Completed);
        settlement.tool_usages = calls(&[format!("c{number}").as_str()]);
        recorder.record(next, settlement).await.unwrap();
    }
    recorder.drained().await;
    for (number, id) in ids.iter().enumerate() {
        let detail = ledger.interception(*id).unwrap().unwrap();
        let record = &detail.item.interception;
        assert_eq!(record.thread_id, Some(ids[0]), "record {number}");
        assert_eq!(record.parent_id, number.checked_sub(1).map(|before| ids[before]));
        let next = u64::try_from(number).unwrap() + 1;
        assert_eq!(detail.tool_usages[0].result_bytes, (next < 20).then_some(next));
    }
}

async fn a_process_marked_dead_too_early_can_still_settle(fixture: &impl Fixture) {
    let first = fixture.open();
    let claim = first.claim().unwrap();
    let ada = user(&first, "ada");
    let entry = first.recorder().open(opening(&ada)).await.unwrap();
    let id = entry.id();
    drop(claim);
    let second = fixture.open();
    assert_eq!(second.claim().unwrap().interrupted, 1);
    let mut settlement = settled(Outcome::Completed);
    settlement.token_usages = vec![NewTokenUsage {
        output_tokens: Some(3),
        quality: Quality::Exact,
        ..NewTokenUsage::default()
    }];
    entry.settle(settlement);
    first.recorder().drained().await;
    let item = second.interception(id).unwrap().unwrap().item;
    assert_eq!(item.interception.outcome, Outcome::Completed);
    assert_eq!(item.tokens.exact.output_tokens, 3);
}

async fn a_recount_finds_inconsistent_records(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let settlement_of = |response: &str| {
        let mut settlement = settled(Outcome::Completed);
        settlement.token_usages = vec![NewTokenUsage {
            provider_response_id: Some(response.into()),
            ..NewTokenUsage::default()
        }];
        settlement
    };
    for response in ["r1", "r2"] {
        ledger.recorder().record(opening(&ada), settlement_of(response)).await.unwrap();
    }
    ledger.recorder().drained().await;
    let recount = ledger.recount().unwrap();
    assert!(recount.is_sound() && recount.interceptions == 2, "{recount:?}");

    ledger.recorder().record(opening(&ada), settlement_of("r2")).await.unwrap();
    let mut open = opening(&ada);
    open.interception.request_sha256 = Some("abc".into());
    let _open = ledger.recorder().open(open).await.unwrap();
    ledger.recorder().drained().await;
    let recount = ledger.recount().unwrap();
    assert_eq!((recount.without_end, recount.duplicate_response_ids), (1, 1));
    assert!(!recount.is_sound());

    let claim = ledger.claim().unwrap();
    assert_eq!(ledger.recount().unwrap().in_progress, 1, "this process is alive");
    drop(claim);
    let _next = fixture.open().claim().unwrap();
    let line = |id: &str, hash: Option<&str>| ProviderLogEntry {
        response_id: id.into(),
        request_sha256: hash.map(Into::into),
    };
    let log = [
        line("r1", None),
        line("r1", None),
        line("r2", None),
        line("r3", Some("abc")),
        line("r4", Some("abc")),
    ];
    let comparison = ledger.compare(&log).unwrap();
    assert_eq!((comparison.response_ids, comparison.found), (4, 1));
    assert_eq!(comparison.doubled, ["r2"]);
    assert_eq!((comparison.found_by_request, comparison.missing), (1, vec!["r4".to_owned()]));
}

/// Records of a user, so many days old.
async fn record_days_ago(ledger: &Ledger, user: &User, days: i64, count: usize) {
    let then = Timestamp::now() - SignedDuration::from_hours(24 * days);
    for _ in 0..count {
        let opening = opening_at(user, then);
        ledger.recorder().record(opening, settled(Outcome::Completed)).await.unwrap();
    }
    ledger.recorder().drained().await;
}

async fn retention_waits_while_the_clock_is_not_plausible(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let now = Timestamp::now();
    let ago = |days: i64| now - SignedDuration::from_hours(24 * days);
    let keep = Some(Duration::from_secs(60 * 24 * 3_600));
    let policy = RetentionPolicy { keep, max_fraction: 0.5 };
    let refusal = || ledger.check_retention(&policy, now).unwrap().refusal;
    assert_eq!(refusal(), None, "there is nothing to lose");
    record_days_ago(&ledger, &ada, 90, 6).await;
    let refused = refusal().unwrap();
    assert!(refused.contains("6 of 6 records"), "the newest record shows the time: {refused}");

    // Nothing ran for 90 days, or the clock is 90 days ahead: nobody knows.
    ledger.trust_clock(ago(90)).unwrap();
    let error = ledger.witness_clock(&policy, now).unwrap_err();
    assert!(matches!(error, LedgerError::ImplausibleClock(_)), "{error}");
    // A new record at the wrong time makes the time no better.
    record_days_ago(&ledger, &ada, 0, 1).await;
    assert!(refusal().unwrap().contains("6 of 7 records"));
    // Where little would go, little harm is done.
    let lenient = RetentionPolicy { max_fraction: 0.9, ..policy };
    assert_eq!(ledger.check_retention(&lenient, now).unwrap().refusal, None);

    // A bridge that ran without requests wrote the time down.
    ledger.trust_clock(now - SignedDuration::from_hours(2)).unwrap();
    let cutoff = ledger.witness_clock(&policy, now).unwrap().unwrap();
    assert_eq!(cutoff, ago(60));
    assert_eq!(ledger.apply_retention(cutoff).unwrap(), 6);
    let forever = RetentionPolicy { keep: None, ..policy };
    assert_eq!(ledger.witness_clock(&forever, now).unwrap(), None);
}

async fn a_session_belongs_to_one_user(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, eve) = (user(&ledger, "ada"), user(&ledger, "eve"));
    let mut thread = opening(&ada);
    thread.interception.client_session_id = None;
    let thread_id = thread.interception.id;
    let claiming = |user: &User, session: &str| {
        let mut opening = opening(user);
        opening.interception.client_session_id = Some(session.to_owned());
        opening
    };
    let as_text = thread_id.to_string();
    let openings = [
        thread,
        claiming(&ada, "s"),
        claiming(&eve, "s"),
        claiming(&eve, &as_text),
        claiming(&ada, &as_text),
    ];
    for opening in openings {
        ledger.recorder().record(opening, settled(Outcome::Completed)).await.unwrap();
    }
    ledger.recorder().drained().await;
    for (session, user, expected) in [
        ("s", None, vec![("ada", 1), ("eve", 1)]),
        ("s", Some("ada"), vec![("ada", 1)]),
        (as_text.as_str(), None, vec![("ada", 2), ("eve", 1)]),
        (as_text.as_str(), Some("eve"), vec![("eve", 1)]),
        ("s", Some("nobody"), vec![]),
    ] {
        let filter = SessionFilter {
            session: Some(session.to_owned()),
            user: user.map(str::to_owned),
            ..SessionFilter::default()
        };
        let mut found = ledger.sessions(&filter).unwrap().items;
        found.sort_by(|one, other| one.user.cmp(&other.user));
        let shown: Vec<(&str, u64)> =
            found.iter().map(|found| (found.user.as_str(), found.requests)).collect();
        assert_eq!(shown, expected, "{session} {user:?}");
        // The requests of a session are those that it counts.
        for found in &found {
            let filter = InterceptionFilter {
                user: Some(found.user.clone()),
                session: Some(session.to_owned()),
                ..InterceptionFilter::default()
            };
            let requests = ledger.interceptions(&filter).unwrap().items.len();
            assert_eq!(u64::try_from(requests), Ok(found.requests), "{session} {user:?}");
        }
    }
}

async fn a_provider_that_repeats_an_id_hides_no_usage_of_another(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let settlement = settled_with_usage_of("resp_1");
    for provider in ["cheap", "openai", "openai"] {
        let mut opening = opening(&ada);
        opening.interception.provider = provider.into();
        ledger.recorder().record(opening, settlement.clone()).await.unwrap();
    }
    ledger.recorder().drained().await;
    let items = ledger.interceptions(&InterceptionFilter::default()).unwrap().items;
    let counted: u64 = items.iter().map(|item| item.tokens.exact.output_tokens).sum();
    assert_eq!(counted, 14, "once for each provider");
    let recount = ledger.recount().unwrap();
    assert_eq!(recount.duplicate_response_ids, 1);
    assert!(recount.is_sound(), "a repeated id is no fault of the records");
    let line = ProviderLogEntry { response_id: "resp_1".into(), request_sha256: None };
    let comparison = ledger.compare(&[line.clone(), line.clone()]).unwrap();
    assert_eq!((comparison.found, comparison.doubled.len()), (1, 0), "both lines are recorded");
    assert_eq!(ledger.compare(&[line]).unwrap().doubled, ["resp_1"]);
}

async fn an_id_that_very_many_calls_share_identifies_none(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, eve) = (user(&ledger, "ada"), user(&ledger, "eve"));
    let mut settlement = settled(Outcome::Completed);
    settlement.tool_usages = calls(&["call_0", "call_of_ada"]);
    let first = opening(&ada);
    let first_id = first.interception.id;
    ledger.recorder().record(first, settlement.clone()).await.unwrap();
    settlement.tool_usages = calls(&["call_0"; 100]);
    for _ in 0..11 {
        ledger.recorder().record(opening(&eve), settlement.clone()).await.unwrap();
    }
    let next = |call: &str| {
        let mut next = opening(&ada);
        next.interception.correlating_tool_call_id = Some(call.to_owned());
        next.tool_results = vec![ToolResult {
            tool_call_id: call.to_owned(),
            bytes: 3,
            is_error: None,
            approved: None,
            sha256: None,
            result: None,
        }];
        next
    };
    let shared = ledger.recorder().open(next("call_0")).await.unwrap();
    assert_eq!(shared.thread_id(), Some(shared.id()), "a thread of its own");
    let own = ledger.recorder().open(next("call_of_ada")).await.unwrap();
    assert_eq!(own.thread_id(), Some(first_id));
    let results: Vec<_> = ledger
        .interception(first_id)
        .unwrap()
        .unwrap()
        .tool_usages
        .into_iter()
        .map(|call| call.result_bytes)
        .collect();
    assert_eq!(results, [None, Some(3)]);
}

async fn an_exchanged_or_emptied_store_is_noticed(fixture: &impl Fixture) {
    let (ledger, dir) = (fixture.open(), tempfile::tempdir().unwrap());
    let ada = user(&ledger, "ada");
    let check = || ledger.check_store(dir.path()).unwrap();
    let change = |sql: &str| execute(ledger.database(), sql, &[]).unwrap();
    assert_eq!(check().remembered, None);
    record_days_ago(&ledger, &ada, 3, 1).await;
    ledger.remember_store(dir.path()).unwrap();
    assert_eq!(check().findings(), Vec::<String>::new());

    // What retention removes is no gap.
    record_days_ago(&ledger, &ada, 1, 1).await;
    let newest = ledger.interceptions(&InterceptionFilter::default()).unwrap().items.remove(0);
    ledger.remember_store(dir.path()).unwrap();
    ledger.apply_retention(Timestamp::now() - SignedDuration::from_hours(12)).unwrap();
    assert_eq!(check().findings(), Vec::<String>::new());
    ledger.remember_store(dir.path()).unwrap();

    record_days_ago(&ledger, &ada, 0, 1).await;
    let lost = ledger.interceptions(&InterceptionFilter::default()).unwrap().items.remove(0);
    assert!(lost.interception.id > newest.interception.id);
    ledger.remember_store(dir.path()).unwrap();
    change("DELETE FROM prompts");
    change("DELETE FROM interceptions");
    assert_eq!(check().missing_ids, [lost.interception.id]);
    record_days_ago(&ledger, &ada, 0, 1).await;
    ledger.remember_store(dir.path()).unwrap();
    assert_eq!(check().missing_ids, [lost.interception.id], "the gap is not forgotten");

    change("DELETE FROM prompts");
    change("DELETE FROM interceptions");
    change("DELETE FROM users");
    assert!(check().replaced().unwrap().contains("it had 1 users and now has none"));
    user(&ledger, "bob");
    assert_eq!(check().replaced(), None);
    change("DELETE FROM settings WHERE key = 'store_id'");
    assert!(check().replaced().unwrap().contains("was exchanged or emptied"));
    let error = ledger.remember_store(dir.path()).unwrap_err();
    assert!(matches!(error, LedgerError::Replaced(_)), "{error}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn a_clock_ahead_of_the_servers_removes_nothing() {
    let fixture = Postgres::new();
    let ledger = fixture.open();
    let policy = RetentionPolicy { keep: Some(Duration::from_secs(3_600)), max_fraction: 1.0 };
    let now = Timestamp::now();
    assert_eq!(ledger.check_retention(&policy, now).unwrap().refusal, None);
    let ahead = now + SignedDuration::from_mins(10);
    let refused = ledger.check_retention(&policy, ahead).unwrap().refusal.unwrap();
    assert!(refused.contains("ahead of that of the store's server"), "{refused}");
}

/// All pages of an export.
async fn export(ledger: &Ledger, filter: &InterceptionFilter) -> Vec<Vec<InterceptionDetail>> {
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let filter = filter.clone();
        let page = ledger.read(move |reader| reader.export_page(&filter, after)).await.unwrap();
        after = page.next_cursor.map(|cursor| cursor.parse::<Uuid>().unwrap());
        pages.push(page.items);
        if after.is_none() {
            return pages;
        }
    }
}

async fn an_export_has_every_record_once_and_its_pages_are_bounded(fixture: &impl Fixture) {
    const PROMPT_BYTES: usize = 3 << 20;
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada"), user(&ledger, "bob"));
    let mut ids = Vec::new();
    for number in 0..7 {
        let mut opening = opening(if number == 3 { &bob } else { &ada });
        opening.prompt = Some("x".repeat(PROMPT_BYTES));
        opening.interception.model = Some(format!("model-{}", number % 2));
        ids.push(opening.interception.id);
        let mut settlement = Settlement::new(Timestamp::now(), Outcome::Completed);
        settlement.thoughts.push(NewThought { source: "thinking".into(), content: "hm".into() });
        settlement
            .tool_usages
            .push(NewToolUsage { tool: "search".into(), ..NewToolUsage::default() });
        settlement.token_usages.push(NewTokenUsage {
            input_tokens: Some(number),
            quality: Quality::Exact,
            ..NewTokenUsage::default()
        });
        ledger.recorder().record(opening, settlement).await.unwrap();
    }
    ledger.recorder().drained().await;

    let pages = export(&ledger, &InterceptionFilter::default()).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 1]);
    let exported: Vec<InterceptionDetail> = pages.into_iter().flatten().collect();
    assert_eq!(
        exported.iter().map(|detail| detail.item.interception.id).collect::<Vec<_>>(),
        ids,
        "oldest first"
    );
    for detail in exported {
        let alone = ledger.interception(detail.item.interception.id).unwrap().unwrap();
        assert!(detail.size_bytes >= PROMPT_BYTES);
        assert_eq!(detail, InterceptionDetail { size_bytes: detail.size_bytes, ..alone });
    }

    let filter = InterceptionFilter {
        user: Some("ada".into()),
        model: Some("model-1".into()),
        limit: 1,
        ..InterceptionFilter::default()
    };
    let pages = export(&ledger, &filter).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    let none = InterceptionFilter { provider: Some("none".into()), ..filter };
    assert_eq!(export(&ledger, &none).await, [Vec::new()]);
}

contract!(
    each_turn_of_a_response_has_its_own_token_row,
    continuations_are_stored_per_user,
    objects_are_found_at_once_and_keep_their_maker,
    responses_from_before_there_were_objects_are_found,
    a_record_follows_the_one_that_it_names,
    what_an_answer_says_is_recorded_once,
    everything_written_can_be_read,
    the_provider_that_served_is_recorded,
    every_attempt_is_a_row_of_its_record,
    a_single_attempt_is_read_from_its_interception,
    an_export_has_every_record_once_and_its_pages_are_bounded,
    the_number_of_stored_attempts_is_limited,
    a_record_is_settled_once,
    an_invalid_record_does_not_affect_others,
    what_the_store_refuses_is_set_aside_and_can_be_returned,
    a_settlement_without_its_record_is_set_aside,
    a_start_adopts_only_files_of_its_store,
    threads_and_results_belong_to_one_user,
    usage_of_a_response_fetched_again_is_counted_once,
    open_records_of_a_dead_process_are_marked_interrupted,
    retention_deletes_old_records_with_their_child_rows,
    retention_waits_while_the_clock_is_not_plausible,
    a_session_belongs_to_one_user,
    a_provider_that_repeats_an_id_hides_no_usage_of_another,
    an_exchanged_or_emptied_store_is_noticed,
    an_id_that_very_many_calls_share_identifies_none,
    every_store_has_one_secret_and_one_id,
    a_thousand_concurrent_records_are_all_committed,
    tokens_are_recorded_while_a_response_streams,
    a_settlement_replaces_every_column_of_a_note,
    a_note_and_its_settlement_can_share_a_batch,
    attachments_and_hosted_calls_are_stored,
    exact_and_estimated_tokens_are_summed_separately,
    unusual_texts_are_stored_within_bounds,
    the_rows_and_contents_of_one_record_are_bounded,
    a_tool_call_and_its_result_can_share_a_batch,
    a_process_marked_dead_too_early_can_still_settle,
    a_recount_finds_inconsistent_records,
);

#[test]
fn a_file_that_is_not_a_store_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.db");
    std::fs::write(&path, "this is not a database, but it is long enough to be read as one")
        .unwrap();
    let error = Ledger::open(&format!("sqlite://{}", path.display())).unwrap_err();
    assert!(matches!(error, LedgerError::Open { .. }), "{error}");
    let mysql = Ledger::open("mysql://u:secret@h/d").unwrap_err();
    assert!(matches!(mysql, LedgerError::Url { .. }), "{mysql}");
    assert!(!mysql.to_string().contains("secret"), "{mysql}");
    assert!(Ledger::open("sqlite:///nowhere/at/all.db").is_err());
}

#[test]
fn a_store_of_a_later_release_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.db");
    let later = rusqlite::Connection::open(&path).unwrap();
    later.pragma_update(None, "user_version", 999).unwrap();
    let error = Ledger::open(&format!("sqlite://{}", path.display())).unwrap_err();
    assert!(matches!(error, LedgerError::Newer { found: 999, .. }), "{error}");
}

#[tokio::test]
async fn only_one_process_serves_from_a_file() {
    let fixture = Sqlite::new();
    let first = fixture.open();
    let claim = first.claim().unwrap();
    assert!(matches!(fixture.open().claim(), Err(LedgerError::Claimed(_))));
    drop(claim);
    assert!(fixture.open().claim().is_ok());
}

#[test]
fn time_texts_sort_by_time() {
    let time = "2026-11-23T10:00:00Z".parse::<Timestamp>().unwrap();
    assert_eq!(time_text(time), "2026-11-23T10:00:00.000000Z");
    assert!(time_text(time) < time_text(time + SignedDuration::from_micros(1)));
}
