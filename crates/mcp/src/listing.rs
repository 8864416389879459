//! A server's list of tools, read leniently: a malformed tool does not hide the others.

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

/// A tool as listed; its schema is normalised.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ListedTool {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) input_schema: Map<String, Value>,
}

/// One page of a list of tools.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) tools: Vec<ListedTool>,
    /// The tools that are left out, each with the reason.
    pub(super) refused: Vec<String>,
    pub(super) next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(borrow)]
    tools: Vec<&'a RawValue>,
    #[serde(rename = "nextCursor")]
    next_cursor: Option<Value>,
}

/// Longest excerpt of a server's own text in a message.
const MAX_EXCERPT: usize = 200;

impl Page {
    /// Reads the JSON of a result of `tools/list`.
    pub(super) fn read(raw: &str) -> Result<Self, String> {
        let raw_page: RawPage<'_> = serde_json::from_str(raw).map_err(|error| error.to_string())?;
        let mut page = Self::default();
        for raw_tool in raw_page.tools {
            match read_tool(raw_tool.get()) {
                Ok(tool) => page.tools.push(tool),
                Err(reason) => page.refused.push(reason),
            }
        }
        page.next_cursor = match raw_page.next_cursor {
            Some(Value::String(cursor)) => Some(cursor),
            _ => None,
        };
        Ok(page)
    }

    /// Leaves out the tools that are not usable.
    pub(super) fn keep_only(&mut self, is_usable: impl Fn(&str) -> bool) {
        let (usable, others): (_, Vec<_>) =
            std::mem::take(&mut self.tools).into_iter().partition(|tool| is_usable(&tool.name));
        self.tools = usable;
        let reason =
            |tool: ListedTool| format!("{} (its arguments cannot be sent)", excerpt(&tool.name));
        self.refused.extend(others.into_iter().map(reason));
    }
}

fn read_tool(raw: &str) -> Result<ListedTool, String> {
    let unnamed = || "a tool without a name".to_owned();
    let mut tool: Map<String, Value> = serde_json::from_str(raw)
        .map_err(|error| format!("a tool that cannot be read ({error})"))?;
    let Some(Value::String(name)) = tool.remove("name") else { return Err(unnamed()) };
    if name.is_empty() {
        return Err(unnamed());
    }
    let description = match tool.remove("description") {
        Some(Value::String(description)) => Some(description),
        _ => None,
    };
    let schema = match tool.remove("inputSchema") {
        Some(Value::Object(schema)) => normalise(schema),
        Some(_) => Err("its input schema is not an object"),
        None => Err("it has no input schema"),
    };
    match schema {
        Ok(input_schema) => Ok(ListedTool { name, description, input_schema }),
        Err(reason) => Err(format!("{} ({reason})", excerpt(&name))),
    }
}

/// Normalises a schema: providers require `type: object` and properties, and some refuse an empty
/// `required`.
fn normalise(mut schema: Map<String, Value>) -> Result<Map<String, Value>, &'static str> {
    if schema.get("required").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        // Keeps the order of the other keys, which is part of the prompt.
        schema.shift_remove("required");
    }
    let mut schema: Map<String, Value> = match schema.get("type") {
        Some(Value::String(kind)) if kind == "object" => schema,
        Some(_) => return Err("its input schema is not of type object"),
        None => {
            let first = ("type".to_owned(), Value::from("object"));
            std::iter::once(first).chain(schema).collect()
        }
    };
    // OpenAI refuses an object without properties.
    schema.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    Ok(schema)
}

/// The beginning of a server's own text.
pub(super) fn excerpt(text: &str) -> &str {
    truncate(text, MAX_EXCERPT)
}

/// The longest beginning of a text that is at most `limit` bytes long.
pub(super) fn truncate(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}
