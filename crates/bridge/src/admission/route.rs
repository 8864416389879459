//! Which provider instance and endpoint a request names; no I/O.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderName, Method, StatusCode, header, request};
use keybridge_identity::token::contains_encoded_token;
use keybridge_net::path::{PathError, normalize};
use keybridge_providers::{
    config::{ProviderConfig, ProviderType},
    failure::Failure,
    provider::Provider,
    routes::{ObjectRoute, canonical_path},
    vendors::ModelPath,
};
use keybridge_wire::{Dialect, error::ErrorKind, request::ObjectKind};
use percent_encoding::percent_decode_str;

pub(crate) use super::endpoint::Purpose;
use super::{
    deployment,
    endpoint::{Unresolved, resolve},
};

/// The result of routing a request.
#[derive(Debug)]
pub(crate) enum RouteMatch {
    /// The endpoint of a provider.
    Endpoint(Route),
    /// A client's reachability probe, answered 200 by the bridge.
    Probe,
    /// A WebSocket upgrade, answered 426 so that the client falls back to HTTP at once.
    Upgrade(Arc<Provider>),
    /// The provider exists, and does not serve the request.
    Refused(Arc<Provider>, RouteRefusal),
    /// No provider of that name.
    NoProvider,
}

/// A provider instance and one of its endpoints.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) provider: Arc<Provider>,
    /// The endpoint in its canonical spelling: what was judged, and what is sent.
    pub(crate) endpoint: String,
    pub(crate) purpose: Purpose,
    /// What the request reads or changes at the provider, if that is stored there.
    pub(crate) object: Option<RouteObject>,
    /// The model, if the client named it in the path.
    pub(crate) deployment: Option<String>,
}

/// The stored objects that a request reads or changes by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteObject {
    pub(crate) kind: ObjectKind,
    /// `None` for the path of all: it lists them, or makes one.
    pub(crate) id: Option<String>,
    /// Whether the path ends with the id.
    pub(crate) is_whole: bool,
}

impl RouteObject {
    fn of(
        provider: &Provider,
        purpose: Purpose,
        route: Option<&ObjectRoute>,
        path: &str,
    ) -> Option<Self> {
        // A route that an operator allows may be of more than one group.
        let by_path = || match purpose {
            Purpose::Allowed(_) => ObjectRoute::of_path(provider.config.kind, path),
            _ => None,
        };
        let route = route.cloned().or_else(by_path)?;
        let id = route.id(path);
        let is_whole = id.is_some_and(|id| path.rsplit('/').next() == Some(id));
        // The provider decodes it, too; a normalised path is decoded once.
        let id = id.map(|id| percent_decode_str(id).decode_utf8_lossy().into_owned());
        Some(Self { kind: route.kind, id, is_whole })
    }
}

/// The path of an endpoint below the base URL of a provider instance.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UpstreamPath<'a> {
    pub(crate) path: Cow<'a, str>,
    /// Whether it names the model, so that the body's `model` says nothing.
    pub(crate) names_model: bool,
}

/// Why a provider does not serve a request.
#[derive(Debug)]
pub(crate) enum RouteRefusal {
    /// The path contains a bridge token.
    Token,
    /// A browser would show the answer as a page of this origin.
    Navigation,
    Path(PathError),
    Endpoint(Unresolved),
}

/// Path prefixes used by clients that are set up for Coder.
const PREFIXES: [&str; 2] = ["/api/v2/aibridge/", "/api/v2/ai-gateway/"];
/// What a browser says a response is for (Fetch Metadata); `empty` for `fetch` and the like.
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
/// Sent by every client of Anthropic's API and by no client of OpenAI's.
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// Maximum length of a method or path in an error message, in characters.
const MAX_SHOWN_CHARS: usize = 256;

/// Finds the route of a request among the providers.
pub(crate) fn route(providers: &[Arc<Provider>], head: &request::Parts) -> RouteMatch {
    let path = head.uri.path();
    let below = PREFIXES
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))
        .or_else(|| path.strip_prefix('/'))
        .unwrap_or(path);
    let (name, rest) = below.split_once('/').unwrap_or((below, ""));
    if let Some(provider) = providers.iter().find(|provider| provider.config.name == name) {
        // With a base URL that ends in a slash, the path has one slash more.
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        return route_below(Arc::clone(provider), rest, head);
    }
    let below = below.strip_prefix('/').unwrap_or(below);
    match default_provider(providers, below, head) {
        Some(provider) => route_below(Arc::clone(provider), below, head),
        None => RouteMatch::NoProvider,
    }
}

/// The provider of a request whose base URL lacks the provider's name, so that its path begins with the
/// version of the API: the instance that is named after the type which has the endpoint, else the first
/// one of that type.
fn default_provider<'a>(
    providers: &'a [Arc<Provider>],
    path: &str,
    head: &request::Parts,
) -> Option<&'a Arc<Provider>> {
    let endpoint = path.strip_prefix("v1/")?;
    let endpoint = endpoint.strip_prefix("v1/").unwrap_or(endpoint);
    let is_anthropic = match endpoint.split('/').next().unwrap_or_default() {
        "messages" => true,
        "models" => head.headers.contains_key(ANTHROPIC_VERSION),
        _ => false,
    };
    let kinds: &[ProviderType] = if is_anthropic {
        &[ProviderType::Anthropic, ProviderType::Bedrock]
    } else {
        &[ProviderType::OpenAi]
    };
    kinds.iter().find_map(|kind| {
        let of_kind = || providers.iter().filter(|provider| provider.config.kind == *kind);
        of_kind()
            .find(|provider| provider.config.name == kind.as_str())
            .or_else(|| of_kind().next())
    })
}

/// Finds the route of a request to a provider by the path after its name.
fn route_below(provider: Arc<Provider>, rest: &str, head: &request::Parts) -> RouteMatch {
    if contains_encoded_token(rest.as_bytes()) {
        return RouteMatch::Refused(provider, RouteRefusal::Token);
    }
    if head.headers.get(SEC_FETCH_DEST).is_some_and(|dest| dest != "empty") {
        return RouteMatch::Refused(provider, RouteRefusal::Navigation);
    }
    let rest = match normalize(rest) {
        Ok(rest) => rest,
        Err(error) => return RouteMatch::Refused(provider, RouteRefusal::Path(error)),
    };
    if head.method == Method::HEAD && matches!(&*rest, "" | "api/hello") {
        return RouteMatch::Probe;
    }
    let (rest, deployment) = deployment::split(provider.config.kind, &rest);
    let mut path = canonical_path(provider.config.kind, rest);
    let mut resolved = resolve(&provider.config, &head.method, &path);
    if provider.config.kind == ProviderType::Copilot
        && matches!(resolved, Err(Unresolved::NoEndpoint))
    {
        // Some of its endpoints have a version in their path and some have none.
        let other = path.strip_prefix("/v1").map_or_else(|| format!("/v1{path}"), str::to_owned);
        resolved = resolve(&provider.config, &head.method, &other);
        if !matches!(resolved, Err(Unresolved::NoEndpoint)) {
            path = other;
        }
    }
    match resolved {
        Ok(found) => {
            let (purpose, object) = (found.purpose, found.object);
            let object = RouteObject::of(&provider, purpose, object, &path);
            let deployment = deployment.map(str::to_owned);
            RouteMatch::Endpoint(Route { provider, endpoint: path, purpose, object, deployment })
        }
        Err(_other_method) if asks_for_websocket(&provider, &path, head) => {
            RouteMatch::Upgrade(provider)
        }
        Err(unresolved) => RouteMatch::Refused(provider, RouteRefusal::Endpoint(unresolved)),
    }
}

/// Whether a provider serves the endpoint of a request to another one.
pub(crate) fn is_served(config: &ProviderConfig, endpoint: &str, method: &Method) -> bool {
    resolve(config, method, endpoint).is_ok()
}

fn asks_for_websocket(provider: &Provider, path: &str, head: &request::Parts) -> bool {
    head.method == Method::GET
        && has_websocket_upgrade(&head.headers)
        && resolve(&provider.config, &Method::POST, path)
            .is_ok_and(|found| found.purpose == Purpose::Intercept(Dialect::Responses))
}

fn has_websocket_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("websocket"))
}

impl Route {
    /// The path below the base URL of a provider instance, for a model.
    pub(crate) fn upstream_path(
        &self,
        config: &ProviderConfig,
        model: Option<&str>,
    ) -> Result<UpstreamPath<'_>, Failure> {
        if let Some(ModelPath { before, after }) =
            config.profile.path(&self.endpoint, config.base_url.path())
        {
            let Some(before) = before else {
                return Ok(UpstreamPath { path: after.to_owned().into(), names_model: true });
            };
            let Some(model) = model.filter(|model| deployment::is_name(model)) else {
                return Err(Failure::invalid(
                    "`model` must be the name of a deployment: letters, digits, `-`, `_` and `.`",
                ));
            };
            let path = format!("{before}{model}{after}").into();
            return Ok(UpstreamPath { path, names_model: true });
        }
        let path = match config.kind {
            ProviderType::OpenAi => self.endpoint.strip_prefix("/v1").unwrap_or(&self.endpoint),
            ProviderType::Anthropic | ProviderType::Copilot | ProviderType::Bedrock => {
                &self.endpoint
            }
        };
        Ok(UpstreamPath { path: path.into(), names_model: false })
    }

    /// The dialect of the event streams that a model's provider may answer with; `None` if they are of
    /// another kind, such as those of an MCP server.
    pub(crate) fn stream_dialect(&self) -> Option<Dialect> {
        match self.purpose {
            Purpose::Intercept(dialect) | Purpose::Metered(dialect) => Some(dialect),
            Purpose::Allowed(_) | Purpose::Count(_) => None,
            // A stored response can be streamed once more.
            Purpose::Change | Purpose::PassThrough => {
                (self.provider.config.kind == ProviderType::OpenAi).then_some(Dialect::Responses)
            }
        }
    }
}

impl RouteRefusal {
    /// The error for the client.
    pub(crate) fn failure(self, provider: &str, head: &request::Parts) -> Failure {
        match self {
            Self::Token => {
                Failure::invalid("the path must not contain a bridge token; send it in a header")
            }
            Self::Navigation => Failure::refusal(
                StatusCode::FORBIDDEN,
                ErrorKind::Permission,
                "a provider's answers are not for a browser to show: the request has the header \
                 `Sec-Fetch-Dest` with another value than `empty`",
            ),
            Self::Path(error) if error.is_malformed() => {
                Failure::invalid(&format!("invalid path: it contains {error}"))
            }
            Self::Path(error) => not_found(&format!(
                "{}: the path contains {error}",
                unknown_endpoint(provider, head)
            )),
            Self::Endpoint(Unresolved::NoEndpoint) => not_found(&unknown_endpoint(provider, head)),
            Self::Endpoint(Unresolved::Method(methods)) => {
                let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
                let methods = methods.join(", ");
                not_found(&format!(
                    "{}: its methods are {methods}",
                    unknown_endpoint(provider, head)
                ))
            }
        }
    }
}

fn unknown_endpoint(provider: &str, head: &request::Parts) -> String {
    format!("unknown endpoint: the provider `{provider}` has no endpoint {}", described(head))
}

/// Method and path, in an error; what contains a bridge token is shown neither to the client nor in logs.
pub(crate) fn described(head: &request::Parts) -> String {
    let [method, path] = [head.method.as_str(), head.uri.path()].map(|text| {
        if contains_encoded_token(text.as_bytes()) {
            return "…".to_owned();
        }
        text.chars().take(MAX_SHOWN_CHARS).collect()
    });
    format!("{method} {path}")
}

pub(crate) fn not_found(detail: &str) -> Failure {
    Failure::refusal(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
}

#[cfg(test)]
mod tests;
