//! Which provider instance and endpoint a path names; pure path arithmetic, no I/O.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, Method, header};
use keybridge_providers::{config::ProviderType, provider::Provider};
use keybridge_wire::Dialect;
use percent_encoding::percent_decode_str;

/// The result of routing a request by method, path and upgrade header.
#[derive(Debug)]
pub(crate) enum RouteMatch {
    /// The endpoint of a provider.
    Endpoint(Route),
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
    /// The endpoint in its canonical spelling, as recorded.
    pub(crate) endpoint: String,
    /// Path below the provider's base URL.
    pub(crate) upstream_path: String,
    pub(crate) purpose: Purpose,
}

/// How a request to an endpoint is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A model request: recorded before it goes upstream.
    Intercept(Dialect),
    /// A side request that is billed: recorded before it goes upstream, without reading its body.
    Metered(Dialect),
    /// A side request; it is recorded only if its answer carries usage.
    PassThrough,
}

/// Path prefixes used by clients that are set up for Coder.
const PREFIXES: [&str; 2] = ["/api/v2/aibridge/", "/api/v2/ai-gateway/"];

/// Finds the route of a request among the providers.
pub(crate) fn route(
    providers: &[Arc<Provider>],
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> RouteMatch {
    let below = PREFIXES
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))
        .or_else(|| path.strip_prefix('/'))
        .unwrap_or(path);
    let (name, rest) = below.split_once('/').unwrap_or((below, ""));
    let Some(provider) = providers.iter().find(|provider| provider.config.name == name) else {
        return RouteMatch::NoProvider;
    };
    let provider = Arc::clone(provider);
    // With a base URL that ends in a slash, the path has one slash more.
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let Some(decoded) = decoded_path(rest) else { return RouteMatch::NoEndpoint(provider) };
    let endpoint = endpoint(provider.config.kind, &decoded);
    if *method == Method::HEAD && matches!(rest, "" | "api/hello") {
        return RouteMatch::Probe;
    }
    if *method == Method::GET && endpoint.ends_with("/responses") && asks_for_websocket(headers) {
        return RouteMatch::Upgrade(provider);
    }
    match purpose(provider.config.kind, method, &endpoint) {
        Some(purpose) => {
            // The decoded path selects the endpoint; the path as received is sent.
            let sent = self::endpoint(provider.config.kind, rest);
            let upstream_path = match provider.config.kind {
                ProviderType::OpenAi => sent.strip_prefix("/v1").unwrap_or(&sent).into(),
                ProviderType::Anthropic | ProviderType::Copilot | ProviderType::Bedrock => sent,
            };
            RouteMatch::Endpoint(Route { provider, endpoint, upstream_path, purpose })
        }
        None => RouteMatch::NoEndpoint(provider),
    }
}

/// The path after the provider's name, percent-decoded once; `None` for spellings that no client needs
/// and that a server may resolve to another endpoint: an empty, `.` or `..` segment, a segment with
/// parameters, an encoded separator, a second level of encoding, control characters, or bytes that are
/// not UTF-8.
fn decoded_path(rest: &str) -> Option<Cow<'_, str>> {
    let decoded = percent_decode_str(rest).decode_utf8().ok()?;
    let is_encoded_twice = decoded.len() != percent_decode_str(&decoded).count();
    let separators = |text: &str| text.bytes().filter(|byte| matches!(byte, b'/' | b'\\')).count();
    let is_odd = is_encoded_twice
        || separators(&decoded) != separators(rest)
        || decoded.contains(['\\', ';'])
        || decoded.chars().any(char::is_control);
    let mut segments = decoded.split('/');
    let has_odd_segment =
        !rest.is_empty() && segments.any(|segment| matches!(segment, "" | "." | ".."));
    (!is_odd && !has_odd_segment).then_some(decoded)
}

/// The canonical spelling of the path after the provider's name: a doubled `/v1` is reduced to one, and
/// for `OpenAI` a missing one is added.
fn endpoint(kind: ProviderType, rest: &str) -> String {
    let rest = if rest.starts_with("v1/v1/") { rest.get(3..).unwrap_or(rest) } else { rest };
    if kind == ProviderType::OpenAi && rest != "v1" && !rest.starts_with("v1/") {
        return format!("/v1/{rest}");
    }
    format!("/{rest}")
}

fn purpose(kind: ProviderType, method: &Method, endpoint: &str) -> Option<Purpose> {
    if endpoint.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let lower = endpoint.to_ascii_lowercase();
        if intercepted(kind, &lower).is_some() || is_compaction(kind, &lower) {
            // A server that ignores case would serve it, and it would not be recorded.
            return None;
        }
    }
    if *method == Method::POST
        && let Some(dialect) = intercepted(kind, endpoint)
    {
        return Some(Purpose::Intercept(dialect));
    }
    if *method == Method::POST && is_compaction(kind, endpoint) {
        return Some(Purpose::Metered(Dialect::Responses));
    }
    is_passed_through(kind, endpoint).then_some(Purpose::PassThrough)
}

/// Whether an endpoint compacts a conversation, which is billed like an answer.
fn is_compaction(kind: ProviderType, endpoint: &str) -> bool {
    kind == ProviderType::OpenAi && endpoint == "/v1/responses/compact"
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

fn is_passed_through(kind: ProviderType, endpoint: &str) -> bool {
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

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("websocket"))
}

#[cfg(test)]
mod tests;
