//! Anthropic's models on Amazon Bedrock, which look like a provider of the Messages API to the rest.
//!
//! Each attempt is translated and signed when it is sent; its answer is translated before it leaves this
//! module.

use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use hyper::body::Incoming;
use keybridge_net::egress::RequestBody;
use keybridge_wire::{error::ErrorKind, json::JsonError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    attempt::AttemptLog, body::AnswerBody, failure::Failure, outgoing::Outgoing, upstream::Upstream,
};

mod admit;
pub(crate) mod config;
mod count;
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
pub use count::Estimated;

use credentials::Credentials;
use errors::TranslatedError;
pub use events::EventBody;
use translate::{Translated, translate};

/// The edit that records name.
pub const TRANSLATED: &str = "bedrock";
/// The paths below the base URL before a request is translated.
const MESSAGES: &str = "/v1/messages";
const COUNT_TOKENS: &str = "/v1/messages/count_tokens";
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
        attempts: &AttemptLog,
    ) -> Result<Response<AnswerBody>, Failure> {
        if self.translates() && outgoing.uri.path().ends_with(COUNT_TOKENS) {
            return self.count_tokens(upstream, outgoing, attempts).await;
        }
        let request = match self.config.api {
            BedrockApi::Runtime => self.invocation(outgoing)?,
            BedrockApi::Mantle => unchanged(outgoing),
        };
        let (mut head, body) = match self.exchange(upstream, request, attempts).await? {
            Ok(answer) => answer.into_parts(),
            Err(error) => return Ok(error.answer),
        };
        errors::name_request(&mut head.headers);
        if !is_binary(&head.headers) {
            return Ok(Response::from_parts(head, AnswerBody::as_it_came(body)));
        }
        let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
        head.headers.insert(header::CONTENT_TYPE, events);
        head.headers.remove(header::CONTENT_LENGTH);
        Ok(Response::from_parts(head, AnswerBody::events(EventBody::new(body))))
    }

    /// Counts the tokens of a request.
    async fn count_tokens(
        &self,
        upstream: &Upstream,
        outgoing: &Outgoing,
        attempts: &AttemptLog,
    ) -> Result<Response<AnswerBody>, Failure> {
        let translated = self.translated(outgoing)?;
        let body = count::countable(translated.body).map_err(|error| invalid(&error))?;
        let model = count::base_model(translated.model);
        let Some(model) = model.filter(|model| self.config.rules.counts_tokens(model)) else {
            return Ok(count::estimate(&body));
        };
        let base = outgoing.uri.path().strip_suffix(COUNT_TOKENS).unwrap_or_default();
        let path = operation_path(base, model, "count-tokens");
        let request = call(outgoing, &path, count::request(&body))?;
        match self.exchange(upstream, request, attempts).await? {
            Ok(answer) => count::answer(answer).await,
            Err(error) if count::is_unsupported(&error) => {
                tracing::debug!(model, "Amazon Bedrock does not count tokens; they are estimated");
                Ok(count::estimate(&body))
            }
            Err(error) => Ok(error.answer),
        }
    }

    /// Signs a request and sends it; an error of AWS comes in the shape of the Messages API.
    async fn exchange(
        &self,
        upstream: &Upstream,
        mut request: Request<Bytes>,
        attempts: &AttemptLog,
    ) -> Result<Result<Response<Incoming>, TranslatedError>, Failure> {
        let credentials = self.credentials.current().await?;
        let scope = sign::Scope { region: &self.config.region, service: self.config.api.service() };
        sign::sign(&mut request, &credentials, &scope).map_err(|error| {
            tracing::error!(%error, "cannot sign a request for AWS");
            internal("the request cannot be signed for AWS")
        })?;
        let answer = upstream.send(request.map(RequestBody::from), None, attempts).await?;
        if answer.status().is_success() {
            return Ok(Ok(answer));
        }
        let (head, body) = answer.into_parts();
        let error = errors::translate(head, body, &credentials).await;
        if error.refuses_credentials {
            self.credentials.forget(&credentials);
        }
        Ok(Err(error))
    }

    fn translated(&self, outgoing: &Outgoing) -> Result<Translated<'_>, Failure> {
        translate(&self.config, &outgoing.headers, &outgoing.body).map_err(|error| invalid(&error))
    }

    /// The request as a call of `InvokeModel`.
    fn invocation(&self, outgoing: &Outgoing) -> Result<Request<Bytes>, Failure> {
        let translated = self.translated(outgoing)?;
        let operation = if translated.streaming { "invoke-with-response-stream" } else { "invoke" };
        let base = outgoing.uri.path();
        let base = base.strip_suffix(MESSAGES).unwrap_or(base);
        let path = operation_path(base, translated.model, operation);
        let mut request = call(outgoing, &path, translated.body)?;
        if !translated.streaming {
            let json = HeaderValue::from_static("application/json");
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

/// The path of an operation of a model.
fn operation_path(base: &str, model: &str, operation: &str) -> String {
    format!("{base}/model/{}/{operation}", utf8_percent_encode(model, SEGMENT))
}

/// A call of Bedrock with the client's headers.
fn call(outgoing: &Outgoing, path: &str, body: Vec<u8>) -> Result<Request<Bytes>, Failure> {
    let mut parts = outgoing.uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    let uri = Uri::from_parts(parts)
        .map_err(|_invalid| internal("the model's name does not fit into a URL"))?;
    let mut request = Request::new(Bytes::from(body));
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
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(request)
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

fn invalid(error: &JsonError) -> Failure {
    Failure::invalid(&format!("the request body: {error}"))
}

fn internal(detail: &str) -> Failure {
    Failure::upstream(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Api, detail.into())
}
