//! Messages on their way through the SDK.
//!
//! The SDK reads results into types that know less than what a server says, and all or nothing. So
//! a result of a tool is handed through it as one JSON string, and of a list of tools no more than what
//! the SDK itself needs, with the whole beside it.

use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, RequestId, ServerJsonRpcMessage, ServerResult,
};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::error::Trouble;

/// What the answers on a stream or in a body are for.
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    ToolList(RequestId),
    ToolCall(RequestId),
    /// Whether the server knows the newest protocol.
    FirstQuestion(RequestId),
    /// Any request of the bridge; of its answers only those for tools come this way.
    Stream,
    /// Neither of these: nothing is changed.
    Other(Option<RequestId>),
}

/// A message of the server as far as it matters here.
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

/// What the SDK needs of a tool: it may have to send arguments as headers.
#[derive(Deserialize)]
struct ToolOutline {
    name: String,
    #[serde(rename = "inputSchema")]
    input_schema: Map<String, Value>,
}

/// Where the whole list of tools is in what the SDK is given.
const WHOLE: &str = "keybridge/whole";

impl Purpose {
    pub(super) fn of(message: &ClientJsonRpcMessage) -> Self {
        let ClientJsonRpcMessage::Request(request) = message else { return Self::Other(None) };
        let id = request.id.clone();
        match request.request {
            ClientRequest::ListToolsRequest(_) => Self::ToolList(id),
            ClientRequest::CallToolRequest(_) => Self::ToolCall(id),
            ClientRequest::DiscoverRequest(_) => Self::FirstQuestion(id),
            _ => Self::Other(Some(id)),
        }
    }

    pub(super) fn request_id(&self) -> Option<&RequestId> {
        match self {
            Self::ToolList(id)
            | Self::ToolCall(id)
            | Self::FirstQuestion(id)
            | Self::Other(Some(id)) => Some(id),
            Self::Stream | Self::Other(None) => None,
        }
    }

    pub(super) fn awaits_answer(&self) -> bool {
        self.request_id().is_some()
    }

    /// A message as the SDK is given it.
    pub(super) fn message(&self, body: &[u8]) -> Option<ServerJsonRpcMessage> {
        let body = std::str::from_utf8(body).ok()?;
        match self.handed_on(body) {
            Some(message) => serde_json::from_str(&message).ok(),
            None => serde_json::from_str(body).ok(),
        }
    }

    /// What becomes of a message with a result that the SDK would not keep whole.
    pub(super) fn handed_on(&self, message: &str) -> Option<String> {
        let may_be_list = match self {
            Self::FirstQuestion(_) | Self::Other(_) => return None,
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

/// The JSON of a result that was handed through the SDK.
pub(super) fn raw_result(result: &ServerResult) -> Result<String, Trouble> {
    match result {
        ServerResult::CustomResult(custom) => match &custom.0 {
            Value::String(raw) => Some(raw.clone()),
            other => Some(other.to_string()),
        },
        ServerResult::ListToolsResult(list) => {
            list.meta.as_ref().and_then(|meta| meta.0.get(WHOLE)?.as_str()).map(str::to_owned)
        }
        other => serde_json::to_string(other).ok(),
    }
    .ok_or_else(|| Trouble::Invalid("its answer is not the expected one".into()))
}

/// Of a list of tools what the SDK needs, and the whole as text; `None` if it is no list.
fn outline(result: &str) -> Option<Value> {
    let list: ToolNames<'_> = serde_json::from_str(result).ok()?;
    let tools: Vec<Value> = list
        .tools
        .iter()
        .filter_map(|tool| serde_json::from_str::<ToolOutline>(tool.get()).ok())
        .map(|tool| json!({ "name": tool.name, "inputSchema": tool.input_schema }))
        .collect();
    Some(json!({ "tools": tools, "_meta": { WHOLE: result } }))
}

/// An answer in the server's stead.
pub(super) fn error_for(id: &RequestId, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32603, "message": message } })
}
