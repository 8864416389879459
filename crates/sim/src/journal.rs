//! A file of the responses that were sent, for comparison with what a bridge recorded.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde_json::json;

/// The file; clones write to the same one.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<File>);

impl Journal {
    pub(crate) fn new(file: File) -> Self {
        Self(Arc::new(file))
    }

    /// Writes the line of a response in a single write, so that it survives the end of this process.
    pub(crate) fn write(&self, response_id: &str, path: &str, body: &[u8]) -> io::Result<()> {
        let hash = digest::digest(&digest::SHA256, body);
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let at = Timestamp::now().to_string();
        let line = json!({
            "response_id": response_id, "request_sha256": hash, "path": path, "at": at,
        });
        (&*self.0).write_all(format!("{line}\n").as_bytes())
    }
}
