//! Checks for what a provider would reject or not expect.

use std::io::Read;

use http::{HeaderMap, header};
use serde_json::Value;

use crate::{
    handler::{Api, CredentialRule, Vendor},
    turns::list,
};

mod chat;
mod messages;
mod responses;

pub(crate) use responses::{call_ids, previous};

/// The maximum number of tools that OpenAI accepts.
const MAX_TOOLS: usize = 128;
/// The maximum length of a tool name that OpenAI accepts.
const MAX_OPENAI_NAME_LENGTH: usize = 64;

/// The headers that no client sends to a provider.
const UNEXPECTED: [&str; 11] = [
    "connection",
    "cookie",
    "forwarded",
    "x-real-ip",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "expect",
];

/// The headers that carry a bridge token.
const BRIDGE_TOKEN_HEADERS: [&str; 3] =
    ["x-ai-governance-token", "x-coder-ai-governance-token", "x-coder-ai-governance-byok-token"];

/// Lists what is wrong with the headers.
pub(crate) fn headers(vendor: Vendor, headers: &HeaderMap) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, value) in headers {
        let text = name.as_str();
        if UNEXPECTED.contains(&text)
            || BRIDGE_TOKEN_HEADERS.contains(&text)
            || text.starts_with("x-keybridge-")
            || text.starts_with("x-forwarded-")
        {
            problems.push(format!("the header {text} was passed on"));
        }
        if value.to_str().is_ok_and(|value| value.contains("kb_")) {
            problems.push(format!("the header {text} contains a bridge token"));
        }
    }
    let both = headers.contains_key("x-api-key") && headers.contains_key(header::AUTHORIZATION);
    if vendor == Vendor::Anthropic && both {
        problems.push("two credentials were sent".into());
    }
    problems
}

/// Returns why the credential is rejected, if it is.
pub(crate) fn credentials(rule: CredentialRule, headers: &HeaderMap) -> Option<&'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text("authorization");
    // The name of the scheme is case-insensitive.
    let bearer = authorization.and_then(|value| value.split_once(' ')).map(|(_, value)| value);
    let credential = match rule {
        CredentialRule::Anthropic => {
            text("x-api-key").or(authorization.and_then(|value| value.strip_prefix("Bearer ")))
        }
        CredentialRule::Azure => text("api-key").or(bearer),
        CredentialRule::Bearer => bearer,
        // The signature has been verified.
        CredentialRule::Signature => authorization,
        CredentialRule::Keyless => {
            let names = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];
            let has_one = names.iter().any(|name| headers.contains_key(*name));
            return has_one.then_some("a credential was sent to a server without keys");
        }
    };
    if credential.is_none_or(|value| value.trim().is_empty()) {
        return Some("no credential was sent");
    }
    if BRIDGE_TOKEN_HEADERS.iter().any(|name| headers.contains_key(*name)) {
        return Some("a bridge token header was sent");
    }
    let holds_token = |value: &str| value.split_whitespace().any(|word| word.starts_with("kb_"));
    let came = headers.values().filter_map(|value| value.to_str().ok()).any(holds_token);
    came.then_some("a bridge token was sent")
}

/// Why a provider responds with 400.
#[derive(Debug)]
pub(crate) struct RejectedRequest {
    pub(crate) message: String,
    /// The code of an OpenAI error, if it is not the usual one.
    pub(crate) code: Option<&'static str>,
}

impl From<String> for RejectedRequest {
    fn from(message: String) -> Self {
        Self { message, code: None }
    }
}

/// Parses the body as JSON, or returns why it is rejected.
pub(crate) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value, String> {
    let plain = plain(headers, body)?;
    serde_json::from_slice(&plain).map_err(|error| format!("the body is not JSON: {error}"))
}

/// Checks a body; returns why it is rejected.
pub(crate) fn body(api: Api, value: &Value) -> Result<(), String> {
    let required: &[&str] = match api {
        Api::Messages => &["model", "messages", "max_tokens"],
        Api::Chat => &["model", "messages"],
        Api::Responses => &["model", "input"],
    };
    for field in required {
        if value.get(field).is_none() {
            return Err(format!("{field}: Field required"));
        }
    }
    match api {
        Api::Messages => messages::check(value),
        Api::Chat => chat::check(value),
        Api::Responses => responses::check(value),
    }
}

/// Whether a tool name has only the characters that providers accept.
fn is_name(name: &str, longest: usize) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=longest).contains(&name.len()) && name.bytes().all(is_plain)
}

/// The tools as OpenAI takes them; `name` is where a tool's name stands.
fn openai_tools(body: &Value, name: &str) -> Result<(), String> {
    let tools = list(body, "tools");
    if tools.len() > MAX_TOOLS {
        return Err(format!(
            "Invalid 'tools': array too long. Expected an array with maximum length {MAX_TOOLS}, but got an array with length {} instead.",
            tools.len()
        ));
    }
    for (index, tool) in tools.iter().enumerate() {
        let Some(value) = tool.pointer(&format!("/{}", name.replace('.', "/"))) else { continue };
        let value = value.as_str().unwrap_or_default();
        if value.len() > MAX_OPENAI_NAME_LENGTH {
            return Err(format!(
                "Invalid 'tools[{index}].{name}': string too long. Expected a string with maximum length {MAX_OPENAI_NAME_LENGTH}, but got a string with length {} instead.",
                value.len()
            ));
        }
        if !is_name(value, MAX_OPENAI_NAME_LENGTH) {
            return Err(format!(
                "Invalid 'tools[{index}].{name}': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'."
            ));
        }
    }
    Ok(())
}

fn plain(headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, String> {
    let coding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    match coding {
        None | Some("identity") => Ok(body.to_vec()),
        Some("gzip") => {
            let mut plain = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(body);
            decoder.read_to_end(&mut plain).map_err(|error| error.to_string())?;
            Ok(plain)
        }
        Some("zstd") => {
            let mut plain = Vec::new();
            let mut decoder =
                ruzstd::decoding::StreamingDecoder::new(body).map_err(|error| error.to_string())?;
            decoder.read_to_end(&mut plain).map_err(|error| error.to_string())?;
            Ok(plain)
        }
        Some(other) => Err(format!("the content encoding {other} is not supported")),
    }
}
