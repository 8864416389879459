//! What the user writes. The reference page and the JSON schema are generated from these types.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration file.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawConfig {
    /// How keybridge listens and accepts requests.
    pub(crate) server: RawServer,
    /// How many requests and connections are accepted at a time.
    pub(crate) limits: RawLimits,
    /// Where records, users and tokens are stored.
    pub(crate) store: RawStore,
    /// What is recorded, and for how long.
    pub(crate) ledger: RawLedger,
    /// How callers authenticate.
    pub(crate) auth: RawAuth,
    /// Outgoing connections to providers and MCP servers.
    pub(crate) egress: RawEgress,
    /// Provider instances. Default: `anthropic`, `openai` and `copilot` at their public addresses, with keys from `ANTHROPIC_API_KEY` and `OPENAI_API_KEY` if set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) providers: Option<Vec<RawProvider>>,
    /// MCP servers whose tools are added to the requests of every agent and called by the bridge.
    pub(crate) mcp_servers: Vec<RawMcpServer>,
    /// Limits of injected tools.
    pub(crate) injected_tools: RawInjectedTools,
    /// Logs and metrics.
    pub(crate) telemetry: RawTelemetry,
}

/// How keybridge listens and accepts requests.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawServer {
    /// Address and port to listen on.
    pub(crate) listen: String,
    /// URL that clients use to reach this bridge; printed in setup instructions. Default: `http://` (`https://` with `tls`) and the listening address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) public_url: Option<String>,
    /// Maximum size of a request body, both as sent and decompressed.
    pub(crate) max_body: String,
    /// Maximum size of an upload: a request body that is no JSON, on a route of `allow_routes`. It is passed on while it arrives, and counts as no memory of `limits.body_memory` beyond its first 256 KiB.
    pub(crate) max_upload: String,
    /// Grace period for requests in flight after SIGTERM or Ctrl-C; streams still open after it end with an error event in their dialect.
    pub(crate) shutdown_grace: RawDuration,
    /// Maximum number of requests in flight; further requests get status 429. 0 = unlimited. See also `[limits]`.
    pub(crate) max_concurrent_requests: usize,
    /// Whether the headers `X-Forwarded-*`, `Forwarded` and `X-Real-Ip` are passed on to providers.
    pub(crate) trust_forwarded_headers: bool,
    /// Lets a second process listen on the same address (`SO_REUSEPORT`), so that a new process can start before the old one exits. Both need it.
    pub(crate) reuse_port: bool,
    /// Reverse proxies and load balancers in front of this bridge, such as `["10.0.0.0/8"]`. Limits per address count their requests for the last address in `X-Forwarded-For` that is not one of them, and their connections are limited only by `limits.max_connections`.
    pub(crate) trusted_proxies: Vec<String>,
    /// Minimum rate per second of a request body, measured after its first 10 s; a slower one gets status 408. 0 = no minimum.
    pub(crate) min_body_rate: String,
    /// How long an idle client connection stays open. Behind a load balancer or reverse proxy, set it longer than the proxy's own idle timeout, so that no request is sent on a connection that is being closed.
    pub(crate) keep_alive: RawDuration,
    /// Whether an HTTP/1.1 stream releases its buffers while it has nothing to send, which saves 16 KiB or more per idle stream. With `false`, the HTTP library does all writing; clients receive the same bytes.
    pub(crate) idle_stream_handoff: bool,
    /// Serve HTTPS instead of HTTP. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<RawTls>,
}

/// Certificate of the server; a reload reads it again.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawTls {
    /// PEM file with the certificate, followed by its intermediate certificates.
    pub(crate) certificate: String,
    /// PEM file with the private key.
    pub(crate) key: String,
}

impl Default for RawServer {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8787".into(),
            public_url: None,
            max_body: "64 MiB".into(),
            max_upload: "512 MiB".into(),
            shutdown_grace: RawDuration::Text("30s".into()),
            max_concurrent_requests: 0,
            trust_forwarded_headers: false,
            reuse_port: false,
            trusted_proxies: Vec::new(),
            min_body_rate: "1 KiB".into(),
            keep_alive: RawDuration::Text("75s".into()),
            idle_stream_handoff: true,
            tls: None,
        }
    }
}

/// How many requests and connections are accepted at a time. Requests over a limit on requests get status 429 with `Retry-After` and are recorded as refused.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawLimits {
    /// Maximum number of requests in flight per user. 0 = unlimited.
    pub(crate) max_concurrent_requests_per_user: usize,
    /// Maximum number of requests per second and token. 0 = unlimited.
    pub(crate) requests_per_second: u32,
    /// Maximum number of requests that one token may send in a burst. 0 = the same as `requests_per_second`.
    pub(crate) burst: u32,
    /// Total memory for request bodies. Decoded and edited bodies count in addition to what was received, and prompts that are recorded count again. When it is used up, further requests wait for up to 10 s and then get status 503. One user's requests share half of it, and an eighth is kept for requests of up to 64 KiB. At least `server.max_body`.
    pub(crate) body_memory: String,
    /// Maximum number of client connections; further ones are closed. Lowered to what the limit on open files allows, with two files per connection. 0 = only that limit.
    pub(crate) max_connections: usize,
    /// Maximum number of client connections per address (with IPv6: per network of 64 bits); further ones are closed. 0 = unlimited. For clients of `server.trusted_proxies`: maximum number of requests in flight per address; further ones get status 429.
    pub(crate) max_connections_per_address: usize,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_concurrent_requests_per_user: 0,
            requests_per_second: 0,
            burst: 0,
            body_memory: "512 MiB".into(),
            max_connections: 10_000,
            max_connections_per_address: 2_000,
        }
    }
}

/// Where records, users and tokens are stored.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawStore {
    /// `sqlite://` and the path of a file, or `postgres://user:password@host/database`, optionally with
    /// libpq parameters such as `?sslmode=verify-full&sslrootcert=/path`.
    pub(crate) url: String,
    /// Maximum number of concurrent reads of the records. With PostgreSQL, each uses a connection, and up
    /// to thirteen more connections are used for everything else. With SQLite, at most half of the
    /// machine's cores read.
    pub(crate) max_connections: usize,
    /// Timeout of a read of the records, which ends with an error.
    pub(crate) read_timeout: RawDuration,
}

impl Default for RawStore {
    fn default() -> Self {
        Self {
            url: "sqlite://keybridge.db".into(),
            max_connections: 2,
            read_timeout: RawDuration::Text("5s".into()),
        }
    }
}

/// What is recorded, and for how long.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawLedger {
    /// What a record must survive before its request is sent to a provider: with `disk`, a crash of the
    /// machine; with `process`, only a crash of the process. `process` does not wait for the disk, and
    /// the records of the last milliseconds before a machine stops are lost.
    pub(crate) durability: String,
    /// What happens to new requests while the store is unavailable: `refuse` returns status 503, `spool`
    /// records them in files until the store is available again.
    pub(crate) on_outage: String,
    /// Directory of these files. With `refuse`, it holds the results of requests that were in flight when
    /// the store failed; with `durability = "process"`, records that are not committed yet.
    pub(crate) spool_dir: String,
    /// Maximum size of the spool; new requests are refused once it is reached.
    pub(crate) spool_max_bytes: String,
    /// Maximum age of the spool; new requests are refused once it is reached.
    pub(crate) spool_max_age: RawDuration,
    /// How long records are kept. 0 = forever.
    pub(crate) retention: RawDuration,
    /// The part of all records that retention may remove when no process has run for more than a day. If
    /// more would go, because the clock is wrong or the bridge was off for long, nothing is removed until
    /// `keybridge ledger retention --confirm`. 1 = no limit.
    pub(crate) retention_max_fraction: f64,
    /// Which content is recorded in addition to metadata and token counts.
    pub(crate) record: RawRecord,
}

impl Default for RawLedger {
    fn default() -> Self {
        Self {
            durability: "disk".into(),
            on_outage: "refuse".into(),
            spool_dir: "spool".into(),
            spool_max_bytes: "1 GiB".into(),
            spool_max_age: RawDuration::Text("1h".into()),
            retention: RawDuration::Text("60d".into()),
            retention_max_fraction: 0.5,
            record: RawRecord::default(),
        }
    }
}

/// Which content is recorded in addition to metadata and token counts.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub(crate) struct RawRecord {
    /// Prompts, as the user wrote them.
    pub(crate) prompts: bool,
    /// Arguments of tool calls.
    pub(crate) tool_arguments: bool,
    /// Thinking, reasoning summaries and commentary.
    pub(crate) thoughts: bool,
    /// Results of tool calls, as the requests carried them, and those of injected tools.
    pub(crate) tool_results: bool,
    /// The text of answers. It is held in memory until the answer ends.
    pub(crate) answers: bool,
    /// Maximum size of a recorded prompt; a longer one is cut and says how long it was.
    pub(crate) max_prompt: String,
    /// Maximum size of the recorded arguments of a tool call.
    pub(crate) max_tool_arguments: String,
    /// Maximum size of a recorded thought.
    pub(crate) max_thought: String,
    /// Maximum size of the recorded result of a tool call.
    pub(crate) max_tool_result: String,
    /// Maximum size of a recorded answer.
    pub(crate) max_answer: String,
}

impl Default for RawRecord {
    fn default() -> Self {
        Self {
            prompts: true,
            tool_arguments: true,
            thoughts: true,
            tool_results: false,
            answers: false,
            max_prompt: "16 MiB".into(),
            max_tool_arguments: "16 MiB".into(),
            max_thought: "16 MiB".into(),
            max_tool_result: "16 MiB".into(),
            max_answer: "16 MiB".into(),
        }
    }
}

/// How callers authenticate.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawAuth {
    /// Whether requests may use BYOK (bring your own key): the caller's own provider credential. Each provider can override this.
    pub(crate) allow_byok: bool,
    /// Headers that carry the bridge token of a BYOK request.
    pub(crate) governance_headers: Vec<String>,
    /// Whether `serve` starts while PostgreSQL cannot be reached, for people whose tokens it knows from a file
    /// in `ledger.spool_dir`. The file (mode 0600) has the store's secret, and the hashes of tokens that were
    /// used here, with names and roles; the store has confirmed each within 24 h. Needs
    /// `ledger.on_outage = "spool"`.
    pub(crate) offline_cache: bool,
}

impl Default for RawAuth {
    fn default() -> Self {
        Self {
            allow_byok: true,
            governance_headers: vec![
                "X-AI-Governance-Token".into(),
                "X-Coder-AI-Governance-Token".into(),
                "X-Coder-AI-Governance-BYOK-Token".into(),
            ],
            offline_cache: false,
        }
    }
}

/// Outgoing connections to providers and MCP servers. No others are made, and redirects are not followed.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawEgress {
    /// PEM file of certificate authorities that are trusted in addition to the system's, such as a company's own.
    pub(crate) ca_bundle: String,
    /// Proxy for https URLs, used with `CONNECT`: `http://host:port` or `https://host:port`, optionally with `user:password@`; or a reference: `{ env = "…" }`, `{ file = "…" }` or `{ value = "…" }`. For http URLs no proxy is used. Default: none.
    pub(crate) proxy: Option<RawText>,
    /// Hosts that are reached without the proxy: domain names including their subdomains, IP addresses, networks such as `10.0.0.0/8`, or `*` for all.
    pub(crate) no_proxy: Vec<String>,
    /// Whether the proxy and its exceptions are taken from the environment variables `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, which are ignored otherwise.
    pub(crate) proxy_from_environment: bool,
}

/// A provider instance, served below the path `/<name>`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawProvider {
    /// Unique name: lower-case letters, digits and single hyphens. Default: the type.
    pub(crate) name: Option<String>,
    /// `anthropic`, `openai`, `copilot` or `bedrock`.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// What the vendor's API does differently, by the vendor's name: see [providers](providers.md). Default: the profile of the type; for `openai` with a `base_url` at another host than OpenAI's, `compatible`.
    pub(crate) profile: Option<String>,
    /// Base URL of the API. Default: the vendor's public address.
    pub(crate) base_url: Option<String>,
    /// How a key is sent: `bearer`, `header:NAME`, or `none` for servers that need no key. Default: as in the profile.
    pub(crate) credential: Option<String>,
    /// How a request may carry the caller's own credential (BYOK), in the order in which it is looked for, such as `["header:x-api-key", "bearer"]`. Default: as in the profile.
    pub(crate) accepts: Option<Vec<String>>,
    /// Whether centralized requests are sent without a credential if there are no keys. Default: as in the profile.
    pub(crate) key_optional: Option<bool>,
    /// Whether a streaming Chat Completions request whose client did not ask for usage is changed so that it does: `yes`, `never` for servers that refuse `stream_options`, or `sent` for servers that send usage in any case. Default: as in the profile.
    pub(crate) ask_usage: Option<String>,
    /// Centralized keys. A key that the provider rejects (401) is not used for a while, nor, for the endpoint and model of the request, is one that is not allowed to (403) or whose rate limit is reached (429); the same request is sent again with the next one. Without keys, only BYOK requests are accepted, unless the server needs no key (`credential`, `key_optional`).
    pub(crate) keys: Vec<RawKey>,
    /// Which of several keys is used: `first`, the first available one, which keeps prompt caches warm, or `weighted`, one according to the weights: the same for all requests of a client's session while it is available, otherwise a random one.
    pub(crate) key_selection: String,
    /// Which credentials are accepted: `pool` for the centralized keys, `request` for BYOK. Use `["request"]` for APIs that accept personal credentials only, such as ChatGPT subscriptions.
    pub(crate) credentials: Vec<String>,
    /// Whether BYOK requests are accepted. Default: `auth.allow_byok`.
    pub(crate) allow_byok: Option<bool>,
    /// Whether a BYOK request without a credential may use a centralized key. Default: true.
    pub(crate) byok_fallback: Option<bool>,
    /// Whether the user's id and name are sent to the provider in `X-AI-Bridge-Actor-*` headers.
    pub(crate) send_actor_headers: bool,
    /// Headers added to every request to this instance; they replace those of the client. A string or a reference: `{ env = "…" }`, `{ file = "…" }` or `{ value = "…" }`.
    pub(crate) set_headers: BTreeMap<String, RawText>,
    /// Query parameters added to every request to this instance, in the same way; they replace those of the client.
    pub(crate) set_query: BTreeMap<String, RawText>,
    /// Query parameters added to requests whose client sends none of that name, such as Azure's `api-version`. Default: as in the profile.
    pub(crate) query: Option<BTreeMap<String, String>>,
    /// Paths below the base URL that contain the model, by endpoint, such as `{ "/v1/chat/completions" = "/deployments/{model}/chat/completions" }`. Default: as in the profile.
    pub(crate) paths: Option<BTreeMap<String, String>>,
    /// Routes that requests may take beyond those of the type: groups (`embeddings`, `completions`, `moderations`, `rerank`, `images`, `audio`, `files`, `uploads`, `batches`, `vector_stores`, `containers`, `stored_completions`, `codex`), or a method and the path after `/<name>`, such as `"POST /v1/fim/completions"`; `/*` at the end of a path stands for all below it, `(/*)` for the path itself too. `{ method = "POST", path = "/v1/ocr", meter = "none" }` also says how the use is measured: `usage` by what the answer reports, which is unknown if it reports nothing; `characters` also by the length of the request's `input`; `none` by what the answer reports, if it does. Each such request is recorded before it is sent. Default: none.
    pub(crate) allow_routes: Vec<RawRoute>,
    /// Timeouts for each stage of a request to the provider.
    pub(crate) timeouts: RawTimeouts,
    /// Stops sending requests to a failing provider, separately for each endpoint and model; while it is open, requests get status 503. Default: off.
    pub(crate) circuit_breaker: Option<RawCircuitBreaker>,
    /// Another provider with the same dialect that is used while this provider's circuit breaker is open or none of its keys is available, and when it is still overloaded after all retries: its name, or `{ provider = "…", model = "…" }` to ask for another model there. Centralized requests only. Default: none.
    pub(crate) fallback: Option<RawFallback>,
    /// What happens to a centralized request that names a stored object, such as a response, file or batch, of which it is not known who made it: `refuse` (status 404) or `allow`, for objects that were made without keybridge and are shared by all users. Objects of other users are refused in any case, and unknown files only where `allow_routes` has `files` or `uploads`.
    pub(crate) unknown_objects: String,
    /// PEM file of certificate authorities that are trusted for this provider, in addition to the system's and `egress.ca_bundle`.
    pub(crate) ca_bundle: String,
    /// Whether the host name in `base_url` may resolve to a private IP address, such as that of a server inside the company. IP addresses and `localhost` are always allowed.
    pub(crate) allow_private: bool,
    /// Use HTTP/2 to the provider instead of HTTP/1.1.
    pub(crate) http2: bool,
    /// Directory to which every exchange with the provider is written, with credentials masked. For debugging: the files contain prompts and responses.
    pub(crate) dump_dir: String,
    /// Maximum total size of these files; the oldest are deleted first.
    pub(crate) dump_max_size: String,
    /// How long these files are kept.
    pub(crate) dump_max_age: RawDuration,
    /// Maximum number of retries of a request, while nothing of a response has been relayed: after connection errors and the statuses 408, 409, 429, 500, 502, 503, 504 and 529. At most a fifth of all requests are retried.
    pub(crate) max_retries: u32,
    /// Settings of providers of the type `bedrock`.
    pub(crate) bedrock: Option<RawBedrock>,
}

impl Default for RawProvider {
    fn default() -> Self {
        Self {
            name: None,
            kind: None,
            profile: None,
            base_url: None,
            credential: None,
            accepts: None,
            key_optional: None,
            ask_usage: None,
            keys: Vec::new(),
            key_selection: "first".into(),
            credentials: vec!["pool".into(), "request".into()],
            allow_byok: None,
            byok_fallback: None,
            send_actor_headers: false,
            set_headers: BTreeMap::new(),
            allow_routes: Vec::new(),
            set_query: BTreeMap::new(),
            query: None,
            paths: None,
            timeouts: RawTimeouts::default(),
            circuit_breaker: None,
            fallback: None,
            unknown_objects: "refuse".into(),
            ca_bundle: String::new(),
            allow_private: false,
            http2: false,
            dump_dir: String::new(),
            dump_max_size: "1 GiB".into(),
            dump_max_age: RawDuration::Text("7d".into()),
            max_retries: 2,
            bedrock: None,
        }
    }
}

/// A route that is allowed beyond those of the provider's type.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "needs a group of routes, a method and a path, or a table with `method`, `path` and `meter`"
)]
pub(crate) enum RawRoute {
    /// The name of a group, or a method and a path.
    Text(String),
    /// A method and a path with another meter.
    Metered(RawMeteredRoute),
}

/// A method and a path, and how their use is measured.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawMeteredRoute {
    /// `GET`, `HEAD`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub(crate) method: String,
    /// Path after the provider's name.
    pub(crate) path: String,
    /// `usage`, `characters` or `none`. Default: that of the group which has the route, else `usage` for POST and `none` for other methods.
    pub(crate) meter: Option<String>,
}

/// The provider that takes over for another one.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "a provider's name, or a table with `provider` and `model`")]
pub(crate) enum RawFallback {
    /// Its name; the model stays.
    Provider(String),
    /// Its name and the model there.
    Model(RawFallbackModel),
}

/// A provider and one of its models.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFallbackModel {
    /// Name of the provider.
    pub(crate) provider: String,
    /// The model that is asked there.
    pub(crate) model: String,
}

/// When a circuit breaker opens. Failures are the statuses 429 (centralized requests only), 503, 504 and 529, failed connections, timeouts, and the corresponding errors within a stream.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawCircuitBreaker {
    /// Number of consecutive failures that open it.
    pub(crate) failures: u32,
    /// Period in which these failures must occur.
    pub(crate) interval: RawDuration,
    /// How long it stays open.
    pub(crate) open: RawDuration,
    /// Number of trial requests sent afterwards; if all succeed, it closes.
    pub(crate) trial_requests: u32,
}

impl Default for RawCircuitBreaker {
    fn default() -> Self {
        let text = |text: &str| RawDuration::Text(text.into());
        Self { failures: 5, interval: text("10s"), open: text("30s"), trial_requests: 3 }
    }
}

/// Anthropic's models on Amazon Bedrock. AWS credentials are an access key, a profile or, if neither is set, those of AWS's default chain.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawBedrock {
    /// AWS region, such as `eu-central-1`.
    pub(crate) region: String,
    /// `runtime`: requests are translated for `InvokeModel`. `mantle`: requests are passed unchanged to the Messages API on AWS.
    pub(crate) api: String,
    /// Model id, inference profile or its ARN, used for all requests whatever model they name. Not with `mantle`.
    pub(crate) model: Option<String>,
    /// The same for requests whose model name contains `haiku`. Default: `model`.
    pub(crate) small_fast_model: Option<String>,
    /// Access key id: a string or a reference: `{ env = "…" }`, `{ file = "…" }` or `{ value = "…" }`.
    pub(crate) access_key_id: Option<RawText>,
    /// Secret access key, given in the same way.
    pub(crate) secret_access_key: Option<RawText>,
    /// Session token of a temporary access key, given in the same way.
    pub(crate) session_token: Option<RawText>,
    /// Profile of AWS's shared configuration files.
    pub(crate) profile: Option<String>,
    /// Role to assume with these credentials.
    pub(crate) assume_role: Option<RawAssumeRole>,
    /// File that replaces the built-in rules for beta flags, fields and thinking.
    pub(crate) rules_file: Option<String>,
}

impl Default for RawBedrock {
    fn default() -> Self {
        Self {
            region: String::new(),
            api: "runtime".into(),
            model: None,
            small_fast_model: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            profile: None,
            assume_role: None,
            rules_file: None,
        }
    }
}

/// An AWS role to assume.
#[derive(Debug, Default, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawAssumeRole {
    /// ARN of the role.
    pub(crate) arn: String,
    /// Session name, as shown in CloudTrail. Default: `keybridge`.
    pub(crate) session_name: Option<String>,
    /// External id, if the owner of the role requires one.
    pub(crate) external_id: Option<String>,
}

/// A centralized key, from one of three sources.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawKey {
    /// Name of the key in records. Default: `main`.
    pub(crate) name: Option<String>,
    /// Relative frequency of the key with `key_selection = "weighted"`. Default: 1.
    pub(crate) weight: Option<u32>,
    /// Environment variable that contains the key.
    pub(crate) env: Option<String>,
    /// File that contains the key.
    pub(crate) file: Option<String>,
    /// The key itself; prefer `env` or `file`.
    pub(crate) value: Option<RawSecret>,
}

/// Timeouts for each stage of a request to the provider.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawTimeouts {
    /// TCP connection and TLS handshake.
    pub(crate) connect: RawDuration,
    /// From the request to the headers of the response.
    pub(crate) head: RawDuration,
    /// Maximum pause between two pieces of a response.
    pub(crate) idle: RawDuration,
}

impl Default for RawTimeouts {
    fn default() -> Self {
        let text = |text: &str| RawDuration::Text(text.into());
        // Non-streaming requests may take 10 minutes; agents give up on a silent stream after 300 s or
        // more.
        Self { connect: text("10s"), head: text("600s"), idle: text("300s") }
    }
}

/// An MCP server, reached over streamable HTTP.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawMcpServer {
    /// Unique name: lower-case letters, digits and single hyphens. Models see its tools as `bmcp_<name>_<tool>`.
    pub(crate) name: String,
    /// URL of its endpoint, such as `http://127.0.0.1:3001/mcp`.
    pub(crate) url: String,
    /// Headers added to each request: a string or a reference: `{ env = "…" }`, `{ file = "…" }` or `{ value = "…" }`. An `Authorization` value without a scheme is sent as `Bearer`.
    pub(crate) headers: BTreeMap<String, RawText>,
    /// PEM file of certificate authorities that are trusted for this server, in addition to the system's and `egress.ca_bundle`.
    pub(crate) ca_bundle: String,
    /// Whether the host name in `url` may resolve to a private IP address. IP addresses and `localhost` are always allowed.
    pub(crate) allow_private: bool,
    /// Regular expression: only tools whose original name matches are offered. Default: all.
    pub(crate) allow: Option<String>,
    /// Regular expression: tools whose original name matches are not offered; takes precedence over `allow`.
    pub(crate) deny: Option<String>,
    /// Names of the provider instances whose requests get its tools. Default: all.
    pub(crate) providers: Option<Vec<String>>,
}

/// A string that may be secret, or a reference to it.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "a string, or a table with `env`, `file` or `value`")]
pub(crate) enum RawText {
    /// The value.
    Text(RawSecret),
    /// A reference.
    Source(RawSource),
}

/// Where a secret is read from: exactly one of three sources.
#[derive(Debug, Default, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawSource {
    /// Environment variable that contains it.
    pub(crate) env: Option<String>,
    /// File that contains it.
    pub(crate) file: Option<String>,
    /// The value itself.
    pub(crate) value: Option<RawSecret>,
}

/// Limits of injected tools.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawInjectedTools {
    /// Maximum number of further requests to the model within one request; after that the response ends with an error.
    pub(crate) max_turns: u32,
    /// Timeout of a tool call; the model gets an error as the result.
    pub(crate) call_timeout: RawDuration,
    /// Maximum size of a tool result; longer ones are truncated.
    pub(crate) max_result: String,
    /// Whether models may call several tools in parallel, if the client allows it. `false` disables it in each request that gets tools; some models reject that parameter.
    pub(crate) parallel_calls: bool,
    /// Models whose name contains one of these strings get no tools: agents use them for small side tasks.
    pub(crate) skip_models: Vec<String>,
}

impl Default for RawInjectedTools {
    fn default() -> Self {
        Self {
            max_turns: 25,
            call_timeout: RawDuration::Text("60s".into()),
            max_result: "1 MiB".into(),
            parallel_calls: false,
            skip_models: vec!["haiku".into()],
        }
    }
}

/// Logs and metrics.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawTelemetry {
    /// Logs, written to standard error.
    pub(crate) log: RawLog,
    /// Address and port on which `/metrics` is served without authentication. Empty: only on the main
    /// listener, for auditors and administrators and, with `metrics_local`, for clients on this machine.
    pub(crate) metrics_listen: String,
    /// Whether clients on this machine can read `/metrics` on the main listener without a token, as long as
    /// `metrics_listen` is empty. `false` where other users or programs of this machine must not.
    pub(crate) metrics_local: bool,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        Self { log: RawLog::default(), metrics_listen: String::new(), metrics_local: true }
    }
}

/// Logs, written to standard error.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawLog {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,keybridge_bridge=debug`.
    pub(crate) level: String,
    /// `text` or `json`.
    pub(crate) format: String,
    /// Maximum number of lines of one kind in a second, 0 for no limit; what is left out is counted in a line of its own. The line that is logged for each request when it is settled, and lines below `info`, are not limited.
    pub(crate) lines_per_second: u32,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { level: "info".into(), format: "text".into(), lines_per_second: 50 }
    }
}

/// A duration: a number and a unit (`ms`, `s`, `m`, `h`, `d` or `w`), such as `1.5h` or `1h30m`, or 0.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "a duration such as \"30s\"")]
pub(crate) enum RawDuration {
    /// Such as `30s`.
    Text(String),
    /// Only 0 needs no unit.
    Number(u64),
}

/// A secret in the file; it prints as `***`.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct RawSecret(pub(crate) String);

impl std::fmt::Debug for RawSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for RawSecret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}
