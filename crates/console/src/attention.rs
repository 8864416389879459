//! What needs somebody's attention, by rules over the state of the bridge and the roll-ups.

use axum::{Json, extract::State};
use jiff::{SignedDuration, Timestamp};
use keybridge_identity::{Token, User};
use keybridge_ledger::{Condition, ProviderLatency, Session, record::time_text};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Console, McpServer, Provider,
    caller::Caller,
    failure::Failure,
    openapi::AccountReadErrors,
    views::{AttentionKind, AttentionView, ListView, Severity},
};

/// A key that is not used for longer than this needs attention.
const MAX_REST: SignedDuration = SignedDuration::from_mins(5);
/// A token that ends within this time.
const TOKEN_NOTICE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How far back large sessions are looked for.
const SESSION_PERIOD: SignedDuration = SignedDuration::from_hours(24);
/// A session of so many requests is large.
const LARGE_SESSION: u64 = 1_000;
/// The hour, and the week before it, in which the latencies of providers are compared.
const HOUR: SignedDuration = SignedDuration::from_hours(1);
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A provider whose first bytes took this many times as long as in the week before is slow.
const SLOWER_BY: u64 = 2;
/// Latencies of fewer requests say nothing.
const MIN_REQUESTS: (u64, u64) = (20, 100);
/// Maximum number of tokens that are listed.
const MAX_TOKENS: u32 = 20;

pub(crate) fn router() -> OpenApiRouter<Console> {
    OpenApiRouter::new().routes(routes!(list_attention))
}

/// List what needs attention, worst first
///
/// A member gets what concerns their own tokens and sessions, auditors and administrators also the state of
/// providers, keys, MCP servers and the store.
#[utoipa::path(
    get, path = "/attention", tag = "operation",
    responses((status = 200, description = "All of it", body = ListView<AttentionView>), AccountReadErrors),
)]
async fn list_attention(
    State(console): State<Console>,
    caller: Caller,
) -> Result<Json<ListView<AttentionView>>, Failure> {
    let (now, user) = (Timestamp::now(), caller.visible_user());
    let mut items = Vec::new();
    if user.is_none() {
        items.extend(store(&console.ledger.recorder().condition()));
        let providers = console.data_path.providers();
        items.extend(providers.iter().flat_map(|provider| keys(provider, now)));
        items.extend(providers.iter().flat_map(breakers));
        items.extend(console.data_path.mcp_servers().iter().filter_map(mcp_server));
    }
    items.extend(from_ledger(&console, user, now).await?);
    let before = now.checked_add(TOKEN_NOTICE).unwrap_or(Timestamp::MAX);
    let tokens =
        console.accounts(move |accounts| accounts.ending_tokens(user, before, MAX_TOKENS)).await?;
    items.extend(tokens.iter().map(ending_token));
    items.sort_by_key(|item| item.severity);
    Ok(Json(ListView { items }))
}

async fn from_ledger(
    console: &Console,
    user: Option<Uuid>,
    now: Timestamp,
) -> Result<Vec<AttentionView>, Failure> {
    let before = |period: SignedDuration| now.checked_sub(period).unwrap_or(Timestamp::UNIX_EPOCH);
    let (hour, week, day) = (before(HOUR), before(HOUR + WEEK), before(SESSION_PERIOD));
    let read = console.ledger.read(move |reader| {
        let sessions = reader.large_sessions(user, day, LARGE_SESSION)?;
        let latencies = match user {
            Some(_) => (Vec::new(), Vec::new()),
            None => (
                // With the current half hour.
                reader.first_byte_latencies(hour, now + SignedDuration::from_mins(30))?,
                reader.first_byte_latencies(week, hour)?,
            ),
        };
        Ok((sessions, latencies))
    });
    let (sessions, (recent, usual)) = read.await?;
    let mut items = slow_providers(&recent, &usual);
    items.extend(sessions.iter().map(large_session));
    Ok(items)
}

fn item(
    severity: Severity,
    kind: AttentionKind,
    subject: impl Into<String>,
    message: String,
    path: String,
) -> AttentionView {
    AttentionView { severity, kind, subject: subject.into(), message, path }
}

/// A text as a part of a path or of a query.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn store(condition: &Condition) -> Option<AttentionView> {
    let (severity, message) = match condition {
        Condition::Storing => return None,
        Condition::Spooling => (
            Severity::Critical,
            "the store takes no records; they wait in the spool, and requests are served"
                .to_owned(),
        ),
        Condition::Refusing(reason) => {
            (Severity::Critical, format!("requests are refused: {reason}"))
        }
    };
    Some(item(severity, AttentionKind::StoreDown, "store", message, "/readyz".into()))
}

/// Keys that are refused, or not used for long.
fn keys(provider: &Provider, now: Timestamp) -> Vec<AttentionView> {
    let mut items = Vec::new();
    for key in &provider.keys {
        let subject = format!("{}/{}", provider.name, key.name);
        let rests_long = |until: &String| {
            until.parse::<Timestamp>().is_ok_and(|until| until.duration_since(now) > MAX_REST)
        };
        if key.state == "invalid" {
            let message = format!(
                "the provider `{}` refuses the key `{}` ({})",
                provider.name, key.name, key.hint
            );
            let path = "/api/v1/providers".to_owned();
            items.push(item(Severity::Critical, AttentionKind::KeyRefused, subject, message, path));
        } else if let Some(until) = key.until.as_ref().filter(|until| rests_long(until)) {
            let message = format!(
                "the key `{}` ({}) of `{}` is not used for everything until {until}",
                key.name, key.hint, provider.name
            );
            let path = "/api/v1/providers".to_owned();
            items.push(item(Severity::Warning, AttentionKind::KeyRests, subject, message, path));
        }
    }
    items
}

/// Circuit breakers that let no request pass.
fn breakers(provider: &Provider) -> Vec<AttentionView> {
    let open = provider.circuit_breakers.iter().filter(|breaker| breaker.state == "open");
    let open = open.map(|breaker| {
        let message = format!(
            "requests to `{}` for {} with {} credentials are refused after {} failures in a row",
            provider.name, breaker.model, breaker.credential_kind, breaker.failures
        );
        let path = format!(
            "/api/v1/interceptions?provider={}&outcome=failed&since=1h",
            encoded(&provider.name)
        );
        item(Severity::Critical, AttentionKind::BreakerOpen, &provider.name, message, path)
    });
    open.collect()
}

fn mcp_server(server: &McpServer) -> Option<AttentionView> {
    if server.status != "down" {
        return None;
    }
    let message = format!(
        "the MCP server `{}` is down since {}: its tools are not offered",
        server.name, server.since
    );
    let path = "/api/v1/mcp".to_owned();
    Some(item(Severity::Warning, AttentionKind::McpServerDown, &server.name, message, path))
}

fn slow_providers(recent: &[ProviderLatency], usual: &[ProviderLatency]) -> Vec<AttentionView> {
    let slow = recent.iter().filter_map(|now| {
        let before = usual.iter().find(|before| before.provider == now.provider)?;
        let (recent, usual) = MIN_REQUESTS;
        let is_slow = now.requests >= recent
            && before.requests >= usual
            && now.p95_us > before.p95_us.saturating_mul(SLOWER_BY);
        if !is_slow {
            return None;
        }
        let message = format!(
            "95 of 100 answers of `{}` began within {} ms in the last hour, and within {} ms in the week before",
            now.provider,
            now.p95_us / 1_000,
            before.p95_us / 1_000
        );
        let path =
            format!("/api/v1/interceptions?provider={}&since=1h", encoded(&now.provider));
        Some(item(Severity::Warning, AttentionKind::ProviderSlow, &now.provider, message, path))
    });
    slow.collect()
}

fn large_session(session: &Session) -> AttentionView {
    let message = format!("a session of `{}` has {} requests", session.user, session.requests);
    let path = format!("/api/v1/sessions/{}?user={}", encoded(&session.id), encoded(&session.user));
    item(Severity::Notice, AttentionKind::LargeSession, &session.id, message, path)
}

fn ending_token((token, user): &(Token, User)) -> AttentionView {
    let ends = token.expires_at.map(time_text).unwrap_or_default();
    let name = token.name.as_deref().unwrap_or(&token.hint);
    let message = format!("the token `{name}` of `{}` ends at {ends}", user.name);
    let path = format!("/api/v1/users/{}/tokens", encoded(&user.name));
    item(Severity::Notice, AttentionKind::TokenEnds, token.id.to_string(), message, path)
}

#[cfg(test)]
mod tests {
    use keybridge_ledger::ProviderLatency;

    use super::slow_providers;

    fn latency(provider: &str, requests: u64, p95_us: u64) -> ProviderLatency {
        ProviderLatency { provider: provider.into(), requests, p50_us: 1, p95_us }
    }

    #[test]
    fn a_provider_is_slow_when_it_takes_more_than_twice_as_long_as_usual() {
        let usual = [latency("a", 100, 1_000_000), latency("b", 100, 1_000_000)];
        let slow = |recent: ProviderLatency| slow_providers(&[recent], &usual);
        assert!(slow(latency("a", 20, 2_000_000)).is_empty());
        assert!(slow(latency("a", 19, 9_000_000)).is_empty(), "too few to tell");
        assert!(slow(latency("c", 20, 9_000_000)).is_empty(), "a new one");
        let found = slow(latency("b", 20, 2_100_000));
        assert_eq!((found.len(), found[0].subject.as_str()), (1, "b"));
        assert!(found[0].message.contains("2100 ms"), "{}", found[0].message);
    }
}
