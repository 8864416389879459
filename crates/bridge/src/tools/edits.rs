//! Edits of a request's body: restores hidden calls, injects tools, requests usage.

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
    request::{RequestView, add_include_usage, set_model},
    tool_loop::{
        ClientView, continuation_keys, response_key, restore_hidden_turns, set_previous_response,
    },
    tools::{InjectableTools, ToolDefinition},
};

use super::InjectedTools;

/// Names of the edits, as recorded.
const RESTORE: &str = "restore_hidden_calls";
const PREVIOUS_RESPONSE: &str = "previous_response_id";
const TOOLS: &str = "inject_tools";
const LEFT_OUT: &str = "tools_left_out";
const SEQUENTIAL: &str = "parallel_tool_calls";
const SINGLE: &str = "n";
const MODEL: &str = "model";
pub(crate) const INCLUDE_USAGE: &str = "include_usage";

/// A request's body as it goes upstream.
#[derive(Debug, Default)]
pub(crate) struct EditedBody {
    /// `None`: as received.
    pub(crate) body: Option<Bytes>,
    /// The names of the edits.
    pub(crate) edits: Vec<String>,
    /// Set when the answer must be merged: tools were injected, or the answer must be adapted to the
    /// client's view of the conversation.
    pub(crate) merge: Option<MergePlan>,
}

impl EditedBody {
    /// Names this model in the body, if it names another one.
    pub(crate) fn set_model(&mut self, plain: &[u8], model: &str) -> Result<(), Failure> {
        let body = self.body.as_deref().unwrap_or(plain);
        if let Some(edited) = set_model(body, model).map_err(|error| invalid(&error))? {
            self.body = Some(edited.into());
            self.edits.push(MODEL.into());
        }
        Ok(())
    }
}

/// What is needed to merge the answer to an edited request.
#[derive(Debug)]
pub(crate) struct MergePlan {
    pub(crate) tools: Arc<ToolSet>,
    pub(crate) client: ClientView,
}

/// The tools of each provider, rendered for requests.
#[derive(Debug, Default)]
pub(crate) struct RenderedTools {
    by_provider: Mutex<HashMap<String, Rendered>>,
}

/// A tool set and its rendering.
type Rendered = (Arc<ToolSet>, Arc<InjectableTools>);

impl RenderedTools {
    /// The rendered tools; renders them again when they have changed.
    pub(super) fn of(
        &self,
        provider: &str,
        tools: &Arc<ToolSet>,
        parallel_calls: bool,
    ) -> Arc<InjectableTools> {
        let mut rendered = self.by_provider.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The keys under which the ledger may have stored calls hidden earlier in the conversation.
pub(crate) fn conversation_keys(
    injected: &InjectedTools,
    provider: &str,
    dialect: Dialect,
    view: &RequestView,
    plain: &[u8],
) -> Vec<String> {
    let mut keys = Vec::new();
    if injected.servers.serves(provider) {
        keys = continuation_keys(dialect, plain);
    }
    keys.extend(view.previous_response_id.as_deref().map(response_key));
    keys
}

/// Makes the edits that a request needs, each as a splice.
pub(crate) fn edit(
    injected: &InjectedTools,
    provider: &Provider,
    dialect: Dialect,
    view: &RequestView,
    plain: &[u8],
    hidden: &HashMap<String, String>,
) -> Result<EditedBody, Failure> {
    let mut editor =
        BodyEditor { plain, body: None, edits: Vec::new(), client: ClientView::default() };
    let name = &provider.config.name;
    let tools = injected.servers.tools_for(name);
    editor.restore(dialect, view, hidden).map_err(|error| invalid(&error))?;
    let takes_tools =
        takes_tools(&injected.config.skip_models, view) && !is_held_by_provider(dialect, view);
    if takes_tools && !tools.tools.is_empty() {
        let offer = injected.rendered.of(name, &tools, injected.config.parallel_calls);
        editor.inject(dialect, &offer).map_err(|error| invalid(&error))?;
    }
    // Usage that the bridge did not ask for is the client's.
    editor.client.wants_usage = true;
    if dialect == Dialect::ChatCompletions
        && view.streaming
        && !view.include_usage
        && provider.asks_usage(view.model.as_deref())
    {
        let edited = add_include_usage(editor.body()).map_err(|error| invalid(&error))?;
        editor.client.wants_usage = edited.is_none();
        editor.apply(edited, INCLUDE_USAGE);
    }
    let needs_merge =
        !editor.client.injected_tools.is_empty() || editor.client.previous_response_id.is_some();
    Ok(EditedBody {
        body: editor.body.map(Bytes::from),
        edits: editor.edits,
        merge: needs_merge.then_some(MergePlan { tools, client: editor.client }),
    })
}

/// A body with the edits made so far.
struct BodyEditor<'a> {
    plain: &'a [u8],
    body: Option<Vec<u8>>,
    edits: Vec<String>,
    client: ClientView,
}

impl BodyEditor<'_> {
    fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or(self.plain)
    }

    fn apply(&mut self, edited: Option<Vec<u8>>, name: &str) {
        if edited.is_some() {
            self.body = edited;
            self.edits.push(name.to_owned());
        }
    }

    /// Restores the calls that were hidden from the client.
    fn restore(
        &mut self,
        dialect: Dialect,
        view: &RequestView,
        hidden: &HashMap<String, String>,
    ) -> Result<(), JsonError> {
        if hidden.is_empty() {
            return Ok(());
        }
        let with_calls = restore_hidden_turns(dialect, self.body(), hidden);
        self.apply(with_calls, RESTORE);
        if let Some(previous) = &view.previous_response_id
            && let Some(last) = hidden.get(&response_key(previous))
        {
            let edited = set_previous_response(self.body(), last)?;
            self.apply(Some(edited), PREVIOUS_RESPONSE);
            self.client.previous_response_id = Some(previous.clone());
        }
        Ok(())
    }

    fn inject(&mut self, dialect: Dialect, offer: &InjectableTools) -> Result<(), JsonError> {
        let Some(injected) = offer.inject(dialect, self.body())? else { return Ok(()) };
        self.apply(Some(injected.body), TOOLS);
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
                "some tools were not injected: the request has too many, or tools with the same names"
            );
            self.edits.push(format!("{LEFT_OUT}:{left_out}"));
        }
        self.client.injected_tools = injected.injected;
        Ok(())
    }
}

/// Whether tools are injected into a request: not into agents' small side tasks, nor into background
/// requests, whose calls would never be executed.
fn takes_tools(skip_models: &[String], view: &RequestView) -> bool {
    let model = view.model.as_deref().unwrap_or_default().to_lowercase();
    !view.background && !skip_models.iter().any(|pattern| model.contains(pattern.as_str()))
}

/// Whether the provider stores the conversation as a message thread: it then rejects tools in requests
/// that continue the thread, lets each answer be continued only once, and waits for the results of calls
/// that are hidden from the client.
/// <https://platform.claude.com/docs/en/build-with-claude/message-threads>
fn is_held_by_provider(dialect: Dialect, view: &RequestView) -> bool {
    dialect == Dialect::Messages && view.has_thread
}

fn invalid(error: &JsonError) -> Failure {
    Failure::invalid(&error.to_string())
}
