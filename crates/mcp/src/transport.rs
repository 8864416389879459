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
    /// Told when the server seems to be gone, or to have forgotten the session.
    doubt: Arc<Notify>,
    /// The SDK's first question, which older servers need not know, is given up after this.
    first_question: Duration,
}

type Failed = StreamableHttpError<HttpError>;

/// The error of a body that says what went wrong is read up to this.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Shorter than the SDK's own patience, which it loses only once its message is sent.
const FIRST_QUESTION: Duration = Duration::from_secs(8);
/// The head of an answer to a request for a stream, or for the end of a session.
const HEAD: Duration = Duration::from_secs(30);
/// A stream for notes on which nothing comes is opened again: the server may be gone unseen.
const IDLE_STREAM: Duration = Duration::from_secs(10 * 60);
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";
const JSON: &str = "application/json";

impl Transport {
    pub(super) fn new(http: HttpClient, doubt: Arc<Notify>, patience: Duration) -> Self {
        Self { http, doubt, first_question: patience.min(FIRST_QUESTION) }
    }

    async fn send(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failed> {
        self.http.send(method, headers, body).await.map_err(|error| {
            self.doubt.notify_one();
            StreamableHttpError::Client(error)
        })
    }

    async fn post(
        &self,
        message: &ClientJsonRpcMessage,
        headers: HeaderMap,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let has_session = headers.contains_key(SESSION_ID);
        let purpose = Purpose::of(message);
        let body = serde_json::to_vec(message)?;
        let response = self.send(Method::POST, headers, body.into()).await?;
        let status = response.status();
        if !status.is_success() {
            return refusal(response, &purpose, has_session, limits).await;
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
            // To what is no question, any answer is good.
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
    ) -> Result<StreamableHttpPostResponse, Failed> {
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
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let mut headers = protocol_headers(headers, session_id.as_deref());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        let accept = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(header::ACCEPT, accept);
        let posting = self.post(&message, headers, limits);
        let Purpose::FirstQuestion(id) = Purpose::of(&message) else { return posting.await };
        match timeout(self.first_question, posting).await {
            Ok(posted) => posted,
            Err(_elapsed) => Ok(unknown_question(id)),
        }
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failed> {
        let headers = protocol_headers(headers, Some(&session_id));
        let sending = self.http.send(Method::DELETE, headers, Bytes::new());
        let response = timeout(HEAD, sending)
            .await
            .map_err(|_elapsed| late())?
            .map_err(StreamableHttpError::Client)?;
        match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => {
                Err(StreamableHttpError::ServerDoesNotSupportDeleteSession)
            }
            // Gone already.
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
    ) -> Result<BoxedSseResponse, Failed> {
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
    ) -> Result<BoxedSseResponse, Failed> {
        let mut headers = protocol_headers(headers, session_id.as_deref());
        headers.insert(header::ACCEPT, HeaderValue::from_static(EVENT_STREAM));
        if let Some(id) = last_event_id.and_then(|id| HeaderValue::from_str(&id).ok()) {
            headers.insert(LAST_EVENT_ID, id);
        }
        let sending = self.send(Method::GET, headers, Bytes::new());
        let response = timeout(HEAD, sending).await.map_err(|_elapsed| late())??;
        let status = response.status();
        match status {
            StatusCode::METHOD_NOT_ALLOWED => Err(StreamableHttpError::ServerDoesNotSupportSse),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(forbidden(&response)),
            StatusCode::NOT_FOUND if session_id.is_some() => {
                self.doubt.notify_one();
                Err(StreamableHttpError::SessionExpired)
            }
            _ if !status.is_success() => {
                Err(StreamableHttpError::Client(HttpError::Status(status)))
            }
            _ if media_type(&response) != MediaType::EventStream => {
                Err(StreamableHttpError::ServerDoesNotSupportSse)
            }
            _ => Ok(events(response.into_body(), limit, Some(IDLE_STREAM), Purpose::Stream)),
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
                let handed_on = event.data.as_deref().and_then(|data| purpose.handed_on(data));
                event.data = handed_on.or(event.data);
                Ok(event)
            }
            // Else the SDK would ask for the same event again, and the caller wait for it.
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

/// What an answer with another status than success means.
async fn refusal(
    response: Response<Incoming>,
    purpose: &Purpose,
    has_session: bool,
    limits: StreamableHttpResponseLimits,
) -> Result<StreamableHttpPostResponse, Failed> {
    let status = response.status();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(forbidden(&response)),
        StatusCode::NOT_FOUND if has_session => return Err(StreamableHttpError::SessionExpired),
        _ => {}
    }
    let no = StreamableHttpError::Client(HttpError::Status(status));
    let Some(id) = purpose.request_id() else { return Err(no) };
    let limit = limits.max_json_response_size.min(MAX_ERROR_BODY);
    let message = match media_type(&response) {
        MediaType::Json => read(response.into_body(), limit).await.ok(),
        MediaType::EventStream | MediaType::Other => None,
    };
    let Some(ServerJsonRpcMessage::Error(error)) = message.and_then(|body| purpose.message(&body))
    else {
        // So do older servers refuse the first question, if they do not do it in JSON-RPC.
        let is_unknown = matches!(purpose, Purpose::FirstQuestion(_)) && status.is_client_error();
        return if is_unknown { Ok(unknown_question(id.clone())) } else { Err(no) };
    };
    // Servers that do not know a session should answer with 404; some use 400 and words.
    let is_uncorrelated = error.id.is_none();
    if has_session
        && is_uncorrelated
        && status == StatusCode::BAD_REQUEST
        && error.error.message.to_ascii_lowercase().contains("session")
    {
        return Err(StreamableHttpError::SessionExpired);
    }
    // A server that refuses before it reads the question cannot name it, and the SDK would wait.
    let message = ServerJsonRpcMessage::error(error.error, Some(id.clone()));
    Ok(StreamableHttpPostResponse::Json(message, None))
}

fn forbidden(response: &Response<Incoming>) -> Failed {
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

/// Has the SDK go on in the older protocol.
fn unknown_question(id: RequestId) -> StreamableHttpPostResponse {
    let error = ErrorData::invalid_request("the server does not know the question", None);
    StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(id)), None)
}

fn late() -> Failed {
    let reason = format!("no answer within {} s", HEAD.as_secs());
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
