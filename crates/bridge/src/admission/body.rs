//! The request body: bounded, read with a timeout, decoded once.

use std::{num::NonZeroU32, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use keybridge_net::encoding::{self, DecodeError, codings};
use keybridge_providers::{failure::Failure, upload::Upload};
use keybridge_wire::error::ErrorKind;
use tokio::time::{Instant, timeout, timeout_at};

use super::{limits::Limits, memory::Memory};

/// Maximum size of a body that is decoded on the async thread; larger ones are decoded on a blocking
/// thread, because they would delay other requests.
const MAX_INLINE_DECODE: usize = 64 * 1024;
/// How long the body of a refused request is read and discarded, so that the client sees the response
/// and not a connection reset.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a body that waited for memory: its client is authenticated, and may have much left to
/// send.
const LARGE_DISCARD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a body may be slower than the minimum rate at its start.
const RATE_GRACE_PERIOD: Duration = Duration::from_secs(10);
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A request body.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    /// As received: these bytes go upstream.
    pub(crate) bytes: Bytes,
    /// Released when the body is dropped.
    pub(crate) memory: Memory,
    /// Bytes of the copies of the body that memory is reserved for.
    copied: usize,
    codings: Vec<String>,
    /// Without content encoding.
    plain: Option<Bytes>,
    /// Set if the body is passed on while it arrives; the bytes are its beginning.
    pub(crate) upload: Option<Upload>,
}

/// Limits on the size of a body, its pauses and its rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// Maximum size in bytes, both as sent and as decoded.
    pub(crate) max_bytes: usize,
    /// Timeout of each read.
    pub(crate) read_timeout: Duration,
    /// Minimum rate in bytes per second, from [`RATE_GRACE_PERIOD`] on.
    pub(crate) min_rate: Option<NonZeroU32>,
}

/// Reads the whole body.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limits: BodyLimits,
    mut memory: Memory,
) -> Result<RequestBody, Failure> {
    let max_bytes = limits.max_bytes;
    let announced = announced_length(headers);
    if announced.is_some_and(|length| length > max_bytes) {
        discard(body, max_bytes).await;
        return Err(too_large(max_bytes));
    }
    if let Err(failure) = memory.grow(announced.unwrap_or(0)).await {
        discard_within(body, max_bytes, LARGE_DISCARD_TIMEOUT).await;
        return Err(failure);
    }
    let mut pace = Pace::new(limits);
    let mut received = Received { announced, ..Received::default() };
    loop {
        let frame = match timeout_at(pace.deadline, body.frame()).await {
            Err(_elapsed) => return Err(pace.too_slow()),
            Ok(None) => break,
            Ok(Some(Err(_error))) => return Err(incomplete()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let size = received.len() + data.len();
        if size > max_bytes {
            drop((received, memory));
            discard(body, max_bytes).await;
            return Err(too_large(max_bytes));
        }
        if size > memory.bytes() {
            let since = Instant::now();
            // In growing steps, so that few are needed.
            let wanted = size.next_power_of_two().min(max_bytes);
            if let Err(failure) = memory.grow(wanted).await {
                drop((received, data, memory));
                discard_within(body, max_bytes, LARGE_DISCARD_TIMEOUT).await;
                return Err(failure);
            }
            pace.extend(since.elapsed());
        }
        pace.note_data(data.len());
        received.push(data);
    }
    Ok(RequestBody::held(received, headers, memory))
}

/// The length of a body that its sender announces.
pub(super) fn announced_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What has been received of a body. Most bodies arrive in one chunk, which is kept as it is; several
/// chunks are concatenated.
#[derive(Debug, Default)]
pub(super) struct Received {
    announced: Option<usize>,
    first: Bytes,
    gathered: BytesMut,
}

impl Received {
    pub(super) fn len(&self) -> usize {
        self.first.len() + self.gathered.len()
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        if self.gathered.is_empty() {
            self.gathered.reserve(self.announced.unwrap_or(0));
            self.gathered.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.gathered.extend_from_slice(&data);
    }
}

impl From<Received> for Bytes {
    fn from(received: Received) -> Self {
        if received.gathered.is_empty() { received.first } else { received.gathered.freeze() }
    }
}

/// How long a body may still take. Data extends the time by what it may take at the minimum rate, so
/// that a client cannot keep a body open with a byte now and then.
#[derive(Debug)]
pub(super) struct Pace {
    limits: BodyLimits,
    pub(super) deadline: Instant,
    latest: Instant,
}

impl Pace {
    pub(super) fn new(limits: BodyLimits) -> Self {
        let now = Instant::now();
        let latest = now + limits.read_timeout;
        let deadline = match limits.min_rate {
            Some(_rate) => latest.min(now + RATE_GRACE_PERIOD),
            None => latest,
        };
        Self { limits, deadline, latest }
    }

    pub(super) fn note_data(&mut self, bytes: usize) {
        self.latest = Instant::now() + self.limits.read_timeout;
        self.deadline = match self.limits.min_rate {
            Some(rate) => {
                let nanos =
                    u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(NANOS_PER_SECOND);
                let allowed = Duration::from_nanos(nanos / u64::from(rate.get()));
                self.latest.min(self.deadline + allowed)
            }
            None => self.latest,
        };
    }

    /// Adds the time in which the bridge did not read.
    pub(super) fn extend(&mut self, waited: Duration) {
        self.deadline += waited;
    }

    pub(super) fn too_slow(&self) -> Failure {
        let pause = self.limits.read_timeout.as_secs();
        let detail = match self.limits.min_rate {
            Some(rate) if self.deadline < self.latest => {
                format!("timed out: the request body arrives at less than {rate} bytes per second")
            }
            _ => format!("timed out: no data of the request body for {pause} s"),
        };
        Failure::refusal(StatusCode::REQUEST_TIMEOUT, ErrorKind::Timeout, &detail)
    }
}

/// Reads and discards the rest of a body, so that an early response reaches a client that is still
/// sending.
pub(crate) async fn discard(body: impl http_body::Body<Data = Bytes> + Unpin, limit: usize) {
    discard_within(body, limit, DISCARD_TIMEOUT).await;
}

async fn discard_within(
    mut body: impl http_body::Body<Data = Bytes> + Unpin,
    limit: usize,
    time: Duration,
) {
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
    /// A body that has been received as a whole.
    pub(super) fn held(received: Received, headers: &HeaderMap, memory: Memory) -> Self {
        let (bytes, codings) = (received.into(), codings(headers));
        Self { bytes, memory, codings, ..Self::default() }
    }

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
            Err(DecodeError::TooLarge(_)) => {
                // Boxed: few bodies are that large.
                Box::pin(self.decode_large(max_bytes, budget)).await?
            }
            Err(error) => return Err(undecodable(&error)),
        });
        self.reserve_for_copy(self.plain().len()).await
    }

    /// Reserves memory for a copy or another form of the body that is held beside it.
    pub(crate) async fn reserve_for_copy(&mut self, bytes: usize) -> Result<(), Failure> {
        let copied = self.copied.saturating_add(bytes);
        self.memory.grow(self.bytes.len().saturating_add(copied)).await?;
        self.copied = copied;
        Ok(())
    }

    /// Decodes on a blocking thread, within the memory budget of request bodies.
    async fn decode_large(&mut self, max_bytes: usize, budget: &Limits) -> Result<Bytes, Failure> {
        loop {
            let permit = budget.decode_permit().await?;
            let (codings, bytes) = (self.codings.clone(), self.bytes.clone());
            let mut memory = std::mem::take(&mut self.memory);
            let decoding = tokio::task::spawn_blocking(move || {
                let mut missing = 0;
                let mut reserve = |decoded: usize| {
                    missing = bytes.len().saturating_add(decoded);
                    memory.try_grow(missing)
                };
                let plain = encoding::decoded_within(&codings, &bytes, max_bytes, &mut reserve)
                    .map(|plain| Bytes::from(plain.into_owned()));
                (plain, memory, missing)
            });
            let (plain, memory, missing) =
                decoding.await.map_err(|error| Failure::internal(&error.to_string()))?;
            self.memory = memory;
            match plain {
                Ok(plain) => return Ok(plain),
                // Waits without keeping others from decoding, and then starts again.
                Err(DecodeError::NoMemory) => {
                    drop(permit);
                    self.memory.grow(missing).await?;
                }
                Err(error) => return Err(undecodable(&error)),
            }
        }
    }

    /// The body without its content encoding; empty before [`RequestBody::decode`].
    pub(crate) fn plain(&self) -> Bytes {
        self.plain.clone().unwrap_or_default()
    }
}

fn undecodable(error: &DecodeError) -> Failure {
    match error {
        DecodeError::TooLarge(limit) => too_large(*limit),
        other => Failure::invalid(&format!("cannot decode the request body: {other}")),
    }
}

pub(super) fn incomplete() -> Failure {
    Failure::invalid("the request body ended before it was complete")
}

pub(super) fn too_large(limit: usize) -> Failure {
    Failure::refusal(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::RequestTooLarge,
        &format!("the request body is larger than the limit of {limit} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use std::{future::Future, io::Write, pin::pin, task::Context};

    use futures_util::task::noop_waker;
    use http::HeaderValue;
    use keybridge_policy::LimitsConfig;
    use uuid::Uuid;

    use super::*;

    const MIB: usize = 1 << 20;

    fn gzipped(text: &[u8], limits: &Limits, user: u128) -> RequestBody {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        RequestBody {
            bytes: encoder.finish().unwrap().into(),
            memory: limits.memory.reservation(Uuid::from_u128(user)),
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
        assert!(decodes_at_once(&mut gzipped(b"{}", &limits, 1), &limits));
        assert!(!decodes_at_once(&mut gzipped(&vec![b' '; 16 * MIB], &limits, 1), &limits));
    }

    #[tokio::test]
    async fn a_decoded_body_counts_as_memory_until_it_is_dropped() {
        let limits = limits(16 * MIB);
        for size in [2_000, 200_000, 6 * MIB] {
            let mut body = gzipped(&vec![b' '; size], &limits, 1);
            body.decode(64 * MIB, &limits).await.unwrap();
            assert_eq!(body.plain().len(), size);
            assert!(limits.memory.used() >= size, "{} of {size}", limits.memory.used());
            drop(body);
            assert_eq!(limits.memory.used(), 0);
        }
    }

    #[tokio::test]
    async fn a_body_waits_for_memory_until_another_body_releases_it() {
        let limits = limits(16 * MIB);
        let mut first = gzipped(&vec![b' '; 8 * MIB], &limits, 1);
        first.decode(64 * MIB, &limits).await.unwrap();
        let mut second = gzipped(&vec![b' '; 8 * MIB], &limits, 2);
        tokio::time::pause();
        let began = Instant::now();
        let releasing = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(first);
        };
        let (decoded, ()) = tokio::join!(second.decode(64 * MIB, &limits), releasing);
        decoded.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(second.plain().len(), 8 * MIB);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_however_small_its_encoding() {
        let limits = limits(512 * MIB);
        let mut body = gzipped(&vec![b' '; 4 * MIB], &limits, 1);
        let failure = body.decode(2 * MIB, &limits).await.unwrap_err();
        assert_eq!(failure.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test(start_paused = true)]
    async fn data_extends_the_time_of_a_body_by_what_it_may_take() {
        let limits = BodyLimits {
            max_bytes: MIB,
            read_timeout: Duration::from_secs(60),
            min_rate: NonZeroU32::new(1_024),
        };
        let began = Instant::now();
        let mut pace = Pace::new(limits);
        let seconds_left = |pace: &Pace| pace.deadline.duration_since(began).as_secs();
        assert_eq!(seconds_left(&pace), 10);
        pace.note_data(1);
        assert_eq!(seconds_left(&pace), 10, "a byte is worth a millisecond");
        pace.note_data(5 * 1_024);
        assert_eq!(seconds_left(&pace), 15);
        pace.note_data(MIB);
        assert_eq!(seconds_left(&pace), 60, "no more than the timeout of a read");
    }
}
