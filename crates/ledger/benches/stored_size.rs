//! The size of an interception in each store, including indexes.
//!
//! ```sh
//! python3 tests/ledger/postgres.py -- cargo bench -p keybridge-ledger --bench stored_size
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark: it prints, and reads the server from the environment"
)]

use jiff::Timestamp;
use keybridge_ledger::{
    Ledger, NewThought, NewTokenUsage, NewToolUsage, Opening, Settlement,
    record::{Interception, Outcome, Quality},
    store::execute,
};
use tokio_postgres::NoTls;
use uuid::Uuid;

/// Requests of an agent: every eighth has a prompt of its user, each response has a tool call, and every
/// second one has thinking.
const INTERCEPTIONS: u32 = 50_000;
const PROMPT_EVERY: u32 = 8;
const THOUGHT_EVERY: u32 = 2;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("size.db");
    let (empty, full) = {
        let url = format!("sqlite://{}", path.display());
        let ledger = Ledger::open(&url).unwrap();
        let empty = std::fs::metadata(&path).unwrap().len();
        runtime.block_on(fill(&ledger));
        ledger.close();
        drop(ledger);
        (empty, std::fs::metadata(&path).unwrap().len())
    };
    println!("sqlite: {} bytes per interception", (full - empty) / u64::from(INTERCEPTIONS));
    let Ok(server) = std::env::var("KEYBRIDGE_TEST_POSTGRES") else {
        println!("skipping postgresql: KEYBRIDGE_TEST_POSTGRES is not set");
        return;
    };
    let url = format!("{server}/postgres");
    let ledger = Ledger::open(&url).unwrap();
    runtime.block_on(fill(&ledger));
    ledger.close();
    let mut sum = 0;
    for (table, bytes) in runtime.block_on(sizes(&url)) {
        println!("postgresql: {:>6} {table}", bytes / i64::from(INTERCEPTIONS));
        sum += bytes;
    }
    println!("postgresql: {} bytes per interception", sum / i64::from(INTERCEPTIONS));
}

async fn fill(ledger: &Ledger) {
    let name = format!("u{}", Uuid::now_v7().simple());
    let user = create_user(ledger, &name);
    let recorder = ledger.recorder();
    for number in 0..INTERCEPTIONS {
        let opening = opening(user, number);
        let id = opening.interception.id;
        let usage = NewTokenUsage {
            provider_response_id: Some(format!("msg_{}", id.simple())),
            input_tokens: Some(25),
            output_tokens: Some(312),
            cache_read_input_tokens: Some(51_234),
            cache_write_input_tokens: Some(1_020),
            quality: Quality::Exact,
            ..NewTokenUsage::default()
        };
        let settlement = settlement(usage, number);
        // As for a stream, but without group commit: one record at a time.
        let entry = recorder.open(opening).await.unwrap();
        entry.settle(settlement);
    }
    recorder.drained().await;
}

fn opening(user: Uuid, number: u32) -> Opening {
    let text = |text: &str| Some(text.to_owned());
    let interception = Interception {
        provider: "anthropic".into(),
        provider_type: "anthropic".into(),
        endpoint: "/v1/messages".into(),
        dialect: "messages".into(),
        model: text("claude-sonnet-4-5-20250929"),
        streaming: true,
        client: text("Claude Code"),
        user_agent: text("claude-cli/2.1.330 (external, cli)"),
        client_session_id: Some(Uuid::from_u128(u128::from(number / 40)).to_string()),
        correlating_tool_call_id: Some(format!("toolu_{number:024}")),
        credential_kind: text("centralized"),
        credential_source: text("pool:main"),
        credential_scheme: text("api_key"),
        credential_hint: text("sk-a...Q8wA"),
        credential_length: Some(108),
        credential_fingerprint: text("0123456789abcdef"),
        request_bytes: 212_345,
        request_sha256: Some(format!("{number:064x}")),
        ..Interception::new(Uuid::now_v7(), user, Timestamp::now())
    };
    let prompt = number.is_multiple_of(PROMPT_EVERY).then(|| filler(number, 400));
    Opening { interception, prompt, tool_results: Vec::new(), attachments: Vec::new() }
}

fn settlement(usage: NewTokenUsage, number: u32) -> Settlement {
    let response = usage.provider_response_id.clone();
    let tool = NewToolUsage {
        provider_response_id: response.clone(),
        tool_call_id: Some(format!("toolu_{:024}", number + 1)),
        tool: "Bash".into(),
        arguments: Some(serde_json::json!({ "command": filler(number, 230) }).to_string()),
        ..NewToolUsage::default()
    };
    let thought = || NewThought { source: "thinking".into(), content: filler(number, 500) };
    Settlement {
        first_byte_at: Some(Timestamp::now()),
        status_code: Some(200),
        upstream_status: Some(200),
        model_served: Some("claude-sonnet-4-5-20250929".into()),
        stop_reason: Some("tool_use".into()),
        attempts: 1,
        response_bytes: 14_500,
        provider_response_id: response,
        token_usages: vec![usage],
        tool_usages: vec![tool],
        thoughts: number.is_multiple_of(THOUGHT_EVERY).then(thought).into_iter().collect(),
        ..Settlement::new(Timestamp::now(), Outcome::Completed)
    }
}

/// Text of a given length that does not compress well.
fn filler(number: u32, length: usize) -> String {
    let mut text = String::new();
    let mut state = u64::from(number) + 1;
    while text.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.push_str(&format!("{:x} ", state >> 40));
    }
    text.truncate(length);
    text
}

async fn sizes(url: &str) -> Vec<(String, i64)> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let sql = "SELECT p.relname::text, sum(pg_total_relation_size(h.inhrelid))::bigint
        FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
        WHERE p.relkind = 'p' GROUP BY 1 ORDER BY 1";
    let rows = tokio::select! {
        rows = client.query(sql, &[]) => rows.unwrap(),
        _ = connection => return Vec::new(),
    };
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn create_user(ledger: &Ledger, name: &str) -> Uuid {
    let id = Uuid::now_v7();
    execute(
        ledger.database(),
        "INSERT INTO users (id, name, role, status, created_at)
         VALUES ($1, $2, 'member', 'active', $3)",
        &[id.into(), name.into(), Timestamp::now().into()],
    )
    .unwrap();
    id
}
