//! Edits of a request's body: hidden calls put back, tools put in, usage asked for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use keybridge_mcp::{Tool, ToolSet};
use keybridge_providers::{failure::Failure, provider::Provider};
use keybridge_wire::{
    Dialect,
    json::JsonError,
    request::{RequestView, add_include_usage},
    tool_loop::{
        ClientView, continuation_keys, response_key, restore_hidden_turns, set_previous_response,
    },
    tools::{InjectableTools, ToolDefinition},
};

use crate::{Shared, host::Caller};

/// Names of the edits, as recorded.
const RESTORE: &str = "restore_hidden_calls";
const PREVIOUS_RESPONSE: &str = "previous_response_id";
const TOOLS: &str = "inject_tools";
const LEFT_OUT: &str = "tools_left_out";
const SEQUENTIAL: &str = "parallel_tool_calls";
const SINGLE: &str = "n";
pub(crate) const INCLUDE_USAGE: &str = "include_usage";

/// A request's body as it goes upstream.
#[derive(Debug, Default)]
pub(crate) struct Edited {
    /// None: as it came.
    pub(crate) body: Option<Bytes>,
    /// The names of the edits.
    pub(crate) edits: Vec<String>,
    /// Set when the answer is to be merged: tools were put in, or the answer must be made to fit
    /// what the client knows.
    pub(crate) looped: Option<Looped>,
}

/// What the answer to an edited request is merged with.
#[derive(Debug)]
pub(crate) struct Looped {
    pub(crate) tools: Arc<ToolSet>,
    pub(crate) client: ClientView,
}

/// The tools of each provider as they are rendered into requests.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    rendered: Mutex<HashMap<String, Rendered>>,
}

/// The tools that were rendered, and what came of it.
type Rendered = (Arc<ToolSet>, Arc<InjectableTools>);

impl Offers {
    /// The rendered tools, made anew when they have changed.
    fn of(
        &self,
        provider: &str,
        tools: &Arc<ToolSet>,
        parallel_calls: bool,
    ) -> Arc<InjectableTools> {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, offer)) = rendered.get(provider)
            && Arc::ptr_eq(known, tools)
        {
            return Arc::clone(offer);
        }
        let definitions: Vec<_> = tools.tools.iter().map(|tool| definition(tool)).collect();
        let offer = InjectableTools::new(&definitions).with_parallel_calls(parallel_calls);
        let offer = Arc::new(offer);
        rendered.insert(provider.to_owned(), (Arc::clone(tools), Arc::clone(&offer)));
        offer
    }
}

fn definition(tool: &Tool) -> ToolDefinition {
    ToolDefinition {
        id: tool.id.clone(),
        description: tool.description.clone(),
        input_schema: tool.input_schema.clone(),
    }
}

/// What was kept for the conversation that a request goes on with.
pub(crate) async fn kept(
    shared: &Shared,
    provider: &Provider,
    dialect: Dialect,
    caller: &Caller,
    view: &RequestView,
    plain: &[u8],
) -> HashMap<String, String> {
    let mut keys = Vec::new();
    if shared.servers.serves(&provider.config.name) {
        keys = continuation_keys(dialect, plain);
    }
    keys.extend(view.previous_response_id.as_deref().map(response_key));
    if keys.is_empty() {
        return HashMap::new();
    }
    shared.directory.kept(caller.user_id, keys).await.unwrap_or_else(|error| {
        tracing::error!(%error, "what was hidden from a conversation cannot be read: it goes on without");
        HashMap::new()
    })
}

/// Makes the edits that a request needs, each a splice.
pub(crate) fn edit(
    shared: &Shared,
    provider: &Provider,
    dialect: Dialect,
    view: &RequestView,
    plain: &[u8],
    kept: &HashMap<String, String>,
) -> Result<Edited, Failure> {
    let mut making = Making { plain, body: None, edits: Vec::new(), client: ClientView::default() };
    let tools = shared.servers.tools_for(&provider.config.name);
    making.restore(dialect, view, kept).map_err(|error| unfit(&error))?;
    let policy = &shared.config.tools;
    let takes_tools = takes_tools(&policy.skip_models, view) && !is_held(dialect, view);
    if takes_tools && !tools.tools.is_empty() {
        let offer = shared.offers.of(&provider.config.name, &tools, policy.parallel_calls);
        making.inject(dialect, &offer).map_err(|error| unfit(&error))?;
    }
    making.client.wants_usage = view.include_usage;
    if dialect == Dialect::ChatCompletions && view.streaming && !view.include_usage {
        let edited = add_include_usage(making.body()).map_err(|error| unfit(&error))?;
        making.made(edited, INCLUDE_USAGE);
    }
    let is_looped =
        !making.client.injected_tools.is_empty() || making.client.previous_response_id.is_some();
    Ok(Edited {
        body: making.body.map(Bytes::from),
        edits: making.edits,
        looped: is_looped.then_some(Looped { tools, client: making.client }),
    })
}

/// A body with the edits made so far.
struct Making<'a> {
    plain: &'a [u8],
    body: Option<Vec<u8>>,
    edits: Vec<String>,
    client: ClientView,
}

impl Making<'_> {
    fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or(self.plain)
    }

    fn made(&mut self, edited: Option<Vec<u8>>, name: &str) {
        if edited.is_some() {
            self.body = edited;
            self.edits.push(name.to_owned());
        }
    }

    /// Puts back what the client was not shown.
    fn restore(
        &mut self,
        dialect: Dialect,
        view: &RequestView,
        kept: &HashMap<String, String>,
    ) -> Result<(), JsonError> {
        if kept.is_empty() {
            return Ok(());
        }
        let with_calls = restore_hidden_turns(dialect, self.body(), kept);
        self.made(with_calls, RESTORE);
        if let Some(previous) = &view.previous_response_id
            && let Some(last) = kept.get(&response_key(previous))
        {
            let edited = set_previous_response(self.body(), last)?;
            self.made(Some(edited), PREVIOUS_RESPONSE);
            self.client.previous_response_id = Some(previous.clone());
        }
        Ok(())
    }

    fn inject(&mut self, dialect: Dialect, offer: &InjectableTools) -> Result<(), JsonError> {
        let Some(injected) = offer.inject(dialect, self.body())? else { return Ok(()) };
        self.made(Some(injected.body), TOOLS);
        if injected.disabled_parallel_calls {
            self.edits.push(SEQUENTIAL.to_owned());
            self.client.parallel_tool_calls = Some("true".to_owned());
        }
        if injected.limited_choices {
            self.edits.push(SINGLE.to_owned());
        }
        let left_out = injected.omitted.len();
        if left_out > 0 {
            tracing::warn!(
                left_out,
                "a request has no room for all tools, or has its own of a name"
            );
            self.edits.push(format!("{LEFT_OUT}:{left_out}"));
        }
        self.client.injected_tools = injected.injected;
        Ok(())
    }
}

/// Whether tools are put into a request: not into agents' small side tasks, nor where nobody would
/// be there to answer the calls.
fn takes_tools(skip_models: &[String], view: &RequestView) -> bool {
    let model = view.model.as_deref().unwrap_or_default().to_lowercase();
    !view.background && !skip_models.iter().any(|pattern| model.contains(pattern.as_str()))
}

/// Whether the provider holds the conversation as a message thread: it then refuses tools in requests
/// that go on with it, lets an answer be gone on from only once, and waits for the results of calls
/// that the client knows nothing of.
/// <https://platform.claude.com/docs/en/build-with-claude/message-threads>
fn is_held(dialect: Dialect, view: &RequestView) -> bool {
    dialect == Dialect::Messages && view.has_thread
}

fn unfit(error: &JsonError) -> Failure {
    Failure::invalid(&error.to_string())
}
