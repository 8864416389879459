//! Errors in the providers' formats.

use serde_json::{Value, json};

use crate::{
    bedrock,
    checks::RejectedRequest,
    handler::{Api, Vendor},
    other_routes::serial,
    player::Script,
};

/// An error response with its usual headers.
pub(crate) fn script(vendor: Vendor, status: u16, message: &str) -> Script {
    let mut script = with_code(vendor, status, (message, None));
    if matches!(status, 429 | 503 | 529) && vendor != Vendor::Bedrock {
        script = script.header("retry-after", "7");
    }
    if status == 429 {
        script = match vendor {
            Vendor::Bedrock => script,
            Vendor::Anthropic | Vendor::Mantle => script
                .header("anthropic-ratelimit-requests-limit", "50")
                .header("anthropic-ratelimit-requests-remaining", "0"),
            Vendor::OpenAi | Vendor::Copilot => script
                .header("x-ratelimit-limit-requests", "50")
                .header("x-ratelimit-remaining-requests", "0"),
        };
    }
    if matches!(status, 500 | 529) && vendor != Vendor::Bedrock {
        script = script.header("x-should-retry", "true");
    }
    if status == 401 && vendor != Vendor::Bedrock {
        script = script.header("set-cookie", "__cf_bm=simulated; path=/; HttpOnly");
    }
    script
}

/// The response to a request that the provider rejects.
pub(crate) fn refused(vendor: Vendor, refusal: &RejectedRequest) -> Script {
    with_code(vendor, 400, (&refusal.message, refusal.code))
}

fn with_code(vendor: Vendor, status: u16, (message, code): (&str, Option<&'static str>)) -> Script {
    let id = format!("req_{}", serial());
    match vendor {
        Vendor::Bedrock => bedrock::error(status, message).header("x-amzn-requestid", id),
        Vendor::Anthropic | Vendor::Mantle => {
            Script::json(status, &anthropic(kind(status), message, &id))
                .header("request-id", id)
                .header("anthropic-organization-id", "00000000-0000-4000-8000-000000000000")
        }
        Vendor::OpenAi | Vendor::Copilot => {
            Script::json(status, &openai(status, message, code)).header("x-request-id", id)
        }
    }
}

/// The event that ends a stream with an error after `number` others.
pub(crate) fn event(api: Api, kind: &str, number: usize) -> String {
    let message = "The simulated provider failed.";
    match api {
        Api::Messages => {
            let kind = if kind == "overloaded" { "overloaded_error" } else { "api_error" };
            let error = json!({ "type": "error", "error": { "type": kind, "message": message } });
            format!("event: error\ndata: {error}\n\n")
        }
        Api::Chat => {
            let code = openai_code(kind);
            let error = json!({ "error": { "message": message, "type": "server_error", "param": null, "code": code } });
            format!("data: {error}\n\n")
        }
        Api::Responses => {
            let code = openai_code(kind);
            let error = json!({ "type": "error", "sequence_number": number, "code": code, "message": message, "param": null });
            format!("event: error\ndata: {error}\n\n")
        }
    }
}

/// The code of an error in a stream.
fn openai_code(kind: &str) -> &str {
    if kind == "overloaded" { "server_is_overloaded" } else { kind }
}

fn anthropic(kind: &str, message: &str, id: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": id })
}

fn openai(status: u16, message: &str, code: Option<&str>) -> Value {
    let (kind, usual) = match status {
        401 => ("invalid_request_error", "invalid_api_key"),
        402 => ("insufficient_quota", "insufficient_quota"),
        403 => ("invalid_request_error", "unsupported_country_region_territory"),
        404 => ("invalid_request_error", "model_not_found"),
        429 => ("requests", "rate_limit_exceeded"),
        500.. => ("server_error", "server_error"),
        _ => ("invalid_request_error", "invalid_value"),
    };
    let code = code.unwrap_or(usual);
    json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
}

/// The type of an error as the Messages API documents it.
const fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}
