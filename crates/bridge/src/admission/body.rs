//! The request body: bounded, read with a timeout, decoded once.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use keybridge_net::encoding::{self, DecodeError, codings};
use keybridge_providers::failure::Failure;
use keybridge_wire::error::ErrorKind;
use tokio::time::timeout;

use super::limits::{Limits, Memory, no_memory};

/// Maximum size of a body that is decoded on the async thread; larger ones are decoded on a blocking
/// thread, because they would delay other requests.
const MAX_INLINE_DECODE: usize = 64 * 1024;
/// How long the body of a refused request is read and discarded, so that the client sees the response
/// and not a connection reset.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a body that waited for memory: its client is authenticated, and has much left to send.
const LARGE_DISCARD_TIMEOUT: Duration = Duration::from_secs(60);

/// A request body.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    /// As received: these bytes go upstream.
    pub(crate) bytes: Bytes,
    /// Released when the body is dropped.
    pub(crate) memory: Arc<Memory>,
    codings: Vec<String>,
    /// Without content encoding.
    plain: Option<Bytes>,
}

/// Limits on the size of a body and on the pauses within it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// Maximum size in bytes, both as sent and as decoded.
    pub(crate) max_bytes: usize,
    /// Timeout of each read.
    pub(crate) read_timeout: Duration,
}

/// Reads the whole body.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limits: BodyLimits,
    budget: &Limits,
) -> Result<RequestBody, Failure> {
    let BodyLimits { max_bytes, read_timeout } = limits;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<usize>().ok());
    if announced.is_some_and(|length| length > max_bytes) {
        discard(body, max_bytes).await;
        return Err(too_large(max_bytes));
    }
    let mut memory = Memory::default();
    if let Err(failure) = budget.memory.take(&mut memory, announced.unwrap_or(0)).await {
        discard_within(body, max_bytes, LARGE_DISCARD_TIMEOUT).await;
        return Err(failure);
    }
    // Most bodies arrive in one chunk, which is kept as it is; several chunks are concatenated.
    let mut bytes = Bytes::new();
    let mut gathered = BytesMut::new();
    loop {
        let frame = match timeout(read_timeout, body.frame()).await {
            Err(_elapsed) => return Err(too_slow(read_timeout)),
            Ok(None) => break,
            Ok(Some(Err(_error))) => {
                return Err(Failure::invalid("the request body ended before it was complete"));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let size = bytes.len() + gathered.len() + data.len();
        if size > max_bytes {
            discard(body, max_bytes).await;
            return Err(too_large(max_bytes));
        }
        if announced.is_none() {
            // In growing steps, so that few are needed.
            let wanted = size.next_power_of_two().min(max_bytes);
            if let Err(failure) = budget.memory.take(&mut memory, wanted).await {
                discard_within(body, max_bytes, LARGE_DISCARD_TIMEOUT).await;
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
    Ok(RequestBody { bytes, memory: Arc::new(memory), codings: codings(headers), plain: None })
}

/// Reads and discards the rest of a body, so that an early response reaches a client that is still
/// sending.
pub(crate) async fn discard(body: Body, limit: usize) {
    discard_within(body, limit, DISCARD_TIMEOUT).await;
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
    // A slower client is sent the response anyway.
    let _finished = timeout(time, reading).await;
}

impl RequestBody {
    /// Decodes the content encoding, once; afterwards [`RequestBody::plain`] returns the body.
    pub(crate) async fn decode(
        &mut self,
        max_bytes: usize,
        budget: &Limits,
    ) -> Result<(), Failure> {
        if self.codings.is_empty() {
            self.plain = Some(self.bytes.clone());
            return Ok(());
        }
        let inline = MAX_INLINE_DECODE.min(max_bytes);
        self.plain = Some(match encoding::decoded(&self.codings, &self.bytes, inline) {
            Ok(plain) => Bytes::from(plain.into_owned()),
            Err(DecodeError::TooLarge(_)) => self.decode_large(max_bytes, budget).await?,
            Err(error) => return Err(undecodable(&error)),
        });
        Ok(())
    }

    /// Decodes on a blocking thread, within the memory budget of request bodies.
    async fn decode_large(&mut self, max_bytes: usize, budget: &Limits) -> Result<Bytes, Failure> {
        let _permit = budget.decode_permit().await?;
        let (codings, bytes) = (self.codings.clone(), self.bytes.clone());
        let (memory_budget, runtime) = (budget.memory.clone(), tokio::runtime::Handle::current());
        let decoding = tokio::task::spawn_blocking(move || {
            let mut memory = Memory::default();
            let mut reserve =
                |size: usize| runtime.block_on(memory_budget.take(&mut memory, size)).is_ok();
            let plain = encoding::decoded_within(&codings, &bytes, max_bytes, &mut reserve)
                .map(|plain| Bytes::from(plain.into_owned()));
            (plain, memory)
        });
        let (plain, memory) =
            decoding.await.map_err(|error| Failure::internal(&error.to_string()))?;
        let plain = plain.map_err(|error| undecodable(&error))?;
        let encoded = std::mem::take(&mut self.memory);
        self.memory = Arc::new(Memory::join(encoded, memory));
        Ok(plain)
    }

    /// The body without its content encoding; empty before [`RequestBody::decode`].
    pub(crate) fn plain(&self) -> Bytes {
        self.plain.clone().unwrap_or_default()
    }
}

fn undecodable(error: &DecodeError) -> Failure {
    match error {
        DecodeError::TooLarge(limit) => too_large(*limit),
        DecodeError::NoMemory => no_memory(),
        other => Failure::invalid(&format!("cannot decode the request body: {other}")),
    }
}

fn too_large(limit: usize) -> Failure {
    Failure::refusal(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::RequestTooLarge,
        &format!("the request body is larger than the limit of {limit} bytes"),
    )
}

fn too_slow(read_timeout: Duration) -> Failure {
    Failure::refusal(
        StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Timeout,
        &format!("timed out: no data of the request body for {} s", read_timeout.as_secs()),
    )
}

#[cfg(test)]
mod tests {
    use std::{future::Future, io::Write, pin::pin, task::Context};

    use futures_util::task::noop_waker;
    use http::HeaderValue;
    use keybridge_policy::LimitsConfig;

    use super::*;

    const MIB: usize = 1 << 20;

    fn gzipped(text: &[u8]) -> RequestBody {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        RequestBody {
            bytes: encoder.finish().unwrap().into(),
            codings: codings(&headers),
            ..RequestBody::default()
        }
    }

    fn limits(body_memory: usize) -> Limits {
        Limits::new(LimitsConfig { body_memory, ..LimitsConfig::default() })
    }

    /// Whether the body is decoded at the first poll, on the polling thread.
    fn decodes_at_once(body: &mut RequestBody, limits: &Limits) -> bool {
        let waker = noop_waker();
        pin!(body.decode(64 * MIB, limits)).poll(&mut Context::from_waker(&waker)).is_ready()
    }

    #[tokio::test]
    async fn a_small_body_is_decoded_inline_and_a_large_one_on_another_thread() {
        let limits = limits(512 * MIB);
        assert!(decodes_at_once(&mut gzipped(b"{}"), &limits));
        assert!(!decodes_at_once(&mut gzipped(&vec![b' '; 16 * MIB]), &limits));
    }

    #[tokio::test]
    async fn a_decoded_body_counts_as_memory_until_it_is_dropped() {
        let limits = limits(8 * MIB);
        let free = limits.memory.available();
        let mut body = gzipped(&vec![b' '; 6 * MIB]);
        body.decode(64 * MIB, &limits).await.unwrap();
        assert_eq!(body.plain().len(), 6 * MIB);
        assert!(limits.memory.available() <= free - 6 * MIB);
        drop(body);
        assert_eq!(limits.memory.available(), free);
    }

    #[tokio::test]
    async fn a_body_waits_for_memory_until_another_body_releases_it() {
        let limits = limits(8 * MIB);
        let mut first = gzipped(&vec![b' '; 7 * MIB]);
        first.decode(64 * MIB, &limits).await.unwrap();
        let mut second = gzipped(&vec![b' '; 7 * MIB]);
        let mut waiting = pin!(second.decode(64 * MIB, &limits));
        let waker = noop_waker();
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(first);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_however_small_its_encoding() {
        let limits = limits(512 * MIB);
        let mut body = gzipped(&vec![b' '; 4 * MIB]);
        let failure = body.decode(2 * MIB, &limits).await.unwrap_err();
        assert_eq!(failure.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
