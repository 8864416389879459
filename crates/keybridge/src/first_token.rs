//! The token of the first administrator: shown on a terminal, otherwise put into a file. Under a service
//! manager or in a container, standard output is a log, which many read and which is kept.

use std::{
    io::{self, IsTerminal},
    path::{self, Path},
};

use keybridge_identity::BridgeToken;
use keybridge_ledger::private_file;

/// The file's name, in the directory of the spool.
const FILE: &str = "first-admin-token";

/// Shows the token with how to set up clients, if standard output is a terminal; otherwise writes it to a
/// file in `dir` and logs the path.
pub(crate) fn hand_over(token: &BridgeToken, url: &str, dir: &Path) {
    if io::stdout().is_terminal() {
        println!("{}", client_setup(url, token.expose()));
        return;
    }
    let file = dir.join(FILE);
    let file = path::absolute(&file).unwrap_or(file);
    let path = file.display();
    match private_file::replace(&file, format!("{}\n", token.expose()).as_bytes()) {
        Ok(()) => tracing::warn!(
            %path,
            "created the user `admin`; this file has its bridge token, which ends in 24 h unless it is used"
        ),
        Err(error) => tracing::error!(
            %error,
            %path,
            "created the user `admin`, but cannot write its bridge token; create another one with \
             `keybridge token create --user admin`"
        ),
    }
}

/// How to set up clients.
fn client_setup(url: &str, token: &str) -> String {
    format!(
        r#"Created the user `admin`. Its bridge token, which cannot be shown again and ends in 24 h unless it is used:

  {token}

Claude Code, with the company's key:
  export ANTHROPIC_BASE_URL={url}/anthropic ANTHROPIC_AUTH_TOKEN={token} CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
Claude Code, with your own key or subscription:
  export ANTHROPIC_BASE_URL={url}/anthropic ANTHROPIC_CUSTOM_HEADERS="X-AI-Governance-Token: {token}" CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1

Codex, in ~/.codex/config.toml, with the company's key (export KEYBRIDGE_TOKEN={token}):
  model_provider = "keybridge"
  [model_providers.keybridge]
  name = "keybridge"
  base_url = "{url}/openai/v1"
  env_key = "KEYBRIDGE_TOKEN"
  wire_api = "responses"
Codex, with your own key: the same with env_key = "OPENAI_API_KEY" and
  http_headers = {{ "X-AI-Governance-Token" = "{token}" }}"#
    )
}
