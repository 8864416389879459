//! The request body: bounded, never waited for without progress, decoded for reading only.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use keybridge_net::encoding::{DecodeError, codings, decoded};
use keybridge_providers::failure::Failure;
use keybridge_wire::error::ErrorKind;
use tokio::time::timeout;

use crate::{
    admission::limits::{Limits, Memory},
    config::BridgeConfig,
};

/// A request body as it came.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// The bytes that go upstream.
    pub(crate) bytes: Bytes,
    /// Given back when the body is no longer held.
    pub(crate) memory: Arc<Memory>,
    codings: Vec<String>,
}

/// Longest that a refused request's body is read on, so that the client sees the answer and not a
/// reset connection.
const DISCARD_TIME: Duration = Duration::from_secs(5);
/// The same for a body that had to wait for memory: its client is known, and still sends much of it.
const LONG_DISCARD_TIME: Duration = Duration::from_secs(60);

/// Reads the whole body.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    config: &BridgeConfig,
    limits: &Limits,
) -> Result<Received, Failure> {
    let (limit, patience) = (config.max_body, config.body_timeout);
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        discard(body, limit).await;
        return Err(too_large(limit));
    }
    let mut memory = Memory::default();
    if let Err(failure) = limits.take_memory(&mut memory, announced.unwrap_or(0)).await {
        discard_within(body, limit, LONG_DISCARD_TIME).await;
        return Err(failure);
    }
    // Most bodies come in one piece, which is then kept as it is; a longer one is gathered.
    let mut bytes = Bytes::new();
    let mut gathered = BytesMut::new();
    loop {
        let frame = match timeout(patience, body.frame()).await {
            Err(_elapsed) => return Err(too_slow(patience)),
            Ok(None) => break,
            Ok(Some(Err(_error))) => return Err(Failure::invalid("the request body broke off")),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + gathered.len() + data.len() > limit {
            discard(body, limit).await;
            return Err(too_large(limit));
        }
        if announced.is_none() {
            let size = bytes.len() + gathered.len() + data.len();
            // In steps that grow, so that it is seldom asked for.
            let wanted = size.next_power_of_two().min(limit);
            if let Err(failure) = limits.take_memory(&mut memory, wanted).await {
                discard_within(body, limit, LONG_DISCARD_TIME).await;
                return Err(failure);
            }
        }
        if gathered.is_empty() && bytes.is_empty() {
            bytes = data;
            continue;
        }
        if gathered.is_empty() {
            gathered.reserve(announced.unwrap_or(0));
            gathered.extend_from_slice(&std::mem::take(&mut bytes));
        }
        gathered.extend_from_slice(&data);
    }
    if !gathered.is_empty() {
        bytes = gathered.freeze();
    }
    Ok(Received { bytes, memory: Arc::new(memory), codings: codings(headers) })
}

/// Reads on and forgets, so that an early answer reaches a client that is still sending.
pub(crate) async fn discard(body: Body, limit: usize) {
    discard_within(body, limit, DISCARD_TIME).await;
}

async fn discard_within(mut body: Body, limit: usize, time: Duration) {
    let reading = async {
        let mut seen = 0_usize;
        while let Some(Ok(frame)) = body.frame().await {
            seen = seen.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if seen > limit {
                break;
            }
        }
    };
    // Whoever is too slow gets the answer anyway.
    let _finished = timeout(time, reading).await;
}

impl Received {
    /// The body without its content encoding.
    pub(crate) fn plain(&self, limit: usize) -> Result<Cow<'_, [u8]>, Failure> {
        decoded(&self.codings, &self.bytes, limit).map_err(|error| match error {
            DecodeError::TooLarge(limit) => too_large(limit),
            other => Failure::invalid(&other.to_string()),
        })
    }
}

fn too_large(limit: usize) -> Failure {
    Failure::refusal(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::RequestTooLarge,
        &format!("the request body is larger than {limit} bytes"),
    )
}

fn too_slow(patience: Duration) -> Failure {
    Failure::refusal(
        StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Timeout,
        &format!("no more of the request body came within {} s", patience.as_secs()),
    )
}
