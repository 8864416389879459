//! Which provider instance and endpoint a path names; pure path arithmetic, no I/O.

use std::sync::Arc;

use http::{HeaderMap, Method, header};
use keybridge_providers::{config::ProviderType, provider::Provider};
use keybridge_wire::Dialect;

/// What becomes of a request, judged by method, path and upgrade header alone.
#[derive(Debug)]
pub(crate) enum Routed {
    /// It goes to a provider.
    To(Route),
    /// A client's reachability probe, answered 200 by the bridge.
    Probe,
    /// A WebSocket upgrade, answered 426 so that the client falls back to HTTP at once.
    Upgrade(Arc<Provider>),
    /// The provider exists, the endpoint does not.
    NoEndpoint(Arc<Provider>),
    /// No provider of that name.
    NoProvider,
}

/// A provider instance and one of its endpoints.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) provider: Arc<Provider>,
    /// The endpoint in its usual spelling, as recorded.
    pub(crate) endpoint: String,
    /// Path below the provider's base URL.
    pub(crate) upstream_path: String,
    pub(crate) purpose: Purpose,
}

/// Whether a request is an interception from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A model is asked: recorded before it goes upstream.
    Intercept(Dialect),
    /// A side request that is paid for: recorded before it goes upstream, its body left unread.
    Metered(Dialect),
    /// A side request; it becomes a record if its answer carries usage.
    Pass,
}

/// Prefixes under which clients set up for Coder look for the providers.
const PREFIXES: [&str; 2] = ["/api/v2/aibridge/", "/api/v2/ai-gateway/"];

/// Finds the route of a request among the providers.
pub(crate) fn route(
    providers: &[Arc<Provider>],
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Routed {
    let below = PREFIXES
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))
        .unwrap_or_else(|| path.trim_start_matches('/'));
    let (name, rest) = below.split_once('/').unwrap_or((below, ""));
    let Some(provider) = providers.iter().find(|provider| provider.config.name == name) else {
        return Routed::NoProvider;
    };
    let provider = Arc::clone(provider);
    if climbs(rest) {
        return Routed::NoEndpoint(provider);
    }
    let endpoint = endpoint(provider.config.kind, rest);
    if *method == Method::HEAD && matches!(rest, "" | "api/hello") {
        return Routed::Probe;
    }
    if *method == Method::GET && endpoint.ends_with("/responses") && asks_for_websocket(headers) {
        return Routed::Upgrade(provider);
    }
    match purpose(provider.config.kind, method, &endpoint) {
        Some(purpose) => {
            let upstream_path = match provider.config.kind {
                ProviderType::OpenAi => endpoint.strip_prefix("/v1").unwrap_or(&endpoint).into(),
                ProviderType::Anthropic | ProviderType::Copilot | ProviderType::Bedrock => {
                    endpoint.clone()
                }
            };
            Routed::To(Route { provider, endpoint, upstream_path, purpose })
        }
        None => Routed::NoEndpoint(provider),
    }
}

/// The usual spelling of what follows the provider's name: a doubled `/v1` is taken once, and for
/// `OpenAI` a missing one is added.
fn endpoint(kind: ProviderType, rest: &str) -> String {
    let rest = if rest.starts_with("v1/v1/") { rest.get(3..).unwrap_or(rest) } else { rest };
    if kind == ProviderType::OpenAi && rest != "v1" && !rest.starts_with("v1/") {
        return format!("/v1/{rest}");
    }
    format!("/{rest}")
}

fn purpose(kind: ProviderType, method: &Method, endpoint: &str) -> Option<Purpose> {
    if *method == Method::POST
        && let Some(dialect) = intercepted(kind, endpoint)
    {
        return Some(Purpose::Intercept(dialect));
    }
    if *method == Method::POST
        && kind == ProviderType::OpenAi
        && endpoint == "/v1/responses/compact"
    {
        return Some(Purpose::Metered(Dialect::Responses));
    }
    passes(kind, endpoint).then_some(Purpose::Pass)
}

fn intercepted(kind: ProviderType, endpoint: &str) -> Option<Dialect> {
    match (kind, endpoint) {
        (
            ProviderType::Anthropic | ProviderType::Copilot | ProviderType::Bedrock,
            "/v1/messages",
        ) => Some(Dialect::Messages),
        (ProviderType::OpenAi, "/v1/chat/completions")
        | (ProviderType::Copilot, "/chat/completions") => Some(Dialect::ChatCompletions),
        (ProviderType::OpenAi, "/v1/responses") | (ProviderType::Copilot, "/responses") => {
            Some(Dialect::Responses)
        }
        _ => None,
    }
}

fn passes(kind: ProviderType, endpoint: &str) -> bool {
    let (exact, with_children, children): (&[&str], &[&str], &[&str]) = match kind {
        ProviderType::Anthropic => {
            (&["/v1/messages/count_tokens"], &["/v1/models"], &["/api/event_logging/"])
        }
        ProviderType::OpenAi => (&[], &["/v1/models", "/v1/conversations"], &["/v1/responses/"]),
        ProviderType::Bedrock => (&[], &[], &[]),
        ProviderType::Copilot => (&[], &["/models"], &["/agents/", "/mcp/", "/.well-known/"]),
    };
    let below = |parent: &str| endpoint.strip_prefix(parent).is_some_and(|rest| !rest.is_empty());
    exact.contains(&endpoint)
        || with_children.iter().any(|parent| {
            endpoint
                .strip_prefix(parent)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        || children.iter().any(|parent| below(parent))
}

/// Whether a path has a `.` or `..` segment, however it is spelled: a server that resolves it would
/// serve an endpoint that the routes do not allow.
fn climbs(path: &str) -> bool {
    let decoded = percent_decoded(path.as_bytes());
    // Twice, because some servers decode a path twice.
    let decoded = percent_decoded(&decoded);
    decoded
        .split(|byte| matches!(byte, b'/' | b'\\'))
        .any(|segment| matches!(segment, b"." | b".."))
}

fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%'
            && let Some((hex, after)) = tail.split_at_checked(2)
            && let Some(value) =
                std::str::from_utf8(hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            decoded.push(value);
            rest = after;
        } else {
            decoded.push(byte);
        }
    }
    decoded
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("websocket"))
}

#[cfg(test)]
mod tests;
