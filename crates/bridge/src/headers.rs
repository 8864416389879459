//! Which headers are forwarded in each direction: all except those listed here.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use keybridge_identity::token::contains_encoded_token;
use keybridge_providers::{
    credential::{CREDENTIAL_HEADERS, Credential},
    vendors::Profile,
};
use percent_encoding::percent_decode_str;
use uuid::Uuid;

pub(crate) const X_KEYBRIDGE_INTERCEPTION_ID: HeaderName =
    HeaderName::from_static("x-keybridge-interception-id");
const X_KEYBRIDGE_ESTIMATED: HeaderName = HeaderName::from_static("x-keybridge-estimated");
const ACTOR_PREFIX: &str = "x-ai-bridge-actor-";
const OWN_PREFIX: &str = "x-keybridge-";

/// What determines the headers of an upstream request, apart from the client's headers.
#[derive(Debug)]
pub(crate) struct Outbound<'a> {
    pub(crate) governance_headers: &'a [HeaderName],
    pub(crate) set_headers: &'a [(HeaderName, HeaderValue)],
    pub(crate) forwarding: Forwarding,
    pub(crate) credential: &'a Credential,
    /// Which further headers hold a credential.
    pub(crate) profile: &'a Profile,
    /// Id and name for the optional actor headers.
    pub(crate) actor: Option<(&'a str, &'a str)>,
    pub(crate) accept_encoding: HeaderValue,
}

/// Whether `X-Forwarded-*`, `Forwarded` and `X-Real-Ip` are sent to the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarding {
    Pass,
    Drop,
}

/// The headers for the provider, in the client's order.
pub(crate) fn to_provider(client: &HeaderMap, outbound: &Outbound<'_>) -> HeaderMap {
    let named = connection_names(client);
    // Few vendors have a header of their own.
    let own = outbound.profile.headers().filter(|name| !CREDENTIAL_HEADERS.contains(name));
    let own: Vec<&HeaderName> = own.collect();
    let mut headers = HeaderMap::with_capacity(client.len() + 4);
    for (name, value) in client {
        if passes_to_provider(name, value, outbound) && !own.contains(&name) && !names(&named, name)
        {
            headers.append(name.clone(), value.clone());
        }
    }
    for (name, value) in outbound.set_headers {
        headers.insert(name.clone(), value.clone());
    }
    if let Some((id, user)) = outbound.actor {
        let mut actor = |name: &'static str, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        actor("x-ai-bridge-actor-id", id);
        actor("x-ai-bridge-actor-metadata-username", user);
    }
    headers.insert(header::ACCEPT_ENCODING, outbound.accept_encoding.clone());
    outbound.credential.insert_into(&mut headers);
    headers
}

/// The query string of a request for the provider: without `key`, in which some APIs accept a credential, and
/// which may be the bridge token. `None` if nothing else is in it.
pub(crate) fn query_to_provider(query: &str) -> Option<Cow<'_, str>> {
    let is_credential = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or(pair);
        percent_decode_str(name).eq(*b"key")
    };
    if !query.split('&').any(|pair| is_credential(&pair)) {
        return Some(query.into());
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_credential(pair)).collect();
    (!kept.is_empty()).then(|| kept.join("&").into())
}

/// Whether an answer states its length; `Content-Length` beside `Transfer-Encoding` has no meaning
/// (RFC 9112, section 6.3).
pub(crate) fn states_length(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING)
}

/// Removes from a provider's answer the headers that are not for the client.
pub(crate) fn to_client(provider: &mut HeaderMap) {
    let named = connection_names(provider);
    let is_chunked = provider.contains_key(header::TRANSFER_ENCODING);
    let dropped: Vec<HeaderName> = provider
        .keys()
        .filter(|name| {
            is_hop_by_hop(name)
                || is_of_origin(name)
                || (is_chunked && **name == header::CONTENT_LENGTH)
                || name.as_str().starts_with(OWN_PREFIX)
                || names(&named, name)
        })
        .cloned()
        .collect();
    if dropped.is_empty() {
        return;
    }
    // A new map: removing from the old one would change the order of the others.
    let kept = provider
        .iter()
        .filter(|(name, _)| !dropped.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .fold(HeaderMap::with_capacity(provider.len()), |mut kept, (name, value)| {
            kept.append(name, value);
            kept
        });
    *provider = kept;
}

/// The `Accept-Encoding` of the upstream request.
///
/// Streams are requested without encoding, so that their events can be observed as they pass. For other
/// answers, only those of the client's encodings remain that the bridge can decode.
pub(crate) fn accept_encoding(client: &HeaderMap, streaming: bool) -> HeaderValue {
    let identity = HeaderValue::from_static("identity");
    if streaming {
        return identity;
    }
    let readable: Vec<&str> = client
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|coding| {
            let name = coding.split(';').next().unwrap_or(coding).trim().to_ascii_lowercase();
            matches!(name.as_str(), "gzip" | "x-gzip" | "deflate" | "br" | "zstd" | "identity")
        })
        .collect();
    HeaderValue::from_str(&readable.join(", "))
        .ok()
        .filter(|value| !value.is_empty())
        .unwrap_or(identity)
}

/// Sets the header with the id of the request's record.
pub(crate) fn set_interception_id(headers: &mut HeaderMap, id: Uuid) {
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(X_KEYBRIDGE_INTERCEPTION_ID, id);
    }
}

/// Marks the count of an answer as estimated.
pub(crate) fn set_estimated(headers: &mut HeaderMap) {
    headers.insert(X_KEYBRIDGE_ESTIMATED, HeaderValue::from_static("input_tokens"));
}

/// Whether an answer is a stream of server-sent events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
    })
}

/// Whether a body is JSON, or does not say what it is.
pub(crate) fn may_be_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    kind.is_empty() || kind == "application/json" || kind.ends_with("+json")
}

fn passes_to_provider(name: &HeaderName, value: &HeaderValue, outbound: &Outbound<'_>) -> bool {
    let text = name.as_str();
    let dropped = is_hop_by_hop(name)
        || is_replaced(name)
        || CREDENTIAL_HEADERS.contains(name)
        || text.starts_with(OWN_PREFIX)
        || text.starts_with(ACTOR_PREFIX)
        || (outbound.forwarding == Forwarding::Drop && is_forwarding(text))
        || outbound.governance_headers.contains(name)
        || crate::config::GOVERNANCE_HEADERS.contains(&text)
        || contains_encoded_token(value.as_bytes());
    !dropped
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || matches!(name.as_str(), "keep-alive" | "http2-settings")
        || name.as_str().starts_with("proxy-")
}

/// Whether a header says something of the origin or the connection that it comes from, and not of the
/// answer: a client would take it for the bridge's own.
fn is_of_origin(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::SET_COOKIE
            | header::ALT_SVC
            | header::STRICT_TRANSPORT_SECURITY
            | header::PUBLIC_KEY_PINS
            | header::PUBLIC_KEY_PINS_REPORT_ONLY
    ) || matches!(
        name.as_str(),
        "set-cookie2"
            | "set-login"
            | "clear-site-data"
            | "expect-ct"
            | "nel"
            | "report-to"
            | "reporting-endpoints"
            | "accept-ch"
            | "critical-ch"
            | "origin-agent-cluster"
            | "service-worker-allowed"
    )
}

/// Set by the bridge for the upstream request, or meant for the bridge alone. `Expect` was answered when the
/// body was read; the trace context is the bridge's own.
fn is_replaced(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::HOST
            | header::CONTENT_LENGTH
            | header::ACCEPT_ENCODING
            | header::COOKIE
            | header::EXPECT
    ) || matches!(name.as_str(), "traceparent" | "tracestate")
}

fn is_forwarding(name: &str) -> bool {
    matches!(name, "forwarded" | "x-real-ip") || name.starts_with("x-forwarded-")
}

fn connection_names(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        // These describe the body or the framing; a peer must not be able to remove them.
        .filter(|name| !matches!(name.as_str(), "content-type" | "content-encoding" | "close"))
        .collect()
}

fn names(named: &[String], name: &HeaderName) -> bool {
    named.iter().any(|other| other == name.as_str())
}

#[cfg(test)]
mod tests;
