//! Handles a request: checks it, routes it, and plays its response.

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use crate::{
    bedrock, cache_prefix, chat,
    checks::{self, RejectedRequest},
    errors,
    exchange::{ActiveExchange, Exchange, ExchangeLog},
    journal::Journal,
    memory::PastResponse,
    messages, other_routes,
    player::{Script, Step},
    responses,
    scenario::{Playback, Scenario},
    signature_v4,
    turns::{self, Cue, Turn},
};

/// The maximum size of a request body.
const MAX_BODY_BYTES: usize = 256 << 20;
/// The size of the writes in the scenario `split`.
const SPLIT_BYTES: usize = 7;

/// A provider's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Messages,
    Chat,
    Responses,
}

/// A provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    Anthropic,
    OpenAi,
    Copilot,
    /// Bedrock's `InvokeModel` for Anthropic's models.
    Bedrock,
    /// Bedrock's Messages API for Anthropic's models.
    Mantle,
}

/// Where a provider is mounted.
struct Mount {
    path: &'static str,
    vendor: Vendor,
    credential: CredentialRule,
}

/// Which credential a mounted provider wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CredentialRule {
    /// `x-api-key`, or a bearer token.
    Anthropic,
    /// A bearer token.
    Bearer,
    /// `api-key`, or a bearer token.
    Azure,
    /// A signature, which is verified before.
    Signature,
    /// None: a server without keys, which does not expect one either.
    Keyless,
}

/// Azure OpenAI's API whose requests name its version.
const DATED_AZURE: &str = "/azure/openai";
const MOUNTS: [Mount; 9] = [
    Mount::new("/anthropic", Vendor::Anthropic, CredentialRule::Anthropic),
    Mount::new("/openai/v1", Vendor::OpenAi, CredentialRule::Bearer),
    Mount::new("/compat/some/path/v1", Vendor::OpenAi, CredentialRule::Bearer),
    Mount::new("/azure/openai/v1", Vendor::OpenAi, CredentialRule::Azure),
    Mount::new(DATED_AZURE, Vendor::OpenAi, CredentialRule::Azure),
    Mount::new("/keyless/v1", Vendor::OpenAi, CredentialRule::Keyless),
    Mount::new("/copilot", Vendor::Copilot, CredentialRule::Bearer),
    Mount::new("/bedrock", Vendor::Bedrock, CredentialRule::Signature),
    Mount::new("/mantle", Vendor::Mantle, CredentialRule::Signature),
];

impl Mount {
    const fn new(path: &'static str, vendor: Vendor, credential: CredentialRule) -> Self {
        Self { path, vendor, credential }
    }
}

/// A request to a model.
#[derive(Debug)]
pub(crate) struct ModelRequest {
    pub(crate) body: Value,
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) playback: Playback,
    /// The model's scripted turn.
    pub(crate) turn: Option<Turn>,
    /// The number of turns the model has taken since the user's latest prompt.
    pub(crate) number: usize,
    /// The part of ids that makes them unique.
    pub(crate) serial: String,
}

/// Responds to a request and records it.
pub(crate) async fn handle(
    log: &Arc<Mutex<ExchangeLog>>,
    journal: Option<&Journal>,
    request: Request,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let read = to_bytes(body, MAX_BODY_BYTES).await;
    let is_complete = read.is_ok();
    let body = read.unwrap_or_default();
    let path = head.uri.path().to_owned();
    let headers = head.headers.iter();
    let exchange = Exchange {
        method: head.method.to_string(),
        path_and_query: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: headers.map(|(name, value)| (name.to_string(), value.as_bytes().into())).collect(),
        body: body.clone(),
        ..Exchange::default()
    };
    let active = log.lock().unwrap_or_else(PoisonError::into_inner).begin(exchange);
    let Some((mount, rest)) = mount(&path) else {
        return Script::json(404, &serde_json::json!({ "error": "no such provider" })).play(active);
    };
    let vendor = mount.vendor;
    let mut problems = checks::headers(vendor, &head.headers);
    if !is_complete {
        problems.push("the request body is incomplete".into());
    }
    active.change(|exchange| exchange.problems.extend(problems));
    if matches!(vendor, Vendor::Bedrock | Vendor::Mantle)
        && let Err(refused) = signature_v4::verify(vendor, &head, &body)
    {
        active.change(|exchange| exchange.problems.push(refused.problem.into()));
        return bedrock::signature_error(&refused).play(active);
    }
    if let Some(refused) = checks::credentials(mount.credential, &head.headers) {
        active.change(|exchange| exchange.problems.push(refused.into()));
        return errors::script(vendor, 401, refused).play(active);
    }
    if lacks_version(mount, head.uri.query()) {
        return errors::script(vendor, 404, "Resource not found").play(active);
    }
    if let Some(script) = key_override(vendor, &head.headers, log) {
        return script.play(active);
    }
    let api = (head.method == Method::POST).then(|| api(vendor, rest)).flatten();
    let mut script = match api {
        Some(api) => {
            let script = match bedrock::to_messages_request(vendor, rest, &body) {
                Ok(body) => model_script((vendor, api), &head.headers, &body, &active, log).await,
                Err(message) => {
                    let script = errors::script(vendor, 400, &message);
                    active.change(|exchange| exchange.problems.push(message));
                    script
                }
            };
            if vendor == Vendor::Bedrock { bedrock::to_event_stream(script) } else { script }
        }
        None => {
            let id = rest.rsplit('/').next().unwrap_or_default();
            let model = log.lock().unwrap_or_else(PoisonError::into_inner).stored_model(id);
            other_routes::script(vendor, &head.method, rest, &body, model.as_deref())
        }
    };
    if let (Some(journal), Some(id)) = (journal, script.response_id.take()) {
        script.until_first_byte(&active).await;
        if let Err(error) = journal.write(&id, &path, &body) {
            let message = format!("the simulator's log cannot be written: {error}");
            return errors::script(vendor, 500, &message).play(active);
        }
    }
    script.play(active)
}

fn mount(path: &str) -> Option<(&'static Mount, &str)> {
    MOUNTS.iter().find_map(|mount| path.strip_prefix(mount.path).map(|rest| (mount, rest)))
}

/// The path below a deployment of Azure OpenAI.
fn deployment(rest: &str) -> Option<&str> {
    rest.strip_prefix("/deployments/")?.split_once('/').map(|(_name, rest)| rest)
}

/// Whether a request to Azure OpenAI names no version of the API.
fn lacks_version(mount: &Mount, query: Option<&str>) -> bool {
    let mut pairs = query.into_iter().flat_map(|query| query.split('&'));
    mount.path == DATED_AZURE && !pairs.any(|pair| pair.starts_with("api-version="))
}

fn api(vendor: Vendor, rest: &str) -> Option<Api> {
    match (vendor, rest) {
        (Vendor::Anthropic | Vendor::Copilot | Vendor::Mantle, "/v1/messages") => {
            Some(Api::Messages)
        }
        (Vendor::Bedrock, path) => bedrock::operation(path).map(|_operation| Api::Messages),
        (Vendor::OpenAi | Vendor::Copilot, "/chat/completions") => Some(Api::Chat),
        (Vendor::OpenAi, path) if deployment(path) == Some("chat/completions") => Some(Api::Chat),
        (Vendor::OpenAi | Vendor::Copilot, "/responses") => Some(Api::Responses),
        _ => None,
    }
}

/// The error set for the request's credential, whatever the request is.
fn key_override(vendor: Vendor, headers: &HeaderMap, log: &Mutex<ExchangeLog>) -> Option<Script> {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let values =
        ["x-api-key", "api-key", "authorization"].map(|name| headers.get(name)?.to_str().ok());
    let answer = values.into_iter().flatten().find_map(|value| log.key_override(value))?;
    let script = errors::script(vendor, answer.status, "This credential is rejected.");
    Some(match answer.retry_after {
        Some(seconds) => script.set_header("retry-after", seconds.to_string()),
        None => script,
    })
}

/// The error that the header `x-sim-first` requests, such as `NAME:503,429/20`: the first requests of
/// that name get these statuses, with `retry-after-ms` if milliseconds are given; later ones get the
/// usual response.
fn failure(vendor: Vendor, headers: &HeaderMap, log: &Mutex<ExchangeLog>) -> Option<Script> {
    let request = headers.get("x-sim-first")?.to_str().ok()?;
    let (name, statuses) = request.split_once(':')?;
    let number = log.lock().unwrap_or_else(PoisonError::into_inner).count(name);
    let entry = statuses.split(',').nth(number)?;
    let (status, millis) = match entry.split_once('/') {
        Some((status, millis)) => (status, Some(millis)),
        None => (entry, None),
    };
    let script = errors::script(vendor, status.parse().ok()?, "The first requests fail.");
    Some(match millis {
        Some(millis) => script.header("retry-after-ms", millis),
        None => script,
    })
}

async fn model_script(
    (vendor, api): (Vendor, Api),
    headers: &HeaderMap,
    body: &Bytes,
    active: &ActiveExchange,
    log: &Mutex<ExchangeLog>,
) -> Script {
    let request = match read_request(api, headers, body, active, log) {
        Ok(request) => request,
        Err(refusal) => {
            let script = errors::refused(vendor, &refusal);
            active.change(|exchange| exchange.problems.push(refusal.message));
            return script;
        }
    };
    if let Some(word) = &request.playback.unknown {
        let message = format!("unknown scenario `{word}`; see /_sim/scenarios");
        return errors::script(vendor, 400, &message);
    }
    if request.playback.has(Scenario::NoHead) {
        let _leaving = active.guard_disconnect();
        return std::future::pending().await;
    }
    let scripted = request.turn.as_ref().and_then(|turn| turn.error);
    if let Some(status) = request.playback.error.or(scripted) {
        return errors::script(vendor, status, "The scenario asks for this error.");
    }
    if let Some(script) = failure(vendor, headers, log) {
        return script;
    }
    if api == Api::Responses {
        remember(&request, &mut log.lock().unwrap_or_else(PoisonError::into_inner));
    }
    let mut script = script(api, &request, headers).with_response_id(request.response_id(api));
    if let Some(turn) = request.turn.as_ref().filter(|_| !request.stream) {
        script = apply_cues(vendor, script, turn);
    }
    if script.status != 200 {
        return script;
    }
    let id = format!("req_{}", request.serial);
    match vendor {
        Vendor::Bedrock => script.header("x-amzn-requestid", id),
        Vendor::Anthropic | Vendor::Mantle => script
            .header("request-id", id)
            .header("anthropic-ratelimit-requests-limit", "50")
            .header("anthropic-ratelimit-requests-remaining", "49"),
        Vendor::OpenAi | Vendor::Copilot => script
            .header("x-request-id", id)
            .header("openai-processing-ms", "12")
            .header("x-ratelimit-remaining-requests", "49"),
    }
}

/// Reads the request, or returns why the provider rejects it.
fn read_request(
    api: Api,
    headers: &HeaderMap,
    body: &[u8],
    active: &ActiveExchange,
    log: &Mutex<ExchangeLog>,
) -> Result<ModelRequest, RejectedRequest> {
    let body = checks::parse(headers, body)?;
    active.set_prefix(cache_prefix::hashes(api, &body));
    checks::body(api, &body)?;
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let previous = body.get("previous_response_id").and_then(Value::as_str);
    let previous = previous.filter(|_| api == Api::Responses);
    if let Some(id) = previous {
        checks::previous(id, &body, &log)?;
    }
    let earlier = previous.and_then(|id| log.responses.get(id)).map(|past| past.turns);
    let mut request = ModelRequest::new(body, headers);
    request.number = turns::number(api, &request.body, earlier.unwrap_or_default());
    if request.playback.has(Scenario::Turns) {
        request.turn =
            Some(Turn::from_script((api, request.number), headers, &request.body, &mut log)?);
    }
    Ok(request)
}

/// Stores what a later request may continue from.
fn remember(request: &ModelRequest, log: &mut ExchangeLog) {
    let id = format!("resp_{}", request.serial);
    let is_background = request.is_background();
    if is_background {
        log.store(id.clone(), request.model.clone());
    }
    let text = |key: &str| request.body.get(key).and_then(Value::as_str).map(str::to_owned);
    let past = PastResponse {
        turns: request.number + 1,
        calls: if is_background { Vec::new() } else { responses::calls(request) },
        earlier_calls: checks::call_ids(&request.body).map(str::to_owned).collect(),
        previous: text("previous_response_id"),
        is_stored: request.body.get("store") != Some(&Value::Bool(false)),
    };
    log.responses.remember(id, past);
}

/// Applies the cues between the blocks of a scripted turn to a complete response.
fn apply_cues(vendor: Vendor, script: Script, turn: &Turn) -> Script {
    let mut pauses = Vec::new();
    let mut played = script;
    for cue in turn.cues() {
        match cue {
            Cue::Step(Step::Abort) => {
                if let Some(Step::Bytes(body)) = played.steps.pop() {
                    let half = body.slice(..body.len() / 2);
                    played.steps.extend([Step::Bytes(half), Step::Abort]);
                }
                break;
            }
            Cue::Step(step) => pauses.push(step.clone()),
            Cue::Error => {
                played = errors::script(vendor, 500, "The script asks for this error.");
                break;
            }
        }
    }
    played.steps.splice(0..0, pauses);
    played
}

impl ModelRequest {
    fn new(body: Value, headers: &HeaderMap) -> Self {
        let model = body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            playback: Playback::from_request(headers, &model),
            turn: None,
            number: 0,
            serial: other_routes::serial(),
            model,
            body,
        }
    }

    /// The id of the response, if it has one.
    fn response_id(&self, api: Api) -> Option<String> {
        let has_none =
            self.playback.has(Scenario::NonJson) || self.playback.has(Scenario::EmptyBody);
        let prefix = match api {
            Api::Messages => "msg_",
            Api::Chat => "chatcmpl-",
            Api::Responses => "resp_",
        };
        (!has_none).then(|| format!("{prefix}{}", self.serial))
    }

    /// Whether the response is fetched later.
    pub(crate) fn is_background(&self) -> bool {
        self.playback.has(Scenario::Background)
            || self.body.get("background").and_then(Value::as_bool) == Some(true)
    }
}

fn script(api: Api, request: &ModelRequest, headers: &HeaderMap) -> Script {
    if request.playback.has(Scenario::NonJson) {
        let page = Bytes::from_static(b"<html><body>Bad gateway, says a proxy</body></html>");
        return Script::whole(200, "text/html", page);
    }
    if request.playback.has(Scenario::EmptyBody) {
        return Script::whole(200, "application/json", Bytes::new());
    }
    if request.stream {
        let events = match api {
            Api::Messages => messages::events(request),
            Api::Chat => chat::events(request),
            Api::Responses => responses::events(request),
        };
        return Script::stream(apply_scenario(api, &request.playback, events));
    }
    let value = match api {
        Api::Messages => messages::whole(request),
        Api::Chat => chat::whole(request),
        Api::Responses => responses::whole(request),
    };
    let accepts_gzip = headers
        .get(http::header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("gzip"));
    if request.playback.has(Scenario::GzipResponse) && accepts_gzip {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // Writing to memory cannot fail.
        let _written = encoder.write_all(value.to_string().as_bytes());
        let body = encoder.finish().unwrap_or_default();
        return Script::whole(200, "application/json", body.into())
            .header("content-encoding", "gzip");
    }
    let mut script = Script::json(200, &value);
    script.steps.insert(0, Step::Wait(request.playback.delay));
    script
}

/// Turns events into steps, with the pauses, truncation and aborts of the scenario.
fn apply_scenario(api: Api, play: &Playback, events: Vec<Step>) -> Vec<Step> {
    let half = events.len() / 2;
    let (kept, end) = if play.has(Scenario::Broken) {
        (
            half,
            vec![first_half(events.get(half)), Step::Wait(Duration::from_millis(20)), Step::Abort],
        )
    } else if play.has(Scenario::BrokenBetween) {
        (half, vec![Step::Wait(Duration::from_millis(20)), Step::Abort])
    } else if play.has(Scenario::Truncated) {
        (events.len().saturating_sub(terminal_event_count(api)), Vec::new())
    } else if play.has(Scenario::TruncatedMidEvent) {
        (half, vec![first_half(events.get(half))])
    } else if play.has(Scenario::Stalled) {
        (half, vec![Step::Stall])
    } else if play.has(Scenario::ErrorMidStream) {
        (half, vec![Step::Bytes(errors::event(api, "server_error", half).into())])
    } else if play.has(Scenario::OverloadedMidStream) {
        (half, vec![Step::Bytes(errors::event(api, "overloaded", half).into())])
    } else {
        (events.len(), Vec::new())
    };
    let mut steps = Vec::new();
    if play.has(Scenario::Crlf) {
        steps.push(Step::Bytes(Bytes::from_static(b"\xEF\xBB\xBF: hello\r\n\r\n")));
    }
    for event in events.into_iter().take(kept) {
        let Step::Bytes(event) = event else {
            steps.push(event);
            continue;
        };
        if is_token(api, &String::from_utf8_lossy(&event)) {
            steps.push(Step::Wait(play.delay));
        }
        let event = if play.has(Scenario::Crlf) {
            let text = String::from_utf8_lossy(&event).replace('\n', "\r\n");
            format!(": keep-alive\r\n{text}").into()
        } else {
            event
        };
        if play.has(Scenario::Split) {
            steps
                .extend(event.chunks(SPLIT_BYTES).map(|piece| Step::Bytes(event.slice_ref(piece))));
        } else {
            steps.push(Step::Bytes(event));
        }
    }
    steps.extend(end);
    steps
}

/// Whether an event carries a piece of the model's output.
fn is_token(api: Api, event: &str) -> bool {
    match api {
        Api::Messages => event.starts_with("event: content_block_delta\n"),
        Api::Chat => ["content", "reasoning_content", "tool_calls"]
            .iter()
            .any(|field| event.contains(&format!("\"delta\":{{\"{field}\":"))),
        Api::Responses => event.lines().next().is_some_and(|name| name.ends_with(".delta")),
    }
}

/// The number of events that mark a response as complete; in Chat Completions, usage may be among them.
const fn terminal_event_count(api: Api) -> usize {
    match api {
        Api::Messages => 2,
        Api::Chat => 3,
        Api::Responses => 1,
    }
}

fn first_half(event: Option<&Step>) -> Step {
    match event {
        Some(Step::Bytes(event)) => Step::Bytes(event.slice(..event.len() / 2)),
        _ => Step::Bytes(Bytes::new()),
    }
}
