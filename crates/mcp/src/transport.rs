//! The SDK's way to the server: its messages over [`HttpClient`], within limits.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use rmcp::{
    model::{ClientJsonRpcMessage, ErrorData, RequestId, ServerJsonRpcMessage},
    transport::{
        common::client_side_sse::BoxedSseResponse,
        streamable_http_client::{
            AuthRequiredError, InsufficientScopeError, StreamableHttpClient, StreamableHttpError,
            StreamableHttpPostResponse, StreamableHttpResponseLimits,
        },
    },
};
use tokio::{sync::Notify, time::timeout};

use super::{
    http_client::{HttpClient, HttpError, read},
    message::{Purpose, error_for},
    sse,
};

/// The SDK's HTTP client.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    http: HttpClient,
    /// Notified when the server seems to be down, or to have lost the session.
    recheck: Arc<Notify>,
    /// Timeout of `server/discover`, which older servers need not know.
    discover_timeout: Duration,
}

type TransportError = StreamableHttpError<HttpError>;

/// Longest body of an error response that is read.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Shorter than the SDK's own timeout, which begins only when its message is sent.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(8);
/// Timeout of the response head where a stream is opened or a session ended.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A notification stream on which nothing comes is opened again: the server may be down unnoticed.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";
const JSON: &str = "application/json";

impl Transport {
    pub(super) fn new(http: HttpClient, recheck: Arc<Notify>) -> Self {
        let discover_timeout = http.connect_timeout.min(DISCOVER_TIMEOUT);
        Self { http, recheck, discover_timeout }
    }

    async fn send(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, TransportError> {
        self.http.send(method, headers, body).await.map_err(|error| {
            self.recheck.notify_one();
            StreamableHttpError::Client(error)
        })
    }

    async fn post(
        &self,
        message: &ClientJsonRpcMessage,
        headers: HeaderMap,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, TransportError> {
        let has_session = headers.contains_key(SESSION_ID);
        let purpose = Purpose::of(message);
        let body = serde_json::to_vec(message)?;
        let response = self.send(Method::POST, headers, body.into()).await?;
        let status = response.status();
        if !status.is_success() {
            return error_response(response, &purpose, has_session, limits).await;
        }
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let session = text(response.headers(), &SESSION_ID);
        match media_type(&response) {
            MediaType::EventStream => {
                let limit = limits.max_sse_event_size;
                let events = events(response.into_body(), limit, None, purpose);
                Ok(StreamableHttpPostResponse::Sse(events, session))
            }
            MediaType::Json if purpose.awaits_answer() => {
                let body = read(response.into_body(), limits.max_json_response_size)
                    .await
                    .map_err(StreamableHttpError::Client)?;
                let message = purpose.message(&body).ok_or_else(|| {
                    let invalid = "the body is not a message of JSON-RPC".into();
                    StreamableHttpError::Client(HttpError::Invalid(invalid))
                })?;
                Ok(StreamableHttpPostResponse::Json(message, session))
            }
            MediaType::Other if purpose.awaits_answer() => {
                let invalid = "the body is neither JSON nor a stream of events".into();
                Err(StreamableHttpError::Client(HttpError::Invalid(invalid)))
            }
            // A notification has no result: any success will do.
            MediaType::Json | MediaType::Other => Ok(StreamableHttpPostResponse::Accepted),
        }
    }
}

impl StreamableHttpClient for Transport {
    type Error = HttpError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, TransportError> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(
            uri,
            message,
            session_id,
            auth_header,
            headers,
            limits,
        )
        .await
    }

    async fn post_message_with_response_limits(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, TransportError> {
        let mut headers = protocol_headers(headers, session_id.as_deref());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        let accept = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(header::ACCEPT, accept);
        let post = self.post(&message, headers, limits);
        let Purpose::Discover(id) = Purpose::of(&message) else { return post.await };
        match timeout(self.discover_timeout, post).await {
            Ok(response) => response,
            Err(_elapsed) => Ok(discover_unsupported(id)),
        }
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), TransportError> {
        let headers = protocol_headers(headers, Some(&session_id));
        let sending = self.http.send(Method::DELETE, headers, Bytes::new());
        let response = timeout(HEAD_TIMEOUT, sending)
            .await
            .map_err(|_elapsed| timed_out())?
            .map_err(StreamableHttpError::Client)?;
        match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => {
                Err(StreamableHttpError::ServerDoesNotSupportDeleteSession)
            }
            // The session has ended already.
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(StreamableHttpError::Client(HttpError::Status(status))),
        }
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxedSseResponse, TransportError> {
        let limit = StreamableHttpResponseLimits::default().max_sse_event_size;
        self.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            headers,
            limit,
        )
        .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        _uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        limit: usize,
    ) -> Result<BoxedSseResponse, TransportError> {
        let mut headers = protocol_headers(headers, session_id.as_deref());
        headers.insert(header::ACCEPT, HeaderValue::from_static(EVENT_STREAM));
        if let Some(id) = last_event_id.and_then(|id| HeaderValue::from_str(&id).ok()) {
            headers.insert(LAST_EVENT_ID, id);
        }
        let sending = self.send(Method::GET, headers, Bytes::new());
        let response = timeout(HEAD_TIMEOUT, sending).await.map_err(|_elapsed| timed_out())??;
        let status = response.status();
        match status {
            StatusCode::METHOD_NOT_ALLOWED => Err(StreamableHttpError::ServerDoesNotSupportSse),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(forbidden(&response)),
            StatusCode::NOT_FOUND if session_id.is_some() => {
                self.recheck.notify_one();
                Err(StreamableHttpError::SessionExpired)
            }
            _ if !status.is_success() => {
                Err(StreamableHttpError::Client(HttpError::Status(status)))
            }
            _ if media_type(&response) != MediaType::EventStream => {
                Err(StreamableHttpError::ServerDoesNotSupportSse)
            }
            _ => {
                Ok(events(response.into_body(), limit, Some(STREAM_IDLE_TIMEOUT), Purpose::Stream))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MediaType {
    Json,
    EventStream,
    Other,
}

fn events(
    body: Incoming,
    limit: usize,
    idle: Option<Duration>,
    purpose: Purpose,
) -> BoxedSseResponse {
    sse::events(body, limit, idle)
        .map(move |event| match event {
            Ok(mut event) => {
                let rewrite = event.data.as_deref().and_then(|data| purpose.rewrite(data));
                event.data = rewrite.or(event.data);
                Ok(event)
            }
            // Else the SDK would request the same event again while the caller waits.
            Err(error) => match purpose.request_id() {
                Some(id) if sse::is_too_large(&error) => {
                    let reason = format!("its answer is larger than {limit} bytes");
                    Ok(sse_stream::Sse::default().data(error_for(id, &reason).to_string()))
                }
                _ => Err(error),
            },
        })
        .boxed()
}

/// Reads a response whose status is no success.
async fn error_response(
    response: Response<Incoming>,
    purpose: &Purpose,
    has_session: bool,
    limits: StreamableHttpResponseLimits,
) -> Result<StreamableHttpPostResponse, TransportError> {
    let status = response.status();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(forbidden(&response)),
        StatusCode::NOT_FOUND if has_session => return Err(StreamableHttpError::SessionExpired),
        _ => {}
    }
    let failed = StreamableHttpError::Client(HttpError::Status(status));
    let Some(id) = purpose.request_id() else { return Err(failed) };
    let limit = limits.max_json_response_size.min(MAX_ERROR_BODY);
    let message = match media_type(&response) {
        MediaType::Json => read(response.into_body(), limit).await.ok(),
        MediaType::EventStream | MediaType::Other => None,
    };
    let Some(ServerJsonRpcMessage::Error(error)) = message.and_then(|body| purpose.message(&body))
    else {
        // Older servers refuse `server/discover` like this, or in JSON-RPC.
        let is_unknown = matches!(purpose, Purpose::Discover(_)) && status.is_client_error();
        return if is_unknown { Ok(discover_unsupported(id.clone())) } else { Err(failed) };
    };
    // Servers that do not know a session should answer with 404; some use 400 and a message.
    let is_uncorrelated = error.id.is_none();
    if has_session
        && is_uncorrelated
        && status == StatusCode::BAD_REQUEST
        && error.error.message.to_ascii_lowercase().contains("session")
    {
        return Err(StreamableHttpError::SessionExpired);
    }
    // A server that refuses a request before reading it cannot name its id: the SDK would wait.
    let message = ServerJsonRpcMessage::error(error.error, Some(id.clone()));
    Ok(StreamableHttpPostResponse::Json(message, None))
}

fn forbidden(response: &Response<Incoming>) -> TransportError {
    let Some(challenge) = text(response.headers(), &header::WWW_AUTHENTICATE) else {
        return StreamableHttpError::Client(HttpError::Status(response.status()));
    };
    if response.status() == StatusCode::FORBIDDEN {
        let error = InsufficientScopeError::new(challenge, None);
        StreamableHttpError::InsufficientScope(error)
    } else {
        StreamableHttpError::AuthRequired(AuthRequiredError::new(challenge))
    }
}

/// Has the SDK continue with the older protocol.
fn discover_unsupported(id: RequestId) -> StreamableHttpPostResponse {
    let error = ErrorData::invalid_request("the server does not know this method", None);
    StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(id)), None)
}

fn timed_out() -> TransportError {
    let reason = format!("no response within {} s", HEAD_TIMEOUT.as_secs());
    StreamableHttpError::Client(HttpError::Broken(reason))
}

fn protocol_headers(
    headers: HashMap<HeaderName, HeaderValue>,
    session_id: Option<&str>,
) -> HeaderMap {
    let mut headers: HeaderMap = headers.into_iter().collect();
    if let Some(id) = session_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert(SESSION_ID, id);
    }
    headers
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn media_type(response: &Response<Incoming>) -> MediaType {
    let media_type = text(response.headers(), &header::CONTENT_TYPE).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(JSON) {
        MediaType::Json
    } else if essence.eq_ignore_ascii_case(EVENT_STREAM) {
        MediaType::EventStream
    } else {
        MediaType::Other
    }
}
