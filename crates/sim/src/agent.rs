//! The scenario for real agents: one harmless tool call, then a response that quotes its result.

use serde_json::{Map, Value, json};

use crate::{
    handler::{Api, ModelRequest},
    turns::{list, word},
};

/// What the agents' tools print, so that a test can tell that the tool ran.
const COMMAND: &str = "echo keybridge-tool-ok";
/// The prefix of the names of tools that a bridge injects.
const INJECTED: &str = "bmcp_";
/// The message passed to an injected tool.
const MESSAGE: &str = "keybridge-injected-ok";

/// What the model does next.
#[derive(Debug)]
pub(crate) enum AgentAction {
    Say(String),
    /// A call of a function tool with JSON arguments.
    Call {
        name: String,
        arguments: String,
    },
    /// A call of a custom tool with free-form input (Responses API).
    Custom {
        name: String,
        input: String,
    },
}

pub(crate) fn next_action(api: Api, request: &ModelRequest) -> AgentAction {
    if let Some(call) = injected_call(api, &request.body) {
        return call;
    }
    let turn = UserTurn::find(api, &request.body);
    if let Some(result) = turn.result {
        let words: Vec<&str> = result.split_whitespace().take(60).collect();
        return AgentAction::Say(format!("The tool answered: {}", words.join(" ")));
    }
    let wants_tool = turn.prompt.to_lowercase().contains("tool");
    let call = if wants_tool { client_tools(&request.body).iter().find_map(call) } else { None };
    if let Some(call) = call {
        return call;
    }
    let schema = [
        "/output_config/format/schema",
        "/text/format/schema",
        "/response_format/json_schema/schema",
    ]
    .iter()
    .find_map(|path| request.body.pointer(path));
    if let Some(schema) = schema {
        return AgentAction::Say(arguments("", schema).to_string());
    }
    AgentAction::Say("Hello from the simulated provider.".into())
}

/// The call of an injected tool if the prompt mentions one; then the call of the client's shell if the
/// prompt asks for that as well.
fn injected_call(api: Api, body: &Value) -> Option<AgentAction> {
    let (prompt, called) = since_prompt(api, body);
    let prompt = prompt.to_lowercase();
    let is_own = |name: &String| name.starts_with(INJECTED);
    if !prompt.contains("injected") || called.iter().any(|name| !is_own(name)) {
        return None;
    }
    let tools = client_tools(body);
    if called.is_empty() {
        let own = || tools.iter().filter(|tool| is_own(&name(tool)));
        return own().find(|tool| name(tool).ends_with("_echo")).or(own().next()).and_then(call);
    }
    let wants_shell = prompt.contains("then the shell");
    tools.iter().filter(|tool| wants_shell && is_shell(&name(tool))).find_map(call)
}

/// The user's latest prompt, and the names of the tools called since.
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
struct UserTurn {
    prompt: String,
    /// The text of the tool result it contains.
    result: Option<String>,
}

impl UserTurn {
    fn find(api: Api, body: &Value) -> Self {
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

/// The text of a content, without what an agent adds to the user's prompt.
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

/// The tools in a request, including those in namespaces and input items.
fn client_tools(body: &Value) -> Vec<Value> {
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
    // A shell first, if there is one; injected tools are called only if the prompt mentions them.
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

fn call(tool: &Value) -> Option<AgentAction> {
    let name = name(tool);
    let kind = tool.get("type").and_then(Value::as_str).unwrap_or("function");
    if name.is_empty() {
        return None;
    }
    if kind == "custom" {
        let script = format!("text((await tools.exec_command({{cmd: \"{COMMAND}\"}})).output)");
        return is_shell(&name).then_some(AgentAction::Custom { name, input: script });
    }
    let schema = tool
        .get("input_schema")
        .or_else(|| tool.get("parameters"))
        .or_else(|| tool.pointer("/function/parameters"));
    let arguments = arguments(&name, schema.unwrap_or(&Value::Null));
    Some(AgentAction::Call { name, arguments: arguments.to_string() })
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
