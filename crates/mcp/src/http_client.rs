//! The HTTP client of one MCP server: its address, its configured headers, its connect timeout. Redirects are not followed and cookies are not kept.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use keybridge_net::egress::{self, PooledClient, RequestBody};

use super::McpServerConfig;

/// The HTTP client of one MCP server; clones share the connections.
#[derive(Clone)]
pub(super) struct HttpClient {
    client: PooledClient,
    uri: Uri,
    headers: Arc<[(HeaderName, HeaderValue)]>,
    pub(super) connect_timeout: Duration,
}

/// How an HTTP exchange with an MCP server failed. No message holds a header's value.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("no connection: {0}")]
    Connect(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("it answered with the status {0}")]
    Status(StatusCode),
    #[error("its answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("{0}")]
    Invalid(String),
}

impl HttpClient {
    pub(super) fn new(config: &McpServerConfig) -> Self {
        let client = egress::client(&config.egress, config.connect_timeout, false);
        let headers = config.headers.iter().map(|(name, value)| {
            let mut value = value.clone();
            value.set_sensitive(true);
            (name.clone(), value)
        });
        Self {
            client,
            uri: without_user_info(&config.url),
            headers: headers.collect(),
            connect_timeout: config.connect_timeout,
        }
    }

    /// The server's address as it may be shown.
    pub(super) fn display_url(&self) -> String {
        display_url(&self.uri)
    }

    /// Sends one request to the server's address and waits for the head of the response; the caller
    /// sets a timeout. `protocol` headers win over configured ones of the same name.
    pub(super) async fn send(
        &self,
        method: Method,
        protocol: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, HttpError> {
        let mut request = Request::new(RequestBody::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        for (name, value) in self.headers.iter() {
            headers.append(name, value.clone());
        }
        headers.extend(protocol);
        self.client.request(request).await.map_err(|error| {
            let is_connect = error.is_connect();
            let cause = last_cause(&error);
            if is_connect { HttpError::Connect(cause) } else { HttpError::Broken(cause) }
        })
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

/// Reads a body to its end, unless it is larger than `limit`.
pub(super) async fn read(mut body: Incoming, limit: usize) -> Result<Vec<u8>, HttpError> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| HttpError::Broken(last_cause(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit.saturating_sub(read.len()) {
            return Err(HttpError::TooLarge(limit));
        }
        read.extend_from_slice(&data);
    }
    Ok(read)
}

/// The innermost cause of an error: the outer ones only say that something failed.
pub(super) fn last_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The address without user information and query, as it may be shown and recorded.
pub(super) fn display_url(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("http");
    let host = url.host().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{}", url.path())
}

/// User information is no part of a request's target.
fn without_user_info(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    let host = parts.authority.as_ref().and_then(|authority| {
        let (_user, host) = authority.as_str().rsplit_once('@')?;
        host.parse::<uri::Authority>().ok()
    });
    if host.is_some() {
        parts.authority = host;
    }
    Uri::from_parts(parts).unwrap_or_else(|_invalid| url.clone())
}
