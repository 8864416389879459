//! The life of a request: a straight line of stages, each owning its results.

use std::{collections::HashMap, sync::Arc};

use axum::body::Body;
use http::Response;
use keybridge_identity::token::{contains_encoded_token, mask_tokens_in};
use keybridge_providers::{
    bedrock::Bedrock,
    body::AnswerBody,
    choice::{Denied, KeyChoice},
    config::Fallback,
    credential::CredentialKind,
    failure::Failure,
    provider::Provider,
    routes::Meter,
    upload::Upload,
};
use keybridge_wire::{Dialect, json::Value, request::RequestView};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    admission::{
        IdentifiedRequest, RoutedRequest, attachments,
        body::{self, discard},
        identify::identify,
        objects::{RequestObjects, find_objects},
        route::{Purpose, is_served},
        upload,
    },
    attempt::{
        Dispatch, exhausted_status,
        usage_refusal::{may_refuse_field, names_field},
    },
    config::{BridgeConfig, error_shape},
    failure::render,
    headers::{may_be_json, query_to_provider},
    relay::{
        list::{ListFilter, respond_with_own},
        respond::{AnsweredRequest, ProviderAnswer, relay, respond_with_tools},
    },
    settlement::{
        Destination, OfferedTools, SettlementGuard,
        calls::ToolCallLog,
        opening::{RecordedDestination, opening},
        refusal,
    },
    shared::Shared,
    tools::{
        edits::{MergePlan, conversation_keys},
        tool_loop::ToolLoop,
    },
};

/// A refusal, with the id of its record if there is one.
type Refused = (Failure, Option<Uuid>);

/// The provider's answer.
type Answered = Result<Response<AnswerBody>, Failure>;

/// A request that was sent, and the guard of its record.
struct Sent<'a> {
    dispatch: &'a mut Dispatch,
    guard: &'a mut SettlementGuard,
}

/// Handles a request, or responds with an error in the client's dialect.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    request: RoutedRequest,
    body: Body,
) -> Response<Body> {
    let shape = match request.route.purpose {
        Purpose::Intercept(dialect) => error_shape(dialect),
        Purpose::Metered(_)
        | Purpose::Change
        | Purpose::Allowed(_)
        | Purpose::Count(_)
        | Purpose::PassThrough => request.route.provider.config.kind.error_shape(),
    };
    match handle_request(shared, request, body).await {
        Ok(response) => response,
        Err((failure, recorded)) => render(&failure, shape, recorded),
    }
}

/// The stages: identify, read, view, admit, open, attempt, relay. Rare paths are boxed, so that they do
/// not enlarge the future of every request.
async fn handle_request(
    shared: &Arc<Shared>,
    request: RoutedRequest,
    body: Body,
) -> Result<Response<Body>, Refused> {
    let request = identify_caller(shared, request, body).await?;
    // From here on: what the log keeps for a span is never returned to the system, and a flood of bodies
    // that never end must not leave that much behind.
    let span = tracing::info_span!("intercept", interception_id = %request.id);
    // Boxed: the future of the whole request would otherwise have room for it several times.
    Box::pin(forward(shared, request)).instrument(span).await
}

/// The stages from the admission on, for a request that has been read.
async fn forward(
    shared: &Arc<Shared>,
    mut request: Box<IdentifiedRequest>,
) -> Result<Response<Body>, Refused> {
    let mut dispatch = match admit(shared, &mut request).await {
        Ok(dispatch) => dispatch,
        Err(failure) => return Err(Box::pin(refuse(shared, &mut request, failure)).await),
    };
    request.phases.note_credential();
    let mut guard = open(shared, &mut request, &mut dispatch).await?;
    let attempts = guard.attempts();
    let mut dump = dispatch.dump(&request);
    let mut answered = dispatch.send(&request, &attempts).await;
    if is_usage_refused(&dispatch, &answered) {
        let sent = Sent { dispatch: &mut dispatch, guard: &mut guard };
        answered = Box::pin(send_without_usage(shared, &request, sent, answered)).await;
    }
    if let Some(status) = exhausted_status(&answered, &attempts)
        && let Some(mut second) = Box::pin(fall_back(shared, &request)).await
    {
        drop(answered);
        guard.fall_back(status, second.record());
        dump = second.dump(&request);
        answered = Box::pin(second.send(&request, &attempts)).await;
        dispatch = second;
        if is_usage_refused(&dispatch, &answered) {
            let sent = Sent { dispatch: &mut dispatch, guard: &mut guard };
            answered = Box::pin(send_without_usage(shared, &request, sent, answered)).await;
        }
    }
    let id = request.id;
    let answer = match answered {
        Ok(answer) => answer,
        Err(failure) => {
            let failure = guard.fail(failure);
            if let Some(rest) = request.body.upload.as_ref().and_then(Upload::take_rest) {
                Box::pin(discard(rest, shared.config.max_upload)).await;
            }
            return Err((failure, Some(id)));
        }
    };
    let list_filter = list_filter(shared, &request, &guard);
    let tool_loop = tool_loop(shared, &mut request, &mut dispatch, &mut guard);
    let answer =
        ProviderAnswer { answer, filter: dispatch.usage_filter(), has_events: false, guard, dump };
    request.body = body::RequestBody::default();
    let IdentifiedRequest { route, in_flight, caller, .. } = *request;
    let answered = AnsweredRequest { id, route, in_flight, access: caller.access };
    if let Some(filter) = list_filter.filter(|_| answer.answer.status().is_success()) {
        let responded = Box::pin(respond_with_own(answered, answer, filter)).await;
        return responded.map_err(|failure| (failure, None));
    }
    let responded = match tool_loop.filter(|_| answer.answer.status().is_success()) {
        // An error of the first turn passes untouched.
        None => Box::pin(relay(answered, answer, None)).await,
        Some(tool_loop) => Box::pin(respond_with_tools(answered, answer, tool_loop)).await,
    };
    responded.map_err(|failure| (failure, Some(id)))
}

/// Whether the provider may have refused the field with which the bridge asked for usage.
fn is_usage_refused(dispatch: &Dispatch, answered: &Answered) -> bool {
    let status = answered.as_ref().ok().map(Response::status);
    status.is_some_and(may_refuse_field) && dispatch.asks_usage()
}

/// If the provider refused the field with which the bridge asked for usage, sends the request once more
/// as the client wrote it.
async fn send_without_usage(
    shared: &Shared,
    request: &IdentifiedRequest,
    sent: Sent<'_>,
    answered: Answered,
) -> Answered {
    let Sent { dispatch, guard } = sent;
    let (names_field, answer) = names_field(answered?).await?;
    if !names_field {
        return Ok(answer);
    }
    drop(answer);
    dispatch.provider.note_usage_refusal(request.view.model.as_deref());
    dispatch.edit_again(request, shared.dispatch_context())?;
    guard.send_again(dispatch.edits.clone());
    dispatch.send(request, &guard.attempts()).await
}

/// Identifies the caller and reads the body. Nothing is recorded if the caller cannot be identified.
async fn identify_caller(
    shared: &Shared,
    request: RoutedRequest,
    body: Body,
) -> Result<Box<IdentifiedRequest>, Refused> {
    let config = &shared.config;
    let identified = match request.in_flight.check_address() {
        Ok(()) => identify(&shared.directory, &config.governance_headers, &request.head).await,
        Err(failure) => Err(failure),
    };
    let (caller, kind) = match identified {
        Ok(identified) => identified,
        Err(failure) => {
            if let Some(_permit) = shared.limits.try_discard_permit() {
                Box::pin(discard(body, config.max_body)).await;
            }
            return Err((failure, None));
        }
    };
    // Boxed, as is the dispatch: they are handed from stage to stage, and moving them is not free.
    let mut request = Box::new(IdentifiedRequest::new(request, caller, kind));
    request.phases.note_identified();
    let (user, token) = (request.caller.user_id, request.caller.token_id);
    if let Err(failure) = shared.limits.admit(&mut request.in_flight, user, token) {
        Box::pin(discard(body, config.max_body)).await;
        return Err(Box::pin(refuse(shared, &mut request, failure)).await);
    }
    if let Err(failure) = read(shared, &mut request, body).await {
        return Err(Box::pin(refuse(shared, &mut request, failure)).await);
    }
    let is_side_request = !matches!(request.route.purpose, Purpose::Intercept(_));
    if is_side_request || !request.view.objects.is_empty() {
        Box::pin(find_objects(shared, &mut request)).await;
    }
    Ok(request)
}

/// Reads and decodes the body, and extracts what the record and the policy need.
async fn read(shared: &Shared, request: &mut IdentifiedRequest, body: Body) -> Result<(), Failure> {
    let BridgeConfig { max_body: max_bytes, body_timeout, min_body_rate, .. } = shared.config;
    let limits =
        body::BodyLimits { max_bytes, read_timeout: body_timeout, min_rate: min_body_rate };
    let memory = shared.limits.memory.reservation(request.caller.user_id);
    let headers = &request.head.headers;
    let is_upload = matches!(request.route.purpose, Purpose::Allowed(_)) && !may_be_json(headers);
    request.body = if is_upload {
        let limits = body::BodyLimits { max_bytes: shared.config.max_upload, ..limits };
        Box::pin(upload::read(headers, body, limits, memory)).await?
    } else {
        body::read(headers, body, limits, memory).await?
    };
    if request.body.upload.is_none() {
        request.phases.note_body_read();
    }
    let query = request.head.uri.query().and_then(query_to_provider);
    if query.is_some_and(|query| contains_encoded_token(query.as_bytes())) {
        return Err(Failure::invalid(
            "the query string must not contain a bridge token; send it in a header",
        ));
    }
    if is_upload {
        request.view = upload::view(&request.head.headers, &request.body.bytes);
        if let Some(model) = &mut request.view.model {
            mask_tokens_in(model);
        }
        return Ok(());
    }
    let (dialect, is_intercepted) = match request.route.purpose {
        Purpose::Intercept(dialect) => (dialect, true),
        Purpose::Metered(dialect) => (dialect, false),
        // Its model is where that of a chat request is.
        Purpose::Allowed(_) => (Dialect::ChatCompletions, false),
        // Most need no edit, and pass unread.
        Purpose::Count(_) if !is_edited(shared, &request.route.provider) => return Ok(()),
        Purpose::Count(dialect) => (dialect, false),
        Purpose::Change | Purpose::PassThrough => return Ok(()),
    };
    let viewed = match request.body.decode(max_bytes, &shared.limits).await {
        Ok(()) => RequestView::read(dialect, &request.body.plain())
            .map_err(|error| Failure::invalid(&error.to_string())),
        Err(failure) => Err(failure),
    };
    match viewed {
        Ok(mut view) => {
            // It is also logged, and a label of metrics.
            if let Some(model) = &mut view.model {
                mask_tokens_in(model);
            }
            // The path is what the provider judges by.
            view.model = request.route.deployment.clone().or(view.model);
            request.view = view;
        }
        Err(failure) if is_intercepted => return Err(failure),
        Err(unread) => {
            if matches!(request.route.purpose, Purpose::Metered(_)) {
                request.objects = Some(RequestObjects::unread(unread.detail));
            }
            return Ok(());
        }
    }
    let carried = std::mem::take(&mut request.view.attachments.list);
    if !carried.is_empty() {
        let describing = attachments::describe(carried, request.body.plain(), &shared.limits);
        request.attachments = Box::pin(describing).await?;
    }
    if request.route.purpose == Purpose::Allowed(Meter::Characters) {
        request.input_characters = input_characters(&request.body.plain());
    }
    if let Some(prompt) = &request.view.prompt {
        request.body.reserve_for_copy(prompt.len()).await?;
    }
    if shared.config.record.tool_results {
        let bytes = request.view.tool_results.iter().map(|result| result.bytes).sum::<u64>();
        request.body.reserve_for_copy(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
    }
    if is_intercepted || matches!(request.route.purpose, Purpose::Count(_)) {
        request.hidden = find_hidden_calls(shared, request, dialect).await;
    }
    Ok(())
}

/// Whether requests to a provider, or to its fallback, may be edited before they are sent.
fn is_edited(shared: &Shared, provider: &Provider) -> bool {
    shared.tools.servers.serves(&provider.config.name)
        || provider.config.fallback.is_some()
        || provider.bedrock().is_some_and(Bedrock::translates)
}

/// The characters of a request's `input`, which providers of speech bill.
fn input_characters(body: &[u8]) -> Option<u64> {
    let characters = Value::parse(body).ok()?.get("input")?.as_str()?.chars().count();
    u64::try_from(characters).ok()
}

/// Finds the tool calls that were hidden from the client earlier in the conversation.
async fn find_hidden_calls(
    shared: &Shared,
    request: &IdentifiedRequest,
    dialect: Dialect,
) -> HashMap<String, String> {
    let provider = &request.route.provider.config.name;
    let plain = request.body.plain();
    let keys = conversation_keys(&shared.tools, provider, dialect, &request.view, &plain);
    if keys.is_empty() {
        return HashMap::new();
    }
    let found = shared.continuations.find(request.caller.user_id, keys).await;
    found.unwrap_or_else(|error| {
        tracing::error!(%error, "cannot read the hidden tool calls of a conversation; the request continues without them");
        HashMap::new()
    })
}

/// Chooses the credential and gets a permit from the circuit breaker; prepares the fallback if the
/// provider is not available.
async fn admit(shared: &Shared, request: &mut IdentifiedRequest) -> Result<Box<Dispatch>, Failure> {
    let (destination, context) = (home(shared, request), shared.dispatch_context());
    let dispatch = match Dispatch::prepare(destination, request, KeyChoice::Ready, context).await {
        Ok(dispatch) => dispatch,
        Err(denied) => Box::pin(admit_denied(shared, request, denied)).await?,
    };
    if !dispatch.edits.is_empty() {
        request.body.reserve_for_copy(dispatch.outgoing.body.len()).await?;
    }
    Ok(dispatch)
}

/// Where a request is sent first, and the model that is asked there: the requested instance, or its fallback
/// if that answered before and has the stored objects that the request names.
fn home<'a>(shared: &Shared, request: &'a IdentifiedRequest) -> (Arc<Provider>, Option<&'a str>) {
    let requested = &request.route.provider;
    let objects = request.objects.as_ref().filter(|objects| objects.is_at_fallback());
    let fallback = objects.and_then(|_| requested.config.fallback.as_ref());
    let other =
        fallback.and_then(|fallback| Some((shared.provider(&fallback.provider)?, fallback)));
    match other {
        Some((other, fallback)) => (Arc::clone(other), fallback.model.as_deref()),
        None => (Arc::clone(requested), None),
    }
}

/// Prepares the fallback of a provider that is not available; if it has none, a key that is not ready is
/// tried nevertheless, because the provider's own answer is more useful than a refusal.
async fn admit_denied(
    shared: &Shared,
    request: &IdentifiedRequest,
    denied: Denied,
) -> Result<Box<Dispatch>, Failure> {
    if let Denied::Refused(failure) = denied {
        return Err(failure);
    }
    if let Some(dispatch) = fall_back(shared, request).await {
        return Ok(dispatch);
    }
    if let Denied::Unavailable(failure) = denied {
        return Err(failure);
    }
    let (destination, context) = (home(shared, request), shared.dispatch_context());
    let prepared = Dispatch::prepare(destination, request, KeyChoice::Any, context).await;
    prepared.map_err(|denied| match denied {
        Denied::Refused(failure) | Denied::Unavailable(failure) => failure,
        Denied::NoReadyKey => Failure::internal("a pool with keys has none to choose from"),
    })
}

/// Prepares a centralized request for the instance that its provider names as fallback. What a request
/// changes exists at its own provider only, and so do stored objects that it names.
async fn fall_back(shared: &Shared, request: &IdentifiedRequest) -> Option<Box<Dispatch>> {
    if request.credential_kind != CredentialKind::Centralized
        || matches!(request.route.purpose, Purpose::Change | Purpose::Allowed(_))
        || request.objects.is_some()
    {
        return None;
    }
    let provider = &request.route.provider.config;
    let Fallback { provider: name, model } = provider.fallback.as_ref()?;
    let other = shared.provider(name)?;
    if !is_served(&other.config, &request.route.endpoint, &request.head.method) {
        return None;
    }
    let (destination, context) = ((Arc::clone(other), model.as_deref()), shared.dispatch_context());
    let prepared = Dispatch::prepare(destination, request, KeyChoice::Ready, context).await.ok()?;
    tracing::warn!(provider = provider.name, fallback = name, "fell back to another provider");
    shared.provider_metrics.fell_back(&provider.name, name);
    Some(prepared)
}

/// Commits the record before anything goes upstream.
async fn open(
    shared: &Shared,
    request: &mut IdentifiedRequest,
    dispatch: &mut Dispatch,
) -> Result<Box<SettlementGuard>, Refused> {
    let recorded = RecordedDestination {
        provider: &dispatch.provider,
        credential: Some(&dispatch.credential),
        edits: &dispatch.edits,
    };
    let opening = opening(request, recorded, &shared.config.record);
    let destination = if request.route.purpose.is_free() {
        let (recorder, tasks) = (shared.recorder.clone(), shared.limits.tasks.clone());
        Destination::IfUsageReported { recorder, opening, tasks }
    } else {
        let opened = shared.recorder.open(opening).await;
        let entry =
            opened.map_err(|error| (Failure::store_unavailable(&error.to_string()), None))?;
        request.phases.note_opened();
        Destination::Opened(entry)
    };
    let (policy, metrics) = (shared.config.record, Arc::clone(&shared.tools.metrics));
    let guard = SettlementGuard::new(destination, request, policy, metrics, dispatch.record());
    let mut guard = Box::new(guard);
    guard.expect_hosted_calls(std::mem::take(&mut request.view.hosted_servers));
    guard.upload = request.body.upload.clone();
    guard.input_characters = request.input_characters;
    Ok(guard)
}

/// Whose objects a list shows that is asked for with a company's key.
fn list_filter(
    shared: &Shared,
    request: &IdentifiedRequest,
    guard: &SettlementGuard,
) -> Option<ListFilter> {
    let kind = request.objects.as_ref()?.listed()?;
    guard.is_centralized().then(|| ListFilter {
        objects: shared.objects.clone(),
        kind,
        user_id: request.caller.user_id,
        unknown_objects: guard.provider().config.unknown_objects,
    })
}

/// The tool loop of the answer, if tools were injected.
fn tool_loop(
    shared: &Shared,
    request: &mut IdentifiedRequest,
    dispatch: &mut Dispatch,
    guard: &mut SettlementGuard,
) -> Option<ToolLoop> {
    let Purpose::Intercept(dialect) = request.route.purpose else { return None };
    let MergePlan { tools, client } = dispatch.merge.take()?;
    let calls = ToolCallLog::new(shared.config.record.tool_results);
    guard.expect_tool_calls(OfferedTools {
        tools: Arc::clone(&tools),
        calls: calls.clone(),
        offered: client.injected_tools.clone(),
    });
    Some(ToolLoop {
        injected: Arc::clone(&shared.tools),
        access: Arc::clone(&request.caller.access),
        max_answer: shared.config.max_body,
        provider: Arc::clone(&dispatch.provider),
        dialect,
        interception: request.id,
        user: request.caller.user_id,
        endpoint: request.route.endpoint.clone(),
        model: dispatch.model.clone().or_else(|| request.view.model.clone()),
        bound_key: request.bound_key.take(),
        streams: request.view.streaming,
        tools,
        client,
        outgoing: dispatch.outgoing.clone(),
        attempts: guard.attempts(),
        _memory: std::mem::take(&mut request.body.memory),
        calls,
        turns: 0,
    })
}

/// Records the refusal of an identified request.
async fn refuse(shared: &Shared, request: &mut IdentifiedRequest, failure: Failure) -> Refused {
    // What concerns other users is recorded in any case.
    if request.route.purpose.is_free() && failure.record_kind.is_none() {
        return (failure, None);
    }
    let provider = Arc::clone(&request.route.provider);
    let recorded = RecordedDestination { provider: &provider, credential: None, edits: &[] };
    let opening = opening(request, recorded, &shared.config.record);
    let settlement = refusal(&failure, &shared.config.record, &request.phases);
    match shared.recorder.record(opening, settlement).await {
        Ok(()) => (failure, Some(request.id)),
        Err(error) => {
            tracing::error!(%error, "cannot record a refused request");
            (failure, None)
        }
    }
}
