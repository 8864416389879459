//! What the user writes. The reference page and the JSON schema are made of these types.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration file.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawConfig {
    /// Where and how requests are taken.
    pub(crate) server: RawServer,
    /// How much may be asked at a time.
    pub(crate) limits: RawLimits,
    /// Where records, users and tokens are kept.
    pub(crate) store: RawStore,
    /// What is recorded and for how long.
    pub(crate) ledger: RawLedger,
    /// How callers show who they are.
    pub(crate) auth: RawAuth,
    /// How connections to providers and MCP servers are made.
    pub(crate) egress: RawEgress,
    /// The provider instances. Without any: `anthropic`, `openai` and `copilot` at their public addresses, with keys from `ANTHROPIC_API_KEY` and `OPENAI_API_KEY` where set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) providers: Option<Vec<RawProvider>>,
    /// MCP servers whose tools are put into the requests of every agent and called by the bridge.
    pub(crate) mcp_servers: Vec<RawMcpServer>,
    /// How far injected tools may go.
    pub(crate) injected_tools: RawInjectedTools,
    /// Logs.
    pub(crate) telemetry: RawTelemetry,
}

/// Where and how requests are taken.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawServer {
    /// Address and port to listen on.
    pub(crate) listen: String,
    /// What users type to reach this bridge; used in printed snippets. Default: `http://`, or with `tls` `https://`, and the address listened on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) public_url: Option<String>,
    /// Largest request body, as sent and as decoded.
    pub(crate) max_body: String,
    /// How long requests in flight may go on after SIGTERM or Ctrl-C; then streams are ended with an error in their dialect.
    pub(crate) shutdown_grace: RawDuration,
    /// Most requests in flight; over it: 429 in the dialect. 0 = unlimited. More limits: `[limits]`.
    pub(crate) max_concurrent_requests: usize,
    /// Whether `X-Forwarded-*`, `Forwarded` and `X-Real-Ip` are passed on to providers.
    pub(crate) trust_forwarded_headers: bool,
    /// Lets a second process listen on the same address, so that a new one can start before the old one ends (`SO_REUSEPORT`). Both must have it.
    pub(crate) reuse_port: bool,
    /// How long a client's connection may stay open between two requests. Behind a load balancer or a reverse proxy it must be longer than the time for which that keeps idle connections, or requests are sent on connections that are being closed.
    pub(crate) keep_alive: RawDuration,
    /// Whether a stream over HTTP/1.1 gives up its buffers while it has nothing to send, which saves 16 KiB and more for each idle stream. `false` leaves all writing to the HTTP library; what clients receive is the same.
    pub(crate) idle_stream_handoff: bool,
    /// HTTPS instead of HTTP. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<RawTls>,
}

/// The server's certificate; read again when the configuration is reloaded.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawTls {
    /// File with the certificate in PEM, followed by those that lead to its authority.
    pub(crate) certificate: String,
    /// File with its key in PEM.
    pub(crate) key: String,
}

impl Default for RawServer {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8787".into(),
            public_url: None,
            max_body: "64 MiB".into(),
            shutdown_grace: RawDuration::Text("30s".into()),
            max_concurrent_requests: 0,
            trust_forwarded_headers: false,
            reuse_port: false,
            keep_alive: RawDuration::Text("75s".into()),
            idle_stream_handoff: true,
            tls: None,
        }
    }
}

/// How much may be asked at a time; what is over it is refused with 429 and `Retry-After`, and recorded.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawLimits {
    /// Most requests of one user in flight. 0 = unlimited.
    pub(crate) max_concurrent_requests_per_user: usize,
    /// Most requests of one token in a second. 0 = unlimited.
    pub(crate) requests_per_second: u32,
    /// Requests of one token that may come at once. 0 = as many as in a second.
    pub(crate) burst: u32,
    /// Memory for request bodies over 1 MiB: further ones wait for 10 s at most, and are then refused with 503. At least `server.max_body`. Where tools are injected, a body needs its memory twice.
    pub(crate) body_memory: String,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_concurrent_requests_per_user: 0,
            requests_per_second: 0,
            burst: 0,
            body_memory: "512 MiB".into(),
        }
    }
}

/// Where records, users and tokens are kept.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawStore {
    /// `sqlite://` and the path of a file, or `postgres://user:password@host/database`, with the
    /// parameters of libpq such as `?sslmode=verify-full&sslrootcert=/path`.
    pub(crate) url: String,
    /// Most reads of the records at the same time, for which PostgreSQL is given a connection each; it
    /// needs up to eleven more for everything else. With SQLite, at most half of the machine's cores read.
    pub(crate) max_connections: usize,
    /// Longest that a read of the records may take: it is ended with an error then.
    pub(crate) read_timeout: RawDuration,
}

impl Default for RawStore {
    fn default() -> Self {
        Self {
            url: "sqlite://keybridge.db".into(),
            max_connections: 4,
            read_timeout: RawDuration::Text("5s".into()),
        }
    }
}

/// What is recorded and for how long.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawLedger {
    /// What a record must outlive before its request goes to a provider: `disk`, the machine; `process`,
    /// the process alone, without waiting for the disk: what began in the last milliseconds before the
    /// machine stops is lost.
    pub(crate) durability: String,
    /// What happens to new requests while the store is down: `refuse` answers 503, `spool` records
    /// them in files until the store is back.
    pub(crate) on_outage: String,
    /// The directory of these files. With `refuse`, the ends of what was open wait there; with the
    /// durability `process`, what is not committed yet.
    pub(crate) spool_dir: String,
    /// From this size of the spool on, new requests are refused.
    pub(crate) spool_max_bytes: String,
    /// From this age of the spool on, new requests are refused.
    pub(crate) spool_max_age: RawDuration,
    /// How long records are kept. 0 = for ever.
    pub(crate) retention: RawDuration,
    /// Which contents are recorded beside the figures.
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
            record: RawRecord::default(),
        }
    }
}

/// Which contents are recorded beside the figures.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawRecord {
    /// The user's own words.
    pub(crate) prompts: bool,
    /// Arguments of tool calls.
    pub(crate) tool_arguments: bool,
    /// Thinking, reasoning summaries and commentary.
    pub(crate) thoughts: bool,
}

impl Default for RawRecord {
    fn default() -> Self {
        Self { prompts: true, tool_arguments: true, thoughts: true }
    }
}

/// How callers show who they are.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawAuth {
    /// Whether a request may bring its own provider credential; a provider may say otherwise.
    pub(crate) allow_byok: bool,
    /// Headers that carry the bridge token of such a request.
    pub(crate) governance_headers: Vec<String>,
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
        }
    }
}

/// How connections to providers and MCP servers are made. Nothing else is connected to; redirects are not followed.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawEgress {
    /// File of certificates in PEM that are trusted beside the system's, such as a company's own authority.
    pub(crate) ca_bundle: String,
    /// Proxy for https addresses, which are reached by `CONNECT`: `http://host:port`, also `https`, also with `user:password@`; or where that is found: `{ env = "…" }`, `{ file = "…" }` or `{ value = "…" }`. Http addresses are reached directly. Default: none.
    pub(crate) proxy: Option<RawText>,
    /// Hosts that are reached without the proxy: names with all below them, addresses, networks such as `10.0.0.0/8`, or `*` for all.
    pub(crate) no_proxy: Vec<String>,
    /// Whether the proxy and its exceptions are taken from the environment variables `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, which have no effect otherwise.
    pub(crate) proxy_from_environment: bool,
}

/// One provider instance; everything below `/<name>` belongs to it.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawProvider {
    /// Unique name: lower-case letters, digits and single hyphens. Default: the type.
    pub(crate) name: Option<String>,
    /// `anthropic`, `openai`, `copilot` or `bedrock`.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// Address of the API, with a path if it has one. Default: the provider's public address.
    pub(crate) base_url: Option<String>,
    /// Central keys. One that the provider refuses (401, 403) or whose limit is reached (429) is left alone for a while, and the next one is used within the same request. Without any, requests must bring their own credential.
    pub(crate) keys: Vec<RawKey>,
    /// Which of several keys is used: `first` in their order, which keeps prompt caches warm, or `weighted`, by chance as their weights say.
    pub(crate) key_selection: String,
    /// Whose credentials are taken: `pool` for the central keys, `request` for the request's own. For addresses that take personal credentials only, such as `ChatGPT` subscriptions: `["request"]`.
    pub(crate) credentials: Vec<String>,
    /// Whether a request may bring its own credential. Default: `auth.allow_byok`.
    pub(crate) allow_byok: Option<bool>,
    /// Whether a request that announces its own credential and brings none may use the central key. Default: true.
    pub(crate) byok_fallback: Option<bool>,
    /// Whether the user's id and name are told to the provider in `X-AI-Bridge-Actor-*` headers.
    pub(crate) send_actor_headers: bool,
    /// Static headers of this instance; they replace a client's own.
    pub(crate) set_headers: BTreeMap<String, String>,
    /// Limits of each stage of an exchange.
    pub(crate) timeouts: RawTimeouts,
    /// Leaves the provider alone while it fails, each endpoint and model by itself; requests get 503 meanwhile. Default: off.
    pub(crate) circuit_breaker: Option<RawCircuitBreaker>,
    /// Name of another provider of the same type that is used while this one's circuit breaker is open or all its keys rest or were refused. For requests with central keys only. Default: none.
    pub(crate) fallback: Option<String>,
    /// File of certificates in PEM that are trusted for this provider, beside the system's and `egress.ca_bundle`.
    pub(crate) ca_bundle: String,
    /// Whether the name in `base_url` may stand for an address of a private network, as of a server in the company. Addresses in numbers and `localhost` always may.
    pub(crate) allow_private: bool,
    /// HTTP/2 towards the provider instead of HTTP/1.1.
    pub(crate) http2: bool,
    /// Folder for every upstream exchange as files, credentials masked. For debugging: the files hold prompts and answers.
    pub(crate) dump_dir: String,
    /// What is kept of such files in all; the oldest go first.
    pub(crate) dump_max_size: String,
    /// How long such files are kept.
    pub(crate) dump_max_age: RawDuration,
    /// How often a request is tried again before anything of an answer was relayed: after connection errors and the statuses 408, 409, 429, 500, 502, 503, 504 and 529. At most a fifth of all requests are.
    pub(crate) max_retries: u32,
    /// Settings of the type `bedrock`, and of no other.
    pub(crate) bedrock: Option<RawBedrock>,
}

impl Default for RawProvider {
    fn default() -> Self {
        Self {
            name: None,
            kind: None,
            base_url: None,
            keys: Vec::new(),
            key_selection: "first".into(),
            credentials: vec!["pool".into(), "request".into()],
            allow_byok: None,
            byok_fallback: None,
            send_actor_headers: false,
            set_headers: BTreeMap::new(),
            timeouts: RawTimeouts::default(),
            circuit_breaker: None,
            fallback: None,
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

/// When a circuit breaker opens. Failures are the statuses 429, 503, 504 and 529, connections that cannot be made, timeouts, and such errors within a stream; 429 only with central keys.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawCircuitBreaker {
    /// Failures in a row that open it.
    pub(crate) failures: u32,
    /// The time within which they come.
    pub(crate) interval: RawDuration,
    /// How long it stays open.
    pub(crate) open: RawDuration,
    /// Requests that pass on trial afterwards: if all succeed, it closes.
    pub(crate) trial_requests: u32,
}

impl Default for RawCircuitBreaker {
    fn default() -> Self {
        let text = |text: &str| RawDuration::Text(text.into());
        Self { failures: 5, interval: text("10s"), open: text("30s"), trial_requests: 3 }
    }
}

/// Anthropic's models on Amazon Bedrock, with AWS credentials: an access key, a profile, or AWS's default chain where neither is given.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawBedrock {
    /// The AWS region, such as `eu-central-1`.
    pub(crate) region: String,
    /// `runtime`: `InvokeModel`, for which requests are translated. `mantle`: the Messages API as it is.
    pub(crate) api: String,
    /// Model id, inference profile or its ARN for all requests, whatever model they name. Not with `mantle`.
    pub(crate) model: Option<String>,
    /// The same for requests whose model has `haiku` in its name. Default: `model`.
    pub(crate) small_fast_model: Option<String>,
    /// Id of an access key: a text, or where it is found: `{ env = "…" }`, `{ file = "…" }` or `{ value = "…" }`.
    pub(crate) access_key_id: Option<RawText>,
    /// The access key, in the same ways.
    pub(crate) secret_access_key: Option<RawText>,
    /// The session token of a temporary access key, in the same ways.
    pub(crate) session_token: Option<RawText>,
    /// A profile of AWS's shared files.
    pub(crate) profile: Option<String>,
    /// A role to take with these credentials.
    pub(crate) assume_role: Option<RawAssumeRole>,
    /// File that takes the place of the built-in rules on beta flags, fields and thinking.
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

/// An AWS role to take.
#[derive(Debug, Default, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawAssumeRole {
    /// Its ARN.
    pub(crate) arn: String,
    /// Name of the session in AWS's trail. Default: `keybridge`.
    pub(crate) session_name: Option<String>,
    /// What the role's owner asks for, if it is another account.
    pub(crate) external_id: Option<String>,
}

/// A central key, from one of three places.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawKey {
    /// Name in records. Default: `main`.
    pub(crate) name: Option<String>,
    /// How often the key is used among others with `key_selection = "weighted"`. Default: 1.
    pub(crate) weight: Option<u32>,
    /// Environment variable that holds the key.
    pub(crate) env: Option<String>,
    /// File that holds the key.
    pub(crate) file: Option<String>,
    /// The key itself; a file or variable is better kept.
    pub(crate) value: Option<RawSecret>,
}

/// Limits of each stage of an exchange.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawTimeouts {
    /// TCP and TLS.
    pub(crate) connect: RawDuration,
    /// From sending the request to the head of the answer.
    pub(crate) head: RawDuration,
    /// Silence within an answer.
    pub(crate) idle: RawDuration,
}

impl Default for RawTimeouts {
    fn default() -> Self {
        let text = |text: &str| RawDuration::Text(text.into());
        // Non-streaming calls may take 10 minutes; agents themselves give up a silent stream after
        // 300 s and more.
        Self { connect: text("10s"), head: text("600s"), idle: text("300s") }
    }
}

/// One MCP server, reached over streamable HTTP.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawMcpServer {
    /// Unique name: lower-case letters, digits and single hyphens. Models see its tools as `bmcp_<name>_<tool>`.
    pub(crate) name: String,
    /// Address of its endpoint, such as `http://127.0.0.1:3001/mcp`.
    pub(crate) url: String,
    /// Headers of each request to it: a text, or where the value is found: `{ env = "…" }`, `{ file = "…" }` or `{ value = "…" }`. An `Authorization` of one word is sent as `Bearer`.
    pub(crate) headers: BTreeMap<String, RawText>,
    /// File of certificates in PEM that are trusted for this server, beside the system's and `egress.ca_bundle`.
    pub(crate) ca_bundle: String,
    /// Whether the name in `url` may stand for an address of a private network. Addresses in numbers and `localhost` always may.
    pub(crate) allow_private: bool,
    /// Regular expression: of its tools only those whose own name matches.
    pub(crate) allow: Option<String>,
    /// Regular expression: none of its tools whose own name matches; wins over `allow`.
    pub(crate) deny: Option<String>,
    /// The provider instances whose requests get its tools, by name. Default: all.
    pub(crate) providers: Option<Vec<String>>,
}

/// A text that may be secret, or where it is found.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "a text, or a table with `env`, `file` or `value`")]
pub(crate) enum RawText {
    /// The value.
    Text(RawSecret),
    /// Where it is found.
    Source(RawSource),
}

/// Where a secret is found: exactly one of three places.
#[derive(Debug, Default, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawSource {
    /// Environment variable that holds it.
    pub(crate) env: Option<String>,
    /// File that holds it.
    pub(crate) file: Option<String>,
    /// The value itself.
    pub(crate) value: Option<RawSecret>,
}

/// How far injected tools may go.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawInjectedTools {
    /// How often the model may be asked again within one request; beyond it the answer ends with an error.
    pub(crate) max_turns: u32,
    /// Longest that one call may take; the model is told that it took too long.
    pub(crate) call_timeout: RawDuration,
    /// Longest result that the model gets; more is cut.
    pub(crate) max_result: String,
    /// Whether models may call several tools at once, if their client lets them. `false` switches it off in each request that gets tools; some models refuse that setting.
    pub(crate) parallel_calls: bool,
    /// Models whose name contains one of these get no tools: they serve agents' small side tasks.
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
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawTelemetry {
    /// Logs, written to standard error.
    pub(crate) log: RawLog,
    /// Address and port where `/metrics` is served to everybody. Empty: on the main listener, for
    /// administrators and for whoever asks from this machine.
    pub(crate) metrics_listen: String,
}

/// Logs, written to standard error.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawLog {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,keybridge_bridge=debug`.
    pub(crate) level: String,
    /// `text` or `json`.
    pub(crate) format: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { level: "info".into(), format: "text".into() }
    }
}

/// A duration: a number with `ms`, `s`, `m`, `h`, `d` or `w`, or 0.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "a duration such as \"30s\"")]
pub(crate) enum RawDuration {
    /// Such as `30s`.
    Text(String),
    /// Only 0 has no unit.
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
