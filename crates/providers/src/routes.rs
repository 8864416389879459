//! Routes of a provider: the paths they have, and those that the operator allows beyond the ones of the
//! provider's type.

use std::borrow::Cow;

use http::Method;
use keybridge_wire::request::ObjectKind;

use crate::kind::ProviderType;

/// The paths of a route, in the canonical spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePath {
    /// This path alone.
    One(Cow<'static, str>),
    /// A path and all below it.
    Tree(Cow<'static, str>),
    /// All below a path.
    Below(Cow<'static, str>),
}

/// The objects that a route reads or changes: their kind, and the path that their ids follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRoute {
    /// What they are.
    pub kind: ObjectKind,
    base: Cow<'static, str>,
}

/// How the use of an allowed route is measured. Figures that an answer reports are recorded with any of
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Meter {
    /// By what the answer reports; without it, the use is not known.
    #[default]
    Usage,
    /// The same, and the characters of the request's `input`.
    Characters,
    /// Not billed by itself.
    None,
}

/// A route that the operator allows beyond those of the provider's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedRoute {
    /// Its method.
    pub method: Method,
    /// Its paths after the provider's name, in the canonical spelling.
    pub path: RoutePath,
    /// How its use is measured.
    pub meter: Meter,
    /// What it reads or changes at the provider.
    pub object: Option<ObjectRoute>,
}

/// Why a route cannot be allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Neither a group nor a method and a path.
    #[error(
        "`{0}` is neither a group of routes nor a method and a path, such as `POST /v1/embeddings`"
    )]
    Form(String),
    /// A group that the type of provider does not have.
    #[error("there is no group of routes `{0}` for the type `{1}`; its groups are {2}")]
    Group(String, ProviderType, String),
    /// A method that no provider's API has, or that is not in upper case.
    #[error("`{0}` is not GET, HEAD, POST, PUT, PATCH or DELETE")]
    Method(String),
    /// A path that is not absolute.
    #[error("the path `{0}` must begin with `/`")]
    Relative(String),
    /// A wildcard that is not at the end of the path.
    #[error(
        "the path `{0}` must have `*` only at its end: `/*` for all below, `(/*)` for it and all below"
    )]
    Wildcard(String),
    /// A path that names nothing, so that every request would be allowed.
    #[error("the path `{0}` allows everything; name the routes")]
    Everything(String),
    /// A meter that does not exist.
    #[error("`{0}` is not `usage`, `characters` or `none`")]
    Meter(String),
}

impl RoutePath {
    /// This path alone.
    pub const fn one(path: &'static str) -> Self {
        Self::One(Cow::Borrowed(path))
    }

    /// A path and all below it.
    pub const fn tree(path: &'static str) -> Self {
        Self::Tree(Cow::Borrowed(path))
    }

    /// All below a path.
    pub const fn below(path: &'static str) -> Self {
        Self::Below(Cow::Borrowed(path))
    }

    /// The path, or that which all others are below.
    pub fn as_str(&self) -> &str {
        let (Self::One(own) | Self::Tree(own) | Self::Below(own)) = self;
        own
    }

    /// Whether a normalised path is one of these.
    pub fn contains(&self, path: &str) -> bool {
        match self {
            Self::One(own) => path == own,
            Self::Tree(own) => path == own || rest_below(own, path).is_some(),
            Self::Below(own) => rest_below(own, path).is_some(),
        }
    }

    /// Whether this is one path that a server which ignores case would take for the given one.
    pub fn is_respelled(&self, path: &str) -> bool {
        matches!(self, Self::One(own) if own.eq_ignore_ascii_case(path))
    }

    /// Whether all paths of another route are among these.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(own), Self::One(path)) => own == path,
            (Self::One(_), Self::Tree(_) | Self::Below(_)) => false,
            (Self::Below(own), Self::Below(path)) if own == path => true,
            _ => self.contains(other.as_str()),
        }
    }

    /// Reads a path as it is configured: `/a`, `/a/*` for all below it, or `/a(/*)` for both.
    fn parse(kind: ProviderType, text: &str) -> Result<Self, RouteError> {
        let (base, make): (&str, fn(Cow<'static, str>) -> Self) =
            match (text.strip_suffix("(/*)"), text.strip_suffix("/*")) {
                (Some(base), _) => (base, Self::Tree),
                (None, Some(base)) => (base, Self::Below),
                (None, None) => (text, Self::One),
            };
        if base.contains(['*', '(', ')']) {
            return Err(RouteError::Wildcard(text.to_owned()));
        }
        if !base.is_empty() && !base.starts_with('/') {
            return Err(RouteError::Relative(text.to_owned()));
        }
        let path = canonical_path(kind, base.trim_start_matches('/'));
        if base.trim_matches('/').is_empty() || path == "/v1" {
            return Err(RouteError::Everything(text.to_owned()));
        }
        Ok(make(path.into()))
    }
}

/// What follows a path and its slash.
fn rest_below<'a>(base: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(base)?.strip_prefix('/')
}

impl ObjectRoute {
    /// Objects whose ids follow this path.
    pub const fn new(kind: ObjectKind, base: &'static str) -> Self {
        Self { kind, base: Cow::Borrowed(base) }
    }

    /// What a normalised path reads or changes, whichever route allows it.
    pub fn of_path(kind: ProviderType, path: &str) -> Option<Self> {
        let objects = groups_of(kind).filter_map(|group| group.object_route(kind));
        objects.into_iter().find(|object| RoutePath::Tree(object.base.clone()).contains(path))
    }

    /// The id of the object that a path names; `None` if it names them all.
    pub fn id<'a>(&self, path: &'a str) -> Option<&'a str> {
        rest_below(&self.base, path)?.split('/').next().filter(|id| !id.is_empty())
    }
}

/// The canonical spelling of the path after a provider's name, without its first slash: a doubled `/v1` is
/// reduced to one, and a missing one is added where all endpoints of the type have it.
pub fn canonical_path(kind: ProviderType, rest: &str) -> String {
    let rest = if rest.starts_with("v1/v1/") { rest.get(3..).unwrap_or(rest) } else { rest };
    let has_version = rest == "v1" || rest.starts_with("v1/");
    let is_version_missing = match kind {
        ProviderType::OpenAi | ProviderType::Bedrock => !has_version,
        ProviderType::Anthropic => !has_version && !rest.starts_with("api/"),
        ProviderType::Copilot => false,
    };
    if is_version_missing { format!("/v1/{rest}") } else { format!("/{rest}") }
}

impl Meter {
    /// Reads a meter's name in the configuration.
    ///
    /// # Errors
    ///
    /// When there is no such meter.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        match text {
            "usage" => Ok(Self::Usage),
            "characters" => Ok(Self::Characters),
            "none" => Ok(Self::None),
            other => Err(RouteError::Meter(other.to_owned())),
        }
    }

    /// Whether an answer without figures was billed nonetheless.
    pub const fn is_billed(self) -> bool {
        !matches!(self, Self::None)
    }
}

impl AllowedRoute {
    /// Reads an entry of the configuration: the name of a group, or a method and a path.
    ///
    /// # Errors
    ///
    /// When the entry is neither, or cannot be allowed.
    pub fn parse(kind: ProviderType, text: &str) -> Result<Vec<Self>, RouteError> {
        if let Some((method, path)) = text.trim().split_once(' ') {
            return Ok(vec![Self::new(kind, method, path.trim(), None)?]);
        }
        let is_name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if !is_name {
            return Err(RouteError::Form(text.to_owned()));
        }
        if let Some(group) = groups_of(kind).find(|group| group.name == text) {
            return Ok(group.expand(kind));
        }
        let names: Vec<&str> = groups_of(kind).map(|group| group.name).collect();
        Err(RouteError::Group(text.to_owned(), kind, names.join(", ")))
    }

    /// A route by its method and path. Without a meter, what is posted is measured by its usage.
    ///
    /// # Errors
    ///
    /// When there is no such method, or the path cannot be allowed.
    pub fn new(
        kind: ProviderType,
        method: &str,
        path: &str,
        meter: Option<Meter>,
    ) -> Result<Self, RouteError> {
        let method = match method {
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            "POST" => Method::POST,
            "PUT" => Method::PUT,
            "PATCH" => Method::PATCH,
            "DELETE" => Method::DELETE,
            other => return Err(RouteError::Method(other.to_owned())),
        };
        let path = RoutePath::parse(kind, path)?;
        // A route of a group is measured and owned like the group's.
        let known = groups_of(kind)
            .flat_map(|group| group.expand(kind))
            .find(|known| known.method == method && known.path.covers(&path));
        let default = if method == Method::POST { Meter::Usage } else { Meter::None };
        let (own_meter, object) =
            known.map_or((default, None), |known| (known.meter, known.object));
        Ok(Self { method, path, meter: meter.unwrap_or(own_meter), object })
    }
}

/// Routes that are allowed by one name.
#[derive(Debug)]
struct Group {
    name: &'static str,
    kinds: &'static [ProviderType],
    routes: &'static [GroupRoute],
    /// What the routes read or change, and where their ids are.
    object: Option<(ObjectKind, &'static str)>,
    meter: Meter,
}

/// A route of a group; its path is below the type's prefix.
#[derive(Debug, Clone, Copy)]
enum GroupRoute {
    /// A path that is posted to.
    Post(&'static str),
    /// A path and all below it, which is read, written and deleted.
    Stored(&'static str),
}

impl Group {
    /// What the routes read or change.
    fn object_route(&self, kind: ProviderType) -> Option<ObjectRoute> {
        let (object, base) = self.object?;
        Some(ObjectRoute { kind: object, base: prefixed(kind, base) })
    }

    fn expand(&self, kind: ProviderType) -> Vec<AllowedRoute> {
        let object = self.object_route(kind);
        let prefixed = |path: &str| prefixed(kind, path);
        let routes = self.routes.iter().flat_map(|route| {
            let (methods, path) = match *route {
                GroupRoute::Post(path) => (POST, RoutePath::One(prefixed(path))),
                GroupRoute::Stored(path) => (READ_AND_WRITE, RoutePath::Tree(prefixed(path))),
            };
            methods.iter().map(move |method| (method.clone(), path.clone()))
        });
        let routes = routes.map(|(method, path)| AllowedRoute {
            method,
            path,
            meter: self.meter,
            object: object.clone(),
        });
        routes.collect()
    }
}

/// A path of a group, below the prefix of a type of provider.
fn prefixed(kind: ProviderType, path: &str) -> Cow<'static, str> {
    match kind {
        ProviderType::OpenAi | ProviderType::Anthropic => format!("/v1{path}").into(),
        ProviderType::Copilot | ProviderType::Bedrock => path.to_owned().into(),
    }
}

fn groups_of(kind: ProviderType) -> impl Iterator<Item = &'static Group> + Clone {
    GROUPS.iter().filter(move |group| group.kinds.contains(&kind))
}

const POST: &[Method] = &[Method::POST];
const READ_AND_WRITE: &[Method] = &[Method::GET, Method::POST, Method::DELETE];
const OPENAI: &[ProviderType] = &[ProviderType::OpenAi, ProviderType::Copilot];
const ANTHROPIC: &[ProviderType] = &[ProviderType::Anthropic];

/// A group with routes of OpenAI's dialects.
const fn openai(name: &'static str, meter: Meter, routes: &'static [GroupRoute]) -> Group {
    Group { name, kinds: OPENAI, routes, object: None, meter }
}

/// A group of stored objects, which are not billed by themselves.
const fn objects(
    name: &'static str,
    kinds: &'static [ProviderType],
    object: (ObjectKind, &'static str),
    routes: &'static [GroupRoute],
) -> Group {
    Group { name, kinds, routes, object: Some(object), meter: Meter::None }
}

/// <https://platform.openai.com/docs/api-reference>, <https://docs.cohere.com/reference/rerank> and
/// <https://platform.claude.com/docs/en/api/overview>.
const GROUPS: &[Group] = &[
    openai("completions", Meter::Usage, &[GroupRoute::Post("/completions")]),
    openai("embeddings", Meter::Usage, &[GroupRoute::Post("/embeddings")]),
    openai("moderations", Meter::None, &[GroupRoute::Post("/moderations")]),
    openai("rerank", Meter::Usage, &[GroupRoute::Post("/rerank")]),
    openai(
        "images",
        Meter::Usage,
        &[
            GroupRoute::Post("/images/generations"),
            GroupRoute::Post("/images/edits"),
            GroupRoute::Post("/images/variations"),
        ],
    ),
    openai(
        "audio",
        Meter::Characters,
        &[
            GroupRoute::Post("/audio/speech"),
            GroupRoute::Post("/audio/transcriptions"),
            GroupRoute::Post("/audio/translations"),
        ],
    ),
    openai(
        "codex",
        Meter::Usage,
        &[
            GroupRoute::Post("/alpha/search"),
            GroupRoute::Post("/images/generations"),
            GroupRoute::Post("/images/edits"),
        ],
    ),
    objects("files", OPENAI, (ObjectKind::File, "/files"), &[GroupRoute::Stored("/files")]),
    objects("files", ANTHROPIC, (ObjectKind::File, "/files"), &[GroupRoute::Stored("/files")]),
    objects("uploads", OPENAI, (ObjectKind::Upload, "/uploads"), &[GroupRoute::Stored("/uploads")]),
    objects("batches", OPENAI, (ObjectKind::Batch, "/batches"), &[GroupRoute::Stored("/batches")]),
    objects(
        "batches",
        ANTHROPIC,
        (ObjectKind::Batch, "/messages/batches"),
        &[GroupRoute::Stored("/messages/batches")],
    ),
    objects(
        "vector_stores",
        OPENAI,
        (ObjectKind::VectorStore, "/vector_stores"),
        &[GroupRoute::Stored("/vector_stores")],
    ),
    objects(
        "containers",
        OPENAI,
        (ObjectKind::Container, "/containers"),
        &[GroupRoute::Stored("/containers")],
    ),
    objects(
        "stored_completions",
        OPENAI,
        (ObjectKind::ChatCompletion, "/chat/completions"),
        &[GroupRoute::Stored("/chat/completions")],
    ),
];

#[cfg(test)]
mod tests;
