//! The settlement event of a request and its sinks: the ledger, the provider's circuit breaker and last
//! errors, the metrics, the log.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use jiff::Timestamp;
use keybridge_ledger::{
    NewAnswer, NewThought, NewTokenUsage, NewToolUsage, NewUpstreamAttempt, ServedBy, Settlement,
    record::{Outcome, text::Mask},
};
use keybridge_providers::{
    attempt::Attempt,
    breaker::{Permit, Verdict},
    credential::Credential,
    failure::Failure,
    provider::{Conclusion, Provider},
    upload::Upload,
};
use keybridge_telemetry::{label_text, log::REQUEST_LOG};
use keybridge_wire::observe::{Observation, ToolCall};
use uuid::Uuid;

use super::{
    Destination, Ending, SettlementGuard,
    calls::CallRecord,
    mask::{AnswerMask, TokenMask},
    usage::{awaited_usage, token_usages},
};
use crate::{config::RecordPolicy, phases::PhaseTimes};

/// How a request ended, as published to all sinks.
pub(super) struct SettlementEvent {
    settlement: Settlement,
    provider: Arc<Provider>,
    credential: Arc<Credential>,
    /// What the end shows about the provider's health.
    verdict: Verdict,
    status: Option<StatusCode>,
    /// Whether the answer carries usage.
    is_used: bool,
    /// Whether the request was ended because of its caller.
    is_access_ended: bool,
}

impl SettlementEvent {
    pub(super) fn new(guard: &SettlementGuard, ending: &Ending<'_>, last: Observation) -> Self {
        let credential = guard.attempts.credential();
        let mask = AnswerMask::of(guard);
        let facts = Facts { guard, ending, credential: &credential, mask: &mask };
        let (verdict, is_used) = (facts.verdict(&last), last.usage.is_some());
        let mut settlement = facts.settlement(last);
        settlement.clean(&guard.policy.contents, &mask);
        Self {
            verdict,
            is_used,
            is_access_ended: ending.is_access_ended(),
            settlement,
            provider: Arc::clone(&guard.dispatch.provider),
            status: guard.upstream_status,
            credential,
        }
    }

    /// Publishes the event to all sinks.
    pub(super) fn publish(self, destination: Destination, permit: Option<Permit>) {
        let has_failed = self.settlement.outcome == Outcome::Failed && !self.is_access_ended;
        self.provider.conclude(
            permit,
            &Conclusion {
                verdict: self.verdict,
                credential_kind: self.credential.trace.kind,
                status: self.status,
                error: has_failed.then_some(self.settlement.error_kind.as_deref()),
            },
        );
        match destination {
            Destination::Opened(entry) => {
                self.log(entry.id());
                entry.settle(self.settlement);
            }
            Destination::IfUsageReported { recorder, opening, tasks } if self.is_used => {
                self.log(opening.interception.id);
                let settlement = self.settlement;
                tasks.spawn(async move {
                    if let Err(error) = recorder.record(opening, settlement).await {
                        tracing::error!(%error, "cannot record the usage of a side request");
                    }
                });
            }
            Destination::IfUsageReported { .. } => {}
        }
    }

    fn log(&self, id: Uuid) {
        let (trace, settlement) = (&self.credential.trace, &self.settlement);
        tracing::info!(
            name: REQUEST_LOG,
            interception_id = %id,
            provider = self.provider.config.name,
            outcome = settlement.outcome.as_str(),
            status = settlement.status_code,
            upstream_status = settlement.upstream_status,
            model_served = settlement.model_served.as_deref().map(label_text),
            credential_kind = trace.kind,
            credential_source = trace.source,
            credential_hint = trace.hint,
            response_bytes = settlement.response_bytes,
            "settled"
        );
        if matches!(settlement.upstream_status, Some(401 | 403)) {
            tracing::warn!(
                interception_id = %id,
                provider = self.provider.config.name,
                credential_kind = trace.kind,
                credential_source = trace.source,
                credential_hint = trace.hint,
                "the provider refused the credential"
            );
        }
    }
}

/// The input of a settlement.
struct Facts<'a> {
    guard: &'a SettlementGuard,
    ending: &'a Ending<'a>,
    credential: &'a Credential,
    mask: &'a AnswerMask<'a>,
}

impl Facts<'_> {
    fn settlement(&self, last: Observation) -> Settlement {
        let guard = self.guard;
        let outcome = self.outcome(&last);
        let (error_kind, error_message) = self.error(outcome, &last);
        let status_code = match self.ending {
            Ending::Failed(failure) => Some(failure.status),
            Ending::Relayed | Ending::Truncated(_) | Ending::ClientDisconnected => {
                guard.upstream_status
            }
        };
        let is_accepted = guard.upstream_status.is_some_and(|status| status.is_success());
        let turns = || {
            let past = guard.past.iter().map(|turn| (turn, true));
            (0_u16..).zip(past.chain([(&last, is_accepted)]))
        };
        let is_billed = guard.purpose.is_billed();
        let expects_usage = guard.purpose.expects_usage();
        let token_usages = turns()
            .filter(|(_, (observed, _))| expects_usage || observed.usage.is_some())
            .flat_map(|(turn, (observed, accepted))| {
                token_usages(observed, turn, accepted, &guard.dispatch.provider)
            })
            .map(|usage| NewTokenUsage { once_per_response: !is_billed, ..usage });
        // The provider has the request and may bill it.
        let awaited = guard.attempts.awaited_turn().filter(|_| expects_usage).map(awaited_usage);
        let tool_usages = turns().flat_map(|(turn, (observed, _))| {
            observed.tool_calls.iter().map(move |call| self.tool_usage(turn, observed, call))
        });
        let thoughts = turns().flat_map(|(_, (observed, _))| &observed.thoughts);
        let thoughts = thoughts.filter(|_| guard.policy.thoughts).map(|thought| NewThought {
            source: thought.source.as_str().into(),
            content: thought.content.clone(),
        });
        let answers = turns().flat_map(|(_, (observed, _))| {
            let choices = observed.answer.iter().flat_map(|answer| &answer.choices);
            choices.map(|(_, text)| NewAnswer {
                provider_response_id: observed.response_id.clone(),
                content: text.clone(),
            })
        });
        // A single attempt is stored in the request's own row.
        let mut attempts = guard.attempts.take();
        let request_id = attempts.iter().rev().find_map(|attempt| attempt.request_id.clone());
        let refusal = last.refusal.as_deref();
        let only = if attempts.len() == 1 { attempts.pop() } else { None };
        let row = |(index, attempt): (usize, &Attempt)| {
            self.upstream_attempt(index, attempt, attempts.len())
        };
        let container_id = turns().filter_map(|(_, (observed, _))| observed.container_id.clone());
        let response_id = turns().find_map(|(_, (observed, _))| observed.response_id.clone());
        let served = turns().filter_map(|(_, (observed, _))| observed.model.clone()).last();
        let mut settlement = Settlement {
            first_byte_at: guard.first_byte_at,
            events_relayed: guard.events_relayed(),
            status_code: status_code.map(|status| status.as_u16()),
            upstream_status: guard.upstream_status.map(|status| status.as_u16()),
            error_kind,
            error_message,
            attempts: guard.attempts.count(),
            inner_turns: u32::from(guard.turn()),
            response_bytes: guard.response_bytes,
            token_usages: self.with_characters(token_usages.chain(awaited).collect()),
            tool_usages: tool_usages.collect(),
            thoughts: thoughts.collect(),
            answers: answers.filter(|answer| !answer.content.is_empty()).collect(),
            upstream_started_at: only.as_ref().map(|only| only.started_at),
            upstream_request_id: request_id.or_else(|| last.request_id.clone()),
            upstream_attempts: attempts.iter().enumerate().map(row).collect(),
            refusal_category: refusal.and_then(|refusal| refusal.category.clone()),
            refusal_explanation: refusal.and_then(|refusal| refusal.explanation.clone()),
            container_id: container_id.last(),
            model_served: served,
            provider_response_id: response_id,
            stop_reason: last.stop_reason,
            served_by: self.served_by(),
            ..Settlement::new(Timestamp::now(), outcome)
        };
        guard.phases.put_into(&mut settlement, guard.attempts.connected());
        settlement
    }

    /// Adds the characters of the request's input, if they are metered.
    fn with_characters(&self, mut usages: Vec<NewTokenUsage>) -> Vec<NewTokenUsage> {
        if let (Some(characters), Some(first)) = (self.guard.input_characters, usages.first_mut()) {
            first.extra.insert("input_characters".into(), characters.into());
        }
        usages
    }

    /// What the end of a request shows about its provider's health.
    fn verdict(&self, last: &Observation) -> Verdict {
        let kind = self.credential.trace.kind;
        let upstream_status = self.guard.upstream_status;
        match self.ending {
            Ending::Failed(failure) | Ending::Truncated(failure) => {
                // No connection could be made; a truncated answer may be caused by the tool loop.
                let is_silent = failure.status == StatusCode::GATEWAY_TIMEOUT
                    || failure.status == StatusCode::BAD_GATEWAY && upstream_status.is_none();
                if is_silent { Verdict::Fails } else { Verdict::Unknown }
            }
            Ending::Relayed => match (&last.error, upstream_status) {
                (Some(error), Some(status)) if status.is_success() => {
                    Verdict::of_error(&error.kind, kind)
                }
                (_, Some(status)) => Verdict::of_status(status, kind),
                (_, None) => Verdict::Unknown,
            },
            Ending::ClientDisconnected => Verdict::Unknown,
        }
    }

    /// The row of one of `count` exchanges with providers.
    fn upstream_attempt(
        &self,
        index: usize,
        attempt: &Attempt,
        count: usize,
    ) -> NewUpstreamAttempt {
        let (provider, edits) = self.guard.dispatched(attempt.dispatch);
        let trace = &attempt.credential.trace;
        let error = attempt.error.map(|kind| kind.as_str());
        // An error after the head of the answer belongs to the last attempt.
        let late = self.late_error().filter(|_| index + 1 == count);
        NewUpstreamAttempt {
            number: u32::try_from(index + 1).unwrap_or(u32::MAX),
            turn: attempt.turn,
            provider: provider.config.name.clone(),
            key_name: trace.source.strip_prefix("pool:").map(str::to_owned),
            credential_kind: Some(trace.kind.into()),
            body_edits: edits.to_vec(),
            status: attempt.status.map(|status| status.as_u16()),
            error_kind: error.or(late).map(str::to_owned),
            provider_request_id: attempt.request_id.clone(),
            started_at: attempt.started_at,
            duration_ms: Some(milliseconds(attempt.duration())),
        }
    }

    /// Why a provider's answer was truncated.
    fn late_error(&self) -> Option<&'static str> {
        match self.ending {
            Ending::Truncated(failure) => Some(failure.recorded_kind()),
            Ending::Relayed | Ending::Failed(_) | Ending::ClientDisconnected => None,
        }
    }

    /// Which provider and credential served the request with which edits, if not those that the record was
    /// opened with, and what an upload turned out to be.
    fn served_by(&self) -> Option<ServedBy> {
        let trace = &self.credential.trace;
        let dispatch = &self.guard.dispatch;
        let upload = self.guard.upload.as_ref().map(Upload::progress);
        let has_changed =
            self.guard.has_new_edits || !std::ptr::eq(self.credential, &*self.guard.opened_with);
        (has_changed || upload.is_some()).then(|| ServedBy {
            provider: dispatch.provider.config.name.clone(),
            provider_type: Some(dispatch.provider.config.kind.as_str().into()),
            credential_source: trace.source.clone(),
            credential_scheme: Some(trace.scheme.into()),
            credential_hint: trace.hint.clone(),
            credential_length: trace.length,
            credential_fingerprint: trace.fingerprint.clone(),
            body_edits: Some(dispatch.edits.clone()),
            request_bytes: upload.as_ref().map(|upload| upload.bytes),
            request_sha256: upload.and_then(|upload| upload.sha256),
        })
    }

    /// The row of a tool call, with its outcome if the tool was injected.
    fn tool_usage(&self, turn: u16, observed: &Observation, call: &ToolCall) -> NewToolUsage {
        let guard = self.guard;
        let row = NewToolUsage {
            provider_response_id: observed.response_id.clone(),
            tool_call_id: Some(call.id.clone()),
            tool: call.name.clone(),
            arguments: guard.policy.tool_arguments.then(|| call.arguments.clone()),
            provider_executed: Some(call.provider_executed),
            server_url: call.server_name.as_deref().and_then(|name| self.hosted_url(name)),
            server_name: call.server_name.clone(),
            caller: call.caller.clone(),
            caller_tool_call_id: call.caller_tool_call_id.clone(),
            approval: call.approval.map(|approval| approval.as_str().into()),
            result_bytes: call.result.as_ref().and_then(|result| result.bytes),
            result_is_error: call.result.as_ref().and_then(|result| result.is_error),
            invocation_error: call.result.as_ref().and_then(|result| result.error.clone()),
            ..NewToolUsage::default()
        };
        let offered = guard.tools.as_ref().filter(|tools| tools.offered.contains(&call.name));
        let injected = offered.and_then(|tools| Some((tools, tools.tools.find(&call.name)?)));
        let Some((offered, tool)) = injected else {
            let provider = &guard.dispatch.provider.config.name;
            let model = self.mask.mask(observed.model.as_deref().unwrap_or_default());
            guard.metrics.count_selection(provider, &model, &self.mask.mask(&call.name));
            return row;
        };
        let record = offered.calls.find(turn.into(), &call.id);
        let not_made = || Some("the call was not made".to_owned());
        NewToolUsage {
            tool: tool.name.clone(),
            injected: true,
            server_url: Some(tool.server_url.clone()),
            invocation_error: record.as_ref().map_or_else(not_made, CallRecord::error),
            duration_ms: record.as_ref().and_then(CallRecord::duration).map(milliseconds),
            result_bytes: record.as_ref().and_then(CallRecord::result_bytes),
            result_is_error: record.as_ref().and_then(CallRecord::result_is_error),
            result: record.as_ref().and_then(CallRecord::result),
            ..row
        }
    }

    /// The URL that the request gave for the MCP server of a name.
    fn hosted_url(&self, name: &str) -> Option<String> {
        let mut servers = self.guard.hosted_servers.iter();
        servers.find(|server| server.name == name).map(|server| server.url.clone())
    }

    /// Whether the answer ended as its API demands; that of a side request may be anything, or nothing.
    fn is_answer_complete(&self) -> bool {
        !self.guard.purpose.is_billed() || self.guard.is_terminal()
    }

    fn outcome(&self, observed: &Observation) -> Outcome {
        let is_error = self.guard.upstream_status.is_some_and(|status| !status.is_success())
            || observed.error.is_some();
        match self.ending {
            Ending::Failed(_) | Ending::Truncated(_) => Outcome::Failed,
            Ending::Relayed if is_error || !self.is_answer_complete() => Outcome::Failed,
            Ending::Relayed => Outcome::Completed,
            Ending::ClientDisconnected => Outcome::Cancelled,
        }
    }

    /// Kind and message of the error.
    fn error(&self, outcome: Outcome, observed: &Observation) -> (Option<String>, Option<String>) {
        if let Some(error) = observed.error.as_ref().filter(|error| !error.message.is_empty()) {
            return (Some(error.kind.clone()), Some(error.message.clone()));
        }
        let kind = observed.error.as_ref().map_or("api_error", |error| &error.kind);
        match self.ending {
            Ending::Failed(failure) | Ending::Truncated(failure) => {
                (Some(failure.recorded_kind().into()), Some(failure.detail.clone()))
            }
            Ending::Relayed if outcome == Outcome::Failed => {
                let message = match self.guard.upstream_status {
                    Some(status) if !status.is_success() => {
                        let text = observed.plain_text.as_ref();
                        let text = text.map(|text| format!(": {text}")).unwrap_or_default();
                        format!("the provider returned status {}{text}", status.as_u16())
                    }
                    _ => "the provider's answer does not match its API".into(),
                };
                (Some(kind.into()), Some(message))
            }
            Ending::Relayed | Ending::ClientDisconnected => {
                (observed.error.as_ref().map(|error| error.kind.clone()), None)
            }
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The settlement of a request that the bridge refused.
pub(crate) fn refusal(failure: &Failure, policy: &RecordPolicy, phases: &PhaseTimes) -> Settlement {
    let mut settlement = Settlement {
        status_code: Some(failure.status.as_u16()),
        error_kind: Some(failure.recorded_kind().into()),
        error_message: Some(failure.detail.clone()),
        ..Settlement::new(Timestamp::now(), Outcome::Refused)
    };
    phases.put_into(&mut settlement, None);
    settlement.clean(&policy.contents, &TokenMask);
    settlement
}
