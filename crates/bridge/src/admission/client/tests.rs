use http::{HeaderMap, HeaderName, HeaderValue};
use keybridge_wire::request::RequestView;

use super::{agents, client, session_id};

fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
    headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

#[test]
fn clients_are_known_by_their_headers() {
    let rows: [(&[(&'static str, &str)], &str); 27] = [
        (&[("user-agent", "mux/1.0")], "Mux"),
        (&[("user-agent", "claude-cli/2.1.330 (external, sdk-cli)")], "Claude Code"),
        (&[("user-agent", "codex_exec/0.169.0 (Debian 12.0.0; x86_64)")], "Codex"),
        (&[("user-agent", "Zed/0.2")], "Zed"),
        (&[("user-agent", "GitHubCopilotChat/0.3")], "GitHub Copilot (VS Code)"),
        (&[("user-agent", "copilot/1.0.2")], "GitHub Copilot (CLI)"),
        (&[("user-agent", "OpenAI/JS 6"), ("originator", "kilo-code")], "Kilo Code"),
        (&[("user-agent", "Kilo-Code/5")], "Kilo Code"),
        (&[("originator", "roo-code")], "Roo Code"),
        (&[("user-agent", "roo-code/3")], "Roo Code"),
        (&[("user-agent", "coder-agents/1")], "Coder Agents"),
        (&[("user-agent", "Charm Crush/0.9")], "Charm Crush"),
        (&[("user-agent", "charm-crush/0.9")], "Charm Crush"),
        (&[("user-agent", "opencode/1.18.33 ai-sdk/provider-utils/4")], "OpenCode"),
        (&[("user-agent", "QwenCode/0.24.4 (linux; x64)")], "Qwen Code"),
        (&[("user-agent", "goose/1")], "Goose"),
        (&[("user-agent", "factory-cli/1")], "Factory Droid"),
        (&[("user-agent", "xum/1")], "Xum"),
        (&[("x-cursor-client-version", "2")], "Cursor"),
        (
            &[
                ("user-agent", "OpenAI/JS 5.20.1"),
                ("x-initiator", "user"),
                ("x-interaction-type", "conversation-user"),
            ],
            "GitHub Copilot (CLI)",
        ),
        (&[("user-agent", "OpenAI/JS 5.20.1"), ("x-initiator", "agent")], "GitHub Copilot (CLI)"),
        (&[("user-agent", "OpenAI/Python 3.54.0")], "OpenAI SDK (Python)"),
        (&[("user-agent", "AsyncOpenAI/Python 3.54.0")], "OpenAI SDK (Python)"),
        (&[("user-agent", "AsyncAnthropic/Python 2.12.0")], "Anthropic SDK (Python)"),
        (&[("user-agent", "Anthropic/JS 1.12.0")], "Anthropic SDK (JavaScript)"),
        (&[("user-agent", "ai/7.0.173 ai-sdk-provider-utils/5")], "AI SDK"),
        (&[("user-agent", "curl/8")], "Unknown"),
    ];
    for (headers, name) in rows {
        assert_eq!(client(&map(headers)), name, "{headers:?}");
    }
    assert_eq!(client(&HeaderMap::new()), "Unknown");
}

#[test]
fn sessions_are_read_where_each_client_puts_them() {
    let none = RequestView::default();
    let rows = [
        ("Claude Code", "x-claude-code-session-id"),
        ("Codex", "session-id"),
        ("Codex", "session_id"),
        ("Mux", "x-mux-workspace-id"),
        ("Xum", "x-mux-workspace-id"),
        ("GitHub Copilot (VS Code)", "x-interaction-id"),
        ("GitHub Copilot (CLI)", "x-client-session-id"),
        ("Kilo Code", "x-kilocode-taskid"),
        ("Coder Agents", "x-coder-chat-id"),
        ("OpenCode", "x-session-id"),
        ("OpenCode", "x-session-affinity"),
        ("OpenCode", "x-opencode-session"),
    ];
    for (client, header) in rows {
        let headers = map(&[(header, " s-1 ")]);
        assert_eq!(session_id(client, &headers, &none).as_deref(), Some("s-1"), "{client}");
        assert_eq!(session_id(client, &map(&[(header, "  ")]), &none), None, "{client}");
        assert_eq!(session_id("Unknown", &headers, &none), None);
    }
}

#[test]
fn claude_code_falls_back_to_its_metadata() {
    let view =
        RequestView { metadata_session_id: Some("from-body".into()), ..RequestView::default() };
    let id = session_id("Claude Code", &HeaderMap::new(), &view);
    assert_eq!(id.as_deref(), Some("from-body"));
    let headers = map(&[("x-claude-code-session-id", "from-header")]);
    assert_eq!(session_id("Claude Code", &headers, &view).as_deref(), Some("from-header"));
}

#[test]
fn claims_are_cut_and_never_hold_a_token() {
    let long = "é".repeat(300);
    let view = RequestView { metadata_session_id: Some(long), ..RequestView::default() };
    let id = session_id("Claude Code", &HeaderMap::new(), &view).unwrap();
    assert_eq!(id.chars().count(), 256);
    let headers = map(&[("session-id", "kb_secret"), ("x-claude-code-agent-id", "a1")]);
    assert_eq!(session_id("Codex", &headers, &RequestView::default()), None);
    assert_eq!(agents(&headers), (Some("a1".into()), None));
}
