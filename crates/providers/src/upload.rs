//! An upload: a request body that goes to the provider while it arrives, and is never held as a whole.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{body::BodyError, failure::Failure};

/// Where an upload comes from; its errors are told to the client.
pub type UploadSource = Pin<Box<dyn Body<Data = Bytes, Error = Failure> + Send>>;

/// An upload, and how far it has gone; clones share it.
///
/// It can be sent to a provider as long as none of its bytes has been.
#[derive(Clone)]
pub struct Upload(Arc<Mutex<State>>);

struct State {
    /// Here while it is not being sent.
    source: Option<UploadSource>,
    sent_bytes: u64,
    hash: digest::Context,
    is_complete: bool,
    failure: Option<Failure>,
}

/// What has been sent of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadProgress {
    /// The bytes so far.
    pub bytes: u64,
    /// The SHA-256 of the whole body in hex, once it has been sent.
    pub sha256: Option<String>,
}

/// An upload that is being sent; its source goes back when this is dropped.
pub(crate) struct UploadBody {
    upload: Upload,
    source: Option<UploadSource>,
}

impl Upload {
    /// An upload of which nothing has been sent.
    pub fn new(source: UploadSource) -> Self {
        let hash = digest::Context::new(&digest::SHA256);
        let state =
            State { source: Some(source), sent_bytes: 0, hash, is_complete: false, failure: None };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Why it ended before it was complete.
    pub fn failure(&self) -> Option<Failure> {
        self.state().failure.clone()
    }

    /// What has been sent so far.
    pub fn progress(&self) -> UploadProgress {
        let state = self.state();
        let sha256 = || hex::encode(state.hash.clone().finish());
        UploadProgress { bytes: state.sent_bytes, sha256: state.is_complete.then(sha256) }
    }

    /// Takes what has not been sent, unless it is being sent.
    pub fn take_rest(&self) -> Option<UploadSource> {
        self.state().source.take()
    }

    /// Whether it is at its beginning, so that it can be sent.
    pub(crate) fn is_untouched(&self) -> bool {
        let state = self.state();
        state.source.is_some() && state.sent_bytes == 0 && state.failure.is_none()
    }

    /// The body of a request; without a source it fails.
    pub(crate) fn body(&self) -> UploadBody {
        UploadBody { source: self.take_rest(), upload: self.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.state().sent_bytes;
        f.debug_struct("Upload").field("sent_bytes", &bytes).finish_non_exhaustive()
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(source) = &mut this.source else {
            return Poll::Ready(Some(Err("the upload has been sent already".into())));
        };
        let Poll::Ready(frame) = source.as_mut().poll_frame(cx) else { return Poll::Pending };
        let mut state = this.upload.state();
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    state.hash.update(data);
                    let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    state.sent_bytes = state.sent_bytes.saturating_add(bytes);
                }
                // A body of known length is not asked for its end.
                state.is_complete = source.is_end_stream();
                Some(Ok(frame))
            }
            Some(Err(failure)) => {
                let error = failure.detail.clone();
                state.failure = Some(failure);
                // The rest can be read at once, to be discarded.
                state.source = this.source.take();
                Some(Err(error.into()))
            }
            None => {
                state.is_complete = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.source.as_ref().map_or_else(SizeHint::default, |source| source.size_hint())
    }
}

impl Drop for UploadBody {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            self.upload.state().source = Some(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http_body_util::{BodyExt, StreamBody};
    use keybridge_wire::error::ErrorKind;

    use super::*;

    fn upload(chunks: Vec<Result<&'static str, Failure>>) -> Upload {
        let frames = chunks.into_iter().map(|chunk| chunk.map(|text| Frame::data(text.into())));
        let frames: Vec<_> = frames.collect();
        Upload::new(Box::pin(StreamBody::new(futures_util::stream::iter(frames))))
    }

    #[tokio::test]
    async fn what_has_been_sent_is_counted_and_hashed() {
        let upload = upload(vec![Ok("ab"), Ok("c")]);
        let sent = upload.body().collect().await.unwrap().to_bytes();
        assert_eq!(&*sent, b"abc");
        let progress = upload.progress();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((progress.bytes, progress.sha256.as_deref()), (3, Some(expected)));
    }

    #[tokio::test]
    async fn an_upload_can_be_sent_again_until_a_byte_has_gone() {
        let upload = upload(vec![Ok("ab"), Ok("c")]);
        drop(upload.body());
        assert!(upload.is_untouched(), "no connection was made");
        let mut body = upload.body();
        assert!(!upload.is_untouched(), "it is being sent");
        let _first = body.frame().await.unwrap().unwrap();
        drop(body);
        assert!(!upload.is_untouched());
        assert_eq!(upload.progress(), UploadProgress { bytes: 2, sha256: None });
        assert!(upload.take_rest().is_some());
    }

    #[tokio::test]
    async fn the_error_of_the_source_is_kept_for_the_client() {
        let large = Failure::refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::RequestTooLarge,
            "the request body is too large",
        );
        let upload = upload(vec![Ok("ab"), Err(large.clone())]);
        assert!(upload.body().collect().await.is_err());
        assert_eq!(upload.failure(), Some(large));
        assert_eq!(upload.progress().sha256, None);
    }
}
