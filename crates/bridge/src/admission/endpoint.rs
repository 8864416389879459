//! The endpoints of each type of provider with their methods: nothing else can be reached, because a
//! centralized key may carry more rights than its user.

use http::Method;
use keybridge_providers::config::ProviderType;
use keybridge_wire::Dialect;

/// How a request to an endpoint is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A model request: recorded before it goes upstream.
    Intercept(Dialect),
    /// A side request that is billed: recorded before it goes upstream, and sent even if its body cannot
    /// be read.
    Metered(Dialect),
    /// A side request that changes something at the provider: recorded before it goes upstream, without
    /// reading its body.
    Change,
    /// A side request that changes nothing; it is recorded only if its answer carries usage.
    PassThrough,
}

impl Purpose {
    /// Whether the answer is a model's, with usage.
    pub(crate) const fn is_billed(self) -> bool {
        matches!(self, Self::Intercept(_) | Self::Metered(_))
    }
}

/// An endpoint of a provider, or several below one path.
#[derive(Debug)]
pub(crate) struct Endpoint {
    paths: Paths,
    methods: &'static [(Method, Purpose)],
}

/// The paths of an endpoint.
#[derive(Debug)]
enum Paths {
    One(&'static str),
    /// A path and all below it.
    Tree(&'static str),
    /// All below a path.
    Below(&'static str),
}

impl Endpoint {
    const fn one(path: &'static str, methods: &'static [(Method, Purpose)]) -> Self {
        Self { paths: Paths::One(path), methods }
    }

    const fn tree(path: &'static str, methods: &'static [(Method, Purpose)]) -> Self {
        Self { paths: Paths::Tree(path), methods }
    }

    const fn below(path: &'static str, methods: &'static [(Method, Purpose)]) -> Self {
        Self { paths: Paths::Below(path), methods }
    }

    /// Finds the endpoint of a normalised path in its canonical spelling.
    ///
    /// A path that differs from an endpoint's in letter case only is none: a server that ignores case
    /// would serve it as that endpoint, and it would be judged as another one.
    pub(crate) fn find(kind: ProviderType, path: &str) -> Option<&'static Self> {
        let endpoints = endpoints(kind);
        let found = endpoints.iter().find(|endpoint| endpoint.contains(path))?;
        let is_respelled = |endpoint: &Self| matches!(endpoint.paths, Paths::One(own) if own.eq_ignore_ascii_case(path));
        let is_own = matches!(found.paths, Paths::One(_));
        (is_own || !endpoints.iter().any(is_respelled)).then_some(found)
    }

    /// How a request with this method is handled; `None` if the endpoint does not have it.
    pub(crate) fn purpose(&self, method: &Method) -> Option<Purpose> {
        self.methods.iter().find(|(own, _)| own == method).map(|(_, purpose)| *purpose)
    }

    /// The methods of the endpoint.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &'static Method> {
        self.methods.iter().map(|(method, _)| method)
    }

    fn contains(&self, path: &str) -> bool {
        let rest_below = |own: &str| path.strip_prefix(own)?.strip_prefix('/');
        match self.paths {
            Paths::One(own) => path == own,
            Paths::Tree(own) => path == own || rest_below(own).is_some(),
            Paths::Below(own) => rest_below(own).is_some(),
        }
    }
}

fn endpoints(kind: ProviderType) -> &'static [Endpoint] {
    match kind {
        ProviderType::Anthropic => ANTHROPIC,
        ProviderType::OpenAi => OPENAI,
        ProviderType::Copilot => COPILOT,
        ProviderType::Bedrock => BEDROCK,
    }
}

const MESSAGES: &[(Method, Purpose)] = &[(Method::POST, Purpose::Intercept(Dialect::Messages))];
const CHAT: &[(Method, Purpose)] = &[(Method::POST, Purpose::Intercept(Dialect::ChatCompletions))];
const RESPONSES: &[(Method, Purpose)] = &[(Method::POST, Purpose::Intercept(Dialect::Responses))];
const READ: &[(Method, Purpose)] = &[(Method::GET, Purpose::PassThrough)];
/// Requests that are sent by POST and change nothing that belongs to anyone.
const ASK: &[(Method, Purpose)] = &[(Method::POST, Purpose::PassThrough)];
const READ_AND_CHANGE: &[(Method, Purpose)] = &[
    (Method::GET, Purpose::PassThrough),
    (Method::POST, Purpose::Change),
    (Method::DELETE, Purpose::Change),
];

/// <https://platform.claude.com/docs/en/api/overview>; `event_logging` is Claude Code's telemetry.
const ANTHROPIC: &[Endpoint] = &[
    Endpoint::one("/v1/messages", MESSAGES),
    Endpoint::one("/v1/messages/count_tokens", ASK),
    Endpoint::tree("/v1/models", READ),
    Endpoint::below("/api/event_logging", ASK),
];

/// <https://platform.openai.com/docs/api-reference>. A request below `/v1/responses` that is not listed is
/// taken for a change, so that one that is billed is recorded in any case.
const OPENAI: &[Endpoint] = &[
    Endpoint::one("/v1/chat/completions", CHAT),
    Endpoint::one("/v1/responses", RESPONSES),
    Endpoint::one("/v1/responses/compact", &[(Method::POST, Purpose::Metered(Dialect::Responses))]),
    Endpoint::one("/v1/responses/input_tokens", ASK),
    Endpoint::below("/v1/responses", READ_AND_CHANGE),
    Endpoint::tree("/v1/conversations", READ_AND_CHANGE),
    Endpoint::tree("/v1/models", READ),
];

/// Clients ask `/models/session` which model to use. The MCP server takes the methods of
/// <https://modelcontextprotocol.io/specification/2025-06-18/basic/transports#streamable-http>.
const COPILOT: &[Endpoint] = &[
    Endpoint::one("/chat/completions", CHAT),
    Endpoint::one("/responses", RESPONSES),
    Endpoint::one("/v1/messages", MESSAGES),
    Endpoint::tree("/models/session", ASK),
    Endpoint::tree("/models", READ),
    Endpoint::below("/agents", READ_AND_CHANGE),
    Endpoint::below("/mcp", READ_AND_CHANGE),
    Endpoint::below("/.well-known", READ),
];

/// The Messages API, into which Amazon's is translated.
const BEDROCK: &[Endpoint] = &[Endpoint::one("/v1/messages", MESSAGES)];

#[cfg(test)]
mod tests;
