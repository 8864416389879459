//! What an answer makes or deletes at the provider, for its user.

use std::borrow::Cow;

use http::Method;
use jiff::Timestamp;
use keybridge_ledger::record::{
    objects::{NewObject, ObjectChanges},
    text::Mask,
};
use keybridge_wire::{Dialect, observe::Observation, request::ObjectKind};
use uuid::Uuid;

use super::{Destination, SettlementGuard, mask::AnswerMask};
use crate::admission::{IdentifiedRequest, route::Purpose};

/// Whom an answer's objects belong to, and what the answer does to objects.
#[derive(Debug)]
pub(crate) struct ObjectOwner {
    user_id: Uuid,
    effect: ObjectEffect,
    /// The turns whose answers are recorded already.
    recorded_turns: usize,
}

/// What a successful answer does to objects at the provider.
#[derive(Debug)]
enum ObjectEffect {
    /// Nothing.
    Nothing,
    /// A model's answer is stored under its id.
    StoresAnswer(ObjectKind),
    /// It describes a new object.
    Makes(ObjectKind),
    /// It describes an object of the user, made by the request of this record, and files that belong to it.
    Describes(Uuid),
    /// The object is gone.
    Deletes(String),
}

impl ObjectOwner {
    pub(crate) fn of(request: &IdentifiedRequest) -> Self {
        let user_id = request.caller.user_id;
        Self { user_id, effect: ObjectEffect::of(request), recorded_turns: 0 }
    }
}

impl ObjectEffect {
    fn of(request: &IdentifiedRequest) -> Self {
        let route = &request.route;
        match route.purpose {
            Purpose::Intercept(Dialect::ChatCompletions) if request.view.is_stored => {
                return Self::StoresAnswer(ObjectKind::ChatCompletion);
            }
            Purpose::Intercept(_) if request.view.is_stored => {
                return Self::StoresAnswer(ObjectKind::Response);
            }
            Purpose::Intercept(_) | Purpose::Metered(_) | Purpose::Count(_) => {
                return Self::Nothing;
            }
            Purpose::Change | Purpose::Allowed(_) | Purpose::PassThrough => {}
        }
        let Some(object) = &route.object else { return Self::Nothing };
        let record = || request.objects.as_ref().and_then(|objects| objects.path_record());
        match (&object.id, &request.head.method) {
            (None, &Method::POST) => Self::Makes(object.kind),
            (Some(id), &Method::DELETE) if object.is_whole => Self::Deletes(id.clone()),
            (Some(_), _) => record().map_or(Self::Nothing, Self::Describes),
            (None, _) => Self::Nothing,
        }
    }
}

impl SettlementGuard {
    /// Records that the provider stores the answer of the current turn, whose id is known.
    pub(super) fn record_stored_answer(&mut self) {
        let ObjectEffect::StoresAnswer(kind) = self.owner.effect else { return };
        let answer = self.answer.as_ref().map(|answer| answer.observer.observation());
        let Some(id) = answer.and_then(|answer| answer.response_id.clone()) else { return };
        let changes = self.object_changes(vec![(kind, id)], Vec::new());
        if let Some(entry) = self.entry() {
            entry.keep_objects(changes);
            self.owner.recorded_turns = self.past.len() + 1;
        }
    }

    /// Records what the answers made or deleted.
    pub(super) fn record_objects(&self, destination: &Destination, last: &Observation) {
        if !self.upstream_status.is_some_and(|status| status.is_success()) {
            return;
        }
        let (mut made, mut deleted) = (Vec::new(), Vec::new());
        let turns = || self.past.iter().chain([last]);
        for container in turns().filter_map(|turn| turn.container_id.as_ref()) {
            made.push((ObjectKind::Container, container.clone()));
        }
        let files = || last.object.file_ids.iter().map(|id| (ObjectKind::File, id.clone()));
        match &self.owner.effect {
            ObjectEffect::Nothing => {}
            ObjectEffect::StoresAnswer(kind) => {
                let ids = turns().skip(self.owner.recorded_turns);
                let ids = ids.filter_map(|turn| turn.response_id.clone());
                made.extend(ids.map(|id| (*kind, id)));
            }
            ObjectEffect::Makes(kind) => {
                made.extend(last.object.id.clone().map(|id| (*kind, id)));
                made.extend(files());
            }
            ObjectEffect::Describes(_) => made.extend(files()),
            ObjectEffect::Deletes(id) => deleted.push(id.clone()),
        }
        if made.is_empty() && deleted.is_empty() {
            return;
        }
        let changes = self.object_changes(made, deleted);
        match (destination, &self.owner.effect) {
            (Destination::Opened(entry), _) => entry.keep_objects(changes),
            (Destination::IfUsageReported { recorder, .. }, ObjectEffect::Describes(record)) => {
                recorder.keep_objects(*record, changes);
            }
            (Destination::IfUsageReported { .. }, _) => {}
        }
    }

    fn object_changes(
        &self,
        made: Vec<(ObjectKind, String)>,
        deleted: Vec<String>,
    ) -> ObjectChanges {
        let mask = AnswerMask::of(self);
        let credential = self.attempts.credential();
        let key = credential.trace.source.strip_prefix("pool:").map(str::to_owned);
        // An id that contains a secret is none.
        let is_id = |id: &str| !id.is_empty() && matches!(mask.mask(id), Cow::Borrowed(_));
        let made = made.into_iter().filter(|(_, id)| is_id(id));
        ObjectChanges {
            provider: self.dispatch.provider.config.name.clone(),
            key,
            user_id: self.owner.user_id,
            at: Timestamp::now(),
            made: made.map(|(kind, id)| NewObject { kind: kind.as_str().into(), id }).collect(),
            deleted,
        }
    }
}
