//! A session with an MCP server: what keybridge needs of the SDK.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use http::StatusCode;
use rmcp::{
    ClientHandler, Peer, RoleClient, ServiceError,
    model::{
        CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
        Implementation, ListToolsRequest, PaginatedRequestParams, ProtocolVersion, ServerResult,
        SubscriptionFilter,
    },
    service::{
        ClientLifecycleMode, ClientServiceExt, NotificationContext, PeerRequestOptions,
        RequestHandle, RunningService, RunningServiceCancellationToken,
    },
    transport::{
        common::client_side_sse::ExponentialBackoff,
        streamable_http_client::{
            StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
        },
    },
};
use serde_json::{Map, Value};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::{
    error::{McpError, initialize_error, request_error},
    http_client::HttpClient,
    listing::{ListedTool, Page},
    message::raw_result,
    transport::Transport,
};

/// A session that calls can be made in; clones are the same session.
#[derive(Debug, Clone)]
pub(super) struct Session {
    peer: Peer<RoleClient>,
    tasks: TaskTracker,
}

/// A session as its supervisor holds it.
#[derive(Debug)]
pub(super) struct SupervisedSession {
    session: Session,
    changed: Arc<Notify>,
    cancel: CancelOnDrop,
    ended: JoinHandle<()>,
}

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerInfo {
    pub(super) protocol_version: Option<String>,
    /// Its name and version.
    pub(super) name: Option<String>,
}

/// All tools of a server, in its own order.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) tools: Vec<ListedTool>,
    /// The tools that are left out, each with the reason.
    pub(super) refused: Vec<String>,
    bytes: usize,
}

/// keybridge as an MCP client: it receives notifications that tools have changed and refuses all
/// requests.
#[derive(Debug)]
struct NotificationHandler {
    changed: Arc<Notify>,
}

/// Ends the session when dropped.
struct CancelOnDrop(Option<RunningServiceCancellationToken>);

/// A request without an answer yet; dropping it cancels it at the server.
struct PendingRequest<'a> {
    handle: Option<RequestHandle<RoleClient>>,
    tasks: &'a TaskTracker,
}

/// The SDK waits 10 s for the answer to `server/discover` before it tries the older protocol.
const INITIALIZE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for the end of a session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// Timeout for sending a cancellation.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent POSTs. With the SDK's own limit of 16, slow calls would delay all others.
const MAX_CONCURRENT: usize = 256;
/// Largest response: a JSON body or one event.
const MAX_RESPONSE: usize = 16 << 20;
/// Longest delay before an event stream is opened again.
const MAX_STREAM_BACKOFF: Duration = Duration::from_secs(30);
/// Delay before a subscription that ended is made again.
const SUBSCRIPTION_RETRY_DELAY: Duration = Duration::from_secs(10);
const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 2000;
/// Largest list, all pages together.
const MAX_LISTING: usize = 32 << 20;
/// Reasons that are kept: if every tool of a server is malformed, they are all alike.
const MAX_REFUSED: usize = 100;
const METHOD_NOT_FOUND: i32 = -32601;

impl SupervisedSession {
    /// Opens a session, in the newest protocol that the server knows.
    pub(super) async fn open(
        http: &HttpClient,
        recheck: &Arc<Notify>,
        tasks: &TaskTracker,
    ) -> Result<Self, McpError> {
        let newest = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::LATEST],
            legacy_version: None,
        };
        match Self::open_as(newest, http, recheck, tasks).await {
            // Some older servers answer a method they do not know in ways that the SDK takes for a
            // failure.
            Err(
                McpError::Invalid(_)
                | McpError::Rpc { .. }
                | McpError::Status(StatusCode::INTERNAL_SERVER_ERROR | StatusCode::NOT_IMPLEMENTED),
            ) => Self::open_as(ClientLifecycleMode::Initialize, http, recheck, tasks).await,
            opened => opened,
        }
    }

    async fn open_as(
        lifecycle: ClientLifecycleMode,
        http: &HttpClient,
        recheck: &Arc<Notify>,
        tasks: &TaskTracker,
    ) -> Result<Self, McpError> {
        let changed = Arc::new(Notify::new());
        let client = NotificationHandler { changed: Arc::clone(&changed) };
        // The address is the client's own; the SDK only passes this one on.
        let mut config = StreamableHttpClientTransportConfig::with_uri(http.display_url())
            .max_concurrent_requests(MAX_CONCURRENT)
            .max_json_response_size(MAX_RESPONSE)
            .max_sse_event_size(MAX_RESPONSE);
        let mut retry = ExponentialBackoff::default();
        retry.max_delay = Some(MAX_STREAM_BACKOFF);
        config.retry_config = Arc::new(retry);
        config.channel_buffer_capacity = MAX_CONCURRENT;
        let transport = Transport::new(http.clone(), Arc::clone(recheck));
        let transport = StreamableHttpClientTransport::with_client(transport, config);
        let start = INITIALIZE_TIMEOUT + http.connect_timeout;
        let running = timeout(start, client.serve_with_lifecycle(transport, lifecycle))
            .await
            .map_err(|_elapsed| {
                McpError::Invalid(format!("no session within {} s", start.as_secs()))
            })?
            .map_err(|error| initialize_error(&error))?;
        Ok(Self::new(running, changed, tasks))
    }

    fn new(
        running: RunningService<RoleClient, NotificationHandler>,
        changed: Arc<Notify>,
        tasks: &TaskTracker,
    ) -> Self {
        let session = Session { peer: running.peer().clone(), tasks: tasks.clone() };
        let cancel = CancelOnDrop(Some(running.cancellation_token()));
        let is_subscribed = session.has_subscriptions();
        let (peer, notify) = (session.peer.clone(), Arc::clone(&changed));
        let ended = tasks.spawn(async move {
            let ended = running.waiting();
            if is_subscribed {
                tokio::select! {
                    _ended = ended => {}
                    () = subscribe(&peer, &notify) => {}
                }
            } else {
                let _ended = ended.await;
            }
        });
        Self { session, changed, cancel, ended }
    }

    /// The session for calls.
    pub(super) fn handle(&self) -> Session {
        self.session.clone()
    }

    pub(super) fn server_info(&self) -> ServerInfo {
        let Some(info) = self.session.peer.peer_info() else { return ServerInfo::default() };
        let implementation = info.server_info.as_ref();
        ServerInfo {
            protocol_version: Some(info.protocol_version.as_str().to_owned()),
            name: implementation.map(|info| format!("{} {}", info.name, info.version)),
        }
    }

    /// Notified when the tools may have changed.
    pub(super) fn changed(&self) -> &Arc<Notify> {
        &self.changed
    }

    /// Waits for the end of the session.
    pub(super) async fn closed(&mut self) {
        let _ended = (&mut self.ended).await;
    }

    /// Ends the session at the server, which has a few seconds to answer.
    pub(super) async fn close(mut self) {
        self.cancel.cancel();
        if timeout(CLOSE_TIMEOUT, self.closed()).await.is_err() {
            tracing::debug!("an MCP server did not answer the end of its session in time");
        }
    }
}

impl Session {
    /// Lists the tools of all pages. The caller sets a timeout.
    pub(super) async fn list(&self) -> Result<Listing, McpError> {
        let mut listing = Listing::default();
        let mut cursor = None;
        for _page in 0..MAX_PAGES {
            let params =
                cursor.clone().map(|at| PaginatedRequestParams::default().with_cursor(Some(at)));
            let request = match params {
                Some(params) => ListToolsRequest::with_param(params),
                None => ListToolsRequest::default(),
            };
            let answer = self.request(ClientRequest::ListToolsRequest(request)).await;
            let page = match answer {
                // A server without tools need not know the method.
                Err(McpError::Rpc { code: METHOD_NOT_FOUND, .. }) => Page::default(),
                answer => listing.page(&answer?)?,
            };
            listing.tools.extend(page.tools);
            listing.refused.extend(page.refused);
            if page.next_cursor.is_none() {
                return Ok(listing.limited());
            }
            if page.next_cursor == cursor || listing.tools.len() > MAX_TOOLS {
                break;
            }
            cursor = page.next_cursor;
        }
        tracing::warn!(
            tools = listing.tools.len(),
            "an MCP server's list of tools is too long: the rest is left out"
        );
        Ok(listing.limited())
    }

    /// Calls a tool and returns the JSON of its result. The caller sets a timeout; dropping the
    /// future cancels the call at the server.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<String, McpError> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        raw_result(&self.request(request).await?)
    }

    async fn request(&self, request: ClientRequest) -> Result<ServerResult, McpError> {
        let options = PeerRequestOptions::no_options();
        let handle = self
            .peer
            .send_request_with_option(request, options)
            .await
            .map_err(|error| request_error(&error))?;
        let mut pending = PendingRequest { handle: Some(handle), tasks: &self.tasks };
        pending.answer().await.map_err(|error| request_error(&error))
    }

    /// Whether changes are notified by subscription only, as in protocols since 2026-07-28.
    fn has_subscriptions(&self) -> bool {
        self.peer.peer_info().is_some_and(|info| {
            let tools = info.capabilities.tools.as_ref();
            !info.protocol_version.has_initialize()
                && tools.is_some_and(|tools| tools.list_changed == Some(true))
        })
    }
}

impl Listing {
    fn page(&mut self, answer: &ServerResult) -> Result<Page, McpError> {
        let raw = raw_result(answer)?;
        self.bytes += raw.len();
        if self.bytes > MAX_LISTING {
            let reason = format!("the list of its tools is larger than {MAX_LISTING} bytes");
            return Err(McpError::Invalid(reason));
        }
        let mut page = Page::read(&raw).map_err(|reason| {
            McpError::Invalid(format!("the list of its tools cannot be read: {reason}"))
        })?;
        if let ServerResult::ListToolsResult(usable) = answer {
            // The SDK leaves out tools whose arguments it cannot put into headers.
            let usable: HashSet<&str> =
                usable.tools.iter().map(|tool| tool.name.as_ref()).collect();
            page.keep_only(|name| usable.contains(name));
        }
        Ok(page)
    }

    fn limited(mut self) -> Self {
        self.tools.truncate(MAX_TOOLS);
        self.refused.truncate(MAX_REFUSED);
        self
    }
}

impl PendingRequest<'_> {
    async fn answer(&mut self) -> Result<ServerResult, ServiceError> {
        let Some(handle) = &mut self.handle else { return Err(ServiceError::TransportClosed) };
        let answer = (&mut handle.rx).await;
        self.handle = None;
        answer.unwrap_or_else(|_gone| Err(ServiceError::TransportClosed))
    }
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let cancel = async move {
            let reason = "the caller has left or its timeout has passed".to_owned();
            if !matches!(timeout(CANCEL_TIMEOUT, handle.cancel(Some(reason))).await, Ok(Ok(()))) {
                tracing::debug!("a cancelled call could not be cancelled at the MCP server");
            }
        };
        self.tasks.spawn_on(cancel, &runtime);
    }
}

impl CancelOnDrop {
    fn cancel(&mut self) {
        if let Some(token) = self.0.take() {
            token.cancel();
        }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for CancelOnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelOnDrop")
    }
}

impl ClientHandler for NotificationHandler {
    fn get_info(&self) -> ClientConfig {
        let implementation = Implementation::new("keybridge", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), implementation)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}

/// Subscribes to changes of the tools as long as the session lasts.
async fn subscribe(peer: &Peer<RoleClient>, changed: &Notify) {
    let filter = SubscriptionFilter::builder().tools_list_changed().build();
    loop {
        if let Ok(mut subscription) = peer.listen(filter.clone()).await {
            while let Ok(Some(_notification)) = subscription.next().await {
                changed.notify_one();
            }
            // A change may have been missed.
            changed.notify_one();
        }
        sleep(SUBSCRIPTION_RETRY_DELAY).await;
    }
}
