//! Plays a script of bytes, pauses and aborts as a response.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::Frame;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::exchange::ActiveExchange;

/// How long a hold waits for its release.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);

/// A step of a response body.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Bytes(Bytes),
    Wait(Duration),
    /// Nothing more until this is cancelled; aborts after a timeout.
    Hold(CancellationToken),
    /// The connection is aborted.
    Abort,
    /// Nothing more until the client disconnects.
    Stall,
}

impl Step {
    /// An event of a stream.
    pub(crate) fn event(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

/// A scripted response.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) steps: Vec<Step>,
    /// The id of the response, if it is a model's.
    pub(crate) response_id: Option<String>,
}

impl Script {
    /// A complete JSON response.
    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::whole(status, "application/json", value.to_string().into())
    }

    pub(crate) fn whole(status: u16, content_type: &str, body: Bytes) -> Self {
        let headers = vec![
            ("content-type", content_type.to_owned()),
            ("content-length", body.len().to_string()),
        ];
        Self { status, headers, steps: vec![Step::Bytes(body)], response_id: None }
    }

    /// An event stream.
    pub(crate) fn stream(steps: Vec<Step>) -> Self {
        let headers = vec![
            ("content-type", "text/event-stream; charset=utf-8".into()),
            ("cache-control", "no-cache".into()),
        ];
        Self { status: 200, headers, steps, response_id: None }
    }

    pub(crate) fn with_response_id(self, response_id: Option<String>) -> Self {
        Self { response_id, ..self }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets a header, replacing an existing one.
    pub(crate) fn set_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.header(name, value)
    }

    /// Waits for the pauses before the first byte.
    pub(crate) async fn until_first_byte(&mut self, active: &ActiveExchange) {
        let guard = active.guard_disconnect();
        while let Some(Step::Wait(pause)) = self.steps.first() {
            tokio::time::sleep(*pause).await;
            self.steps.remove(0);
        }
        guard.disarm();
    }

    /// Creates the response, whose body records what it sends.
    pub(crate) fn play(self, active: ActiveExchange) -> Response<Body> {
        let headers = self.headers.iter().filter_map(|(name, value)| {
            let value = HeaderValue::from_str(value).ok()?;
            Some((HeaderName::from_static(name), value))
        });
        let mut response = Response::new(Body::empty());
        for (name, value) in headers {
            response.headers_mut().append(name, value);
        }
        *response.status_mut() = status(self.status);
        let noted = self.headers.iter();
        let noted = noted.map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes()));
        let noted: Vec<_> = noted.collect();
        active.change(|exchange| {
            exchange.status = self.status;
            exchange.response_headers = noted;
        });
        let steps: VecDeque<Step> = self.steps.into();
        *response.body_mut() = Body::new(Player { steps, waiting: None, active, ended: false });
        response
    }
}

/// A complete JSON response that is not recorded.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status(code);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

struct Player {
    steps: VecDeque<Step>,
    /// The pending wait; resolves to whether the response continues.
    waiting: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
    active: ActiveExchange,
    ended: bool,
}

impl http_body::Body for Player {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(waiting) = &mut this.waiting {
                let goes_on = std::task::ready!(waiting.as_mut().poll(cx));
                this.waiting = None;
                if !goes_on {
                    let problem = "the hold was not released within 30 s";
                    this.active.change(|exchange| exchange.problems.push(problem.into()));
                    this.steps.push_front(Step::Abort);
                }
            }
            match this.steps.pop_front() {
                None => {
                    this.end();
                    return Poll::Ready(None);
                }
                Some(Step::Bytes(bytes)) if bytes.is_empty() => {}
                Some(Step::Bytes(bytes)) => {
                    this.active.sent(&bytes);
                    if this.steps.is_empty() {
                        this.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Step::Wait(pause)) if pause.is_zero() => {}
                Some(Step::Wait(pause)) => {
                    this.waiting = Some(Box::pin(async move {
                        tokio::time::sleep(pause).await;
                        true
                    }));
                }
                Some(Step::Hold(gate)) => {
                    this.waiting = Some(Box::pin(async move {
                        tokio::time::timeout(HOLD_TIMEOUT, gate.cancelled_owned()).await.is_ok()
                    }));
                }
                Some(Step::Abort) => {
                    this.end();
                    return Poll::Ready(Some(Err(io::Error::other(
                        "the scenario aborts the connection",
                    ))));
                }
                Some(Step::Stall) => {
                    this.steps.push_front(Step::Stall);
                    // Never woken: the body is dropped when the client disconnects.
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Player {
    fn end(&mut self) {
        self.ended = true;
        self.active.change(|exchange| exchange.finished = true);
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if !self.ended {
            self.active.client_left();
        }
    }
}
