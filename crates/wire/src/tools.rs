//! Tools that the bridge puts into a request beside the client's own.

use std::collections::HashSet;

use serde_json::{Value as Json, json};

use crate::{
    Dialect,
    json::{Edits, JsonError, Object, Value},
};

/// The most tools that `OpenAI` takes in a request.
/// <https://platform.openai.com/docs/api-reference/chat/create>
pub const MAX_OPENAI_TOOLS: usize = 128;

/// A tool as a model is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolDefinition {
    /// The name that the model calls: at most 64 of `[a-zA-Z0-9_-]`.
    pub id: String,
    /// What it is for.
    pub description: Option<String>,
    /// JSON schema of its arguments, a JSON object.
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

/// A request with tools put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The body with the splices.
    pub body: Vec<u8>,
    /// The ids of the tools that are in it now.
    pub injected: HashSet<String>,
    /// The ids of those that are not: their name is the client's, or there is no room.
    pub omitted: Vec<String>,
    /// Whether parallel calls were switched off.
    pub disabled_parallel_calls: bool,
    /// Whether a stream's number of choices was set to one.
    pub limited_choices: bool,
}

impl InjectableTools {
    /// Renders tools; they are ordered by id.
    ///
    /// Of several with one id the first counts, and one whose schema is no JSON object is left out:
    /// either would have every request refused.
    #[must_use]
    pub fn new(tools: &[ToolDefinition]) -> Self {
        let sound = tools.iter().filter(|tool| Object::parse(tool.input_schema.as_bytes()).is_ok());
        let mut tools: Vec<RenderedTool> = sound.map(RenderedTool::new).collect();
        tools.sort_by(|one, other| one.id.cmp(&other.id));
        tools.dedup_by(|later, first| later.id == first.id);
        Self { tools, keeps_parallel_calls: false }
    }

    /// Leaves it to the client whether the model may call several tools at once; else that is
    /// switched off, which some models refuse to be told.
    #[must_use]
    pub fn with_parallel_calls(self, keeps_parallel_calls: bool) -> Self {
        Self { keeps_parallel_calls, ..self }
    }

    /// Whether there is no tool.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// Puts the tools into a request; `None` where nothing is to be changed.
    ///
    /// Left as they are: a request whose `tools` is no array, which only the provider can judge, one
    /// with the legacy `functions`, which exclude tools, and one for several whole choices, each of
    /// which would need a conversation of its own.
    ///
    /// # Errors
    ///
    /// When the body is not one JSON object.
    pub fn inject(&self, dialect: Dialect, body: &[u8]) -> Result<Option<Injection>, JsonError> {
        let object = Object::parse(body)?;
        let given = |key| object.member(key).filter(|value: &Value<'_>| !value.is_null());
        let tools = given("tools");
        let is_odd = tools.is_some_and(|tools| !tools.raw().starts_with('['));
        if self.is_empty() || is_odd {
            return Ok(None);
        }
        let mut edits = Edits::new();
        let mut limited_choices = false;
        if dialect == Dialect::ChatCompletions {
            let streams = given("stream").and_then(|value| value.as_bool()).unwrap_or_default();
            let choices = given("n").and_then(|value| value.as_u64()).unwrap_or(1);
            if given("functions").is_some() || (choices > 1 && !streams) {
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
                // Before the client's, so that its cache breakpoints stay where they are.
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

    /// The tools that a request with these own tools can take, and the ids of the others.
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

/// Asks for one call at a time, and tells whether that changes anything.
fn disable_parallel_calls(dialect: Dialect, object: &Object<'_>, edits: &mut Edits) -> bool {
    if dialect != Dialect::Messages {
        let given = object.member("parallel_tool_calls").and_then(|value| value.as_bool());
        if given != Some(false) {
            edits.set(&["parallel_tool_calls"], "false");
        }
        return given != Some(false);
    }
    let choice = object.member("tool_choice").filter(|choice| !choice.is_null());
    let kind = choice.and_then(|choice| choice.get("type"));
    let kind = kind.and_then(|kind| kind.as_str());
    let disabled = choice.and_then(|choice| choice.get("disable_parallel_tool_use"));
    let is_odd = choice.is_some_and(|choice| choice.as_object().is_none());
    if is_odd || kind.as_deref() == Some("none") || disabled.is_some_and(|d| d.raw() == "true") {
        return false;
    }
    if kind.is_none() {
        edits.set(&["tool_choice", "type"], r#""auto""#);
    }
    edits.set(&["tool_choice", "disable_parallel_tool_use"], "true");
    true
}

/// The name of a tool in whatever dialect.
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
            // Strict is the default here, and would forbid most schemas.
            responses: format!(
                r#"{{"type":"function","name":{name},{description}"parameters":{schema},"strict":false}}"#
            ),
            id: id.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
