//! Verifies AWS's signature of a request, version 4, from the headers and the body as received.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use aws_lc_rs::{constant_time, digest, hmac};
use http::{HeaderMap, header, request};

use crate::{
    answer::Vendor,
    aws::{ACCESS_KEYS, REGION},
};

/// A signature that is not accepted.
#[derive(Debug)]
pub(crate) struct Unverified {
    pub(crate) problem: &'static str,
    /// What was to be signed, as far as it is known.
    pub(crate) canonical: String,
}

impl Unverified {
    fn of(problem: &'static str) -> Self {
        Self { problem, canonical: String::new() }
    }
}

/// The parts of the header `Authorization`.
struct Claimed<'a> {
    access_key_id: &'a str,
    scope: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

/// Whether a request was signed with one of the simulated keys for this service.
pub(crate) fn verify(vendor: Vendor, head: &request::Parts, body: &[u8]) -> Result<(), Unverified> {
    let service = if vendor == Vendor::Mantle { "bedrock-mantle" } else { "bedrock" };
    let claimed = claimed(&head.headers).ok_or_else(|| Unverified::of("no signature came"))?;
    let known = ACCESS_KEYS.iter().find(|key| key.access_key_id == claimed.access_key_id);
    let key = known.ok_or_else(|| Unverified::of("the access key is not known"))?;
    let date = text(&head.headers, "x-amz-date");
    let day = date.get(..8).unwrap_or_default();
    if claimed.scope != format!("{day}/{REGION}/{service}/aws4_request") {
        return Err(Unverified::of("the signature is for another place"));
    }
    let canonical = canonical(head, claimed.signed_headers, body);
    if key.session_token.unwrap_or_default() != text(&head.headers, "x-amz-security-token") {
        return Err(Unverified { problem: "the session token is wrong", canonical });
    }
    let names: Vec<&str> = claimed.signed_headers.split(';').collect();
    let unsigned = head
        .headers
        .keys()
        .any(|name| name.as_str().starts_with("x-amz-") && !names.contains(&name.as_str()));
    if unsigned || !names.contains(&"host") {
        return Err(Unverified { problem: "a header that must be signed is not", canonical });
    }
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{date}\n{}\n{}",
        claimed.scope,
        hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref())
    );
    let mut key = tag(format!("AWS4{}", key.secret_access_key).as_bytes(), day);
    for part in [REGION, service, "aws4_request"] {
        key = tag(&key, part);
    }
    let expected = hex(&tag(&key, &to_sign));
    let is_same =
        constant_time::verify_slices_are_equal(expected.as_bytes(), claimed.signature.as_bytes());
    is_same.map_err(|_different| Unverified { problem: "the signature is wrong", canonical })
}

fn claimed(headers: &HeaderMap) -> Option<Claimed<'_>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let rest = value.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let part = |name: &str| {
        rest.split(',').map(str::trim).find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let (access_key_id, scope) = part("Credential")?.split_once('/')?;
    Some(Claimed {
        access_key_id,
        scope,
        signed_headers: part("SignedHeaders")?,
        signature: part("Signature")?,
    })
}

fn canonical(head: &request::Parts, signed_headers: &str, body: &[u8]) -> String {
    let mut canonical = format!("{}\n", head.method);
    // Services other than S3 encode the path that is sent once more.
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

fn tag(key: &[u8], message: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
