//! Tools that the bridge injects into a request beside the client's own.

use std::collections::HashSet;

use serde_json::{Value as Json, json};

use crate::{
    Dialect,
    json::{Edits, JsonError, Object, Value},
};

/// The maximum number of tools that `OpenAI` accepts in a request.
/// <https://platform.openai.com/docs/api-reference/chat/create>
pub const MAX_OPENAI_TOOLS: usize = 128;

/// A tool as it is described to a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolDefinition {
    /// The name that the model calls: at most 64 characters of `[a-zA-Z0-9_-]`.
    pub id: String,
    /// Its purpose.
    pub description: Option<String>,
    /// The JSON schema of its arguments, a JSON object.
    pub input_schema: String,
}

/// Tools rendered for every dialect, in a stable order: the same tools are always the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InjectableTools {
    tools: Vec<RenderedTool>,
    keeps_parallel_calls: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RenderedTool {
    id: String,
    messages: String,
    chat: String,
    responses: String,
}

/// A request into which tools were injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The edited body.
    pub body: Vec<u8>,
    /// The ids of the injected tools.
    pub injected: HashSet<String>,
    /// The ids of the omitted tools: the client has a tool of that name, or there are too many.
    pub omitted: Vec<String>,
    /// Whether parallel calls were disabled.
    pub disabled_parallel_calls: bool,
    /// Whether the number of choices of a stream was reduced to one.
    pub limited_choices: bool,
}

impl InjectableTools {
    /// Renders tools, sorted by id.
    ///
    /// Of several tools with the same id, the first counts; a tool whose schema is not a JSON object is
    /// omitted. Otherwise the provider would reject every request.
    #[must_use]
    pub fn new(tools: &[ToolDefinition]) -> Self {
        let sound = tools.iter().filter(|tool| Object::parse(tool.input_schema.as_bytes()).is_ok());
        let mut tools: Vec<RenderedTool> = sound.map(RenderedTool::new).collect();
        tools.sort_by(|one, other| one.id.cmp(&other.id));
        tools.dedup_by(|later, first| later.id == first.id);
        Self { tools, keeps_parallel_calls: false }
    }

    /// Sets whether the client's choice of parallel tool calls is kept; otherwise they are disabled,
    /// which some models do not support.
    #[must_use]
    pub fn with_parallel_calls(self, keeps_parallel_calls: bool) -> Self {
        Self { keeps_parallel_calls, ..self }
    }

    /// Whether there are no tools.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// Injects the tools into a request; returns `None` if nothing is to be changed.
    ///
    /// Left unchanged: a request whose `tools` is not an array, which only the provider can judge; one
    /// with the legacy `functions`, which exclude tools; and one for several choices without streaming,
    /// each of which would need its own conversation.
    ///
    /// # Errors
    ///
    /// Returns an error if the body is not one JSON object.
    pub fn inject(&self, dialect: Dialect, body: &[u8]) -> Result<Option<Injection>, JsonError> {
        let object = Object::parse(body)?;
        let non_null = |key| object.member(key).filter(|value: &Value<'_>| !value.is_null());
        let tools = non_null("tools");
        let is_invalid = tools.is_some_and(|tools| !tools.raw().starts_with('['));
        if self.is_empty() || is_invalid {
            return Ok(None);
        }
        let mut edits = Edits::new();
        let mut limited_choices = false;
        if dialect == Dialect::ChatCompletions {
            let streams = non_null("stream").and_then(|value| value.as_bool()).unwrap_or_default();
            let choices = non_null("n").and_then(|value| value.as_u64()).unwrap_or(1);
            if non_null("functions").is_some() || (choices > 1 && !streams) {
                return Ok(None);
            }
            limited_choices = choices > 1;
            if limited_choices {
                edits.set(&["n"], "1");
            }
        }
        let own: Vec<Value<'_>> = tools.iter().flat_map(Value::elements).collect();
        let (chosen, omitted) = self.choose(dialect, &own);
        if chosen.is_empty() {
            return Ok(None);
        }
        for tool in &chosen {
            match dialect {
                // Before the client's tools, so that its cache breakpoints keep their position.
                Dialect::Messages => edits.prepend(&["tools"], &tool.messages),
                Dialect::ChatCompletions => edits.append(&["tools"], &tool.chat),
                Dialect::Responses => edits.append(&["tools"], &tool.responses),
            }
        }
        let disabled_parallel_calls =
            !self.keeps_parallel_calls && disable_parallel_calls(dialect, &object, &mut edits);
        Ok(Some(Injection {
            body: edits.apply(body)?,
            injected: chosen.into_iter().map(|tool| tool.id.clone()).collect(),
            omitted,
            disabled_parallel_calls,
            limited_choices,
        }))
    }

    /// Chooses the tools to inject beside the client's own, and the ids to omit.
    fn choose(&self, dialect: Dialect, own: &[Value<'_>]) -> (Vec<&RenderedTool>, Vec<String>) {
        let names: HashSet<String> = own.iter().filter_map(tool_name).collect();
        let room = match dialect {
            Dialect::Messages => usize::MAX,
            Dialect::ChatCompletions | Dialect::Responses => {
                MAX_OPENAI_TOOLS.saturating_sub(own.len())
            }
        };
        let mut chosen = Vec::new();
        let mut omitted = Vec::new();
        for tool in &self.tools {
            if names.contains(&tool.id) || chosen.len() >= room {
                omitted.push(tool.id.clone());
            } else {
                chosen.push(tool);
            }
        }
        (chosen, omitted)
    }
}

/// Disables parallel tool calls; returns whether that changes the request.
fn disable_parallel_calls(dialect: Dialect, object: &Object<'_>, edits: &mut Edits) -> bool {
    if dialect != Dialect::Messages {
        let parallel_calls = object.member("parallel_tool_calls").and_then(|value| value.as_bool());
        if parallel_calls != Some(false) {
            edits.set(&["parallel_tool_calls"], "false");
        }
        return parallel_calls != Some(false);
    }
    let choice = object.member("tool_choice").filter(|choice| !choice.is_null());
    let kind = choice.and_then(|choice| choice.get("type"));
    let kind = kind.and_then(|kind| kind.as_str());
    let disabled = choice.and_then(|choice| choice.get("disable_parallel_tool_use"));
    let is_invalid = choice.is_some_and(|choice| choice.as_object().is_none());
    if is_invalid || kind.as_deref() == Some("none") || disabled.is_some_and(|d| d.raw() == "true")
    {
        return false;
    }
    if kind.is_none() {
        edits.set(&["tool_choice", "type"], r#""auto""#);
    }
    edits.set(&["tool_choice", "disable_parallel_tool_use"], "true");
    true
}

/// The name of a tool in any dialect.
pub(crate) fn tool_name(tool: &Value<'_>) -> Option<String> {
    let name = tool
        .get("name")
        .or_else(|| tool.get("function")?.get("name"))
        .or_else(|| tool.get("custom")?.get("name"));
    Some(name?.as_str()?.into_owned())
}

impl RenderedTool {
    fn new(tool: &ToolDefinition) -> Self {
        let ToolDefinition { id, description, input_schema: schema } = tool;
        let name = Json::from(id.as_str());
        let description = description.as_deref().map_or_else(String::new, |description| {
            format!(r#""description":{},"#, json!(description))
        });
        Self {
            messages: format!(r#"{{"name":{name},{description}"input_schema":{schema}}}"#),
            chat: format!(
                r#"{{"type":"function","function":{{"name":{name},{description}"parameters":{schema}}}}}"#
            ),
            // Strict mode is the default here, and would reject most schemas.
            responses: format!(
                r#"{{"type":"function","name":{name},{description}"parameters":{schema},"strict":false}}"#
            ),
            id: id.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
