//! A tool call of the model, and what its provider did for it.

use std::borrow::Cow;

use super::{non_null, text};
use crate::{json::Value, request::content_size};

/// A tool call by the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// The id that its result refers to; empty where the dialect has none.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them: JSON, or raw text if they are not JSON.
    pub arguments: String,
    /// Whether the provider runs the tool rather than the client.
    pub provider_executed: bool,
    /// The name of the MCP server that the provider calls.
    pub server_name: Option<String>,
    /// What made the call, where that was a program of the model: a type such as
    /// `code_execution_20260120`.
    pub caller: Option<String>,
    /// The id of the call whose program made this one.
    pub caller_tool_call_id: Option<String>,
    /// Whether the user has to approve the call, or did.
    pub approval: Option<Approval>,
    /// The container that the provider runs it in.
    pub container_id: Option<String>,
    /// Its result, where the same answer has it.
    pub result: Option<CallResult>,
}

/// The result of a tool that the provider ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallResult {
    /// Its size: decoded text, plus everything else as written.
    pub bytes: Option<u64>,
    /// Whether the call failed.
    pub is_error: Option<bool>,
    /// Why it failed: the provider's code or message.
    pub error: Option<String>,
}

/// Where the approval of a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Approval {
    /// The provider asks for it.
    Requested,
    /// The user gave it.
    Approved,
}

impl Approval {
    /// The word used in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Approved => "approved",
        }
    }
}

impl ToolCall {
    /// Reads the member `caller`: an object with its type, and the call whose program it is.
    pub(super) fn read_caller(&mut self, caller: Option<Value<'_>>) {
        let Some(caller) = caller else { return };
        let [kind, tool_id, call_id] = caller.get_all(["type", "tool_id", "call_id"]);
        self.caller = text(kind).or_else(|| text(Some(caller)));
        self.caller_tool_call_id = text(tool_id).or_else(|| text(call_id));
    }

    /// About the bytes that it is held in.
    pub(super) fn len(&self) -> usize {
        self.id.len() + self.name.len() + self.arguments.len()
    }
}

impl CallResult {
    /// Reads a block of the Messages API whose type ends in `_tool_result`; returns it with the id of
    /// its call.
    pub(super) fn of_block(block: &Value<'_>) -> Option<(String, Self)> {
        let [id, is_error, content] = block.get_all(["tool_use_id", "is_error", "content"]);
        let mut result = Self {
            bytes: content.map(|content| content_size(&content)),
            is_error: is_error.and_then(|is_error| is_error.as_bool()),
            error: None,
        };
        if let Some(content) = content {
            result.read_outcome(&content);
        }
        if result.is_error == Some(true) && result.error.is_none() {
            result.error = content.and_then(|content| first_text(&content));
        }
        Some((text(id)?, result))
    }

    /// Reads how a tool of the Messages API ended: the error, or the status of a program.
    fn read_outcome(&mut self, content: &Value<'_>) {
        let [kind, error_code, return_code] =
            content.get_all(["type", "error_code", "return_code"]);
        let has_failed = text(kind).is_some_and(|kind| kind.ends_with("_error"))
            || return_code.is_some_and(|code| code.raw() != "0");
        self.is_error = self.is_error.or(Some(has_failed));
        self.error = text(error_code);
    }

    /// Reads an item of the Responses API: the outputs it has, its error, and its status.
    pub(super) fn of_item(
        outputs: Option<Value<'_>>,
        error: Option<Value<'_>>,
        status: Option<Value<'_>>,
    ) -> Option<Self> {
        let error = error.filter(|error| !error.is_null());
        let has_failed = error.is_some() || status.is_some_and(|status| status.is_text("failed"));
        let outputs = outputs.filter(|outputs| !outputs.is_null());
        (outputs.is_some() || has_failed).then(|| Self {
            bytes: outputs.map(|outputs| content_size(&outputs)),
            is_error: Some(has_failed),
            error: error.map(|error| error_text(&error)),
        })
    }

    /// Reads the output of a shell that the provider ran: it failed if one of its commands did.
    pub(super) fn of_output(output: &Value<'_>) -> Self {
        let has_failed = |outcome: Value<'_>| {
            outcome.get("exit_code").map_or_else(
                || outcome.get("type").is_some_and(|kind| kind.is_text("timeout")),
                |code| code.raw() != "0",
            )
        };
        let mut outcomes = output.elements().filter_map(|part| part.get("outcome"));
        Self {
            bytes: Some(content_size(output)),
            is_error: Some(outcomes.any(has_failed)),
            error: None,
        }
    }
}

/// Arguments as text; some servers send an object instead of a string.
pub(super) fn argument_text(arguments: Option<Value<'_>>) -> String {
    let arguments = arguments.filter(|arguments| !arguments.is_null());
    let written = |arguments: Value<'_>| arguments.raw().to_owned();
    text(arguments).or_else(|| arguments.map(written)).unwrap_or_default()
}

/// The message of an error, or all of it.
fn error_text(error: &Value<'_>) -> String {
    let message = text(Some(*error)).or_else(|| text(non_null(error, "message")));
    message.unwrap_or_else(|| error.raw().to_owned())
}

/// The text of a content, or of its first part that has one.
fn first_text(content: &Value<'_>) -> Option<String> {
    let first = || content.elements().find_map(|part| text(part.get("text")));
    content.as_str().map(Cow::into_owned).or_else(first)
}
