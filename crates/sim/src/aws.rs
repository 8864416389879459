//! Sources of AWS credentials: a container's endpoint, instance metadata (version 2) and the
//! Security Token Service. Each returns a different key, so that a test can tell which one was used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use serde_json::json;

/// The region in which signatures are valid.
pub const REGION: &str = "eu-central-1";
/// The path prefix of the sources.
pub(crate) const PATH: &str = "/aws/";
/// The `Authorization` that the container endpoint requires.
pub const CONTAINER_TOKEN: &str = "simulated-container-token";
/// The session token of instance metadata.
const METADATA_TOKEN: &str = "simulated-metadata-token";
/// The role that may be assumed.
pub const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/bedrock";
/// The external id that [`ROLE_ARN`] requires.
pub const EXTERNAL_ID: &str = "simulated-external-id";
/// The maximum size of a request to a source.
const MAX_BODY_BYTES: usize = 64 << 10;

/// A simulated access key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessKey {
    /// The id.
    pub access_key_id: &'static str,
    /// The secret.
    pub secret_access_key: &'static str,
    /// The session token of a temporary key.
    pub session_token: Option<&'static str>,
}

/// A key that does not expire.
pub const LONG_TERM: AccessKey = AccessKey {
    access_key_id: "AKIASIMULATEDKEY0001",
    secret_access_key: "simulated/secret+of+a+long+term+key00001",
    session_token: None,
};
/// The key from the container endpoint.
pub const CONTAINER: AccessKey = AccessKey {
    access_key_id: "ASIASIMULATEDKEY0002",
    secret_access_key: "simulated/secret+of+the+container+000002",
    session_token: Some("simulated-session-token-of-the-container//=="),
};
/// The key from instance metadata.
pub const INSTANCE: AccessKey = AccessKey {
    access_key_id: "ASIASIMULATEDKEY0003",
    secret_access_key: "simulated/secret+of+the+instance+0000003",
    session_token: Some("simulated-session-token-of-the-instance//=="),
};
/// The key from the Security Token Service for [`ROLE_ARN`].
pub const ROLE: AccessKey = AccessKey {
    access_key_id: "ASIASIMULATEDKEY0004",
    secret_access_key: "simulated/secret+of+the+assumed+role0004",
    session_token: Some("simulated-session-token-of-the-role//=="),
};
/// The keys whose signatures are accepted.
pub const ACCESS_KEYS: [AccessKey; 4] = [LONG_TERM, CONTAINER, INSTANCE, ROLE];

/// The simulated sources; clones share their counters.
#[derive(Debug, Clone)]
pub struct AwsSim {
    issued: Arc<AtomicUsize>,
    max_issued: Arc<AtomicUsize>,
    lifetime_seconds: Arc<AtomicU64>,
}

impl Default for AwsSim {
    fn default() -> Self {
        Self {
            issued: Arc::default(),
            max_issued: Arc::new(AtomicUsize::new(usize::MAX)),
            lifetime_seconds: Arc::new(AtomicU64::new(3_600)),
        }
    }
}

impl AwsSim {
    /// How often credentials were issued.
    pub fn issued(&self) -> usize {
        self.issued.load(Ordering::Relaxed)
    }

    /// Sets the lifetime of credentials issued from now on.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.lifetime_seconds.store(lifetime.as_secs(), Ordering::Relaxed);
    }

    /// Stops answers of the container's endpoint after this many issued credentials.
    pub fn hang_after(&self, issued: usize) {
        self.max_issued.store(issued, Ordering::Relaxed);
    }

    pub(crate) async fn handle(&self, request: Request) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = to_bytes(body, MAX_BODY_BYTES).await.unwrap_or_default();
        let path = head.uri.path().strip_prefix(PATH).unwrap_or_default();
        let has = |name: &str, wanted: &str| text(&head.headers, name) == wanted;
        match (&head.method, path) {
            (&Method::GET, "container") if has("authorization", CONTAINER_TOKEN) => {
                if self.issued() >= self.max_issued.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                self.credentials_response(&CONTAINER, None)
            }
            (&Method::PUT, "latest/api/token") => {
                let mut response = respond(StatusCode::OK, METADATA_TOKEN.into());
                let lifetime = http::HeaderValue::from_static("21600");
                response.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", lifetime);
                response
            }
            (&Method::GET, path) if has("x-aws-ec2-metadata-token", METADATA_TOKEN) => {
                match path.trim_end_matches('/').rsplit('/').next() {
                    Some("security-credentials" | "security-credentials-extended") => {
                        respond(StatusCode::OK, "simulated-role".into())
                    }
                    Some("simulated-role") => self.credentials_response(&INSTANCE, Some("Success")),
                    _ => respond(StatusCode::NOT_FOUND, String::new()),
                }
            }
            (&Method::POST, "sts" | "sts/") => self.assume_role(&head.headers, &body),
            _ => respond(StatusCode::UNAUTHORIZED, String::new()),
        }
    }

    fn expiration(&self) -> String {
        self.issued.fetch_add(1, Ordering::Relaxed);
        let lifetime = self.lifetime_seconds.load(Ordering::Relaxed);
        let at = Timestamp::now().as_second() + i64::try_from(lifetime).unwrap_or_default();
        Timestamp::from_second(at).unwrap_or_default().to_string()
    }

    fn credentials_response(&self, key: &AccessKey, code: Option<&str>) -> Response<Body> {
        let mut credentials = json!({
            "AccessKeyId": key.access_key_id, "SecretAccessKey": key.secret_access_key,
            "Token": key.session_token, "Expiration": self.expiration(),
            "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC",
        });
        if let (Some(code), Some(credentials)) = (code, credentials.as_object_mut()) {
            credentials.insert("Code".into(), code.into());
        }
        respond(StatusCode::OK, credentials.to_string())
    }

    /// Handles `AssumeRole`, which must be signed with the key that does not expire.
    fn assume_role(&self, headers: &HeaderMap, body: &[u8]) -> Response<Body> {
        let form: Vec<_> = String::from_utf8_lossy(body)
            .split('&')
            .map(|pair| {
                let decoded = percent_encoding::percent_decode_str(pair);
                decoded.decode_utf8_lossy().into_owned()
            })
            .collect();
        let says = |pair: String| form.contains(&pair);
        let is_known = text(headers, "authorization").contains(LONG_TERM.access_key_id);
        if !is_known || !says("Action=AssumeRole".into()) || !says(format!("RoleArn={ROLE_ARN}")) {
            return denied("the caller may not assume this role");
        }
        if !says(format!("ExternalId={EXTERNAL_ID}")) || !says("RoleSessionName=keybridge".into()) {
            return denied("the external id or the session name is wrong");
        }
        let token = ROLE.session_token.unwrap_or_default();
        let xml = format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
             <AssumedRoleUser><AssumedRoleId>AROA:keybridge</AssumedRoleId><Arn>{ROLE_ARN}</Arn>\
             </AssumedRoleUser><Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}\
             </SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{}</Expiration>\
             </Credentials></AssumeRoleResult></AssumeRoleResponse>",
            ROLE.access_key_id,
            ROLE.secret_access_key,
            self.expiration()
        );
        respond(StatusCode::OK, xml)
    }
}

fn denied(message: &str) -> Response<Body> {
    let xml = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>AccessDenied</Code><Message>{message}</Message></Error></ErrorResponse>"
    );
    respond(StatusCode::FORBIDDEN, xml)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn respond(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}
