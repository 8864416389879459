//! The scenario for real agents: one harmless tool call, then an answer that has read the result.

use serde_json::{Map, Value, json};

use crate::{
    answer::{Api, Asked},
    turns::{list, word},
};

/// What the agents' tools print, so that a test can tell that the tool has run.
const COMMAND: &str = "echo keybridge-tool-ok";
/// How the names of the tools begin that a bridge injects.
const INJECTED: &str = "bmcp_";
/// What an injected tool is told.
const MESSAGE: &str = "keybridge-injected-ok";

/// What the model does next.
#[derive(Debug)]
pub(crate) enum Move {
    Say(String),
    /// A function tool with its arguments in JSON.
    Call {
        name: String,
        arguments: String,
    },
    /// A custom tool with free-form input (Responses).
    Custom {
        name: String,
        input: String,
    },
}

pub(crate) fn next(api: Api, asked: &Asked) -> Move {
    if let Some(call) = injected(api, &asked.body) {
        return call;
    }
    let turn = Turn::of(api, &asked.body);
    if let Some(result) = turn.result {
        let words: Vec<&str> = result.split_whitespace().take(60).collect();
        return Move::Say(format!("The tool answered: {}", words.join(" ")));
    }
    let wants_tool = turn.prompt.to_lowercase().contains("tool");
    let call = if wants_tool { offered(&asked.body).iter().find_map(call) } else { None };
    if let Some(call) = call {
        return call;
    }
    let schema = [
        "/output_config/format/schema",
        "/text/format/schema",
        "/response_format/json_schema/schema",
    ]
    .iter()
    .find_map(|path| asked.body.pointer(path));
    if let Some(schema) = schema {
        return Move::Say(arguments("", schema).to_string());
    }
    Move::Say("Hello from the simulated provider.".into())
}

/// The call of a tool that a bridge injects, when the user speaks of one; afterwards that of the
/// client's shell, when the user wants it too.
fn injected(api: Api, body: &Value) -> Option<Move> {
    let (prompt, called) = since_prompt(api, body);
    let prompt = prompt.to_lowercase();
    let is_own = |name: &String| name.starts_with(INJECTED);
    if !prompt.contains("injected") || called.iter().any(|name| !is_own(name)) {
        return None;
    }
    let tools = offered(body);
    if called.is_empty() {
        let own = || tools.iter().filter(|tool| is_own(&name(tool)));
        return own().find(|tool| name(tool).ends_with("_echo")).or(own().next()).and_then(call);
    }
    let wants_shell = prompt.contains("then the shell");
    tools.iter().filter(|tool| wants_shell && is_shell(&name(tool))).find_map(call)
}

/// The user's latest words, and the names of the tools that were called since.
fn since_prompt(api: Api, body: &Value) -> (String, Vec<String>) {
    let key = if api == Api::Responses { "input" } else { "messages" };
    if let Some(text) = body.get(key).and_then(Value::as_str) {
        return (text.into(), Vec::new());
    }
    let (mut prompt, mut called) = (String::new(), Vec::new());
    for item in list(body, key).iter().rev() {
        let is_user = word(item, "role") == "user" && result_block(item).is_none();
        if is_user {
            prompt.push_str(&text(item.get("content")));
        } else if !prompt.is_empty() {
            break;
        } else if word(item, "type").ends_with("_call") {
            called.push(name(item));
        } else {
            let blocks = list(item, "content").iter();
            let blocks = blocks.filter(|block| word(block, "type") == "tool_use");
            called.extend(blocks.chain(list(item, "tool_calls")).map(name));
        }
    }
    (prompt, called)
}

/// The latest turn of the user.
#[derive(Debug, Default)]
struct Turn {
    prompt: String,
    /// The text of the tool result it carries.
    result: Option<String>,
}

impl Turn {
    fn of(api: Api, body: &Value) -> Self {
        let list = match api {
            Api::Messages | Api::Chat => body.get("messages"),
            Api::Responses => body.get("input"),
        };
        if let Some(text) = list.and_then(Value::as_str) {
            return Self { prompt: text.into(), result: None };
        }
        let mut turn = Self::default();
        for item in list.and_then(Value::as_array).into_iter().flatten().rev() {
            let word = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default();
            let (role, kind) = (word("role"), word("type"));
            let is_output = kind.ends_with("_output");
            if role == "assistant" || (role.is_empty() && kind.ends_with("_call")) {
                break;
            }
            if is_output {
                turn.result = Some(text(item.get("output")));
                break;
            }
            if role == "tool" {
                turn.result = Some(text(item.get("content")));
                break;
            }
            if role == "user" {
                if let Some(result) = result_block(item) {
                    turn.result = Some(text(result.get("content")));
                    break;
                }
                turn.prompt.push_str(&text(item.get("content")));
            }
        }
        turn
    }
}

fn result_block(message: &Value) -> Option<&Value> {
    let content = message.get("content")?.as_array()?;
    content.iter().find(|block| block.get("type").and_then(Value::as_str) == Some("tool_result"))
}

/// The text of a content, leaving out what an agent adds to the user's words.
pub(crate) fn text(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .filter_map(|part| part.get("text").and_then(Value::as_str))
            .filter(|text| !text.trim_start().starts_with('<'))
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

/// The tools a client offers, also those in name spaces and in input items.
fn offered(body: &Value) -> Vec<Value> {
    let mut tools = Vec::new();
    let mut lists: Vec<&Value> = body.get("tools").into_iter().collect();
    let items = body.get("input").and_then(Value::as_array).into_iter().flatten();
    lists.extend(items.filter_map(|item| item.get("tools")));
    while let Some(list) = lists.pop() {
        for tool in list.as_array().into_iter().flatten() {
            match tool.get("tools") {
                Some(inner) => lists.push(inner),
                None => tools.push(tool.clone()),
            }
        }
    }
    // A shell first, if there is one; what a bridge injects is called when it is spoken of.
    tools.sort_by_key(|tool| {
        let name = name(tool);
        (!is_shell(&name), name.starts_with(INJECTED))
    });
    tools
}

fn name(tool: &Value) -> String {
    let name = tool.get("name").or_else(|| tool.pointer("/function/name"));
    name.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn is_shell(name: &str) -> bool {
    matches!(
        name.to_ascii_lowercase().as_str(),
        "bash" | "shell" | "exec_command" | "exec" | "local_shell" | "shell_command"
    )
}

fn call(tool: &Value) -> Option<Move> {
    let name = name(tool);
    let kind = tool.get("type").and_then(Value::as_str).unwrap_or("function");
    if name.is_empty() {
        return None;
    }
    if kind == "custom" {
        let script = format!("text((await tools.exec_command({{cmd: \"{COMMAND}\"}})).output)");
        return is_shell(&name).then_some(Move::Custom { name, input: script });
    }
    let schema = tool
        .get("input_schema")
        .or_else(|| tool.get("parameters"))
        .or_else(|| tool.pointer("/function/parameters"));
    let arguments = arguments(&name, schema.unwrap_or(&Value::Null));
    Some(Move::Call { name, arguments: arguments.to_string() })
}

/// Arguments that fit a schema: the command for a shell, plain stand-ins for what else is required.
fn arguments(name: &str, schema: &Value) -> Value {
    let required = schema.get("required").and_then(Value::as_array);
    let required: Vec<&str> = required.into_iter().flatten().filter_map(Value::as_str).collect();
    let mut arguments = Map::new();
    for (property, shape) in
        schema.get("properties").and_then(Value::as_object).into_iter().flatten()
    {
        let is_command = matches!(property.as_str(), "command" | "cmd");
        let is_message = property == "message" && name.starts_with(INJECTED);
        let is_wanted =
            required.contains(&property.as_str()) || (is_command && is_shell(name)) || is_message;
        if !is_wanted {
            continue;
        }
        let kind = shape.get("type").and_then(Value::as_str).unwrap_or("string");
        let value = match (kind, is_command) {
            ("array", true) => json!(["bash", "-lc", COMMAND]),
            (_, true) => json!(COMMAND),
            ("string", _) if is_message => json!(MESSAGE),
            ("integer" | "number", _) => json!(1),
            ("boolean", _) => json!(false),
            ("array", _) => json!([]),
            ("object", _) => json!({}),
            _ if property == "title" => json!("Simulated session"),
            _ => shape.pointer("/enum/0").cloned().unwrap_or_else(|| json!("x")),
        };
        arguments.insert(property.clone(), value);
    }
    Value::Object(arguments)
}
