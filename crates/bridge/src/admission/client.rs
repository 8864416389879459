//! Which agent sent a request, and the session it claims.

use http::HeaderMap;
use keybridge_identity::token::{contains_token, mask_tokens};
use keybridge_wire::request::RequestView;

/// Maximum length of a recorded session id, in characters.
const MAX_SESSION_CHARS: usize = 256;

/// Name of a client by the start of its lower-cased `User-Agent`.
const BY_USER_AGENT: &[(&str, &str)] = &[
    ("mux/", "Mux"),
    ("claude", "Claude Code"),
    ("codex", "Codex"),
    ("zed/", "Zed"),
    ("githubcopilotchat/", "GitHub Copilot (VS Code)"),
    ("copilot/", "GitHub Copilot (CLI)"),
    ("kilo-code/", "Kilo Code"),
    ("roo-code/", "Roo Code"),
    ("coder-agents/", "Coder Agents"),
    ("charm crush/", "Charm Crush"),
    ("charm-crush/", "Charm Crush"),
    ("opencode/", "OpenCode"),
    ("qwencode/", "Qwen Code"),
    ("goose/", "Goose"),
    ("factory-cli/", "Factory Droid"),
    ("xum/", "Xum"),
];

/// SDKs by the start of their lower-cased `User-Agent`; agents that send an SDK's are detected first.
const SDKS: &[(&str, &str)] = &[
    ("openai/js", "OpenAI SDK (JavaScript)"),
    ("openai/python", "OpenAI SDK (Python)"),
    ("asyncopenai/python", "OpenAI SDK (Python)"),
    ("openai/", "OpenAI SDK"),
    ("anthropic/js", "Anthropic SDK (JavaScript)"),
    ("anthropic/python", "Anthropic SDK (Python)"),
    ("asyncanthropic/python", "Anthropic SDK (Python)"),
    ("anthropic/", "Anthropic SDK"),
    ("ai/", "AI SDK"),
    ("litellm/", "LiteLLM"),
];

/// The name recorded when nothing identifies the client.
const UNKNOWN: &str = "Unknown";

/// The client's name.
pub(crate) fn client(headers: &HeaderMap) -> &'static str {
    let user_agent = text(headers, "user-agent").unwrap_or_default().to_ascii_lowercase();
    let by = |table: &[(&str, &'static str)]| {
        table.iter().find(|(start, _)| user_agent.starts_with(start)).map(|(_, name)| *name)
    };
    let originator = || match text(headers, "originator")? {
        "kilo-code" => Some("Kilo Code"),
        "roo-code" => Some("Roo Code"),
        _ => None,
    };
    // Kilo Code and Roo Code may carry the User-Agent of the SDK they use.
    by(BY_USER_AGENT)
        .or_else(originator)
        .or_else(|| headers.contains_key("x-cursor-client-version").then_some("Cursor"))
        // It sends an SDK's User-Agent; the requests after a tool call have only this header.
        .or_else(|| headers.contains_key("x-initiator").then_some("GitHub Copilot (CLI)"))
        .or_else(|| by(SDKS))
        .or_else(|| user_agent.starts_with("pydantic-ai/").then_some("Pydantic AI"))
        .unwrap_or(UNKNOWN)
}

/// The session the client claims, truncated to the maximum length.
pub(crate) fn session_id(client: &str, headers: &HeaderMap, view: &RequestView) -> Option<String> {
    let header = |name: &str| text(headers, name);
    let claimed = match client {
        "Claude Code" => header("x-claude-code-session-id").or(view.metadata_session_id.as_deref()),
        "Codex" => header("session-id").or_else(|| header("session_id")),
        "Mux" | "Xum" => header("x-mux-workspace-id"),
        "GitHub Copilot (VS Code)" => header("x-interaction-id"),
        "GitHub Copilot (CLI)" => header("x-client-session-id"),
        "Kilo Code" => header("x-kilocode-taskid"),
        "Coder Agents" => header("x-coder-chat-id"),
        "OpenCode" => header("x-session-id")
            .or_else(|| header("x-session-affinity"))
            .or_else(|| header("x-opencode-session")),
        _ => None,
    };
    claimed.map(bounded).filter(|id| !id.is_empty())
}

/// The agent and parent agent of Claude Code's sub-agents.
pub(crate) fn agents(headers: &HeaderMap) -> (Option<String>, Option<String>) {
    let agent = |name: &str| text(headers, name).map(bounded).filter(|id| !id.is_empty());
    (agent("x-claude-code-agent-id"), agent("x-claude-code-parent-agent-id"))
}

/// How many times the client had sent the request before, as the SDKs of OpenAI and Anthropic say.
pub(crate) fn retry_count(headers: &HeaderMap) -> Option<u32> {
    text(headers, "x-stainless-retry-count")?.parse().ok()
}

/// A header's text, if it is not blank and contains no bridge token.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?;
    let text = value.to_str().ok()?.trim();
    (!text.is_empty() && !contains_token(value.as_bytes())).then_some(text)
}

/// `text`, trimmed, with bridge tokens masked, and truncated to the maximum length of a client's claims.
pub(crate) fn bounded(text: &str) -> String {
    mask_tokens(text.trim()).chars().take(MAX_SESSION_CHARS).collect()
}

#[cfg(test)]
mod tests;
