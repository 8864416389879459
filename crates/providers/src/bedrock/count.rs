//! Counts the tokens of a request: Bedrock's own count where it has one for the model, else an estimate.
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_CountTokens.html>

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use keybridge_wire::{
    error::ErrorKind,
    json::{Edits, JsonError, Object, Value},
};

use super::errors::{TranslatedError, name_request};
use crate::{body::AnswerBody, failure::Failure};

/// Marks an answer whose figures are estimated by the bridge.
#[derive(Debug, Clone, Copy)]
pub struct Estimated;

/// Largest answer that is read, and its timeout.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's JSON per token: few, so that an agent compacts too early rather than too late.
const BYTES_PER_TOKEN: usize = 3;
/// The tokens of an image: the most that it is scaled down to.
/// <https://platform.claude.com/docs/en/build-with-claude/vision#evaluate-image-size>
const IMAGE_TOKENS: usize = 1_600;
/// Base64 bytes of a document per token: some 70 KB and 2,000 tokens for a page.
const DOCUMENT_BYTES_PER_TOKEN: usize = 32;

/// A translated request as one that Bedrock counts: it requires `max_tokens`, which the request of a
/// count does not have.
pub(super) fn countable(body: Vec<u8>) -> Result<Vec<u8>, JsonError> {
    let object = Object::parse(&body)?;
    if object.member("max_tokens").is_some() {
        return Ok(body);
    }
    // Thinking must end before the answer does.
    let budget = object.member("thinking").and_then(|thinking| thinking.get("budget_tokens"));
    let budget = budget.and_then(|budget| budget.as_u64()).unwrap_or_default();
    let mut edits = Edits::new();
    edits.set(&["max_tokens"], &budget.saturating_add(1).to_string());
    edits.apply(&body)
}

/// The body of a call of `CountTokens`.
pub(super) fn request(body: &[u8]) -> Vec<u8> {
    format!(r#"{{"input":{{"invokeModel":{{"body":"{}"}}}}}}"#, STANDARD.encode(body)).into_bytes()
}

/// The id of the model itself in the id or ARN of an inference profile, which `CountTokens` does not take;
/// none if it is not named there.
pub(super) fn base_model(model: &str) -> Option<&str> {
    let id = model.rsplit('/').next()?;
    let start = id.find("anthropic.")?;
    id.get(start..)
}

/// Whether an error says that Bedrock does not count for this model or this account.
pub(super) fn is_unsupported(error: &TranslatedError) -> bool {
    let status = error.answer.status();
    let is_about_model =
        [StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status);
    is_about_model && !error.refuses_credentials
}

/// Bedrock's count in the form of the Messages API.
pub(super) async fn answer(answer: Response<Incoming>) -> Result<Response<AnswerBody>, Failure> {
    let (mut head, body) = answer.into_parts();
    let reading = Limited::new(body, MAX_ANSWER_BYTES).collect();
    let read = tokio::time::timeout(ANSWER_TIMEOUT, reading).await.ok().and_then(Result::ok);
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let count = Value::parse(&bytes).ok().and_then(|value| value.get("inputTokens")?.as_u64());
    let count = count.ok_or_else(|| {
        let detail = "Amazon Bedrock's answer to `CountTokens` has no `inputTokens`";
        Failure::upstream(StatusCode::BAD_GATEWAY, ErrorKind::Api, detail.into())
    })?;
    name_request(&mut head.headers);
    Ok(counted(head, count))
}

/// An estimate of the tokens of a request.
pub(super) fn estimate(body: &[u8]) -> Response<AnswerBody> {
    let (mut head, ()) = Response::new(()).into_parts();
    head.extensions.insert(Estimated);
    counted(head, u64::try_from(estimated_tokens(body)).unwrap_or(u64::MAX))
}

fn counted(mut head: response::Parts, count: u64) -> Response<AnswerBody> {
    forget_form(&mut head.headers);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = Bytes::from(format!(r#"{{"input_tokens":{count}}}"#));
    Response::from_parts(head, AnswerBody::whole(body))
}

/// Removes what describes a body that is replaced.
fn forget_form(headers: &mut HeaderMap) {
    for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
}

fn estimated_tokens(body: &[u8]) -> usize {
    let request = Value::parse(body).ok();
    let messages = request.and_then(|request| request.get("messages"));
    let mut media = Media::default();
    for message in messages.iter().flat_map(Value::elements) {
        media.add(message.get("content"));
    }
    let text_bytes = body.len().saturating_sub(media.bytes);
    text_bytes.div_ceil(BYTES_PER_TOKEN).saturating_add(media.tokens)
}

/// What is not text in a request.
#[derive(Debug, Default)]
struct Media {
    bytes: usize,
    tokens: usize,
}

impl Media {
    /// Adds the images and documents of a content and of the tool results in it.
    fn add(&mut self, content: Option<Value<'_>>) {
        for block in content.iter().flat_map(Value::elements) {
            let kind = block.get("type").and_then(|kind| kind.as_str()).unwrap_or_default();
            let source = block.get("source");
            let data =
                source.and_then(|source| source.get("data")).map_or(0, |data| data.raw().len());
            match kind.as_ref() {
                "image" => {
                    self.bytes += data;
                    self.tokens += IMAGE_TOKENS;
                }
                // A document may also be plain text, which counts like other text.
                "document" if is_base64(source) => {
                    self.bytes += data;
                    self.tokens += data.div_ceil(DOCUMENT_BYTES_PER_TOKEN);
                }
                "tool_result" => self.add(block.get("content")),
                _ => {}
            }
        }
    }
}

fn is_base64(source: Option<Value<'_>>) -> bool {
    source.and_then(|source| source.get("type")).is_some_and(|kind| kind.is_text("base64"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::{base_model, countable, estimated_tokens};

    #[test]
    fn the_model_is_found_in_profiles_and_arns() {
        let id = "anthropic.claude-sonnet-4-5-20250929-v1:0";
        let arn = "arn:aws:bedrock:eu-central-1:123456789012:inference-profile";
        for (model, expected) in [
            (id.to_owned(), Some(id)),
            (format!("eu.{id}"), Some(id)),
            (format!("us-gov.{id}"), Some(id)),
            (format!("{arn}/eu.{id}"), Some(id)),
            (format!("arn:aws:bedrock:eu-central-1::foundation-model/{id}"), Some(id)),
            ("arn:aws:bedrock:eu-central-1:1:application-inference-profile/abc".to_owned(), None),
        ] {
            assert_eq!(base_model(&model), expected, "{model}");
        }
    }

    #[test]
    fn a_request_to_count_has_room_for_its_thinking() {
        for (request, max_tokens) in [
            (json!({ "max_tokens": 7 }), 7),
            (json!({}), 1),
            (json!({ "thinking": { "type": "enabled", "budget_tokens": 4_000 } }), 4_001),
        ] {
            let body = countable(request.to_string().into_bytes()).unwrap();
            let body: Json = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["max_tokens"], max_tokens, "{request}");
        }
    }

    #[test]
    fn media_are_not_estimated_by_their_bytes() {
        let data = "A".repeat(320_000);
        let source = |kind: &str| json!({ "type": "base64", "media_type": kind, "data": data });
        let image = json!({ "type": "image", "source": source("image/png") });
        let document = json!({ "type": "document", "source": source("application/pdf") });
        let request =
            |content: Json| json!({ "messages": [{ "role": "user", "content": content }] });
        let tokens = |content: Json| estimated_tokens(request(content).to_string().as_bytes());
        assert_eq!(
            tokens(json!("x".repeat(3_000))),
            (request(json!("")).to_string().len() + 3_000).div_ceil(3)
        );
        let images = tokens(json!([image, { "type": "tool_result", "content": [image] }]));
        assert!((3_200..3_400).contains(&images), "{images}");
        let documents = tokens(json!([document]));
        assert!((10_000..10_200).contains(&documents), "{documents}");
        assert!(estimated_tokens(b"no json") < 5);
    }
}
