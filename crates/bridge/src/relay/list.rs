//! Lists of stored objects: a page shows its user's own objects only.

use axum::body::Body;
use http::{Response, StatusCode};
use keybridge_ledger::{ObjectName, ObjectStore};
use keybridge_net::encoding::{codings, decoded};
use keybridge_providers::{config::UnknownObjects, failure::Failure};
use keybridge_wire::{error::ErrorKind, list::ObjectList, observe::Observer, request::ObjectKind};
use uuid::Uuid;

use super::respond::{AnsweredRequest, ProviderAnswer, hold_in_flight};
use crate::{
    access::run_until_ended,
    settlement::{AnswerObserver, Ending},
    tools::whole::{client_response, read_body},
};

/// Maximum size of a page, also decoded.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Whose objects a list shows.
#[derive(Debug)]
pub(crate) struct ListFilter {
    pub(crate) objects: ObjectStore,
    pub(crate) kind: ObjectKind,
    pub(crate) user_id: Uuid,
    pub(crate) unknown_objects: UnknownObjects,
}

/// Responds with the user's part of a page.
pub(crate) async fn respond_with_own(
    request: AnsweredRequest,
    answer: ProviderAnswer,
    filter: ListFilter,
) -> Result<Response<Body>, Failure> {
    let ProviderAnswer { answer, mut guard, mut dump, .. } = answer;
    let (mut head, body) = answer.into_parts();
    let answer_codings = codings(&head.headers);
    let observer = AnswerObserver::new(Observer::any_body(), answer_codings.clone());
    guard.start_answer(head.status, observer);
    let idle = guard.provider().config.timeouts.idle;
    let reading = read_body(body, MAX_PAGE_BYTES, idle);
    let filtered = async {
        let bytes = run_until_ended(&request.access, reading).await??;
        guard.observe(&bytes);
        if let Some(dump) = &mut dump {
            dump.response_head(head.status, &head.headers);
            dump.response_chunk(&bytes);
        }
        let plain = decoded(&answer_codings, &bytes, MAX_PAGE_BYTES)
            .map_err(|error| not_a_list(&format!("it cannot be decoded: {error}")))?;
        filter.own_part(&guard.provider().config.name, &plain).await
    };
    match filtered.await {
        Ok(page) => {
            guard.end(&Ending::Relayed);
            head.headers.remove(http::header::CONTENT_ENCODING);
            let response = client_response(request.id, head, page.into());
            Ok(hold_in_flight(response, request.in_flight))
        }
        Err(failure) => Err(guard.fail(failure)),
    }
}

impl ListFilter {
    async fn own_part(&self, provider: &str, page: &[u8]) -> Result<Vec<u8>, Failure> {
        let list = ObjectList::read(page).ok_or_else(|| not_a_list("it has no `data`"))?;
        let is_response = self.kind.is_answer();
        let names = list.ids().map(|id| ObjectName { id: id.to_owned(), is_response });
        let names: Vec<ObjectName> = names.collect();
        let makers = self.objects.find(provider, &names).await;
        let makers = makers.map_err(|error| Failure::store_unavailable(&error.to_string()))?;
        let is_own = |id: &str| match makers.get(id) {
            Some(maker) => maker.user_id == self.user_id,
            None => self.unknown_objects == UnknownObjects::Allow,
        };
        list.retain(is_own).map_err(|error| not_a_list(&error.to_string()))
    }
}

/// A list is not shown as it is, because it has the objects of all users of the key.
fn not_a_list(reason: &str) -> Failure {
    Failure::upstream(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Api,
        format!("the provider's list cannot be reduced to your own objects: {reason}"),
    )
}
