//! Paths that name the model, as clients of Azure OpenAI send them; pure, no I/O.
//!
//! <https://learn.microsoft.com/azure/ai-foundry/openai/reference>: `/openai/deployments/{name}/chat/completions`.

use keybridge_providers::config::ProviderType;

/// The path of Azure's own root, which its clients put before each path.
const ROOT: &str = "openai/";
const DEPLOYMENTS: &str = "deployments/";

/// The path after a provider's name as other clients of its type send it, and the deployment that it names.
pub(super) fn split(kind: ProviderType, rest: &str) -> (&str, Option<&str>) {
    if kind != ProviderType::OpenAi {
        return (rest, None);
    }
    let rest = rest.strip_prefix(ROOT).unwrap_or(rest);
    let below = rest.strip_prefix(DEPLOYMENTS).and_then(|below| below.split_once('/'));
    match below {
        Some((deployment, endpoint)) if is_name(deployment) => (endpoint, Some(deployment)),
        _ => (rest, None),
    }
}

/// Whether a text can be the name of a deployment, and a segment of a path that is read in one way only.
pub(super) fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().all(is_allowed) && text.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployment_is_taken_out_of_a_path() {
        let rows = [
            ("openai/deployments/gpt-x/chat/completions", ("chat/completions", Some("gpt-x"))),
            ("deployments/gpt-4.1_b/embeddings", ("embeddings", Some("gpt-4.1_b"))),
            ("openai/v1/chat/completions", ("v1/chat/completions", None)),
            ("openai/responses", ("responses", None)),
            ("v1/chat/completions", ("v1/chat/completions", None)),
            ("openai/deployments", ("deployments", None)),
            ("deployments/../chat/completions", ("deployments/../chat/completions", None)),
            ("deployments/a%20b/chat/completions", ("deployments/a%20b/chat/completions", None)),
            ("deployments//chat/completions", ("deployments//chat/completions", None)),
        ];
        for (path, expected) in rows {
            assert_eq!(split(ProviderType::OpenAi, path), expected, "{path}");
        }
        let path = "openai/v1/messages";
        assert_eq!(split(ProviderType::Anthropic, path), (path, None));
    }
}
