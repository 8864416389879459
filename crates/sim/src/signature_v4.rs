//! Verifies the AWS signature, version 4, of a request from its headers and body as received.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use aws_lc_rs::{constant_time, digest, hmac};
use http::{HeaderMap, header, request};

use crate::{
    aws::{ACCESS_KEYS, REGION},
    handler::Vendor,
};

/// A signature that is not accepted.
#[derive(Debug)]
pub(crate) struct SignatureError {
    pub(crate) problem: &'static str,
    /// The canonical request, if it is known.
    pub(crate) canonical: String,
}

impl SignatureError {
    fn new(problem: &'static str) -> Self {
        Self { problem, canonical: String::new() }
    }
}

/// The parts of the `Authorization` header.
struct AuthorizationHeader<'a> {
    access_key_id: &'a str,
    scope: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

/// Verifies that a request was signed with one of the simulated keys for this service.
pub(crate) fn verify(
    vendor: Vendor,
    head: &request::Parts,
    body: &[u8],
) -> Result<(), SignatureError> {
    let service = if vendor == Vendor::Mantle { "bedrock-mantle" } else { "bedrock" };
    let claimed = parse_authorization(&head.headers)
        .ok_or_else(|| SignatureError::new("the request is not signed"))?;
    let known = ACCESS_KEYS.iter().find(|key| key.access_key_id == claimed.access_key_id);
    let key = known.ok_or_else(|| SignatureError::new("the access key is unknown"))?;
    let date = text(&head.headers, "x-amz-date");
    let day = date.get(..8).unwrap_or_default();
    if claimed.scope != format!("{day}/{REGION}/{service}/aws4_request") {
        return Err(SignatureError::new("the signature is for another region or service"));
    }
    let canonical = canonical_request(head, claimed.signed_headers, body);
    if key.session_token.unwrap_or_default() != text(&head.headers, "x-amz-security-token") {
        return Err(SignatureError { problem: "the session token is wrong", canonical });
    }
    let names: Vec<&str> = claimed.signed_headers.split(';').collect();
    let unsigned = head
        .headers
        .keys()
        .any(|name| name.as_str().starts_with("x-amz-") && !names.contains(&name.as_str()));
    if unsigned || !names.contains(&"host") {
        return Err(SignatureError { problem: "a required header is not signed", canonical });
    }
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{date}\n{}\n{}",
        claimed.scope,
        hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref())
    );
    let mut key = hmac_sha256(format!("AWS4{}", key.secret_access_key).as_bytes(), day);
    for part in [REGION, service, "aws4_request"] {
        key = hmac_sha256(&key, part);
    }
    let expected = hex(&hmac_sha256(&key, &to_sign));
    let is_same =
        constant_time::verify_slices_are_equal(expected.as_bytes(), claimed.signature.as_bytes());
    is_same.map_err(|_different| SignatureError { problem: "the signature is wrong", canonical })
}

fn parse_authorization(headers: &HeaderMap) -> Option<AuthorizationHeader<'_>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let rest = value.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let part = |name: &str| {
        rest.split(',').map(str::trim).find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let (access_key_id, scope) = part("Credential")?.split_once('/')?;
    Some(AuthorizationHeader {
        access_key_id,
        scope,
        signed_headers: part("SignedHeaders")?,
        signature: part("Signature")?,
    })
}

fn canonical_request(head: &request::Parts, signed_headers: &str, body: &[u8]) -> String {
    let mut canonical = format!("{}\n", head.method);
    // Services other than S3 encode the path a second time.
    for byte in head.uri.path().bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                canonical.push(char::from(byte));
            }
            other => canonical.push_str(&format!("%{other:02X}")),
        }
    }
    let mut query: Vec<String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
        .collect();
    query.sort();
    canonical.push_str(&format!("\n{}\n", query.join("&")));
    for name in signed_headers.split(';') {
        canonical.push_str(&format!("{name}:{}\n", text(&head.headers, name).trim()));
    }
    let hash = hex(digest::digest(&digest::SHA256, body).as_ref());
    canonical.push_str(&format!("\n{signed_headers}\n{hash}"));
    canonical
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn hmac_sha256(key: &[u8], message: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
