//! Validates the raw configuration; finds all problems, not only the first.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use ipnet::IpNet;
use keybridge_bridge::config::RecordPolicy;
use keybridge_console::MetricsAccess;
use keybridge_ledger::{
    Durability, Ledger, LedgerOptions, OutagePolicy, ReadOptions, RetentionPolicy, SpoolConfig,
    parse,
    record::text::{ContentLimits, MAX_CONTENT_BYTES},
};
use keybridge_net::listener::{ConnectionLimits, ConnectionSettings};
use keybridge_policy::LimitsConfig;
use keybridge_providers::config::ProviderType;
use keybridge_telemetry::log::{LogConfig, LogFormat};
use secrecy::SecretString;

use super::{
    Config, OfflineCacheConfig, OfflineStart, Problem, Problems, Restart, permissions,
    raw::{
        RawConfig, RawDuration, RawKey, RawLedger, RawLimits, RawLog, RawRecord, RawSource,
        RawStore,
    },
    settings::Settings,
    units,
};
use crate::env::Env;

mod bedrock;
mod certificates;
mod egress;
mod providers;
mod tools;
mod vendors;

/// Maximum pause between two pieces of a request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The offline cache's file in the directory of the spool.
const OFFLINE_CACHE: &str = "offline-cache.json";

/// First path segments that no provider may use as its name.
const RESERVED: &[&str] =
    &["api", "auth", "scim", "v1", "healthz", "readyz", "metrics", "console", "assets"];

/// Collects problems while validation continues with a placeholder.
struct Check<'a> {
    env: &'a Env,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

pub(super) fn validate(
    raw: RawConfig,
    env: &Env,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
) -> Result<Config, Problems> {
    let restart = Restart::of(&raw);
    let mut check = Check { env, problems, warnings };
    let listen = check.parsed("server.listen", &raw.server.listen, "an address with a port");
    let max_body = check.unit("server.max_body", units::size(&raw.server.max_body));
    let max_upload = check.unit("server.max_upload", units::size(&raw.server.max_upload));
    let limits = check.limits(&raw.limits, raw.server.max_concurrent_requests, max_body);
    let min_body_rate = check.rate("server.min_body_rate", &raw.server.min_body_rate);
    let trusted_proxies = check.networks("server.trusted_proxies", &raw.server.trusted_proxies);
    let shutdown_grace = check.duration("server.shutdown_grace", &raw.server.shutdown_grace);
    let keep_alive = check.limit("server.keep_alive", &raw.server.keep_alive);
    let retention = check.retention(&raw.ledger);
    let ledger = check.ledger(&raw.ledger);
    let reads = check.store(&raw.store);
    let offline_cache = check.offline_cache(&raw);
    let metrics_listen = match raw.telemetry.metrics_listen.as_str() {
        "" => None,
        text => check.parsed("telemetry.metrics_listen", text, "an address with a port"),
    };
    let governance_headers = check.governance_headers(&raw.auth.governance_headers);
    let egress = check.egress(raw.egress);
    let providers = check.providers(raw.providers, raw.auth.allow_byok, &egress);
    let tools = check.tools(raw.mcp_servers, &raw.injected_tools, &providers, &egress);
    let log = check.log(raw.telemetry.log);
    let record = check.record(&raw.ledger.record);
    let tls = raw.server.tls.and_then(|tls| check.tls("server.tls", &tls));
    let public_url = check.public_url(raw.server.public_url, &raw.server.listen, tls.is_some());
    if !check.problems.is_empty() {
        return Err(Problems(check.problems));
    }
    Ok(Config {
        listen: listen.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()),
        public_url,
        max_body,
        max_upload,
        body_timeout: BODY_TIMEOUT,
        min_body_rate,
        shutdown_grace,
        reuse_port: raw.server.reuse_port,
        connections: ConnectionSettings {
            keep_alive,
            idle_stream_handoff: raw.server.idle_stream_handoff,
        },
        connection_limits: ConnectionLimits {
            max_connections: raw.limits.max_connections,
            max_per_address: raw.limits.max_connections_per_address,
            trusted_proxies,
        },
        tls,
        limits,
        trust_forwarded_headers: raw.server.trust_forwarded_headers,
        store_is_named: raw.store.url != RawStore::default().url,
        store_url: raw.store.url,
        ledger: LedgerOptions { reads, ..ledger },
        metrics_listen,
        metrics_access: match (metrics_listen, raw.telemetry.metrics_local) {
            (None, true) => MetricsAccess::Local,
            // With a listener of their own they need not be open on the main one.
            (Some(_), _) | (None, false) => MetricsAccess::TokenOnly,
        },
        retention,
        record,
        governance_headers,
        offline_cache,
        providers,
        tools,
        log,
        restart,
        settings: Settings::default(),
        warnings: check.warnings,
    })
}

impl Check<'_> {
    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), message: message.into() });
    }

    fn warning(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem { path: path.into(), message: message.into() });
    }

    fn parsed<T: std::str::FromStr>(&mut self, path: &str, text: &str, what: &str) -> Option<T> {
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(path, format!("`{text}` is not {what}"));
        }
        value
    }

    fn unit<T: Default>(&mut self, path: &str, value: Result<T, impl ToString>) -> T {
        value.unwrap_or_else(|error| {
            self.problem(path, error.to_string());
            T::default()
        })
    }

    /// Bytes per second; none for 0.
    fn rate(&mut self, path: &str, text: &str) -> Option<NonZeroU32> {
        if text.trim() == "0" {
            return None;
        }
        let rate = units::size(text).and_then(|bytes| {
            u32::try_from(bytes).map_err(|_large| format!("`{text}` is more than 4 GiB"))
        });
        NonZeroU32::new(self.unit(path, rate))
    }

    /// Networks such as `10.0.0.0/8`, and single addresses.
    fn networks(&mut self, path: &str, texts: &[String]) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let address = || text.parse().map(|address: IpAddr| address.into());
            match text.parse().or_else(|_no_network| address()) {
                Ok(network) => networks.push(network),
                Err(_invalid) => self.problem(
                    format!("{path}[{at}]"),
                    format!("`{text}` is not an IP address or a network such as 10.0.0.0/8"),
                ),
            }
        }
        networks
    }

    fn duration(&mut self, path: &str, raw: &RawDuration) -> Duration {
        let text = match raw {
            RawDuration::Text(text) => text.clone(),
            RawDuration::Number(number) => number.to_string(),
        };
        self.unit(path, parse::duration(&text))
    }

    fn ledger(&mut self, raw: &RawLedger) -> LedgerOptions {
        let on_outage = match raw.on_outage.as_str() {
            "refuse" => OutagePolicy::Refuse,
            "spool" => OutagePolicy::Spool,
            other => {
                self.problem("ledger.on_outage", format!("`{other}` is not `refuse` or `spool`"));
                OutagePolicy::Refuse
            }
        };
        let durability = match raw.durability.as_str() {
            "disk" => Durability::Disk,
            "process" => Durability::Process,
            other => {
                self.problem("ledger.durability", format!("`{other}` is not `disk` or `process`"));
                Durability::Disk
            }
        };
        if raw.spool_dir.is_empty() {
            self.problem("ledger.spool_dir", "is empty");
        }
        let max_bytes = self.unit("ledger.spool_max_bytes", units::size(&raw.spool_max_bytes));
        let spool = SpoolConfig {
            dir: PathBuf::from(&raw.spool_dir),
            max_bytes: u64::try_from(max_bytes).unwrap_or(u64::MAX),
            max_age: self.duration("ledger.spool_max_age", &raw.spool_max_age),
        };
        LedgerOptions { on_outage, spool: Some(spool), durability, ..LedgerOptions::default() }
    }

    fn retention(&mut self, raw: &RawLedger) -> RetentionPolicy {
        let keep = self.duration("ledger.retention", &raw.retention);
        let max_fraction = raw.retention_max_fraction;
        if !(0.0..=1.0).contains(&max_fraction) {
            self.problem("ledger.retention_max_fraction", "must be from 0 to 1");
        }
        RetentionPolicy { keep: (!keep.is_zero()).then_some(keep), max_fraction }
    }

    fn offline_cache(&mut self, raw: &RawConfig) -> OfflineCacheConfig {
        let file = PathBuf::from(&raw.ledger.spool_dir).join(OFFLINE_CACHE);
        if !raw.auth.offline_cache {
            return OfflineCacheConfig { file, start: OfflineStart::Refused };
        }
        let path = "auth.offline_cache";
        if raw.store.url.starts_with("sqlite:") {
            self.warning(
                path,
                "has no effect with a SQLite store, which is a file of this machine",
            );
        } else if raw.ledger.on_outage != "spool" {
            self.warning(path, "has no effect without `ledger.on_outage = \"spool\"`");
        } else {
            return OfflineCacheConfig { file, start: OfflineStart::Allowed };
        }
        OfflineCacheConfig { file, start: OfflineStart::Refused }
    }

    fn store(&mut self, store: &RawStore) -> ReadOptions {
        if !(1..=1_000).contains(&store.max_connections) {
            self.problem("store.max_connections", "must be from 1 to 1000");
        }
        let timeout = self.limit("store.read_timeout", &store.read_timeout);
        if let Err(error) = Ledger::check_url(&store.url) {
            self.problem("store.url", error.to_string());
        } else if let Some(file) = store.url.strip_prefix("sqlite://") {
            self.sqlite_file(file);
        }
        ReadOptions { max_concurrent: store.max_connections, timeout, ..ReadOptions::default() }
    }

    fn sqlite_file(&mut self, file: &str) {
        if let Err(error) = check_creatable(Path::new(file)) {
            self.problem("store.url", format!("cannot write `{file}`: {error}"));
        }
    }

    fn public_url(&mut self, given: Option<String>, listen: &str, is_tls: bool) -> String {
        let scheme = if is_tls { "https" } else { "http" };
        let url = given.unwrap_or_else(|| format!("{scheme}://{listen}"));
        if self.address("server.public_url", &url).is_none() {
            return String::new();
        }
        url.trim_end_matches('/').to_owned()
    }

    /// An http or https URL without user, query and fragment.
    fn address(&mut self, path: &str, text: &str) -> Option<Uri> {
        let uri: Option<Uri> = text.parse().ok();
        let is_good = uri.as_ref().is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && uri.query().is_none()
                && !text.contains('#')
        });
        if is_good {
            return uri;
        }
        self.problem(path, "must be an http or https URL without user, query and fragment");
        None
    }

    fn governance_headers(&mut self, names: &[String]) -> Vec<HeaderName> {
        let path = "auth.governance_headers";
        if names.is_empty() {
            self.problem(path, "must name at least one header");
        }
        let mut headers = Vec::new();
        for name in names {
            match name.parse::<HeaderName>() {
                Ok(name) if matches!(name.as_str(), "authorization" | "x-api-key") => {
                    self.problem(path, format!("`{name}` is reserved for provider credentials"));
                }
                Ok(name) => headers.push(name),
                Err(_invalid) => self.problem(path, format!("`{name}` is not a header name")),
            }
        }
        headers
    }

    fn limits(&mut self, raw: &RawLimits, concurrent: usize, max_body: usize) -> LimitsConfig {
        let path = "limits.body_memory";
        let body_memory = self.unit(path, units::size(&raw.body_memory));
        if body_memory < max_body {
            self.problem(path, "must not be less than `server.max_body`");
        }
        if raw.burst > 0 && raw.requests_per_second == 0 {
            self.problem("limits.burst", "has no effect without `requests_per_second`");
        }
        LimitsConfig {
            concurrent_requests: concurrent,
            concurrent_requests_per_user: raw.max_concurrent_requests_per_user,
            requests_per_second: raw.requests_per_second,
            burst: raw.burst,
            body_memory,
        }
    }

    fn record(&mut self, raw: &RawRecord) -> RecordPolicy {
        let mut limit = |name: &str, text: &str| {
            let path = format!("ledger.record.{name}");
            let limit = self.unit(&path, units::size(text));
            if limit > MAX_CONTENT_BYTES {
                self.problem(
                    path,
                    format!("must not be more than {} MiB", MAX_CONTENT_BYTES >> 20),
                );
            }
            limit
        };
        RecordPolicy {
            prompts: raw.prompts,
            tool_arguments: raw.tool_arguments,
            thoughts: raw.thoughts,
            tool_results: raw.tool_results,
            answers: raw.answers,
            contents: ContentLimits {
                prompt: limit("max_prompt", &raw.max_prompt),
                arguments: limit("max_tool_arguments", &raw.max_tool_arguments),
                thought: limit("max_thought", &raw.max_thought),
                result: limit("max_tool_result", &raw.max_tool_result),
                answer: limit("max_answer", &raw.max_answer),
            },
        }
    }

    fn log(&mut self, raw: RawLog) -> LogConfig {
        let format = match raw.format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                self.problem("telemetry.log.format", format!("`{other}` is not `text` or `json`"));
                LogFormat::Text
            }
        };
        if let Err(error) = raw.level.parse::<tracing_subscriber::EnvFilter>() {
            self.problem("telemetry.log.level", format!("`{}`: {error}", raw.level));
        }
        LogConfig { level: raw.level, format, lines_per_second: raw.lines_per_second }
    }

    /// A duration that must not be zero.
    fn limit(&mut self, path: &str, raw: &RawDuration) -> Duration {
        let before = self.problems.len();
        let limit = self.duration(path, raw);
        if limit.is_zero() && self.problems.len() == before {
            self.problem(path, "must not be 0");
        }
        limit
    }

    fn name(
        &mut self,
        path: &str,
        name: Option<String>,
        kind: Option<ProviderType>,
    ) -> Option<String> {
        let name = name.or_else(|| kind.map(|kind| kind.as_str().into()))?;
        if RESERVED.contains(&name.as_str()) {
            self.problem(path, format!("`{name}` is reserved: choose another name"));
        } else {
            self.words(path, &name);
        }
        Some(name)
    }

    /// A name that can be part of a path.
    fn words(&mut self, path: &str, name: &str) {
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if !name.split('-').all(is_word) {
            let rule = "lower-case letters, digits and single hyphens";
            self.problem(path, format!("`{name}` may contain only {rule}"));
        }
    }

    /// A key, which must be a valid header value.
    fn secret(&mut self, path: &str, raw: RawKey) -> Option<SecretString> {
        let RawKey { env, file, value, .. } = raw;
        let text = self.source(path, RawSource { env, file, value })?;
        let text = text.trim();
        if text.is_empty() || HeaderValue::from_str(text).is_err() || text.contains(' ') {
            self.problem(path, "the key is empty or contains spaces or control characters");
            return None;
        }
        Some(SecretString::from(text))
    }

    /// Reads a secret from the one source that is given.
    fn source(&mut self, path: &str, raw: RawSource) -> Option<String> {
        match (raw.env, raw.file, raw.value) {
            (Some(name), None, None) => {
                let value = self.env.value(&name).map(str::to_owned);
                if value.is_none() {
                    self.problem(
                        format!("{path}.env"),
                        format!("the environment variable {name} is not set"),
                    );
                }
                value
            }
            (None, Some(file), None) => match std::fs::read_to_string(&file) {
                Ok(text) => {
                    self.secret_file(&format!("{path}.file"), &file);
                    Some(text)
                }
                Err(error) => {
                    self.problem(format!("{path}.file"), format!("cannot read `{file}`: {error}"));
                    None
                }
            },
            (None, None, Some(value)) => Some(value.0),
            _ => {
                self.problem(path, "needs exactly one of `env`, `file` and `value`");
                None
            }
        }
    }

    /// Warns about a file with a secret that every user of this machine can read.
    fn secret_file(&mut self, path: &str, file: &str) {
        if let Some(mode) = permissions::world_readable(Path::new(file)) {
            let message = format!("every user of this machine can read `{file}` (mode {mode})");
            self.warning(path, message);
        }
    }

    fn header(&mut self, path: &str, name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
        let (header, value) = (name.parse::<HeaderName>(), HeaderValue::from_str(value));
        if header.is_err() {
            self.problem(path, "is not a header name");
        } else if value.is_err() {
            self.problem(path, "the value contains characters that a header must not contain");
        }
        Some((header.ok()?, value.ok()?))
    }
}

/// Checks that a file exists or can be created; creates nothing.
fn check_creatable(file: &Path) -> std::io::Result<()> {
    if file.exists() {
        return Ok(());
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    tempfile::tempfile_in(dir.unwrap_or(Path::new("."))).map(drop)
}
