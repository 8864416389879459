//! The objects at a provider that a request names, such as stored responses and files, and whose they are.
//!
//! All users of a company's key share the provider's account. So a request through such a key may name only
//! what its own user's requests made, and it is sent with the key that made it.

use std::collections::HashMap;

use http::{Method, StatusCode};
use keybridge_identity::token::mask_tokens;
use keybridge_ledger::{LedgerError, ObjectName, ObjectStore, record::objects::ObjectMaker};
use keybridge_providers::{
    config::{ProviderConfig, UnknownObjects},
    credential::CredentialKind,
    failure::Failure,
};
use keybridge_wire::{
    error::ErrorKind,
    request::{MAX_NAMED_OBJECTS, NamedObject, ObjectKind, named_objects},
};
use uuid::Uuid;

use super::{IdentifiedRequest, route::Purpose};
use crate::shared::Shared;

/// The error kind that is recorded when a request names what is not its user's.
const NOT_OWNED: &str = "object_not_owned";
/// Maximum length of an id in an error message, in characters.
const MAX_SHOWN_CHARS: usize = 128;

/// The objects that a request names.
#[derive(Debug, Default)]
pub(crate) struct RequestObjects {
    /// The object of the path, if there is one, comes first.
    names: Vec<NamedObject>,
    is_in_path: bool,
    /// By id; unknown ones are missing.
    makers: HashMap<String, ObjectMaker>,
    /// Whether the fallback of the requested instance has them.
    is_at_fallback: bool,
    /// Set if the request lists all objects of a kind.
    listed: Option<ObjectKind>,
    /// Why the body could not be read.
    unread: Option<String>,
    /// Why the makers could not be looked up.
    failed_lookup: Option<String>,
}

/// Finds the objects that a request names, and their makers.
pub(crate) async fn find_objects(shared: &Shared, request: &mut IdentifiedRequest) {
    let mut objects = request.objects.take().map(|objects| *objects).unwrap_or_default();
    if let Some(object) = &request.route.object {
        match &object.id {
            Some(id) => {
                objects.names.push(NamedObject { kind: object.kind, id: id.clone() });
                objects.is_in_path = true;
            }
            None if request.head.method == Method::GET => objects.listed = Some(object.kind),
            None => {}
        }
    }
    // A model request has been read.
    let is_read = matches!(request.route.purpose, Purpose::Intercept(_) | Purpose::Metered(_));
    let is_below_responses = || request.route.endpoint.starts_with("/v1/responses/");
    if !is_read && (request.route.object.is_some() || is_below_responses()) {
        read_side_body(shared, request, &mut objects).await;
    }
    objects.names.append(&mut request.view.objects);
    if objects.names.is_empty() && objects.listed.is_none() && objects.unread.is_none() {
        return;
    }
    let is_centralized = request.credential_kind == CredentialKind::Centralized;
    let config = &request.route.provider.config;
    if let Err(error) = objects.look_up(&shared.objects, config, is_centralized).await {
        objects.failed_lookup = Some(error.to_string());
    }
    request.bound_key = objects.key().map(str::to_owned);
    request.objects = Some(Box::new(objects));
}

/// Whether requests through the bridge can make files at a provider. Where they cannot, all files were made
/// without it, and the maker of none is known.
fn makes_files(config: &ProviderConfig) -> bool {
    let mut objects = config.allow_routes.iter().filter_map(|route| route.object.as_ref());
    objects.any(|object| matches!(object.kind, ObjectKind::File | ObjectKind::Upload))
}

/// Reads the objects that the body of a side request names.
async fn read_side_body(
    shared: &Shared,
    request: &mut IdentifiedRequest,
    objects: &mut RequestObjects,
) {
    if request.body.upload.is_some() {
        // A form is passed on while it arrives; anything else that is so large cannot be judged.
        let is_form = is_multipart(request);
        objects.unread = (!is_form).then(|| "the body is too large to be read".to_owned());
        return;
    }
    if request.body.bytes.is_empty() {
        return;
    }
    let decoded = request.body.decode(shared.config.max_body, &shared.limits).await;
    let named = match decoded {
        Ok(()) => named_objects(&request.body.plain()).map_err(|error| error.to_string()),
        Err(failure) => Err(failure.detail),
    };
    match named {
        Ok(names) => objects.names.extend(names),
        Err(_form) if is_multipart(request) => {}
        Err(error) => objects.unread = Some(error),
    }
}

/// Whether the body is a form with files, which names no objects.
fn is_multipart(request: &IdentifiedRequest) -> bool {
    let content_type = request.head.headers.get(http::header::CONTENT_TYPE);
    content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("multipart/"))
}

impl RequestObjects {
    /// The objects of a request whose body cannot be read.
    pub(crate) fn unread(reason: String) -> Box<Self> {
        Box::new(Self { unread: Some(reason), ..Self::default() })
    }

    /// Finds the makers; `thoroughly`: also of what another process has just recorded.
    async fn look_up(
        &mut self,
        store: &ObjectStore,
        config: &ProviderConfig,
        thoroughly: bool,
    ) -> Result<(), LedgerError> {
        let provider = &config.name;
        self.makers = store.find(provider, &self.unknown()).await?;
        if let Some(fallback) = &config.fallback
            && self.makers.is_empty()
        {
            self.makers = store.find(&fallback.provider, &self.unknown()).await?;
            self.is_at_fallback = !self.makers.is_empty();
        }
        if thoroughly {
            self.makers.extend(store.find_again(provider, self.unknown()).await?);
        }
        Ok(())
    }

    /// Whether the fallback of the requested instance has the objects.
    pub(crate) const fn is_at_fallback(&self) -> bool {
        self.is_at_fallback
    }

    /// Those whose makers are not known.
    fn unknown(&self) -> Vec<ObjectName> {
        let names = self.names.iter().take(MAX_NAMED_OBJECTS);
        let unknown = names
            .filter(|name| self.maker(name).is_none())
            .map(|name| ObjectName { id: name.id.clone(), is_response: name.kind.is_answer() });
        unknown.collect()
    }

    fn maker(&self, name: &NamedObject) -> Option<&ObjectMaker> {
        self.makers.get(&name.id)
    }

    /// The name of the provider's key that made them.
    pub(crate) fn key(&self) -> Option<&str> {
        self.names.iter().find_map(|name| self.maker(name)?.key.as_deref())
    }

    /// Of what kind the request lists all objects, if it does.
    pub(crate) fn listed(&self) -> Option<ObjectKind> {
        self.listed
    }

    /// The record that the request follows: that of the response, conversation or object that it names,
    /// if its user made it.
    pub(crate) fn parent(&self, user: Uuid, answers_a_call: bool) -> Option<Uuid> {
        let made_by = |name: &NamedObject| self.maker(name).filter(|maker| maker.user_id == user);
        let of_kind = |kind| self.names.iter().filter(move |name| name.kind == kind);
        let response = || self.names.iter().filter(|name| name.kind.is_answer()).find_map(made_by);
        // A tool's result says more exactly which answer of the conversation it follows.
        let conversation =
            || of_kind(ObjectKind::Conversation).filter(|_| !answers_a_call).find_map(made_by);
        let in_path = || self.names.first().filter(|_| self.is_in_path).and_then(made_by);
        response().or_else(conversation).or_else(in_path).map(|maker| maker.interception_id)
    }

    /// The record of the request that made the object of the path.
    pub(crate) fn path_record(&self) -> Option<Uuid> {
        let name = self.names.first().filter(|_| self.is_in_path)?;
        Some(self.maker(name)?.interception_id)
    }

    /// Checks a request that is sent with a company's key. What another user made and what has no known maker
    /// are refused alike, so that the refusal does not say which ids exist.
    pub(crate) fn check(&self, user: Uuid, config: &ProviderConfig) -> Result<(), Failure> {
        let provider = &config.name;
        if let Some(reason) = &self.failed_lookup {
            return Err(Failure::store_unavailable(reason));
        }
        if self.names.len() > MAX_NAMED_OBJECTS {
            return Err(Failure::invalid(&format!(
                "the request names more than {MAX_NAMED_OBJECTS} stored objects"
            )));
        }
        if let Some(reason) = &self.unread {
            return Err(Failure::invalid(&format!(
                "cannot tell which stored objects the request names: {reason}"
            )));
        }
        let refuses_unknown = config.unknown_objects == UnknownObjects::Refuse;
        let is_refused = |name: &&NamedObject| match self.maker(name) {
            Some(maker) => maker.user_id != user,
            None => refuses_unknown && (name.kind != ObjectKind::File || makes_files(config)),
        };
        let Some(name) = self.names.iter().find(is_refused) else { return Ok(()) };
        let id: String = name.id.chars().take(MAX_SHOWN_CHARS).collect();
        let (kind, id) = (name.kind.as_str(), mask_tokens(&id));
        let detail = format!(
            "you have no {kind} `{id}` at the provider `{provider}`: with the company's key, only what \
             your own requests made can be used"
        );
        let refusal = Failure::refusal(StatusCode::NOT_FOUND, ErrorKind::NotFound, &detail);
        Err(Failure { record_kind: Some(NOT_OWNED), ..refusal })
    }
}
