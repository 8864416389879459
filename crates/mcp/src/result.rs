//! The result of a tool call, truncated to the configured size.

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::listing::truncate;

/// The result of a tool call as the server sent it, truncated if it is too large.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolResult {
    pub content: Vec<Content>,
    /// JSON of the structured result; omitted if it exceeds the limit by itself.
    pub structured: Option<String>,
    /// Whether the tool reports an error.
    pub is_error: bool,
    /// JSON of the result; if it was truncated, of the rest.
    pub raw: String,
    /// Size of the JSON that the server sent.
    pub bytes: usize,
    /// Whether anything was left out.
    pub truncated: bool,
}

/// One block of a result.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A text block or an embedded text resource.
    Text(String),
    /// A picture, in base64.
    Image { mime_type: String, data: String },
    /// A block of any other kind.
    Other { kind: String, json: String },
}

#[derive(Deserialize)]
struct RawResult<'a> {
    #[serde(rename = "resultType")]
    result_type: Option<String>,
    #[serde(borrow)]
    content: Option<Vec<&'a RawValue>>,
    #[serde(borrow, rename = "structuredContent")]
    structured: Option<&'a RawValue>,
    #[serde(default, rename = "isError")]
    is_error: Option<Value>,
}

impl ToolResult {
    /// Reads the JSON of a result of `tools/call`. Unknown blocks are kept as JSON.
    pub(super) fn read(raw: String, max_bytes: usize) -> Result<Self, String> {
        let bytes = raw.len();
        let read: RawResult<'_> = serde_json::from_str(&raw).map_err(|error| error.to_string())?;
        if let Some(kind) = read.result_type.filter(|kind| kind != "complete") {
            return Err(format!(
                "its type is `{}`, not `complete`",
                super::listing::excerpt(&kind)
            ));
        }
        let structured = read.structured.map(RawValue::get);
        let mut content: Vec<_> = read
            .content
            .unwrap_or_default()
            .into_iter()
            .map(|block| block_of(block.get()))
            .collect();
        if let (true, Some(structured)) = (content.is_empty(), structured) {
            content.push(Content::Text(structured.to_owned()));
        }
        let is_limited = limit(&mut content, bytes, max_bytes);
        let kept = structured.filter(|structured| structured.len() <= max_bytes);
        let mut result = Self {
            content,
            structured: kept.map(str::to_owned),
            is_error: read.is_error == Some(Value::Bool(true)),
            raw: String::new(),
            bytes,
            truncated: is_limited || kept.is_none() != structured.is_none(),
        };
        // Text and structure often hold the same: that alone is no reason to truncate.
        if result.truncated || bytes > max_bytes.saturating_mul(2) {
            result.raw = result.to_json();
        } else {
            result.raw = raw;
        }
        Ok(result)
    }

    fn to_json(&self) -> String {
        let blocks = self.content.iter().map(Content::to_value).collect();
        let mut result = Map::from_iter([("content".to_owned(), Value::Array(blocks))]);
        if let Some(structured) = &self.structured
            && let Ok(structured) = serde_json::from_str(structured)
        {
            result.insert("structuredContent".into(), structured);
        }
        if self.is_error {
            result.insert("isError".into(), Value::Bool(true));
        }
        Value::Object(result).to_string()
    }
}

impl Content {
    fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => json!({ "type": "text", "text": text }),
            Self::Image { mime_type, data } => {
                json!({ "type": "image", "data": data, "mimeType": mime_type })
            }
            Self::Other { json, .. } => serde_json::from_str(json).unwrap_or_default(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Image { data, .. } => data.len(),
            Self::Other { json, .. } => json.len(),
        }
    }
}

fn block_of(raw: &str) -> Content {
    let block: Value = serde_json::from_str(raw).unwrap_or_default();
    let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
    let kind = text(&block, "type").unwrap_or_else(|| "unknown".to_owned());
    let known = match kind.as_str() {
        "text" => text(&block, "text").map(Content::Text),
        "image" => text(&block, "data")
            .zip(text(&block, "mimeType"))
            .map(|(data, mime_type)| Content::Image { mime_type, data }),
        "resource" => {
            block.get("resource").and_then(|resource| text(resource, "text")).map(Content::Text)
        }
        _ => None,
    };
    known.unwrap_or_else(|| Content::Other { kind, json: raw.to_owned() })
}

/// Truncates the blocks to `max_bytes` in all, with a note for the model; returns whether it had to.
///
/// A text is truncated, any other block is replaced by the note.
fn limit(content: &mut Vec<Content>, bytes: usize, max_bytes: usize) -> bool {
    let note = || {
        Content::Text(format!(
            "[truncated: the result has {bytes} bytes, the limit is {max_bytes}]"
        ))
    };
    let mut left = max_bytes;
    let mut kept = Vec::with_capacity(content.len());
    let mut is_text_truncated = false;
    let mut is_block_left_out = false;
    for block in std::mem::take(content) {
        if let Some(rest) = left.checked_sub(block.size()) {
            left = rest;
            kept.push(block);
            continue;
        }
        if let Content::Text(text) = block {
            let beginning = truncate(&text, left);
            if !beginning.is_empty() {
                kept.push(Content::Text(beginning.to_owned()));
            }
            left = 0;
            is_text_truncated = true;
        } else {
            if !is_block_left_out {
                kept.push(note());
            }
            is_block_left_out = true;
        }
    }
    if is_text_truncated {
        kept.push(note());
    }
    *content = kept;
    is_text_truncated || is_block_left_out
}
