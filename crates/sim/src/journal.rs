//! A file of the responses that were sent, for comparison with what a bridge recorded.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::json;

use crate::credentials::sha256_hex;

/// The file; clones write to the same one.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<File>);

impl Journal {
    pub(crate) fn new(file: File) -> Self {
        Self(Arc::new(file))
    }

    /// Writes the line of a response in a single write, so that it survives the end of this process.
    pub(crate) fn write(&self, response_id: &str, path: &str, body: &[u8]) -> io::Result<()> {
        let hash = sha256_hex(body);
        let at = Timestamp::now().to_string();
        let line = json!({
            "response_id": response_id, "request_sha256": hash, "path": path, "at": at,
        });
        (&*self.0).write_all(format!("{line}\n").as_bytes())
    }
}
