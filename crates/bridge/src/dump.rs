//! Upstream exchanges as files, for debugging; off unless a provider has a `dump_dir`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use keybridge_wire::mask::mask;

use crate::{
    headers::{X_API_KEY, carries_token},
    provider::Outgoing,
};

/// Parts of the names of headers whose values are not shown, whatever they are.
const SECRET_NAMES: [&str; 4] = ["auth", "key", "secret", "token"];

/// The files of one exchange: `<id>.request` and `<id>.response`, in an inner loop's further turns
/// `<id>.<turn>.request` and so on.
#[derive(Debug)]
pub(crate) struct Dump {
    response: File,
}

/// A request as it goes to the provider.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    pub(crate) outgoing: &'a Outgoing,
    /// Headers set by the configuration, which may hold secrets.
    pub(crate) set_headers: &'a [(HeaderName, http::HeaderValue)],
}

impl Dump {
    /// Writes the request and makes ready for the response. A directory that cannot be written
    /// is logged and does not stop the request.
    pub(crate) fn request(dir: &Path, id: &str, sent: &Sent<'_>) -> Option<Self> {
        Self::try_request(dir, id, sent)
            .inspect_err(|error| tracing::warn!(%error, dir = %dir.display(), "no dump is written"))
            .ok()
    }

    fn try_request(dir: &Path, id: &str, sent: &Sent<'_>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut request = File::create(dir.join(format!("{id}.request")))?;
        let Outgoing { method, uri, headers, body } = sent.outgoing;
        let mut head = format!("{method} {uri}\n");
        push_headers(&mut head, headers, sent.set_headers);
        request.write_all(head.as_bytes())?;
        request.write_all(body)?;
        Ok(Self { response: File::create(dir.join(format!("{id}.response")))? })
    }

    pub(crate) fn response_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let mut head = format!("{status}\n");
        push_headers(&mut head, headers, &[]);
        self.write(head.as_bytes());
    }

    pub(crate) fn response_chunk(&mut self, chunk: &Bytes) {
        self.write(chunk);
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.response.write_all(bytes) {
            tracing::warn!(%error, "a dump is incomplete");
        }
    }
}

fn push_headers(
    text: &mut String,
    headers: &HeaderMap,
    secrets: &[(HeaderName, http::HeaderValue)],
) {
    for (name, value) in headers {
        let value_text = String::from_utf8_lossy(value.as_bytes());
        let is_secret = value.is_sensitive()
            || *name == header::AUTHORIZATION
            || *name == X_API_KEY
            || *name == header::SET_COOKIE
            || SECRET_NAMES.iter().any(|word| name.as_str().contains(word))
            || secrets.iter().any(|(secret, _)| secret == name)
            || carries_token(value.as_bytes());
        let shown = if is_secret { mask(&value_text) } else { value_text.into_owned() };
        text.push_str(&format!("{name}: {shown}\n"));
    }
    text.push('\n');
}
