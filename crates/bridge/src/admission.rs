//! Admission of a request: its route, caller, body and limits.

use std::collections::HashMap;

use http::request;
use jiff::Timestamp;
use keybridge_ledger::NewAttachment;
use keybridge_providers::credential::CredentialKind;
use keybridge_wire::request::RequestView;
use uuid::Uuid;

use self::{body::RequestBody, limits::InFlight, objects::RequestObjects, route::Route};
use crate::phases::PhaseTimes;
use keybridge_identity::Caller;

pub(crate) mod attachments;
pub(crate) mod body;
pub(crate) mod client;
mod deployment;
mod endpoint;
pub(crate) mod identify;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod objects;
pub(crate) mod route;
pub(crate) mod upload;

/// A request whose route is known.
#[derive(Debug)]
pub(crate) struct RoutedRequest {
    pub(crate) route: Route,
    pub(crate) head: request::Parts,
    /// The id of its record, if it is recorded.
    pub(crate) id: Uuid,
    pub(crate) started_at: Timestamp,
    pub(crate) phases: PhaseTimes,
    pub(crate) in_flight: InFlight,
}

/// A request whose caller is known; body and view are empty until the body has been read.
#[derive(Debug)]
pub(crate) struct IdentifiedRequest {
    pub(crate) route: Route,
    pub(crate) head: request::Parts,
    pub(crate) id: Uuid,
    pub(crate) started_at: Timestamp,
    pub(crate) phases: PhaseTimes,
    pub(crate) in_flight: InFlight,
    pub(crate) caller: Caller,
    /// Which kind of credential the request is to be sent with.
    pub(crate) credential_kind: CredentialKind,
    /// The name of the provider's key that made the stored objects which the request names.
    pub(crate) bound_key: Option<String>,
    pub(crate) body: RequestBody,
    pub(crate) view: RequestView,
    /// The files in the body.
    pub(crate) attachments: Vec<NewAttachment>,
    /// The characters of its input, if they are metered.
    pub(crate) input_characters: Option<u64>,
    /// The objects stored at the provider that it names, if any.
    pub(crate) objects: Option<Box<RequestObjects>>,
    /// The tool calls hidden from the client earlier in the conversation, by their continuation keys.
    pub(crate) hidden: HashMap<String, String>,
}

impl IdentifiedRequest {
    pub(crate) fn new(
        request: RoutedRequest,
        caller: Caller,
        credential_kind: CredentialKind,
    ) -> Self {
        let RoutedRequest { route, head, id, started_at, phases, in_flight } = request;
        Self {
            route,
            head,
            id,
            started_at,
            phases,
            in_flight,
            caller,
            credential_kind,
            bound_key: None,
            body: RequestBody::default(),
            view: RequestView::default(),
            attachments: Vec::new(),
            input_characters: None,
            objects: None,
            hidden: HashMap::new(),
        }
    }
}
