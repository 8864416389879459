//! A request as sent to a provider.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use keybridge_net::egress::RequestBody;

use crate::{credential::Credential, upload::Upload};

/// A request as sent to a provider; unless it is an upload, it holds the whole body, so that it can be
/// retried.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Sent instead of the body, of which that is only the beginning.
    pub upload: Option<Upload>,
}

impl Outgoing {
    /// Whether it can be sent, for the first time or again.
    pub(crate) fn is_sendable(&self) -> bool {
        self.upload.as_ref().is_none_or(Upload::is_untouched)
    }

    pub(crate) fn request(&self, credential: &Credential) -> Request<RequestBody> {
        let mut request = Request::new(match &self.upload {
            None => RequestBody::from(self.body.clone()),
            Some(upload) => RequestBody::streamed(upload.body()),
        });
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        credential.insert_into(request.headers_mut());
        request
    }
}
