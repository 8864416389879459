//! The life of a request: one line, a stage after another, each owning what it has found.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use aws_lc_rs::digest;
use axum::body::Body;
use bytes::Bytes;
use http::{Response, header, request};
use jiff::Timestamp;
use keybridge_ledger::{Opening, ToolResult, record::Interception};
use keybridge_providers::{
    bedrock::{self, Bedrock},
    body::AnswerBody,
    breaker::Permit,
    config::ProviderType,
    credential::{Credential, Denied, Presentation, choose},
    dump::{Dump, Sent},
    failure::Failure,
    provider::{Outgoing, is_exhausted},
    token_scan::carries_token,
};
use keybridge_wire::{Dialect, error::ErrorShape, observe::UsageChunkFilter, request::RequestView};
use uuid::Uuid;

use crate::{
    Shared,
    admission::body::{Received, discard, read},
    admission::client,
    admission::identify::identify,
    admission::limits::InFlight,
    admission::route::{Purpose, Route},
    config::error_shape,
    failure::render,
    headers::{self, Forwarding, Outbound},
    host::Caller,
    relay::respond::{ProviderAnswer, give},
    settlement::{Counting, Destination, Ending, InnerLoop, Settling},
    tools::edits::{self, INCLUDE_USAGE},
    tools::turns::{CallLog, Loop},
};

/// A request that was routed.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) route: Route,
    pub(crate) head: request::Parts,
    pub(crate) id: Uuid,
    pub(crate) in_flight: InFlight,
}

/// A request whose caller is known and whose body has been read.
#[derive(Debug)]
struct Asked {
    arrival: Arrival,
    caller: Caller,
    presentation: Presentation,
    received: Received,
    view: RequestView,
    /// What was hidden from the client earlier in the conversation.
    kept: HashMap<String, String>,
    started_at: Timestamp,
}

/// A request that may go to its provider.
#[derive(Debug)]
struct Admitted {
    credential: Arc<Credential>,
    /// Of the circuit breaker, where there is one.
    permit: Option<Permit>,
    prepared: Prepared,
}

/// What came of asking the provider.
type Attempted = Result<(Response<AnswerBody>, Option<UsageChunkFilter>), Failure>;

/// What goes to the provider.
#[derive(Debug)]
struct Prepared {
    outgoing: Outgoing,
    edits: Vec<String>,
    /// Set when the answer may take several turns.
    looped: Option<edits::Looped>,
}

/// An answer was refused, with the id of its record if there is one.
pub(crate) type Refused = (Failure, Option<Uuid>);

/// Carries a request through, or answers with an error in the caller's dialect.
pub(crate) async fn call(shared: &Arc<Shared>, arrival: Arrival, body: Body) -> Response<Body> {
    let shape = match arrival.route.purpose {
        Purpose::Intercept(dialect) => error_shape(dialect),
        Purpose::Metered(_) | Purpose::Pass => arrival.route.provider.config.kind.error_shape(),
    };
    let id = arrival.id;
    match line(shared, arrival, body).await {
        Ok(response) => response,
        Err((failure, recorded)) => answer(&failure, shape, recorded.map(|_| id)),
    }
}

/// The line: who, what, whose, may it, recorded, sent, relayed. What seldom happens is boxed, so that
/// each request need not have the room for it.
async fn line(
    shared: &Arc<Shared>,
    arrival: Arrival,
    body: Body,
) -> Result<Response<Body>, Refused> {
    let mut asked = ask(shared, arrival, body).await?;
    let admitted = match admit(shared, &asked).await {
        Err(Denied::Unavailable(failure)) => match Box::pin(fall_back(shared, &mut asked)).await {
            Some(admitted) => Ok(admitted),
            None => Err(failure),
        },
        Err(Denied::Refused(failure)) => Err(failure),
        Ok(admitted) => Ok(admitted),
    };
    let mut admitted = match admitted {
        Ok(admitted) => admitted,
        Err(failure) => return Err(Box::pin(refuse(shared, &asked, failure)).await),
    };
    let mut settling = open(shared, &asked, &mut admitted).await?;
    let mut dump = dump(&asked, &admitted.prepared);
    let mut attempted = attempt(shared, &asked, &admitted.prepared, &settling).await;
    if let Ok((answer, _)) = &attempted
        && is_exhausted(answer.status(), &settling.attempts().credential())
        && let Some(instead) = Box::pin(fall_back(shared, &mut asked)).await
    {
        admitted = instead;
        let provider = Arc::clone(&asked.arrival.route.provider);
        settling.moves(provider, admitted.credential, admitted.permit);
        dump = self::dump(&asked, &admitted.prepared);
        attempted = Box::pin(attempt(shared, &asked, &admitted.prepared, &settling)).await;
    }
    match attempted {
        Ok((answer, filter)) => {
            let looped = inner_loop(shared, &asked, &mut admitted.prepared, &mut settling);
            let answered = ProviderAnswer { answer, filter, settling, dump };
            Box::pin(give(shared, asked.arrival, answered, looped)).await
        }
        Err(failure) => {
            settling.end(&Ending::Failed(&failure));
            Err((failure, Some(asked.arrival.id)))
        }
    }
}

/// Admits a request of a central key to the instance that its provider names for this case.
async fn fall_back(shared: &Shared, asked: &mut Asked) -> Option<Admitted> {
    if asked.presentation != Presentation::Central {
        return None;
    }
    let provider = Arc::clone(&asked.arrival.route.provider);
    let name = provider.config.fallback.as_deref()?;
    let other = shared.providers.iter().find(|other| other.config.name == name)?;
    asked.arrival.route.provider = Arc::clone(other);
    match admit(shared, asked).await {
        Ok(admitted) => {
            tracing::warn!(provider = provider.config.name, fallback = name, "fell back");
            shared.provider_metrics.fell_back(&provider.config.name, name);
            Some(admitted)
        }
        Err(_denied) => {
            asked.arrival.route.provider = provider;
            None
        }
    }
}

/// What an inner loop works with, where there may be one.
fn inner_loop(
    shared: &Arc<Shared>,
    asked: &Asked,
    prepared: &mut Prepared,
    settling: &mut Settling,
) -> Option<Loop> {
    let Purpose::Intercept(dialect) = asked.arrival.route.purpose else { return None };
    let edits::Looped { tools, client } = prepared.looped.take()?;
    let calls = CallLog::default();
    settling.loops(InnerLoop {
        tools: Arc::clone(&tools),
        calls: calls.clone(),
        offered: client.injected_tools.clone(),
    });
    Some(Loop {
        shared: Arc::clone(shared),
        provider: Arc::clone(&asked.arrival.route.provider),
        dialect,
        interception: asked.arrival.id,
        user: asked.caller.user_id,
        model: asked.view.model.clone(),
        tools,
        client,
        outgoing: prepared.outgoing.clone(),
        attempts: settling.attempts(),
        _memory: Arc::clone(&asked.received.memory),
        calls,
        turns: 0,
    })
}

fn answer(failure: &Failure, shape: ErrorShape, recorded: Option<Uuid>) -> Response<Body> {
    render(failure, shape, recorded)
}

/// Identifies the caller and reads the body; nothing is recorded of what fails here unnamed.
async fn ask(shared: &Shared, arrival: Arrival, body: Body) -> Result<Asked, Refused> {
    let started_at = Timestamp::now();
    let config = &shared.config;
    let headers = &arrival.head.headers;
    let identified = identify(&*shared.directory, &config.governance_headers, headers).await;
    let (caller, presentation) = match identified {
        Ok(identified) => identified,
        Err(failure) => {
            Box::pin(discard(body, config.max_body)).await;
            return Err((failure, None));
        }
    };
    let mut asked = Asked {
        arrival,
        caller,
        presentation,
        received: Received::default(),
        view: RequestView::default(),
        kept: HashMap::new(),
        started_at,
    };
    let (user, token) = (asked.caller.user_id, asked.caller.token_id);
    if let Err(failure) = shared.limits.admit(&mut asked.arrival.in_flight, user, token) {
        Box::pin(discard(body, config.max_body)).await;
        return Err(Box::pin(refuse(shared, &asked, failure)).await);
    }
    match read(&asked.arrival.head.headers, body, config, &shared.limits).await {
        Ok(received) => asked.received = received,
        Err(failure) => return Err(Box::pin(refuse(shared, &asked, failure)).await),
    }
    match view(shared, &asked) {
        Ok(view) => asked.view = view,
        Err(failure) => return Err(Box::pin(refuse(shared, &asked, failure)).await),
    }
    asked.kept = kept(shared, &asked).await;
    Ok(asked)
}

/// What was hidden from the client earlier in the conversation.
async fn kept(shared: &Shared, asked: &Asked) -> HashMap<String, String> {
    let route = &asked.arrival.route;
    let Purpose::Intercept(dialect) = route.purpose else { return HashMap::new() };
    match asked.received.plain(shared.config.max_body) {
        Ok(plain) => {
            edits::kept(shared, &route.provider, dialect, &asked.caller, &asked.view, &plain).await
        }
        // It was read before.
        Err(_unread) => HashMap::new(),
    }
}

/// Reads what the record and the policy need of the body.
fn view(shared: &Shared, asked: &Asked) -> Result<RequestView, Failure> {
    if carries_token(asked.arrival.head.uri.query().unwrap_or_default().as_bytes()) {
        return Err(Failure::invalid("a bridge token does not belong into the query string"));
    }
    let (dialect, is_judged) = match asked.arrival.route.purpose {
        Purpose::Intercept(dialect) => (dialect, true),
        Purpose::Metered(dialect) => (dialect, false),
        Purpose::Pass => return Ok(RequestView::default()),
    };
    let viewed = asked.received.plain(shared.config.max_body).and_then(|plain| {
        RequestView::read(dialect, &plain).map_err(|error| Failure::invalid(&error.to_string()))
    });
    match viewed {
        Ok(view) => Ok(view),
        Err(failure) if is_judged => Err(failure),
        Err(_unread) => Ok(RequestView::default()),
    }
}

/// Whose credential, and whether the request may go on. Budgets and rates are judged here.
async fn admit(shared: &Shared, asked: &Asked) -> Result<Admitted, Denied> {
    let route = &asked.arrival.route;
    let provider = &route.provider;
    let headers = &asked.arrival.head.headers;
    let (presentation, key) = (asked.presentation, &shared.fingerprint_key);
    let credential = match provider.bedrock() {
        None => choose(provider, presentation, headers, key)?,
        // Boxed, as few providers need the room.
        Some(aws) => Box::pin(bedrock::choose(provider, aws, presentation, headers, key))
            .await
            .map(Arc::new)
            .map_err(Denied::Refused)?,
    };
    let permit = match route.purpose {
        Purpose::Pass => None,
        Purpose::Intercept(_) | Purpose::Metered(_) => {
            let (model, kind) = (asked.view.model.as_deref(), credential.trace.kind);
            let admitted = provider.breakers.admit(&route.endpoint, model, kind);
            admitted.map_err(|wait| {
                let name = &provider.config.name;
                let detail =
                    format!("the provider `{name}` fails at present: circuit breaker is open");
                Denied::Unavailable(Failure::unavailable(detail, wait))
            })?
        }
    };
    let prepared = prepare(shared, asked, &credential).map_err(Denied::Refused)?;
    Ok(Admitted { credential, permit, prepared })
}

/// Headers for the provider and, only where a feature needs one, an edit of the body.
fn prepare(shared: &Shared, asked: &Asked, credential: &Credential) -> Result<Prepared, Failure> {
    let Arrival { route, head, .. } = &asked.arrival;
    let provider = &route.provider.config;
    let uri = route
        .provider
        .uri(&route.upstream_path, head.uri.query())
        .ok_or_else(|| Failure::invalid("the path or query cannot be sent to the provider"))?;
    let mut edited = match route.purpose {
        Purpose::Intercept(dialect) => {
            let plain = asked.received.plain(shared.config.max_body)?;
            edits::edit(shared, &route.provider, dialect, &asked.view, &plain, &asked.kept)?
        }
        Purpose::Metered(_) | Purpose::Pass => edits::Edited::default(),
    };
    if route.provider.bedrock().is_some_and(Bedrock::translates) {
        let plain = || asked.received.plain(shared.config.max_body).map(Cow::into_owned);
        edited.body = Some(edited.body.map_or_else(|| plain().map(Bytes::from), Ok)?);
        edited.edits.push(bedrock::TRANSLATED.into());
    }
    let user_id = asked.caller.user_id.to_string();
    // An answer that is merged must be readable as it comes.
    let is_read = asked.view.streaming || edited.looped.is_some();
    let outbound = Outbound {
        governance_headers: &shared.config.governance_headers,
        set_headers: &provider.set_headers,
        forwarding: if shared.config.trust_forwarded_headers {
            Forwarding::Pass
        } else {
            Forwarding::Drop
        },
        credential,
        actor: provider.send_actor_headers.then_some((&user_id, &asked.caller.user_name)),
        accept_encoding: headers::accept_encoding(&head.headers, is_read),
    };
    let mut headers = headers::to_provider(&head.headers, &outbound);
    if edited.body.is_some() {
        // An edited body is not encoded again.
        headers.remove(header::CONTENT_ENCODING);
    }
    let body = edited.body.unwrap_or_else(|| asked.received.bytes.clone());
    let outgoing = Outgoing { method: head.method.clone(), uri, headers, body };
    Ok(Prepared { outgoing, edits: edited.edits, looped: edited.looped })
}

/// Commits the record before anything goes upstream.
async fn open(
    shared: &Shared,
    asked: &Asked,
    admitted: &mut Admitted,
) -> Result<Settling, Refused> {
    let credential = &admitted.credential;
    let opening = opening(shared, asked, Some(credential), &admitted.prepared.edits);
    let destination = if asked.arrival.route.purpose == Purpose::Pass {
        Destination::IfUsed {
            recorder: shared.recorder.clone(),
            opening,
            tasks: shared.limits.tasks.clone(),
        }
    } else {
        let opened = shared.recorder.open(opening).await;
        Destination::Opened(
            opened.map_err(|error| (Failure::store_unavailable(&error.to_string()), None))?,
        )
    };
    let counting = Counting {
        metrics: Arc::clone(&shared.tool_metrics),
        provider: Arc::clone(&asked.arrival.route.provider),
    };
    let (credential, permit) = (Arc::clone(credential), admitted.permit.take());
    Ok(Settling::new(destination, credential, shared.config.record, counting, permit))
}

/// Asks the provider.
async fn attempt(
    shared: &Shared,
    asked: &Asked,
    prepared: &Prepared,
    settling: &Settling,
) -> Attempted {
    let is_asked = prepared.edits.iter().any(|edit| edit == INCLUDE_USAGE);
    let filter = is_asked.then(UsageChunkFilter::new);
    let attempts = settling.attempts();
    let provider = &asked.arrival.route.provider;
    let response = tokio::select! {
        response = provider.ask(&prepared.outgoing, &attempts) => response?,
        () = shared.drain.begun() => return Err(Failure::shutting_down()),
    };
    Ok((response, filter))
}

/// Records a refusal of a known caller.
async fn refuse(shared: &Shared, asked: &Asked, failure: Failure) -> Refused {
    if asked.arrival.route.purpose == Purpose::Pass {
        return (failure, None);
    }
    let opening = opening(shared, asked, None, &[]);
    let settlement = crate::settlement::refusal(&failure);
    match shared.recorder.record(opening, settlement).await {
        Ok(()) => (failure, Some(asked.arrival.id)),
        Err(error) => {
            tracing::error!(%error, "a refusal could not be recorded");
            (failure, None)
        }
    }
}

/// The record of a request as far as it is known when it is opened.
fn opening(
    shared: &Shared,
    asked: &Asked,
    credential: Option<&Credential>,
    edits: &[String],
) -> Box<Opening> {
    let Arrival { route, head, id, .. } = &asked.arrival;
    let client = client::client(&head.headers);
    let (agent_id, parent_agent_id) = client::agents(&head.headers);
    let trace = credential.map(|credential| &credential.trace);
    let bytes = &asked.received.bytes;
    let view = &asked.view;
    let interception = Interception {
        token_id: Some(asked.caller.token_id),
        provider: route.provider.config.name.clone(),
        provider_type: route.provider.config.kind.as_str().into(),
        endpoint: client::bounded(&route.endpoint),
        dialect: dialect_of(route).as_str().into(),
        model: view.model.clone(),
        streaming: view.streaming,
        client: Some(client.into()),
        user_agent: client::text(&head.headers, "user-agent").map(client::bounded),
        client_session_id: client::session_id(client, &head.headers, view),
        agent_id,
        parent_agent_id,
        correlating_tool_call_id: view.correlating_tool_call_id.clone(),
        credential_kind: trace.map(|trace| trace.kind.into()),
        credential_source: trace.map(|trace| trace.source.clone()),
        credential_scheme: trace.map(|trace| trace.scheme.into()),
        credential_hint: trace.map(|trace| trace.hint.clone()),
        credential_length: trace.map(|trace| trace.length),
        credential_fingerprint: trace.map(|trace| trace.fingerprint.clone()),
        request_bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        body_edits: edits.to_vec(),
        request_sha256: (!bytes.is_empty()).then(|| sha256(bytes)),
        ..Interception::new(*id, asked.caller.user_id, asked.started_at)
    };
    let tool_results = view.tool_results.iter().map(|result| ToolResult {
        tool_call_id: result.tool_call_id.clone(),
        bytes: result.bytes,
        is_error: result.is_error,
    });
    Box::new(Opening {
        interception,
        prompt: view.prompt.clone().filter(|_| shared.config.record.prompts),
        tool_results: tool_results.collect(),
    })
}

fn dump(asked: &Asked, prepared: &Prepared) -> Option<Dump> {
    let provider = &asked.arrival.route.provider;
    let sent = Sent { outgoing: &prepared.outgoing, set_headers: &provider.config.set_headers };
    provider.dumps.as_ref()?.request(&asked.arrival.id.to_string(), &sent)
}

/// The dialect of a route; a side request's is the one its provider answers with.
pub(crate) fn dialect_of(route: &Route) -> Dialect {
    match (route.purpose, route.provider.config.kind) {
        (Purpose::Intercept(dialect) | Purpose::Metered(dialect), _) => dialect,
        (Purpose::Pass, ProviderType::Anthropic | ProviderType::Bedrock) => Dialect::Messages,
        (Purpose::Pass, ProviderType::OpenAi | ProviderType::Copilot) => Dialect::Responses,
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}
