//! Amazon Bedrock: `InvokeModel`, `InvokeModelWithResponseStream` and `CountTokens` for Anthropic's models.
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModelWithResponseStream.html>

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::{
    handler::Vendor,
    player::{Script, Step},
    signature_v4::SignatureError,
};

mod schema;

/// Parses a path into the model and whether the response is streamed.
pub(crate) fn operation(path: &str) -> Option<(String, bool)> {
    let (model, operation) = path.strip_prefix("/model/")?.split_once('/')?;
    let streams = match operation {
        "invoke" => false,
        "invoke-with-response-stream" => true,
        _ => return None,
    };
    Some((percent_decode_str(model).decode_utf8().ok()?.into_owned(), streams))
}

/// Converts a body and its path to a Messages API request, or returns why it is rejected.
pub(crate) fn to_messages_request(
    vendor: Vendor,
    path: &str,
    body: &Bytes,
) -> Result<Bytes, String> {
    let operation = operation(path).filter(|_| vendor == Vendor::Bedrock);
    let value = serde_json::from_slice::<Value>(body).ok();
    let (Some((model, streams)), Some(Value::Object(mut fields))) = (operation, value) else {
        return Ok(body.clone());
    };
    schema::check(&model, &fields)?;
    fields.insert("model".into(), model.into());
    fields.insert("stream".into(), streams.into());
    Ok(Value::Object(fields).to_string().into())
}

/// The response of `CountTokens`, if the path is one of it, or why it is rejected.
pub(crate) fn count_tokens(path: &str, body: &Bytes) -> Option<Result<Value, String>> {
    let (model, operation) = path.strip_prefix("/model/")?.split_once('/')?;
    let model = percent_decode_str(model).decode_utf8().ok()?;
    (operation == "count-tokens").then(|| count(&model, body))
}

fn count(model: &str, body: &Bytes) -> Result<Value, String> {
    // It knows no inference profiles, and no model that has nothing else.
    if !model.starts_with("anthropic.") || !model.contains("-4-5-") {
        return Err("The provided model doesn't support counting tokens.".into());
    }
    let call = serde_json::from_slice::<Value>(body).ok();
    let encoded = call.as_ref().and_then(|call| call.pointer("/input/invokeModel/body")?.as_str());
    let request = STANDARD.decode(encoded.unwrap_or_default()).ok();
    let request = request.and_then(|request| serde_json::from_slice(&request).ok());
    let Some(Value::Object(fields)) = request else {
        return Err("The format of the request body is not valid.".into());
    };
    if !fields.contains_key("max_tokens") {
        return Err("max_tokens: Field required".into());
    }
    schema::check(model, &fields)?;
    Ok(json!({ "inputTokens": Value::Object(fields).to_string().len() / 4 }))
}

/// An error in AWS's format.
pub(crate) fn error(status: u16, message: &str) -> Script {
    Script::json(status, &json!({ "message": message })).header(
        "x-amzn-errortype",
        format!("{}:http://internal.amazon.com/coral/", exception_name(status)),
    )
}

/// The response to a request with a wrong signature; like AWS, it quotes the canonical request.
pub(crate) fn signature_error(error: &SignatureError) -> Script {
    let message = format!(
        "The request signature we calculated does not match the signature you provided. Check your \
         AWS Secret Access Key and signing method.\n\nThe Canonical String for this request should \
         have been\n{:?}",
        error.canonical
    );
    Script::json(403, &json!({ "message": message }))
        .header("x-amzn-errortype", "InvalidSignatureException")
        .header("x-amzn-requestid", "simulated-unsigned")
}

/// Encodes the events of a response as frames of the binary event stream.
pub(crate) fn to_event_stream(mut script: Script) -> Script {
    let is_stream = script.headers.iter().any(|(_, value)| value.starts_with("text/event-stream"));
    if !is_stream || script.status != 200 {
        return script;
    }
    for (name, value) in &mut script.headers {
        if *name == "content-type" {
            *value = "application/vnd.amazon.eventstream".into();
        }
    }
    let mut stream = Vec::new();
    let mut steps = Vec::new();
    for step in script.steps {
        let Step::Bytes(event) = step else {
            steps.push(step);
            continue;
        };
        stream.extend_from_slice(&event);
        // The pieces of an event form one frame.
        while let Some(end) = stream.windows(2).position(|pair| pair == b"\n\n") {
            let whole: Vec<u8> = stream.drain(..end + 2).collect();
            steps.extend(event_frame(&String::from_utf8_lossy(&whole)).map(Step::Bytes));
        }
    }
    if !stream.is_empty() {
        // The rest of a truncated event becomes the start of a frame.
        let cut = encode_frame(&[(":event-type", "chunk"), (":message-type", "event")], &stream);
        let half = cut.slice(..cut.len() / 2);
        let end = steps.iter().rposition(|step| matches!(step, Step::Bytes(_)));
        steps.insert(end.map_or(0, |end| end + 1), Step::Bytes(half));
    }
    script.steps = steps;
    script
}

/// Encodes an event as a frame; an error becomes an exception.
fn event_frame(event: &str) -> Option<Bytes> {
    let data = event.lines().find_map(|line| line.strip_prefix("data: "))?;
    if event.starts_with("event: error") {
        let is_overloaded = data.contains("overloaded");
        let kind = if is_overloaded { "throttlingException" } else { "modelStreamErrorException" };
        let payload = json!({ "message": "The simulated provider failed." }).to_string();
        let headers = [
            (":exception-type", kind),
            (":content-type", "application/json"),
            (":message-type", "exception"),
        ];
        return Some(encode_frame(&headers, payload.as_bytes()));
    }
    // Padded as by AWS, so that lengths reveal nothing.
    let payload = json!({ "bytes": STANDARD.encode(data), "p": "abcdefghijkl" }).to_string();
    let headers = [
        (":event-type", "chunk"),
        (":content-type", "application/json"),
        (":message-type", "event"),
    ];
    Some(encode_frame(&headers, payload.as_bytes()))
}

/// Encodes a frame of the binary event stream.
fn encode_frame(headers: &[(&str, &str)], payload: &[u8]) -> Bytes {
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        head.extend_from_slice(name.as_bytes());
        // The type 7 is a string.
        head.push(7);
        head.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = Vec::new();
    frame.extend_from_slice(&length(head.len() + payload.len() + 16));
    frame.extend_from_slice(&length(head.len()));
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(&head);
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame.into()
}

const fn exception_name(status: u16) -> &'static str {
    match status {
        401 | 403 => "AccessDeniedException",
        404 => "ResourceNotFoundException",
        408 => "ModelTimeoutException",
        424 => "ModelErrorException",
        429 => "ThrottlingException",
        503 => "ServiceUnavailableException",
        500.. => "InternalServerException",
        _ => "ValidationException",
    }
}
