//! Builds the opening of a request's record: what is known before the request goes upstream.

use aws_lc_rs::digest;
use http::Method;
use keybridge_ledger::{Opening, ToolResult, record::Interception};
use keybridge_providers::{config::ProviderType, credential::Credential, provider::Provider};
use keybridge_wire::{
    Dialect,
    request::{ToolResult as CarriedResult, read_content},
};

use super::mask::TokenMask;
use crate::{
    admission::{
        IdentifiedRequest, client,
        route::{Purpose, Route},
    },
    config::RecordPolicy,
};

/// The recorded destination of a request; a refused request has no credential.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordedDestination<'a> {
    pub(crate) provider: &'a Provider,
    pub(crate) credential: Option<&'a Credential>,
    pub(crate) edits: &'a [String],
}

/// Builds the opening of a request's record; takes the prompt out of its view.
pub(crate) fn opening(
    request: &mut IdentifiedRequest,
    recorded: RecordedDestination<'_>,
    policy: &RecordPolicy,
) -> Box<Opening> {
    let prompt = request.view.prompt.take().filter(|_| policy.prompts);
    let IdentifiedRequest { route, head, id, view, objects, attachments, caller, .. } = request;
    let client = client::client(&head.headers);
    let (agent_id, parent_agent_id) = client::agents(&head.headers);
    let trace = recorded.credential.map(|credential| &credential.trace);
    let shown = trace.filter(|trace| trace.length > 0);
    let (bytes, is_upload) = (&request.body.bytes, request.body.upload.is_some());
    let interception = Interception {
        token_id: Some(caller.token_id),
        provider: recorded.provider.config.name.clone(),
        provider_type: recorded.provider.config.kind.as_str().into(),
        endpoint: recorded_endpoint(route, &head.method),
        dialect: dialect_of(route).as_str().into(),
        model: view.model.clone(),
        streaming: view.streaming,
        store: view.store,
        background: (dialect_of(route) == Dialect::Responses).then_some(view.background),
        client: Some(client.into()),
        user_agent: client::text(&head.headers, "user-agent").map(client::bounded),
        client_retry_count: client::retry_count(&head.headers),
        client_session_id: client::session_id(client, &head.headers, view),
        agent_id,
        parent_agent_id,
        parent_id: objects.as_ref().and_then(|objects| {
            objects.parent(caller.user_id, view.correlating_tool_call_id.is_some())
        }),
        correlating_tool_call_id: view.correlating_tool_call_id.clone(),
        credential_kind: trace.map(|trace| trace.kind.into()),
        credential_source: trace.map(|trace| trace.source.clone()),
        credential_scheme: shown.map(|trace| trace.scheme.into()),
        credential_hint: shown.map(|trace| trace.hint.clone()),
        credential_length: shown.map(|trace| trace.length),
        credential_fingerprint: shown.map(|trace| trace.fingerprint.clone()),
        request_bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        body_edits: recorded.edits.to_vec(),
        // The settlement has what an upload turned out to be.
        request_sha256: (!bytes.is_empty() && !is_upload).then(|| sha256(bytes)),
        ..Interception::new(*id, caller.user_id, request.started_at)
    };
    let plain = request.body.plain();
    let tool_results = view.tool_results.iter().map(|result| ToolResult {
        tool_call_id: result.tool_call_id.clone(),
        bytes: result.bytes,
        is_error: result.is_error,
        approved: result.approved,
        sha256: carried(result, &plain).map(result_sha256),
        result: carried(result, &plain).filter(|_| policy.tool_results).map(result_text),
    });
    let tool_results = tool_results.collect();
    let attachments = std::mem::take(attachments);
    let mut opening = Box::new(Opening { interception, prompt, tool_results, attachments });
    opening.clean(&policy.contents, &TokenMask);
    if view.omitted_tool_results > 0 {
        let omitted = view.omitted_tool_results;
        tracing::warn!(omitted, "a request has more tool results than are recorded");
    }
    if view.attachments.omitted > 0 {
        let omitted = view.attachments.omitted;
        tracing::warn!(omitted, "a request has more attachments than are recorded");
    }
    opening
}

/// The path of an endpoint, after the method if that is neither `GET` nor `POST`: which of these two it
/// was is known from the path, but what was deleted could be taken for read.
fn recorded_endpoint(route: &Route, method: &Method) -> String {
    let endpoint = client::bounded(&route.endpoint);
    if matches!(*method, Method::GET | Method::POST) {
        return endpoint;
    }
    format!("{method} {endpoint}")
}

/// The dialect of a route; for a side request, the one that its provider responds in.
pub(crate) fn dialect_of(route: &Route) -> Dialect {
    match (route.purpose, route.provider.config.kind) {
        (Purpose::Intercept(dialect) | Purpose::Metered(dialect) | Purpose::Count(dialect), _) => {
            dialect
        }
        (
            Purpose::Change | Purpose::Allowed(_) | Purpose::PassThrough,
            ProviderType::Anthropic | ProviderType::Bedrock,
        ) => Dialect::Messages,
        (
            Purpose::Change | Purpose::Allowed(_) | Purpose::PassThrough,
            ProviderType::OpenAi | ProviderType::Copilot,
        ) => Dialect::Responses,
    }
}

/// The content of a tool's result, as the body has it.
fn carried<'b>(result: &CarriedResult, body: &'b [u8]) -> Option<&'b [u8]> {
    body.get(result.content.clone()?)
}

/// The text of a tool's result, and everything else in it as written.
fn result_text(content: &[u8]) -> String {
    let mut text = Vec::with_capacity(content.len());
    read_content(content, |piece| text.extend_from_slice(piece));
    String::from_utf8(text).unwrap_or_default()
}

/// The SHA-256 of a tool's result.
fn result_sha256(content: &[u8]) -> String {
    let mut hasher = ResultHasher {
        context: digest::Context::new(&digest::SHA256),
        buffer: [0; HASH_BUFFER],
        used: 0,
    };
    read_content(content, |piece| hasher.add(piece));
    hasher.finish()
}

/// Size of the pieces that are hashed.
const HASH_BUFFER: usize = 1_024;

/// Hashes a text that comes in many short pieces: a line of code is one, and each of its escapes.
struct ResultHasher {
    context: digest::Context,
    buffer: [u8; HASH_BUFFER],
    used: usize,
}

impl ResultHasher {
    fn add(&mut self, piece: &[u8]) {
        if let [byte] = piece
            && let Some(free) = self.buffer.get_mut(self.used)
        {
            *free = *byte;
            self.used += 1;
            return;
        }
        if let Some(free) = self.buffer.get_mut(self.used..self.used + piece.len()) {
            free.copy_from_slice(piece);
            self.used += piece.len();
            return;
        }
        self.flush();
        match self.buffer.get_mut(..piece.len()) {
            Some(free) => {
                free.copy_from_slice(piece);
                self.used = piece.len();
            }
            None => self.context.update(piece),
        }
    }

    fn flush(&mut self) {
        self.context.update(self.buffer.get(..self.used).unwrap_or_default());
        self.used = 0;
    }

    fn finish(mut self) -> String {
        self.flush();
        hex_text(&self.context.finish())
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex_text(&digest::digest(&digest::SHA256, bytes))
}

fn hex_text(digest: &digest::Digest) -> String {
    // `encode` builds the text character by character.
    let mut text = vec![0; 2 * digest.as_ref().len()];
    match hex::encode_to_slice(digest, &mut text) {
        Ok(()) => String::from_utf8(text).unwrap_or_default(),
        Err(_length) => String::new(),
    }
}
