//! The life of a request: one line, a stage after another, each owning what it has found.

use aws_lc_rs::digest;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header, request};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use keybridge_ledger::{Opening, ToolResult, record::Interception};
use keybridge_wire::{
    Dialect,
    error::ErrorShape,
    observe::{Observer, UsageChunkFilter},
    request::{RequestView, with_usage_asked},
};
use uuid::Uuid;

use crate::{
    InFlight, Shared, client,
    config::{ProviderType, error_shape},
    credential::{Credential, choose},
    dump::{Dump, Sent},
    encoding::codings,
    failure::Failure,
    headers::{self, Forwarding, Outbound, X_KEYBRIDGE_INTERCEPTION_ID, carries_token},
    host::Caller,
    identify::{Presentation, identify},
    read::{Received, discard, read},
    relay::{BreakOff, Parts, Relay},
    route::{Purpose, Route},
    settlement::{Destination, Ending, Observing, Settling},
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
    started_at: Timestamp,
}

/// What goes to the provider.
#[derive(Debug)]
struct Prepared {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    edits: Vec<&'static str>,
}

/// An answer was refused, with the id of its record if there is one.
type Refused = (Failure, Option<Uuid>);

/// Names of the body edits, as recorded.
const EDIT_INCLUDE_USAGE: &str = "include_usage";

/// Carries a request through, or answers with an error in the caller's dialect.
pub(crate) async fn call(shared: &Shared, arrival: Arrival, body: Body) -> Response<Body> {
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

/// The line: who, what, whose, may it, recorded, sent, relayed.
async fn line(shared: &Shared, arrival: Arrival, body: Body) -> Result<Response<Body>, Refused> {
    let asked = ask(shared, arrival, body).await?;
    let admitted = admit(shared, &asked);
    let (credential, prepared) = match admitted {
        Ok(admitted) => admitted,
        Err(failure) => return Err(refuse(shared, &asked, failure).await),
    };
    let mut settling = open(shared, &asked, &credential, &prepared).await?;
    let dump = dump(&asked, &prepared);
    match attempt(shared, &asked, prepared, &mut settling).await {
        Ok((answer, filter)) => Ok(relay(shared, asked, answer, filter, settling, dump)),
        Err(failure) => {
            settling.end(&Ending::Failed(&failure));
            Err((failure, Some(asked.arrival.id)))
        }
    }
}

fn answer(failure: &Failure, shape: ErrorShape, recorded: Option<Uuid>) -> Response<Body> {
    failure.render(shape, recorded)
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
            discard(body, config.max_body).await;
            return Err((failure, None));
        }
    };
    let received = read(headers, body, config.max_body, config.body_timeout).await;
    let mut asked = Asked {
        arrival,
        caller,
        presentation,
        received: Received::default(),
        view: RequestView::default(),
        started_at,
    };
    match received {
        Ok(received) => asked.received = received,
        Err(failure) => return Err(refuse(shared, &asked, failure).await),
    }
    match view(shared, &asked) {
        Ok(view) => asked.view = view,
        Err(failure) => return Err(refuse(shared, &asked, failure).await),
    }
    Ok(asked)
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
fn admit(shared: &Shared, asked: &Asked) -> Result<(Credential, Prepared), Failure> {
    let provider = &asked.arrival.route.provider;
    let headers = &asked.arrival.head.headers;
    let credential = choose(provider, asked.presentation, headers, &shared.fingerprint_key)?;
    let prepared = prepare(shared, asked, &credential)?;
    Ok((credential, prepared))
}

/// Headers for the provider and, only where a feature needs one, an edit of the body.
fn prepare(shared: &Shared, asked: &Asked, credential: &Credential) -> Result<Prepared, Failure> {
    let Arrival { route, head, .. } = &asked.arrival;
    let provider = &route.provider.config;
    let uri = route
        .provider
        .uri(&route.upstream_path, head.uri.query())
        .ok_or_else(|| Failure::invalid("the path or query cannot be sent to the provider"))?;
    let user_id = asked.caller.user_id.to_string();
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
        accept_encoding: headers::accept_encoding(&head.headers, asked.view.streaming),
    };
    let mut headers = headers::to_provider(&head.headers, &outbound);
    let mut body = asked.received.bytes.clone();
    let mut edits = Vec::new();
    if route.purpose == Purpose::Intercept(Dialect::ChatCompletions)
        && asked.view.streaming
        && !asked.view.asks_for_usage
    {
        let plain = asked.received.plain(shared.config.max_body)?;
        let edited = with_usage_asked(&plain);
        if let Some(edited) = edited.map_err(|error| Failure::invalid(&error.to_string()))? {
            body = edited.into();
            edits.push(EDIT_INCLUDE_USAGE);
            // The edited body is not encoded again.
            headers.remove(header::CONTENT_ENCODING);
        }
    }
    Ok(Prepared { method: head.method.clone(), uri, headers, body, edits })
}

/// Commits the record before anything goes upstream.
async fn open(
    shared: &Shared,
    asked: &Asked,
    credential: &Credential,
    prepared: &Prepared,
) -> Result<Settling, Refused> {
    let opening = opening(shared, asked, Some(credential), &prepared.edits);
    let destination = if asked.arrival.route.purpose == Purpose::Pass {
        Destination::IfUsed {
            recorder: shared.recorder.clone(),
            opening: Box::new(opening),
            tasks: shared.tasks.clone(),
        }
    } else {
        let opened = shared.recorder.open(opening).await;
        Destination::Opened(
            opened.map_err(|error| (Failure::store_unavailable(&error.to_string()), None))?,
        )
    };
    Ok(Settling::new(destination, credential.clone(), shared.config.record))
}

/// Asks the provider. Breakers, other keys of the pool and retries have their place here.
async fn attempt(
    shared: &Shared,
    asked: &Asked,
    prepared: Prepared,
    settling: &mut Settling,
) -> Result<(Response<Incoming>, Option<UsageChunkFilter>), Failure> {
    let filter = prepared.edits.contains(&EDIT_INCLUDE_USAGE).then(UsageChunkFilter::new);
    let mut request = Request::new(Full::new(prepared.body));
    *request.method_mut() = prepared.method;
    *request.uri_mut() = prepared.uri;
    *request.headers_mut() = prepared.headers;
    settling.attempt();
    let response = tokio::select! {
        response = asked.arrival.route.provider.upstream.send(request) => response?,
        () = shared.drain.begun() => return Err(Failure::shutting_down()),
    };
    Ok((response, filter))
}

/// Puts the answer on its way.
fn relay(
    shared: &Shared,
    asked: Asked,
    answer: Response<Incoming>,
    filter: Option<UsageChunkFilter>,
    mut settling: Settling,
    mut dump: Option<Dump>,
) -> Response<Body> {
    let (mut head, upstream) = answer.into_parts();
    if let Some(dump) = &mut dump {
        dump.response_head(head.status, &head.headers);
    }
    let arrival = asked.arrival;
    // An error passes untouched, whatever its content type.
    let is_stream = head.status.is_success() && is_event_stream(&head.headers);
    let answer_codings = codings(&head.headers);
    let dialect = dialect_of(&arrival.route);
    let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
    let filter = filter.filter(|_| is_stream && answer_codings.is_empty());
    let can_add = is_stream && answer_codings.is_empty() && (!has_length || filter.is_some());
    let break_off = if can_add { BreakOff::Event(dialect) } else { BreakOff::Abort };
    let observer = match (is_stream, arrival.route.purpose) {
        (true, _) => Observer::stream(dialect),
        (false, Purpose::Intercept(dialect)) => Observer::body(dialect),
        (false, Purpose::Metered(_) | Purpose::Pass) => Observer::any_body(),
    };
    settling.head(head.status, Observing::new(observer, answer_codings));
    headers::to_client(&mut head.headers);
    if filter.is_some() {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    if let Ok(id) = HeaderValue::from_str(&arrival.id.to_string()) {
        head.headers.insert(X_KEYBRIDGE_INTERCEPTION_ID, id);
    }
    let relay = Relay::new(Parts {
        upstream,
        is_stream,
        break_off,
        filter,
        settling,
        idle: arrival.route.provider.config.timeouts.idle,
        drain: shared.drain.clone(),
        dump,
        in_flight: arrival.in_flight,
    });
    let mut response = Response::new(Body::new(relay));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if let Some(reason) = head.extensions.remove::<hyper::ext::ReasonPhrase>() {
        response.extensions_mut().insert(reason);
    }
    response
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
    edits: &[&'static str],
) -> Opening {
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
        body_edits: edits.iter().map(|edit| (*edit).into()).collect(),
        request_sha256: (!bytes.is_empty()).then(|| sha256(bytes)),
        ..Interception::new(*id, asked.caller.user_id, asked.started_at)
    };
    let tool_results = view.tool_results.iter().map(|result| ToolResult {
        tool_call_id: result.tool_call_id.clone(),
        bytes: result.bytes,
        is_error: result.is_error,
    });
    Opening {
        interception,
        prompt: view.prompt.clone().filter(|_| shared.config.record.prompts),
        tool_results: tool_results.collect(),
    }
}

fn dump(asked: &Asked, prepared: &Prepared) -> Option<Dump> {
    let config = &asked.arrival.route.provider.config;
    let sent = Sent {
        method: &prepared.method,
        uri: &prepared.uri,
        headers: &prepared.headers,
        body: &prepared.body,
        set_headers: &config.set_headers,
    };
    Dump::request(config.dump_dir.as_deref()?, asked.arrival.id, &sent)
}

/// The dialect of a route; a side request's is the one its provider answers with.
fn dialect_of(route: &Route) -> Dialect {
    match (route.purpose, route.provider.config.kind) {
        (Purpose::Intercept(dialect) | Purpose::Metered(dialect), _) => dialect,
        (Purpose::Pass, ProviderType::Anthropic) => Dialect::Messages,
        (Purpose::Pass, ProviderType::OpenAi | ProviderType::Copilot) => Dialect::Responses,
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
    })
}

fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
