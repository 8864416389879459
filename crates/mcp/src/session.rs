//! A session with an MCP server: the bridge's words for what it needs of the SDK.

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
    connection::Line,
    error::{Trouble, not_answered, not_started},
    http_client::HttpClient,
    listing::{Listed, Page},
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
pub(super) struct Connection {
    session: Session,
    changed: Arc<Notify>,
    cancel: Ending,
    ended: JoinHandle<()>,
}

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    pub(super) protocol_version: Option<String>,
    /// Name and version.
    pub(super) server_info: Option<String>,
}

/// All tools of a server, in its own order.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) tools: Vec<Listed>,
    /// The tools that are left out, each with the reason.
    pub(super) refused: Vec<String>,
    bytes: usize,
}

/// The bridge as a client: takes the note that tools have changed and refuses all requests.
#[derive(Debug)]
struct Client {
    changed: Arc<Notify>,
}

/// Ends the session when dropped.
struct Ending(Option<RunningServiceCancellationToken>);

/// A request whose caller may leave: the server is told then.
struct Pending<'a> {
    handle: Option<RequestHandle<RoleClient>>,
    tasks: &'a TaskTracker,
}

/// The SDK waits 10 s for the answer to its first question before it tries the older protocol.
const START: Duration = Duration::from_secs(30);
/// A session is ended within this.
const CLOSE: Duration = Duration::from_secs(4);
/// A cancellation is sent within this.
const CANCEL: Duration = Duration::from_secs(5);
/// POSTs at a time. The SDK's own limit of 16 would let slow calls keep all others waiting.
const MAX_CONCURRENT: usize = 256;
/// Largest answer: a JSON body or one event.
const MAX_ANSWER: usize = 16 << 20;
/// Longest pause before an event stream is opened again.
const LONGEST_STREAM_PAUSE: Duration = Duration::from_secs(30);
/// Pause before a subscription that ended is asked for again.
const SUBSCRIPTION_PAUSE: Duration = Duration::from_secs(10);
const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 2000;
/// Largest list, all pages together.
const MAX_LISTING: usize = 32 << 20;
/// Reasons that are kept; a server whose every tool is malformed has one mistake, not thousands.
const MAX_REFUSED: usize = 100;
const METHOD_NOT_FOUND: i32 = -32601;

impl Connection {
    /// Opens a session, in the newest protocol that the server knows.
    pub(super) async fn open(
        http: &HttpClient,
        line: &Arc<Line>,
        tasks: &TaskTracker,
    ) -> Result<Self, Trouble> {
        let newest = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::LATEST],
            legacy_version: None,
        };
        match Self::open_as(newest, http, line, tasks).await {
            // Some older servers answer a question they do not know in ways that the SDK takes for
            // the end.
            Err(
                Trouble::Invalid(_)
                | Trouble::Refused { .. }
                | Trouble::Status(StatusCode::INTERNAL_SERVER_ERROR | StatusCode::NOT_IMPLEMENTED),
            ) => Self::open_as(ClientLifecycleMode::Initialize, http, line, tasks).await,
            opened => opened,
        }
    }

    async fn open_as(
        lifecycle: ClientLifecycleMode,
        http: &HttpClient,
        line: &Arc<Line>,
        tasks: &TaskTracker,
    ) -> Result<Self, Trouble> {
        let changed = Arc::new(Notify::new());
        let client = Client { changed: Arc::clone(&changed) };
        // The address is the client's own; the SDK only passes this one on.
        let mut config = StreamableHttpClientTransportConfig::with_uri(line.url.as_str())
            .max_concurrent_requests(MAX_CONCURRENT)
            .max_json_response_size(MAX_ANSWER)
            .max_sse_event_size(MAX_ANSWER);
        let mut retry = ExponentialBackoff::default();
        retry.max_delay = Some(LONGEST_STREAM_PAUSE);
        config.retry_config = Arc::new(retry);
        config.channel_buffer_capacity = MAX_CONCURRENT;
        let transport =
            Transport::new(http.clone(), Arc::clone(&line.attention), line.config.connect_timeout);
        let transport = StreamableHttpClientTransport::with_client(transport, config);
        let start = START + line.config.connect_timeout;
        let running = timeout(start, client.serve_with_lifecycle(transport, lifecycle))
            .await
            .map_err(|_elapsed| {
                Trouble::Invalid(format!("there was no session within {} s", start.as_secs()))
            })?
            .map_err(|error| not_started(&error))?;
        Ok(Self::new(running, changed, tasks))
    }

    fn new(
        running: RunningService<RoleClient, Client>,
        changed: Arc<Notify>,
        tasks: &TaskTracker,
    ) -> Self {
        let session = Session { peer: running.peer().clone(), tasks: tasks.clone() };
        let cancel = Ending(Some(running.cancellation_token()));
        let is_subscribed = session.has_subscriptions();
        let (peer, note) = (session.peer.clone(), Arc::clone(&changed));
        let ended = tasks.spawn(async move {
            let ended = running.waiting();
            if is_subscribed {
                tokio::select! {
                    _ended = ended => {}
                    () = subscribe(&peer, &note) => {}
                }
            } else {
                let _ended = ended.await;
            }
        });
        Self { session, changed, cancel, ended }
    }

    pub(super) fn session(&self) -> Session {
        self.session.clone()
    }

    pub(super) fn about(&self) -> About {
        let Some(info) = self.session.peer.peer_info() else { return About::default() };
        let server_info = info.server_info.as_ref();
        About {
            protocol_version: Some(info.protocol_version.as_str().to_owned()),
            server_info: server_info.map(|info| format!("{} {}", info.name, info.version)),
        }
    }

    /// Told when the tools may have changed.
    pub(super) fn changed(&self) -> &Arc<Notify> {
        &self.changed
    }

    /// Waits until the session is over.
    pub(super) async fn closed(&mut self) {
        let _ended = (&mut self.ended).await;
    }

    /// Ends the session at the server, which gets a few seconds to say that it has heard.
    pub(super) async fn close(mut self) {
        self.cancel.now();
        if timeout(CLOSE, self.closed()).await.is_err() {
            tracing::debug!("an MCP server did not let its session be ended in time");
        }
    }
}

impl Session {
    /// Lists the tools on all pages. The caller limits the wait.
    pub(super) async fn list(&self) -> Result<Listing, Trouble> {
        let mut listing = Listing::default();
        let mut cursor = None;
        for _page in 0..MAX_PAGES {
            let params =
                cursor.clone().map(|at| PaginatedRequestParams::default().with_cursor(Some(at)));
            let request = match params {
                Some(params) => ListToolsRequest::with_param(params),
                None => ListToolsRequest::default(),
            };
            let answer = self.ask(ClientRequest::ListToolsRequest(request)).await;
            let page = match answer {
                // A server without tools need not know the question.
                Err(Trouble::Refused { code: METHOD_NOT_FOUND, .. }) => Page::default(),
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
        tracing::warn!(tools = listing.tools.len(), "the list of an MCP server's tools has no end");
        Ok(listing.limited())
    }

    /// Calls a tool and gives the JSON of its result. The caller limits the wait; when it leaves,
    /// the server is told that the call is cancelled.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<String, Trouble> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        raw_result(&self.ask(request).await?)
    }

    async fn ask(&self, request: ClientRequest) -> Result<ServerResult, Trouble> {
        let options = PeerRequestOptions::no_options();
        let handle = self
            .peer
            .send_request_with_option(request, options)
            .await
            .map_err(|error| not_answered(&error))?;
        let mut pending = Pending { handle: Some(handle), tasks: &self.tasks };
        pending.answer().await.map_err(|error| not_answered(&error))
    }

    /// Whether changes are told only to those who subscribe: so it is since 2026-07-28.
    fn has_subscriptions(&self) -> bool {
        self.peer.peer_info().is_some_and(|info| {
            let tools = info.capabilities.tools.as_ref();
            !info.protocol_version.has_initialize()
                && tools.is_some_and(|tools| tools.list_changed == Some(true))
        })
    }
}

impl Listing {
    fn page(&mut self, answer: &ServerResult) -> Result<Page, Trouble> {
        let raw = raw_result(answer)?;
        self.bytes += raw.len();
        if self.bytes > MAX_LISTING {
            let reason = format!("the list of its tools is larger than {MAX_LISTING} bytes");
            return Err(Trouble::Invalid(reason));
        }
        let mut page = Page::read(&raw).map_err(|reason| {
            Trouble::Invalid(format!("the list of its tools cannot be read: {reason}"))
        })?;
        if let ServerResult::ListToolsResult(usable) = answer {
            // The SDK leaves out tools whose arguments it could not put into headers.
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

impl Pending<'_> {
    async fn answer(&mut self) -> Result<ServerResult, ServiceError> {
        let Some(handle) = &mut self.handle else { return Err(ServiceError::TransportClosed) };
        let answer = (&mut handle.rx).await;
        self.handle = None;
        answer.unwrap_or_else(|_gone| Err(ServiceError::TransportClosed))
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let cancelling = async move {
            let reason = "the caller left or waited long enough".to_owned();
            if !matches!(timeout(CANCEL, handle.cancel(Some(reason))).await, Ok(Ok(()))) {
                tracing::debug!("a cancelled call could not be cancelled at the MCP server");
            }
        };
        self.tasks.spawn_on(cancelling, &runtime);
    }
}

impl Ending {
    fn now(&mut self) {
        if let Some(token) = self.0.take() {
            token.cancel();
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.now();
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ending")
    }
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let bridge = Implementation::new("keybridge", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), bridge)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}

/// Passes on that tools have changed, as long as the session lasts.
async fn subscribe(peer: &Peer<RoleClient>, changed: &Notify) {
    let filter = SubscriptionFilter::builder().tools_list_changed().build();
    loop {
        if let Ok(mut subscription) = peer.listen(filter.clone()).await {
            while let Ok(Some(_note)) = subscription.next().await {
                changed.notify_one();
            }
            // Something may have changed unheard.
            changed.notify_one();
        }
        sleep(SUBSCRIPTION_PAUSE).await;
    }
}
