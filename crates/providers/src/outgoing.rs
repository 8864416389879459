//! A request as sent to a provider.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::Full;

use crate::credential::Credential;

/// A request as sent to a provider; it holds the whole body, so that it can be retried.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Outgoing {
    pub(crate) fn request(&self, credential: &Credential) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        credential.insert_into(request.headers_mut());
        request
    }
}
