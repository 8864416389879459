//! The endpoints of each type of provider with their methods: nothing else can be reached, because a
//! centralized key may carry more rights than its user.

use http::Method;
use keybridge_providers::{
    config::{ProviderConfig, ProviderType},
    routes::{Meter, ObjectRoute, RoutePath},
};
use keybridge_wire::{Dialect, request::ObjectKind};

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
    /// A request to a route that the operator allows: recorded before it goes upstream, whatever its body
    /// is, which may be an upload.
    Allowed(Meter),
    /// A side request that asks how many tokens a model request has: of what would be sent, with the
    /// edits of a model request.
    Count(Dialect),
    /// A side request that changes nothing; it is recorded only if its answer carries usage.
    PassThrough,
}

impl Purpose {
    /// Whether the request changes nothing and is recorded only if its answer carries usage.
    pub(crate) const fn is_free(self) -> bool {
        matches!(self, Self::Count(_) | Self::PassThrough)
    }

    /// Whether the answer is a model's in one of the dialects, with usage.
    pub(crate) const fn is_billed(self) -> bool {
        matches!(self, Self::Intercept(_) | Self::Metered(_))
    }

    /// Whether an accepted request was billed even if its answer reports no figures.
    pub(crate) const fn expects_usage(self) -> bool {
        match self {
            Self::Intercept(_) | Self::Metered(_) => true,
            Self::Allowed(meter) => meter.is_billed(),
            Self::Change | Self::Count(_) | Self::PassThrough => false,
        }
    }
}

/// An endpoint of a provider, or several below one path.
#[derive(Debug)]
pub(crate) struct Endpoint {
    path: RoutePath,
    methods: &'static [(Method, Purpose)],
    object: Option<ObjectRoute>,
}

/// What a method and a path mean to a provider.
#[derive(Debug)]
pub(crate) struct Resolved<'a> {
    pub(crate) purpose: Purpose,
    /// What the endpoint reads or changes at the provider.
    pub(crate) object: Option<&'a ObjectRoute>,
}

/// Why a provider does not serve a method and a path.
#[derive(Debug)]
pub(crate) enum Unresolved {
    NoEndpoint,
    /// The endpoint has these methods only.
    Method(Vec<Method>),
}

/// Finds out what a request to a normalised path in its canonical spelling means: by the endpoints of the
/// provider's type, else by the routes that its operator allows.
///
/// A path that differs from an endpoint's in letter case only is none: a server that ignores case
/// would serve it as that endpoint, and it would be judged as another one.
pub(crate) fn resolve<'a>(
    config: &'a ProviderConfig,
    method: &Method,
    path: &str,
) -> Result<Resolved<'a>, Unresolved> {
    let endpoints = endpoints(config.kind);
    let endpoint = endpoints.iter().find(|endpoint| endpoint.path.contains(path));
    let is_one = endpoint.is_some_and(|endpoint| matches!(endpoint.path, RoutePath::One(_)));
    if !is_one && endpoints.iter().any(|other| other.path.is_respelled(path)) {
        return Err(Unresolved::NoEndpoint);
    }
    if let Some(endpoint) = endpoint
        && let Some(purpose) = endpoint.purpose(method)
    {
        return Ok(Resolved { purpose, object: endpoint.object.as_ref() });
    }
    let allowed = config.allow_routes.iter().filter(|route| route.path.contains(path));
    if let Some(route) = allowed.clone().find(|route| route.method == method) {
        return Ok(Resolved {
            purpose: Purpose::Allowed(route.meter),
            object: route.object.as_ref(),
        });
    }
    let own = endpoint.into_iter().flat_map(|endpoint| endpoint.methods.iter().map(|(own, _)| own));
    let methods: Vec<Method> = own.chain(allowed.map(|route| &route.method)).cloned().collect();
    Err(if methods.is_empty() { Unresolved::NoEndpoint } else { Unresolved::Method(methods) })
}

impl Endpoint {
    const fn one(path: &'static str, methods: &'static [(Method, Purpose)]) -> Self {
        Self { path: RoutePath::one(path), methods, object: None }
    }

    const fn tree(path: &'static str, methods: &'static [(Method, Purpose)]) -> Self {
        Self { path: RoutePath::tree(path), methods, object: None }
    }

    const fn below(path: &'static str, methods: &'static [(Method, Purpose)]) -> Self {
        Self { path: RoutePath::below(path), methods, object: None }
    }

    /// An endpoint that reads or changes what is stored, with the ids below a path.
    const fn stored(
        path: RoutePath,
        methods: &'static [(Method, Purpose)],
        object: ObjectRoute,
    ) -> Self {
        Self { path, methods, object: Some(object) }
    }

    /// How a request with this method is handled; `None` if the endpoint does not have it.
    fn purpose(&self, method: &Method) -> Option<Purpose> {
        self.methods.iter().find(|(own, _)| own == method).map(|(_, purpose)| *purpose)
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
const READ: &[(Method, Purpose)] =
    &[(Method::GET, Purpose::PassThrough), (Method::HEAD, Purpose::PassThrough)];
/// Requests that are sent by POST and change nothing that belongs to anyone.
const ASK: &[(Method, Purpose)] = &[(Method::POST, Purpose::PassThrough)];
const COUNT_MESSAGES: &[(Method, Purpose)] = &[(Method::POST, Purpose::Count(Dialect::Messages))];
const COUNT_RESPONSES: &[(Method, Purpose)] = &[(Method::POST, Purpose::Count(Dialect::Responses))];
const READ_AND_CHANGE: &[(Method, Purpose)] = &[
    (Method::GET, Purpose::PassThrough),
    (Method::POST, Purpose::Change),
    (Method::DELETE, Purpose::Change),
];

const STORED_RESPONSES: ObjectRoute = ObjectRoute::new(ObjectKind::Response, "/v1/responses");

/// <https://platform.claude.com/docs/en/api/overview>; `event_logging` is Claude Code's telemetry.
const ANTHROPIC: &[Endpoint] = &[
    Endpoint::one("/v1/messages", MESSAGES),
    Endpoint::one("/v1/messages/count_tokens", COUNT_MESSAGES),
    Endpoint::tree("/v1/models", READ),
    Endpoint::below("/api/event_logging", ASK),
];

/// <https://platform.openai.com/docs/api-reference>. A request below `/v1/responses` that is not listed is
/// taken for a change, so that one that is billed is recorded in any case.
const OPENAI: &[Endpoint] = &[
    Endpoint::one("/v1/chat/completions", CHAT),
    Endpoint::stored(RoutePath::one("/v1/responses"), RESPONSES, STORED_RESPONSES),
    Endpoint::one("/v1/responses/compact", &[(Method::POST, Purpose::Metered(Dialect::Responses))]),
    Endpoint::one("/v1/responses/input_tokens", COUNT_RESPONSES),
    Endpoint::stored(RoutePath::below("/v1/responses"), READ_AND_CHANGE, STORED_RESPONSES),
    Endpoint::stored(
        RoutePath::tree("/v1/conversations"),
        READ_AND_CHANGE,
        ObjectRoute::new(ObjectKind::Conversation, "/v1/conversations"),
    ),
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
const BEDROCK: &[Endpoint] = &[
    Endpoint::one("/v1/messages", MESSAGES),
    Endpoint::one("/v1/messages/count_tokens", COUNT_MESSAGES),
];

#[cfg(test)]
mod tests;
