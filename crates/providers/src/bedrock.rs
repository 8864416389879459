//! Anthropic's models on Amazon Bedrock, which look like a provider of the Messages API to the rest.
//!
//! Each attempt is translated and signed when it is sent; its answer is translated before it leaves this
//! module.

use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::Full;
use keybridge_wire::error::ErrorKind;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{body::AnswerBody, failure::Failure, outgoing::Outgoing, upstream::Upstream};

mod admit;
pub(crate) mod config;
mod credentials;
mod errors;
pub mod events;
mod restrict;
mod rules;
mod sign;
mod translate;

pub use config::{AssumeRole, AwsSource, BedrockApi, BedrockConfig, HAS_CREDENTIAL_CHAIN};
pub use rules::{Rules, RulesError};

pub use admit::choose;

use credentials::Credentials;
pub use events::EventBody;
use translate::translate;

/// The edit that records name.
pub const TRANSLATED: &str = "bedrock";
/// The path below the base URL before the request is translated.
const MESSAGES: &str = "/v1/messages";
/// Characters that are encoded in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";

/// The AWS side of one provider instance.
pub struct Bedrock {
    config: BedrockConfig,
    credentials: Credentials,
}

impl Bedrock {
    pub fn new(provider: &str, config: BedrockConfig) -> Self {
        let credentials = Credentials::new(provider, &config);
        Self { config, credentials }
    }

    /// Whether requests are changed on their way, which needs them without content encoding.
    pub fn translates(&self) -> bool {
        self.config.api == BedrockApi::Runtime
    }

    /// Where the model that served a request runs: what the inference profile's prefix names, such as `us` or
    /// `global`, or else the region of the requests.
    pub fn region_of(&self, served_model: &str) -> &str {
        let model = match &self.config.small_fast_model {
            Some(small) if served_model.contains("haiku") => small,
            _ => &self.config.model,
        };
        // The ARN of a profile ends in its id.
        let id = model.rsplit('/').next().unwrap_or_default();
        match id.split_once('.') {
            Some((prefix, model)) if model.starts_with("anthropic.") => prefix,
            _ => &self.config.region,
        }
    }

    /// Sends a request of the Messages API and returns the answer in the shape of that API.
    pub(crate) async fn send(
        &self,
        upstream: &Upstream,
        outgoing: &Outgoing,
    ) -> Result<Response<AnswerBody>, Failure> {
        let credentials = self.credentials.current().await?;
        let mut request = match self.config.api {
            BedrockApi::Runtime => self.invocation(outgoing)?,
            BedrockApi::Mantle => unchanged(outgoing),
        };
        let scope = sign::Scope { region: &self.config.region, service: self.config.api.service() };
        sign::sign(&mut request, &credentials, &scope).map_err(|error| {
            tracing::error!(%error, "cannot sign a request for AWS");
            internal("the request cannot be signed for AWS")
        })?;
        let answer = upstream.send(request.map(Full::new)).await?;
        let (mut head, body) = answer.into_parts();
        if !head.status.is_success() {
            let error = errors::translate(head, body, &credentials).await;
            if error.refuses_credentials {
                self.credentials.forget(&credentials);
            }
            return Ok(error.answer);
        }
        errors::name_request(&mut head.headers);
        if !is_binary(&head.headers) {
            return Ok(Response::from_parts(head, AnswerBody::AsItCame(body)));
        }
        let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
        head.headers.insert(header::CONTENT_TYPE, events);
        head.headers.remove(header::CONTENT_LENGTH);
        Ok(Response::from_parts(head, AnswerBody::Events(Box::new(EventBody::new(body)))))
    }

    /// The request as a call of `InvokeModel`.
    fn invocation(&self, outgoing: &Outgoing) -> Result<Request<Bytes>, Failure> {
        let translated = translate(&self.config, &outgoing.headers, &outgoing.body)
            .map_err(|error| Failure::invalid(&format!("the request body: {error}")))?;
        let operation = if translated.streaming { "invoke-with-response-stream" } else { "invoke" };
        let base = outgoing.uri.path();
        let base = base.strip_suffix(MESSAGES).unwrap_or(base);
        let model = utf8_percent_encode(translated.model, SEGMENT);
        let path = format!("{base}/model/{model}/{operation}");
        let mut parts = outgoing.uri.clone().into_parts();
        parts.path_and_query = PathAndQuery::try_from(path).ok();
        let uri = Uri::from_parts(parts)
            .map_err(|_invalid| internal("the model's name does not fit into a URL"))?;
        let mut request = Request::new(Bytes::from(translated.body));
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() = uri;
        let kept = outgoing.headers.iter().filter(|(name, _)| {
            // Versions and flags are in the body; the operation decides the form of the answer.
            !name.as_str().starts_with("anthropic-") && *name != header::ACCEPT && !is_aws(name)
        });
        for (name, value) in kept {
            request.headers_mut().append(name.clone(), value.clone());
        }
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json.clone());
        if !translated.streaming {
            request.headers_mut().insert(header::ACCEPT, json);
        }
        Ok(request)
    }
}

impl fmt::Debug for Bedrock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bedrock").field("region", &self.config.region).finish_non_exhaustive()
    }
}

/// The request as the newer protocol takes it: the client's but for the credential.
fn unchanged(outgoing: &Outgoing) -> Request<Bytes> {
    let mut request = Request::new(outgoing.body.clone());
    *request.method_mut() = outgoing.method.clone();
    *request.uri_mut() = outgoing.uri.clone();
    for (name, value) in outgoing.headers.iter().filter(|(name, _)| !is_aws(name)) {
        request.headers_mut().append(name.clone(), value.clone());
    }
    request
}

/// Whether a header is part of AWS's signature, which keybridge makes.
fn is_aws(name: &http::HeaderName) -> bool {
    *name == header::AUTHORIZATION || name.as_str().starts_with("x-amz-")
}

fn is_binary(headers: &http::HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(EVENT_STREAM))
}

fn internal(detail: &str) -> Failure {
    Failure::upstream(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Api, detail.into())
}
