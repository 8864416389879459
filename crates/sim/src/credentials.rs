//! Credentials in what the simulator shows: masked, each with a SHA-256 by which a test can compare it.

use aws_lc_rs::digest;
use keybridge_wire::mask::mask;
use serde_json::{Value, json};

/// Parts of the names of request headers and query parameters whose values are credentials.
const SECRET_NAMES: [&str; 6] = ["auth", "cookie", "key", "secret", "signature", "token"];

/// The prefix of bridge tokens, which no header should have.
const BRIDGE_TOKEN_PREFIX: &str = "kb_";

/// Whether a request header or a query parameter carries a credential.
fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|word| name.contains(word)) || value.contains(BRIDGE_TOKEN_PREFIX)
}

/// The headers of a request in order, credentials masked.
pub(crate) fn masked_headers(headers: &[(String, Vec<u8>)]) -> Vec<Value> {
    let shown = headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value);
        json!([
            name,
            if is_secret(name, &value) { masked_value(&value) } else { value.into_owned() }
        ])
    });
    shown.collect()
}

/// The name of each header that carries a credential, with the SHA-256 of its value in hex.
pub(crate) fn fingerprints(headers: &[(String, Vec<u8>)]) -> Vec<Value> {
    let secrets =
        headers.iter().filter(|(name, value)| is_secret(name, &String::from_utf8_lossy(value)));
    secrets.map(|(name, value)| json!([name, sha256_hex(value)])).collect()
}

/// A path and query, with the values of parameters that carry a credential masked.
pub(crate) fn masked_path(path_and_query: &str) -> String {
    let Some((path, query)) = path_and_query.split_once('?') else {
        return path_and_query.to_owned();
    };
    let parameters: Vec<_> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, value)) if is_secret(name, value) => format!("{name}={}", mask(value)),
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{path}?{}", parameters.join("&"))
}

/// A header value with its credential masked; the name of its scheme stays.
fn masked_value(value: &str) -> String {
    match value.split_once(' ') {
        Some((scheme, credential)) => format!("{scheme} {}", mask(credential)),
        None => mask(value),
    }
}

/// The SHA-256 of bytes, in lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
