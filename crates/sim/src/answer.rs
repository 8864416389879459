//! From a request to its answer: checked, routed, played.

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
    bedrock, chat,
    checks::{self, Refusal},
    errors,
    exchange::{Exchange, Log, Playing},
    journal::Journal,
    memory::Made,
    messages,
    player::{Script, Step},
    prefix, responses,
    scenario::{Play, Scenario},
    side, signature_v4,
    turns::{self, Cue, Turn},
};

/// Largest body taken.
const LARGEST_BODY: usize = 256 << 20;
/// Size of the writes in the scenario `split`.
const SPLIT: usize = 7;

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
    /// Anthropic's models by `InvokeModel`.
    Bedrock,
    /// The same by the Messages API.
    Mantle,
}

/// A request for a model.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) body: Value,
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) play: Play,
    /// What a script says that the model does.
    pub(crate) turn: Option<Turn>,
    /// How many turns the model has taken since the user's latest words.
    pub(crate) number: usize,
    /// Makes ids unique.
    pub(crate) serial: String,
}

/// Answers a request and notes it.
pub(crate) async fn answer(
    log: &Arc<Mutex<Log>>,
    journal: Option<&Journal>,
    request: Request,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let read = to_bytes(body, LARGEST_BODY).await;
    let is_whole = read.is_ok();
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
    let playing = log.lock().unwrap_or_else(PoisonError::into_inner).begin(exchange);
    let Some((vendor, rest)) = vendor(&path) else {
        return Script::json(404, &serde_json::json!({ "error": "no such provider" }))
            .play(playing);
    };
    let mut problems = checks::headers(vendor, &head.headers);
    if !is_whole {
        problems.push("the body did not come to its end".into());
    }
    playing.change(|exchange| exchange.problems.extend(problems));
    if matches!(vendor, Vendor::Bedrock | Vendor::Mantle)
        && let Err(refused) = signature_v4::verify(vendor, &head, &body)
    {
        playing.change(|exchange| exchange.problems.push(refused.problem.into()));
        return bedrock::unsigned(&refused).play(playing);
    }
    if let Some(refused) = checks::credentials(vendor, &head.headers) {
        playing.change(|exchange| exchange.problems.push(refused.into()));
        return errors::script(vendor, 401, refused).play(playing);
    }
    if let Some(script) = key_answer(vendor, &head.headers, log) {
        return script.play(playing);
    }
    let api = (head.method == Method::POST).then(|| api(vendor, rest)).flatten();
    let mut script = match api {
        Some(api) => {
            let script = match bedrock::filled(vendor, rest, &body) {
                Ok(body) => model((vendor, api), &head.headers, &body, &playing, log).await,
                Err(message) => {
                    let script = errors::script(vendor, 400, &message);
                    playing.change(|exchange| exchange.problems.push(message));
                    script
                }
            };
            if vendor == Vendor::Bedrock { bedrock::framed(script) } else { script }
        }
        None => {
            let id = rest.rsplit('/').next().unwrap_or_default();
            let model = log.lock().unwrap_or_else(PoisonError::into_inner).stored_model(id);
            side::script(vendor, &head.method, rest, &body, model.as_deref())
        }
    };
    if let (Some(journal), Some(id)) = (journal, script.response_id.take()) {
        script.until_first_byte(&playing).await;
        if let Err(error) = journal.write(&id, &path, &body) {
            let message = format!("the simulator's log cannot be written: {error}");
            return errors::script(vendor, 500, &message).play(playing);
        }
    }
    script.play(playing)
}

fn vendor(path: &str) -> Option<(Vendor, &str)> {
    let mounts = [
        ("/anthropic", Vendor::Anthropic),
        ("/openai/v1", Vendor::OpenAi),
        ("/compat/some/path/v1", Vendor::OpenAi),
        ("/copilot", Vendor::Copilot),
        ("/bedrock", Vendor::Bedrock),
        ("/mantle", Vendor::Mantle),
    ];
    mounts.iter().find_map(|(mount, vendor)| path.strip_prefix(mount).map(|rest| (*vendor, rest)))
}

fn api(vendor: Vendor, rest: &str) -> Option<Api> {
    match (vendor, rest) {
        (Vendor::Anthropic | Vendor::Copilot | Vendor::Mantle, "/v1/messages") => {
            Some(Api::Messages)
        }
        (Vendor::Bedrock, path) => bedrock::operation(path).map(|_operation| Api::Messages),
        (Vendor::OpenAi | Vendor::Copilot, "/chat/completions") => Some(Api::Chat),
        (Vendor::OpenAi | Vendor::Copilot, "/responses") => Some(Api::Responses),
        _ => None,
    }
}

/// The error that the request's credential is answered with, whatever it asks for.
fn key_answer(vendor: Vendor, headers: &HeaderMap, log: &Mutex<Log>) -> Option<Script> {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let values = ["x-api-key", "authorization"].map(|name| headers.get(name)?.to_str().ok());
    let answer = values.into_iter().flatten().find_map(|value| log.key_answer(value))?;
    let script = errors::script(vendor, answer.status, "This credential is not served.");
    Some(match answer.retry_after {
        Some(seconds) => script.set_header("retry-after", seconds.to_string()),
        None => script,
    })
}

/// The error that the header `x-sim-first` asks for, such as `NAME:503,429/20`: the first requests
/// of that name get these statuses, with `retry-after-ms` where milliseconds are given, and later
/// ones the usual answer.
fn failure(vendor: Vendor, headers: &HeaderMap, log: &Mutex<Log>) -> Option<Script> {
    let asked = headers.get("x-sim-first")?.to_str().ok()?;
    let (name, statuses) = asked.split_once(':')?;
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

async fn model(
    (vendor, api): (Vendor, Api),
    headers: &HeaderMap,
    body: &Bytes,
    playing: &Playing,
    log: &Mutex<Log>,
) -> Script {
    let asked = match asked(api, headers, body, playing, log) {
        Ok(asked) => asked,
        Err(refusal) => {
            let script = errors::refused(vendor, &refusal);
            playing.change(|exchange| exchange.problems.push(refusal.message));
            return script;
        }
    };
    if let Some(word) = &asked.play.unknown {
        let message = format!("there is no scenario {word}, see /_sim/scenarios");
        return errors::script(vendor, 400, &message);
    }
    if asked.play.has(Scenario::NoHead) {
        let _leaving = playing.leaving();
        return std::future::pending().await;
    }
    let scripted = asked.turn.as_ref().and_then(|turn| turn.error);
    if let Some(status) = asked.play.error.or(scripted) {
        return errors::script(vendor, status, "The scenario asks for this error.");
    }
    if let Some(script) = failure(vendor, headers, log) {
        return script;
    }
    if api == Api::Responses {
        remember(&asked, &mut log.lock().unwrap_or_else(PoisonError::into_inner));
    }
    let mut script = script(api, &asked, headers).with_response_id(asked.response_id(api));
    if let Some(turn) = asked.turn.as_ref().filter(|_| !asked.stream) {
        script = with_cues(vendor, script, turn);
    }
    if script.status != 200 {
        return script;
    }
    let id = format!("req_{}", asked.serial);
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

/// The request, or why the provider refuses it.
fn asked(
    api: Api,
    headers: &HeaderMap,
    body: &[u8],
    playing: &Playing,
    log: &Mutex<Log>,
) -> Result<Asked, Refusal> {
    let body = checks::parse(headers, body)?;
    playing.set_prefix(prefix::of(api, &body));
    checks::body(api, &body)?;
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let previous = body.get("previous_response_id").and_then(Value::as_str);
    let previous = previous.filter(|_| api == Api::Responses);
    if let Some(id) = previous {
        checks::previous(id, &body, &log)?;
    }
    let earlier = previous.and_then(|id| log.responses.get(id)).map(|made| made.turns);
    let mut asked = Asked::new(body, headers);
    asked.number = turns::number(api, &asked.body, earlier.unwrap_or_default());
    if asked.play.has(Scenario::Turns) {
        asked.turn = Some(Turn::of((api, asked.number), headers, &asked.body, &mut log)?);
    }
    Ok(asked)
}

/// Keeps what a later request may go on from.
fn remember(asked: &Asked, log: &mut Log) {
    let id = format!("resp_{}", asked.serial);
    let is_background = asked.is_background();
    if is_background {
        log.store(id.clone(), asked.model.clone());
    }
    let text = |key: &str| asked.body.get(key).and_then(Value::as_str).map(str::to_owned);
    let made = Made {
        turns: asked.number + 1,
        calls: if is_background { Vec::new() } else { responses::calls(asked) },
        earlier_calls: checks::call_ids(&asked.body).map(str::to_owned).collect(),
        previous: text("previous_response_id"),
        is_stored: asked.body.get("store") != Some(&Value::Bool(false)),
    };
    log.responses.remember(id, made);
}

/// A whole answer with what a scripted turn does between its blocks.
fn with_cues(vendor: Vendor, script: Script, turn: &Turn) -> Script {
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

impl Asked {
    fn new(body: Value, headers: &HeaderMap) -> Self {
        let model = body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            play: Play::of(headers, &model),
            turn: None,
            number: 0,
            serial: side::serial(),
            model,
            body,
        }
    }

    /// The id of the answer, where it has one.
    fn response_id(&self, api: Api) -> Option<String> {
        let has_none = self.play.has(Scenario::NonJson) || self.play.has(Scenario::EmptyBody);
        let prefix = match api {
            Api::Messages => "msg_",
            Api::Chat => "chatcmpl-",
            Api::Responses => "resp_",
        };
        (!has_none).then(|| format!("{prefix}{}", self.serial))
    }

    /// Whether the answer is fetched later.
    pub(crate) fn is_background(&self) -> bool {
        self.play.has(Scenario::Background)
            || self.body.get("background").and_then(Value::as_bool) == Some(true)
    }
}

fn script(api: Api, asked: &Asked, headers: &HeaderMap) -> Script {
    if asked.play.has(Scenario::NonJson) {
        let page = Bytes::from_static(b"<html><body>Bad gateway, says a proxy</body></html>");
        return Script::whole(200, "text/html", page);
    }
    if asked.play.has(Scenario::EmptyBody) {
        return Script::whole(200, "application/json", Bytes::new());
    }
    if asked.stream {
        let events = match api {
            Api::Messages => messages::events(asked),
            Api::Chat => chat::events(asked),
            Api::Responses => responses::events(asked),
        };
        return Script::stream(staged(api, &asked.play, events));
    }
    let value = match api {
        Api::Messages => messages::whole(asked),
        Api::Chat => chat::whole(asked),
        Api::Responses => responses::whole(asked),
    };
    let accepts_gzip = headers
        .get(http::header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("gzip"));
    if asked.play.has(Scenario::GzipAnswer) && accepts_gzip {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // Writing to memory cannot fail.
        let _written = encoder.write_all(value.to_string().as_bytes());
        let body = encoder.finish().unwrap_or_default();
        return Script::whole(200, "application/json", body.into())
            .header("content-encoding", "gzip");
    }
    let mut script = Script::json(200, &value);
    script.steps.insert(0, Step::Wait(asked.play.delay));
    script
}

/// Events as steps, with the pauses, cuts and breaks of the scenario.
fn staged(api: Api, play: &Play, events: Vec<Step>) -> Vec<Step> {
    let half = events.len() / 2;
    let (kept, end) = if play.has(Scenario::Broken) {
        (half, vec![cut(events.get(half)), Step::Wait(Duration::from_millis(20)), Step::Abort])
    } else if play.has(Scenario::BrokenBetween) {
        (half, vec![Step::Wait(Duration::from_millis(20)), Step::Abort])
    } else if play.has(Scenario::Truncated) {
        (events.len().saturating_sub(tail(api)), Vec::new())
    } else if play.has(Scenario::TruncatedMidEvent) {
        (half, vec![cut(events.get(half))])
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
            steps.extend(event.chunks(SPLIT).map(|piece| Step::Bytes(event.slice_ref(piece))));
        } else {
            steps.push(Step::Bytes(event));
        }
    }
    steps.extend(end);
    steps
}

/// Whether an event carries a piece of what the model writes.
fn is_token(api: Api, event: &str) -> bool {
    match api {
        Api::Messages => event.starts_with("event: content_block_delta\n"),
        Api::Chat => ["content", "reasoning_content", "tool_calls"]
            .iter()
            .any(|field| event.contains(&format!("\"delta\":{{\"{field}\":"))),
        Api::Responses => event.lines().next().is_some_and(|name| name.ends_with(".delta")),
    }
}

/// How many events at the end say that an answer is complete.
const fn tail(api: Api) -> usize {
    match api {
        Api::Messages | Api::Chat => 2,
        Api::Responses => 1,
    }
}

fn cut(event: Option<&Step>) -> Step {
    match event {
        Some(Step::Bytes(event)) => Step::Bytes(event.slice(..event.len() / 2)),
        _ => Step::Bytes(Bytes::new()),
    }
}
