//! Messages rewritten for the SDK.
//!
//! The SDK reads results into types that hold less than what a server sends, and fails as a whole. So the
//! result of a tool passes through it as one JSON string, and a list of tools as the little that the SDK
//! itself needs, with the original beside it.

use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, RequestId, ServerJsonRpcMessage, ServerResult,
};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::error::McpError;

/// The request that a body or a stream answers.
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    ToolList(RequestId),
    ToolCall(RequestId),
    /// `server/discover`: whether the server knows the newest protocol.
    Discover(RequestId),
    /// Any request: a notification stream. Only answers about tools come this way.
    Stream,
    /// Another request or notification: nothing is rewritten.
    Other(Option<RequestId>),
}

/// The members of a server's message that matter here.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ToolNames<'a> {
    #[serde(borrow)]
    tools: Vec<&'a RawValue>,
}

/// What the SDK needs of a tool: it may send arguments as headers.
#[derive(Deserialize)]
struct ToolOutline {
    name: String,
    #[serde(rename = "inputSchema")]
    input_schema: Map<String, Value>,
}

/// The member that holds the original list of tools in what the SDK gets.
const ORIGINAL: &str = "keybridge/whole";

impl Purpose {
    pub(super) fn of(message: &ClientJsonRpcMessage) -> Self {
        let ClientJsonRpcMessage::Request(request) = message else { return Self::Other(None) };
        let id = request.id.clone();
        match request.request {
            ClientRequest::ListToolsRequest(_) => Self::ToolList(id),
            ClientRequest::CallToolRequest(_) => Self::ToolCall(id),
            ClientRequest::DiscoverRequest(_) => Self::Discover(id),
            _ => Self::Other(Some(id)),
        }
    }

    pub(super) fn request_id(&self) -> Option<&RequestId> {
        match self {
            Self::ToolList(id)
            | Self::ToolCall(id)
            | Self::Discover(id)
            | Self::Other(Some(id)) => Some(id),
            Self::Stream | Self::Other(None) => None,
        }
    }

    pub(super) fn awaits_answer(&self) -> bool {
        self.request_id().is_some()
    }

    /// Reads a message, rewritten for the SDK.
    pub(super) fn message(&self, body: &[u8]) -> Option<ServerJsonRpcMessage> {
        let body = std::str::from_utf8(body).ok()?;
        match self.rewrite(body) {
            Some(message) => serde_json::from_str(&message).ok(),
            None => serde_json::from_str(body).ok(),
        }
    }

    /// Rewrites a message with a result that the SDK would not keep whole; `None` for any other.
    pub(super) fn rewrite(&self, message: &str) -> Option<String> {
        let may_be_list = match self {
            Self::Discover(_) | Self::Other(_) => return None,
            Self::ToolCall(_) => false,
            Self::ToolList(_) | Self::Stream => true,
        };
        let envelope: Envelope<'_> = serde_json::from_str(message).ok()?;
        let (id, result) = (envelope.id?, envelope.result?.get());
        let list = if may_be_list { outline(result) } else { None };
        let result = list.unwrap_or_else(|| Value::from(result));
        Some(format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.get()))
    }
}

/// The JSON of a result that passed through the SDK.
pub(super) fn raw_result(result: &ServerResult) -> Result<String, McpError> {
    match result {
        ServerResult::CustomResult(custom) => match &custom.0 {
            Value::String(raw) => Some(raw.clone()),
            other => Some(other.to_string()),
        },
        ServerResult::ListToolsResult(list) => {
            list.meta.as_ref().and_then(|meta| meta.0.get(ORIGINAL)?.as_str()).map(str::to_owned)
        }
        other => serde_json::to_string(other).ok(),
    }
    .ok_or_else(|| McpError::Invalid("its answer is not the expected one".into()))
}

/// What the SDK needs of a list of tools, and the original as text; `None` if it is no list.
fn outline(result: &str) -> Option<Value> {
    let list: ToolNames<'_> = serde_json::from_str(result).ok()?;
    let tools: Vec<Value> = list
        .tools
        .iter()
        .filter_map(|tool| serde_json::from_str::<ToolOutline>(tool.get()).ok())
        .map(|tool| json!({ "name": tool.name, "inputSchema": tool.input_schema }))
        .collect();
    Some(json!({ "tools": tools, "_meta": { ORIGINAL: result } }))
}

/// An error response on behalf of the server.
pub(super) fn error_for(id: &RequestId, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32603, "message": message } })
}
