//! Errors that the bridge itself returns, in the provider's own format.
//!
//! Formats and names: <https://platform.claude.com/docs/en/api/errors> and
//! <https://platform.openai.com/docs/guides/error-codes>.

use serde_json::{Value as Json, json};

use crate::{
    Dialect,
    json::{Kind, Value},
};

/// The statuses after which a retry may help, by the names that providers give these errors within a
/// stream: types and codes of Anthropic and OpenAI, of servers compatible with it, and of Google.
const TRANSIENT: &[(&str, u16)] = &[
    ("overloaded_error", 529),
    ("overloaded", 529),
    ("server_is_overloaded", 529),
    ("server_overloaded", 529),
    ("engine_overloaded", 529),
    ("engine_overloaded_error", 529),
    ("model_overloaded", 529),
    ("slow_down", 529),
    ("service_unavailable", 503),
    ("service_unavailable_error", 503),
    ("ServiceUnavailableError", 503),
    ("UNAVAILABLE", 503),
    ("provider_unavailable", 502),
    ("rate_limit_error", 429),
    ("rate_limit_exceeded", 429),
    ("rate_limit_reached", 429),
    ("rate_limited", 429),
    ("too_many_requests", 429),
    ("RateLimitError", 429),
    ("RESOURCE_EXHAUSTED", 429),
    ("api_error", 500),
    ("server_error", 500),
    ("internal_error", 500),
    ("internal_server_error", 500),
    ("InternalServerError", 500),
    ("INTERNAL", 500),
    ("timeout_error", 504),
];

/// The status that says the same as an error's type or code, if a retry may help. A code may be a status
/// itself.
#[must_use]
pub fn transient_status(name: &str) -> Option<u16> {
    if let Ok(number) = name.parse::<u16>() {
        return matches!(number, 408 | 429 | 500 | 502 | 503 | 504 | 529).then_some(number);
    }
    TRANSIENT.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, status)| *status)
}

/// The classes of error that both providers distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is invalid.
    InvalidRequest,
    /// The credential is missing or unknown.
    Authentication,
    /// The account has no credit or a billing problem.
    Billing,
    /// The caller is authenticated but not allowed to do this.
    Permission,
    /// The resource does not exist.
    NotFound,
    /// The body exceeds a size limit.
    RequestTooLarge,
    /// The caller sends too many requests.
    RateLimit,
    /// The provider or the bridge failed.
    Api,
    /// An operation timed out.
    Timeout,
    /// The provider or the bridge is overloaded.
    Overloaded,
}

impl ErrorKind {
    /// The kind's name, which is Anthropic's error type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::Authentication => "authentication_error",
            Self::Billing => "billing_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::RequestTooLarge => "request_too_large",
            Self::RateLimit => "rate_limit_error",
            Self::Api => "api_error",
            Self::Timeout => "timeout_error",
            Self::Overloaded => "overloaded_error",
        }
    }

    /// `OpenAI`'s `code` for the kind.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Authentication => "invalid_api_key",
            Self::Billing => "insufficient_quota",
            Self::Permission => "permission_denied",
            Self::NotFound => "not_found",
            Self::RequestTooLarge => "request_too_large",
            Self::RateLimit => "rate_limit_exceeded",
            Self::Api => "server_error",
            Self::Timeout => "timeout",
            Self::Overloaded => "server_is_overloaded",
        }
    }

    /// `OpenAI`'s `type` for the kind.
    fn openai_type(self) -> &'static str {
        match self {
            Self::InvalidRequest
            | Self::Authentication
            | Self::NotFound
            | Self::RequestTooLarge => "invalid_request_error",
            Self::Billing => "insufficient_quota",
            Self::Permission => "permission_error",
            Self::RateLimit => "rate_limit_error",
            Self::Api | Self::Timeout => "server_error",
            Self::Overloaded => "service_unavailable_error",
        }
    }
}

/// The format of an error response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorShape {
    /// `{"type":"error","error":{…},"request_id":…}`.
    Anthropic,
    /// `{"error":{"message":…,"type":…,"param":null,"code":…}}`.
    OpenAi,
}

/// Renders the body of an error response.
#[must_use]
pub fn body(
    shape: ErrorShape,
    kind: ErrorKind,
    message: &str,
    request_id: Option<&str>,
) -> Vec<u8> {
    let value = match shape {
        ErrorShape::Anthropic => {
            let mut value = anthropic(kind, message);
            if let (Some(id), Some(members)) = (request_id, value.as_object_mut()) {
                members.insert("request_id".to_owned(), id.into());
            }
            value
        }
        ErrorShape::OpenAi => openai(kind, message),
    };
    value.to_string().into_bytes()
}

/// Replaces the message of a provider's error body, whatever its form; everything else stays as it is.
///
/// Returns `None` if the body has no message that is a text.
#[must_use]
pub fn replace_message(body: &[u8], message: &str) -> Option<Vec<u8>> {
    let value = Value::parse(body).ok()?;
    let error = if value.kind() == Kind::Array { value.elements().next()? } else { value };
    let place = MESSAGE_PATHS.iter().find_map(|path| {
        let found = path.iter().try_fold(error, |value, key| value.get(key))?;
        (found.kind() == Kind::String).then(|| found.range())
    })?;
    let message = Json::from(message).to_string();
    Some([body.get(..place.start)?, message.as_bytes(), body.get(place.end..)?].concat())
}

/// Where an error's message stands, in order of preference.
const MESSAGE_PATHS: [&[&str]; 6] =
    [&["error", "message"], &["message"], &["error", "msg"], &["msg"], &["detail"], &["error"]];

/// Renders the event that ends a stream with an error.
///
/// `sequence_number` is that of the event in a Responses stream.
#[must_use]
pub fn stream_event(
    dialect: Dialect,
    kind: ErrorKind,
    message: &str,
    sequence_number: u64,
) -> Vec<u8> {
    let text = match dialect {
        Dialect::Messages => format!("event: error\ndata: {}\n\n", anthropic(kind, message)),
        Dialect::ChatCompletions => {
            format!("data: {}\n\ndata: [DONE]\n\n", openai(kind, message))
        }
        Dialect::Responses => {
            let data = json!({
                "type": "error",
                "code": kind.code(),
                "message": message,
                "param": null,
                "sequence_number": sequence_number,
            });
            format!("event: error\ndata: {data}\n\n")
        }
    };
    text.into_bytes()
}

fn anthropic(kind: ErrorKind, message: &str) -> Json {
    json!({"type": "error", "error": {"type": kind.as_str(), "message": message}})
}

fn openai(kind: ErrorKind, message: &str) -> Json {
    json!({"error": {
        "message": message,
        "type": kind.openai_type(),
        "param": null,
        "code": kind.code(),
    }})
}

#[cfg(test)]
mod tests {
    use super::{ErrorKind, ErrorShape, body, replace_message, stream_event};
    use crate::{Dialect, observe::Observer};

    const KINDS: [ErrorKind; 10] = [
        ErrorKind::InvalidRequest,
        ErrorKind::Authentication,
        ErrorKind::Billing,
        ErrorKind::Permission,
        ErrorKind::NotFound,
        ErrorKind::RequestTooLarge,
        ErrorKind::RateLimit,
        ErrorKind::Api,
        ErrorKind::Timeout,
        ErrorKind::Overloaded,
    ];

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_kind_has_a_name_for_both_providers() {
        let names = KINDS.map(|kind| (kind.as_str(), kind.openai_type(), kind.code()));
        insta::assert_snapshot!(names.map(|(a, b, c)| format!("{a} {b} {c}")).join("\n"), @r"
        invalid_request_error invalid_request_error invalid_request
        authentication_error invalid_request_error invalid_api_key
        billing_error insufficient_quota insufficient_quota
        permission_error permission_error permission_denied
        not_found_error invalid_request_error not_found
        request_too_large invalid_request_error request_too_large
        rate_limit_error rate_limit_error rate_limit_exceeded
        api_error server_error server_error
        timeout_error server_error timeout
        overloaded_error service_unavailable_error server_is_overloaded
        ");
    }

    #[test]
    fn an_error_body_has_the_providers_format() {
        let anthropic = |id| text(body(ErrorShape::Anthropic, ErrorKind::Billing, "no \"x\"", id));
        insta::assert_snapshot!(anthropic(Some("req_1")), @r#"{"type":"error","error":{"type":"billing_error","message":"no \"x\""},"request_id":"req_1"}"#);
        insta::assert_snapshot!(anthropic(None), @r#"{"type":"error","error":{"type":"billing_error","message":"no \"x\""}}"#);
        insta::assert_snapshot!(
            text(body(ErrorShape::OpenAi, ErrorKind::Authentication, "who?", Some("req_1"))),
            @r#"{"error":{"message":"who?","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#
        );
    }

    #[test]
    fn only_the_message_of_an_error_is_replaced() {
        for (error, expected) in [
            (
                r#"{"type":"error", "error":{"type":"x","message":"bad \"key\""}}"#,
                r#"{"type":"error", "error":{"type":"x","message":"new"}}"#,
            ),
            (
                r#"[{"error": {"message": "bad", "code": 401}}]"#,
                r#"[{"error": {"message": "new", "code": 401}}]"#,
            ),
            (r#"{"object":"error","message":"bad"}"#, r#"{"object":"error","message":"new"}"#),
            (
                r#"{"error":"Unauthorized","message":"bad"}"#,
                r#"{"error":"Unauthorized","message":"new"}"#,
            ),
            (r#"{"error":"bad"}"#, r#"{"error":"new"}"#),
            (r#"{ "detail" : "bad" }"#, r#"{ "detail" : "new" }"#),
        ] {
            assert_eq!(
                replace_message(error.as_bytes(), "new").map(text).as_deref(),
                Some(expected)
            );
        }
        for other in
            ["", "bad", "[]", r#""bad""#, r#"{"error":{}}"#, r#"{"detail":[{"msg":"bad"}]}"#]
        {
            assert_eq!(replace_message(other.as_bytes(), "new"), None, "{other}");
        }
    }

    #[test]
    fn a_stream_error_has_the_format_of_its_dialect() {
        let event = |dialect| text(stream_event(dialect, ErrorKind::Timeout, "a\nb", 7));
        insta::assert_snapshot!(event(Dialect::Messages), @r#"
        event: error
        data: {"type":"error","error":{"type":"timeout_error","message":"a\nb"}}
        "#);
        insta::assert_snapshot!(event(Dialect::ChatCompletions), @r#"
        data: {"error":{"message":"a\nb","type":"server_error","param":null,"code":"timeout"}}

        data: [DONE]
        "#);
        insta::assert_snapshot!(event(Dialect::Responses), @r#"
        event: error
        data: {"type":"error","code":"timeout","message":"a\nb","param":null,"sequence_number":7}
        "#);
    }

    #[test]
    fn an_observer_reads_every_stream_error() {
        for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
            for kind in KINDS {
                let mut observer = Observer::stream(dialect);
                observer.observe(&stream_event(dialect, kind, "why", 3));
                assert!(observer.is_terminal());
                assert_eq!(observer.take().error.unwrap().message, "why");
            }
        }
    }
}
