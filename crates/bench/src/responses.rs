//! The responses of the minimal provider, in the format of Anthropic's Messages API and OpenAI's Chat
//! Completions (from their public documentation), built once and sent unchanged.

use std::time::{SystemTime, UNIX_EPOCH};

use memchr::memmem;

/// The API whose format a response has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApiFormat {
    Messages,
    Chat,
}

/// A response or a part of one, with a placeholder for its id.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    at: Option<usize>,
}

/// The placeholder for the digits of an id.
const ID: &[u8] = b"0123456789abcdef";

impl Template {
    fn new(bytes: Vec<u8>) -> Self {
        let at = memmem::find(&bytes, ID);
        Self { bytes, at }
    }

    /// The bytes with this id.
    pub(crate) fn with_id(&mut self, id: u64) -> &[u8] {
        let place = self.at.and_then(|at| self.bytes.get_mut(at..at + ID.len()));
        if let Some(place) = place {
            place.copy_from_slice(format!("{id:016x}").as_bytes());
        }
        &self.bytes
    }
}

/// The head of a stream.
const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nrequest-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n";
/// The end of a stream's body.
pub(crate) const STREAM_END: &[u8] = b"0\r\n\r\n";

/// Encodes a chunk of a body.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

impl ApiFormat {
    pub(crate) fn of(path: &str) -> Self {
        if path.ends_with("/chat/completions") { Self::Chat } else { Self::Messages }
    }

    /// The events before the text.
    fn beginning(self) -> Vec<u8> {
        match self {
            Self::Messages => b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_bench0123456789abcdef\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench-1\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":300,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,\"output_tokens\":1}}}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n".to_vec(),
            Self::Chat => b"data: {\"id\":\"chatcmpl-bench0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"bench-1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n".to_vec(),
        }
    }

    /// The head of a stream and its first events.
    pub(crate) fn opening(self) -> Template {
        let mut bytes = STREAM_HEAD.to_vec();
        bytes.extend(chunk(&self.beginning()));
        Template::new(bytes)
    }

    /// A text delta that contains the time of its creation, in nanoseconds since 1970.
    pub(crate) fn delta(self, id: u64) -> Vec<u8> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = format!("{:020} and so on", since.as_nanos());
        match self {
            Self::Messages => format!("event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"),
            Self::Chat => format!("data: {{\"id\":\"chatcmpl-bench{id:016x}\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"bench-1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"),
        }
        .into_bytes()
    }

    /// The events after the text.
    pub(crate) fn end(self, id: u64, events: usize) -> Vec<u8> {
        match self {
            Self::Messages => format!("event: content_block_stop\ndata: {{\"type\":\"content_block_stop\",\"index\":0}}\n\nevent: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\",\"stop_sequence\":null}},\"usage\":{{\"output_tokens\":{events}}}}}\n\nevent: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n"),
            Self::Chat => format!("data: {{\"id\":\"chatcmpl-bench{id:016x}\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"bench-1\",\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"),
        }
        .into_bytes()
    }

    /// A complete response including its head, with a body of some 0.6 KB.
    pub(crate) fn whole(self) -> Template {
        let text = "It is as you say, and there is more to it. ".repeat(8);
        let body = match self {
            Self::Messages => format!(
                "{{\"id\":\"msg_bench0123456789abcdef\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench-1\",\"content\":[{{\"type\":\"text\",\"text\":\"{text}\"}}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{{\"input_tokens\":300,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,\"output_tokens\":90}}}}"
            ),
            Self::Chat => format!(
                "{{\"id\":\"chatcmpl-bench0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"bench-1\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":300,\"completion_tokens\":90,\"total_tokens\":390}}}}"
            ),
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nrequest-id: req_bench\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        Template::new(answer.into_bytes())
    }
}
