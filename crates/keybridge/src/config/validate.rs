//! From the raw configuration to the validated one; every problem is found, not only the first.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use keybridge_bridge::{
    bedrock::BedrockConfig,
    config::{
        BreakerConfig, DumpConfig, Key, KeySelection, LimitsConfig, ProviderConfig, ProviderType,
        RecordPolicy, Timeouts, ToolsConfig,
    },
    mcp::McpServerConfig,
};
use keybridge_ledger::{Ledger, LedgerOptions, OutagePolicy, SpoolConfig};
use regex::Regex;
use secrecy::SecretString;

use super::{
    Config, Log, LogFormat, Problem, Problems,
    raw::{
        RawBedrock, RawCircuitBreaker, RawConfig, RawDuration, RawHeader, RawInjectedTools, RawKey,
        RawLedger, RawLimits, RawLog, RawMcpServer, RawProvider, RawSource, RawStore, RawTimeouts,
    },
    units,
};
use crate::env::Env;

mod bedrock;

/// First path segments that are not providers'.
const RESERVED: [&str; 6] = ["api", "healthz", "readyz", "metrics", "console", "assets"];

/// Most retries of a request: each may wait for a minute.
const MOST_RETRIES: u32 = 10;
/// Longest name of an MCP server: it is part of its tools' names, which have 64 characters.
const MCP_NAME_CHARS: usize = 32;
/// Longest wait for a connection to an MCP server.
const MCP_CONNECT_TIME: Duration = Duration::from_secs(10);

/// Where problems are gathered while validation goes on with a stand-in.
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
    let mut check = Check { env, problems, warnings };
    let listen = check.parsed("server.listen", &raw.server.listen, "an address with a port");
    let max_body = check.unit("server.max_body", units::size(&raw.server.max_body));
    let limits = check.limits(&raw.limits, raw.server.max_concurrent_requests, max_body);
    let shutdown_grace = check.duration("server.shutdown_grace", &raw.server.shutdown_grace);
    let retention = check.duration("ledger.retention", &raw.ledger.retention);
    let ledger = check.outage(&raw.ledger);
    check.store(&raw.store);
    let metrics_listen = match raw.telemetry.metrics_listen.as_str() {
        "" => None,
        text => check.parsed("telemetry.metrics_listen", text, "an address with a port"),
    };
    let governance_headers = check.governance_headers(&raw.auth.governance_headers);
    let providers = check.providers(raw.providers, raw.auth.allow_byok);
    let tools = check.tools(raw.mcp_servers, &raw.injected_tools, &providers);
    let log = check.log(raw.telemetry.log);
    let public_url = check.public_url(raw.server.public_url, &raw.server.listen);
    if !check.problems.is_empty() {
        return Err(Problems(check.problems));
    }
    let record = raw.ledger.record;
    Ok(Config {
        listen: listen.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()),
        public_url,
        max_body,
        shutdown_grace,
        limits,
        trust_forwarded_headers: raw.server.trust_forwarded_headers,
        store_url: raw.store.url,
        ledger: LedgerOptions { max_connections: raw.store.max_connections, ..ledger },
        metrics_listen,
        retention: (!retention.is_zero()).then_some(retention),
        record: RecordPolicy {
            prompts: record.prompts,
            tool_arguments: record.tool_arguments,
            thoughts: record.thoughts,
        },
        governance_headers,
        providers,
        tools,
        log,
        warnings: check.warnings,
    })
}

impl Check<'_> {
    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), message: message.into() });
    }

    fn parsed<T: std::str::FromStr>(&mut self, path: &str, text: &str, what: &str) -> Option<T> {
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(path, format!("`{text}` is not {what}"));
        }
        value
    }

    fn unit<T: Default>(&mut self, path: &str, value: Result<T, String>) -> T {
        value.unwrap_or_else(|message| {
            self.problem(path, message);
            T::default()
        })
    }

    fn duration(&mut self, path: &str, raw: &RawDuration) -> Duration {
        let text = match raw {
            RawDuration::Text(text) => text.clone(),
            RawDuration::Number(number) => number.to_string(),
        };
        self.unit(path, units::duration(&text))
    }

    fn outage(&mut self, raw: &RawLedger) -> LedgerOptions {
        let on_outage = match raw.on_outage.as_str() {
            "refuse" => OutagePolicy::Refuse,
            "spool" => OutagePolicy::Spool,
            other => {
                self.problem("ledger.on_outage", format!("`{other}` is not `refuse` or `spool`"));
                OutagePolicy::Refuse
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
        LedgerOptions { on_outage, spool: Some(spool), ..LedgerOptions::default() }
    }

    fn store(&mut self, store: &RawStore) {
        if !(2..=1_000).contains(&store.max_connections) {
            self.problem("store.max_connections", "is not from 2 to 1000");
        }
        if let Err(error) = Ledger::check_url(&store.url) {
            self.problem("store.url", error.to_string());
            return;
        }
        let Some(file) = store.url.strip_prefix("sqlite://") else { return };
        if let Err(error) = writable(Path::new(file)) {
            let advice = "name a file in a directory that keybridge can write";
            self.problem("store.url", format!("`{file}` cannot be written: {error}; {advice}"));
        }
    }

    fn public_url(&mut self, given: Option<String>, listen: &str) -> String {
        let url = given.unwrap_or_else(|| format!("http://{listen}"));
        if self.address("server.public_url", &url).is_none() {
            return String::new();
        }
        url.trim_end_matches('/').to_owned()
    }

    /// An http or https address without credentials, query or fragment.
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
        self.problem(path, "is no http or https address without user, query and fragment");
        None
    }

    fn governance_headers(&mut self, names: &[String]) -> Vec<HeaderName> {
        let path = "auth.governance_headers";
        if names.is_empty() {
            self.problem(path, "names no header");
        }
        let mut headers = Vec::new();
        for name in names {
            match name.parse::<HeaderName>() {
                Ok(name) if matches!(name.as_str(), "authorization" | "x-api-key") => {
                    self.problem(path, format!("`{name}` is the place of provider credentials"));
                }
                Ok(name) => headers.push(name),
                Err(_invalid) => self.problem(path, format!("`{name}` is no header name")),
            }
        }
        headers
    }

    fn limits(&mut self, raw: &RawLimits, concurrent: usize, max_body: usize) -> LimitsConfig {
        let path = "limits.body_memory";
        let body_memory = self.unit(path, units::size(&raw.body_memory));
        if body_memory < max_body {
            self.problem(path, "is less than `server.max_body`: the largest body would not fit");
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

    fn log(&mut self, raw: RawLog) -> Log {
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
        Log { level: raw.level, format }
    }

    fn providers(
        &mut self,
        raw: Option<Vec<RawProvider>>,
        allow_byok: bool,
    ) -> Vec<ProviderConfig> {
        // They are missing only where a problem took them out.
        let Some(raw) = raw else { return Vec::new() };
        if raw.is_empty() {
            self.problem("providers", "there is none");
        }
        let mut providers: Vec<ProviderConfig> = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("providers[{index}]");
            let Some(provider) = self.provider(&path, raw, allow_byok) else { continue };
            if providers.iter().any(|other| other.name == provider.name) {
                self.problem(format!("{path}.name"), format!("`{}` is taken", provider.name));
            }
            providers.push(provider);
        }
        for (index, provider) in providers.iter().enumerate() {
            self.fallback(&format!("providers[{index}].fallback"), provider, &providers);
        }
        providers
    }

    fn fallback(&mut self, path: &str, provider: &ProviderConfig, all: &[ProviderConfig]) {
        let Some(name) = &provider.fallback else { return };
        match all.iter().find(|other| other.name == *name) {
            None => self.problem(path, format!("there is no provider `{name}`")),
            Some(other) if other.name == provider.name => {
                self.problem(path, "is the provider itself");
            }
            Some(other) if other.kind != provider.kind => {
                self.problem(path, format!("`{name}` is not of the type `{}`", provider.kind));
            }
            Some(other) if other.keys.is_empty() && other.bedrock.is_none() => {
                self.problem(path, format!("`{name}` has no keys"));
            }
            Some(_fits) => {}
        }
    }

    fn circuit_breaker(&mut self, path: &str, raw: &RawCircuitBreaker) -> BreakerConfig {
        for (name, number) in [("failures", raw.failures), ("trial_requests", raw.trial_requests)] {
            if number == 0 {
                self.problem(format!("{path}.{name}"), "is 0");
            }
        }
        BreakerConfig {
            failures: raw.failures,
            interval: self.limit(&format!("{path}.interval"), &raw.interval),
            open: self.limit(&format!("{path}.open"), &raw.open),
            trial_requests: raw.trial_requests,
        }
    }

    fn provider(
        &mut self,
        path: &str,
        raw: RawProvider,
        allow_byok: bool,
    ) -> Option<ProviderConfig> {
        let kind = self.kind(&format!("{path}.type"), raw.kind.as_deref());
        let name = self.name(&format!("{path}.name"), raw.name, kind);
        let bedrock = self.only_bedrock(&format!("{path}.bedrock"), raw.bedrock, kind);
        let base_url = match (&raw.base_url, kind) {
            (Some(url), _) => self.address(&format!("{path}.base_url"), url),
            (None, Some(ProviderType::Bedrock)) => {
                bedrock.as_ref().and_then(bedrock::public_address)
            }
            (None, Some(kind)) => public_address(kind).parse().ok(),
            (None, None) => None,
        };
        let keys = self.keys(&format!("{path}.keys"), raw.keys);
        if kind == Some(ProviderType::Copilot) && !keys.is_empty() {
            let message = "GitHub Copilot is used with each user's own token, never with a key";
            self.problem(format!("{path}.keys"), message);
        }
        let key_selection = match raw.key_selection.as_str() {
            "first" => KeySelection::First,
            "weighted" => KeySelection::Weighted,
            other => {
                let message = format!("`{other}` is not `first` or `weighted`");
                self.problem(format!("{path}.key_selection"), message);
                KeySelection::First
            }
        };
        self.credentials(&format!("{path}.credentials"), &raw.credentials, !keys.is_empty());
        let takes = |whose: &str| raw.credentials.iter().any(|taken| taken == whose);
        if kind == Some(ProviderType::Bedrock) && !keys.is_empty() {
            let message = "Amazon Bedrock is used with AWS credentials: see `bedrock`";
            self.problem(format!("{path}.keys"), message);
        }
        let set_headers = self.set_headers(&format!("{path}.set_headers"), raw.set_headers);
        let timeouts = self.timeouts(&format!("{path}.timeouts"), &raw.timeouts);
        if raw.max_retries > MOST_RETRIES {
            self.problem(format!("{path}.max_retries"), format!("is over {MOST_RETRIES}"));
        }
        if kind == Some(ProviderType::Bedrock) && bedrock.is_none() {
            return None;
        }
        let max_size = units::size(&raw.dump_max_size);
        let dump = DumpConfig {
            dir: PathBuf::from(&raw.dump_dir),
            max_bytes: u64::try_from(self.unit(&format!("{path}.dump_max_size"), max_size))
                .unwrap_or(u64::MAX),
            max_age: self.limit(&format!("{path}.dump_max_age"), &raw.dump_max_age),
        };
        let circuit_breaker = raw
            .circuit_breaker
            .map(|breaker| self.circuit_breaker(&format!("{path}.circuit_breaker"), &breaker));
        Some(ProviderConfig {
            name: name?,
            kind: kind?,
            base_url: base_url?,
            keys,
            key_selection,
            allow_central: takes("pool"),
            allow_byok: takes("request") && raw.allow_byok.unwrap_or(allow_byok),
            byok_fallback: raw.byok_fallback.unwrap_or(true),
            send_actor_headers: raw.send_actor_headers,
            set_headers,
            circuit_breaker,
            fallback: raw.fallback,
            max_retries: raw.max_retries,
            timeouts,
            http2: raw.http2,
            dump: (!raw.dump_dir.is_empty()).then_some(dump),
            bedrock,
        })
    }

    /// The settings of Bedrock, where they belong.
    fn only_bedrock(
        &mut self,
        path: &str,
        raw: Option<RawBedrock>,
        kind: Option<ProviderType>,
    ) -> Option<BedrockConfig> {
        match (kind, &raw) {
            (Some(ProviderType::Bedrock), _) => self.bedrock(path, raw),
            (Some(kind), Some(_)) => {
                self.problem(path, format!("a provider of the type {kind} has no such settings"));
                None
            }
            _ => None,
        }
    }

    fn tools(
        &mut self,
        raw: Vec<RawMcpServer>,
        limits: &RawInjectedTools,
        providers: &[ProviderConfig],
    ) -> ToolsConfig {
        let path = "injected_tools";
        let timeout = self.limit(&format!("{path}.call_timeout"), &limits.call_timeout);
        let max_result = self.unit(&format!("{path}.max_result"), units::size(&limits.max_result));
        if limits.skip_models.iter().any(String::is_empty) {
            self.problem(format!("{path}.skip_models"), "an empty text is part of every name");
        }
        let mut servers: Vec<McpServerConfig> = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("mcp_servers[{index}]");
            if servers.iter().any(|other| other.name == raw.name) {
                self.problem(format!("{path}.name"), format!("`{}` is taken", raw.name));
            }
            for name in raw.providers.iter().flatten() {
                if !providers.iter().any(|provider| provider.name == *name) {
                    let message = format!("there is no provider `{name}`");
                    self.problem(format!("{path}.providers"), message);
                }
            }
            let server = self.mcp_server(&path, raw);
            servers.extend(server.map(|server| McpServerConfig {
                call_timeout: timeout,
                max_result,
                ..server
            }));
        }
        let skip_models = limits.skip_models.iter().map(|model| model.to_lowercase()).collect();
        if !(1..=1_000).contains(&limits.max_turns) {
            self.problem(format!("{path}.max_turns"), "is not from 1 to 1000");
        }
        let RawInjectedTools { max_turns, parallel_calls, .. } = *limits;
        ToolsConfig { servers, max_turns, parallel_calls, skip_models }
    }

    fn mcp_server(&mut self, path: &str, raw: RawMcpServer) -> Option<McpServerConfig> {
        self.words(&format!("{path}.name"), &raw.name);
        if raw.name.len() > MCP_NAME_CHARS {
            let message = format!("is longer than {MCP_NAME_CHARS} characters");
            self.problem(format!("{path}.name"), message);
        }
        let url = self.mcp_address(&format!("{path}.url"), &raw.url);
        let headers = self.mcp_headers(&format!("{path}.headers"), raw.headers);
        let allow = self.pattern(&format!("{path}.allow"), raw.allow.as_deref());
        let deny = self.pattern(&format!("{path}.deny"), raw.deny.as_deref());
        Some(McpServerConfig {
            name: raw.name,
            url: url?,
            headers,
            allow,
            deny,
            providers: raw.providers,
            call_timeout: Duration::ZERO,
            connect_timeout: MCP_CONNECT_TIME,
            max_result: 0,
        })
    }

    /// An http or https address without credentials and fragment; some servers are told by a query.
    fn mcp_address(&mut self, path: &str, text: &str) -> Option<Uri> {
        let (address, _query) = text.split_once('?').unwrap_or((text, ""));
        self.address(path, address)?;
        let uri = text.parse().ok();
        if uri.is_none() || text.contains('#') {
            self.problem(path, "is no http or https address without user and fragment");
        }
        uri
    }

    fn mcp_headers(
        &mut self,
        path: &str,
        raw: std::collections::BTreeMap<String, RawHeader>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, value) in raw {
            let path = format!("{path}.{name}");
            let text = match value {
                RawHeader::Text(text) => Some(text.0),
                RawHeader::Source(source) => self.source(&path, source),
            };
            let Some(text) = text else { continue };
            let text = text.trim();
            let is_bare = name.eq_ignore_ascii_case("authorization") && !text.contains(' ');
            let text = if is_bare { format!("Bearer {text}") } else { text.to_owned() };
            headers.extend(self.header(&path, &name, &text).map(|(name, mut value)| {
                value.set_sensitive(true);
                (name, value)
            }));
        }
        headers
    }

    fn pattern(&mut self, path: &str, text: Option<&str>) -> Option<Regex> {
        match Regex::new(text?) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                // The error draws the pattern over several lines; the last one says what is wrong.
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.problem(path, format!("is no regular expression: {reason}"));
                None
            }
        }
    }

    /// A duration that may not be endless.
    fn limit(&mut self, path: &str, raw: &RawDuration) -> Duration {
        let before = self.problems.len();
        let limit = self.duration(path, raw);
        if limit.is_zero() && self.problems.len() == before {
            self.problem(path, "every wait needs a limit");
        }
        limit
    }

    fn kind(&mut self, path: &str, kind: Option<&str>) -> Option<ProviderType> {
        match kind {
            Some("anthropic") => return Some(ProviderType::Anthropic),
            Some("openai") => return Some(ProviderType::OpenAi),
            Some("copilot") => return Some(ProviderType::Copilot),
            Some("bedrock") => return Some(ProviderType::Bedrock),
            Some(other) => {
                self.problem(
                    path,
                    format!("`{other}` is not anthropic, openai, copilot or bedrock"),
                );
            }
            None => self.problem(path, "is missing: anthropic, openai, copilot or bedrock"),
        }
        None
    }

    fn name(
        &mut self,
        path: &str,
        name: Option<String>,
        kind: Option<ProviderType>,
    ) -> Option<String> {
        let name = name.or_else(|| kind.map(|kind| kind.as_str().into()))?;
        if RESERVED.contains(&name.as_str()) {
            self.problem(path, format!("`{name}` is reserved"));
        } else {
            self.words(path, &name);
        }
        Some(name)
    }

    /// A name that can stand in a path.
    fn words(&mut self, path: &str, name: &str) {
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if !name.split('-').all(is_word) {
            let rule = "lower-case letters, digits and single hyphens";
            self.problem(path, format!("`{name}` is not made of {rule}"));
        }
    }

    /// Whose credentials a provider takes.
    fn credentials(&mut self, path: &str, raw: &[String], has_keys: bool) {
        if raw.is_empty() {
            self.problem(path, "is empty: no request could be made");
        }
        for other in raw.iter().filter(|whose| !matches!(whose.as_str(), "pool" | "request")) {
            self.problem(path, format!("`{other}` is not `pool` or `request`"));
        }
        if has_keys && !raw.iter().any(|whose| whose == "pool") {
            self.problem(path, "there are keys, which are not used without `pool`");
        }
    }

    fn keys(&mut self, path: &str, raw: Vec<RawKey>) -> Vec<Key> {
        let mut keys: Vec<Key> = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let name = raw.name.clone().unwrap_or_else(|| "main".into());
            if keys.iter().any(|key| key.name == name) {
                self.problem(format!("{path}.name"), format!("`{name}` is taken"));
            }
            let weight = raw.weight.unwrap_or(1);
            if weight == 0 {
                self.problem(format!("{path}.weight"), "is 0: the key would never be used");
            }
            match self.secret(&path, raw) {
                Some(value) => keys.push(Key { name, value, weight }),
                None => continue,
            }
        }
        keys
    }

    /// The key itself; it goes into a header, so that it must fit in one.
    fn secret(&mut self, path: &str, raw: RawKey) -> Option<SecretString> {
        let RawKey { env, file, value, .. } = raw;
        let text = self.source(path, RawSource { env, file, value })?;
        let text = text.trim();
        if text.is_empty() || HeaderValue::from_str(text).is_err() || text.contains(' ') {
            self.problem(path, "the key is empty or holds characters that no key has");
            return None;
        }
        Some(SecretString::from(text))
    }

    /// The text of a secret, from the one place that is named.
    fn source(&mut self, path: &str, raw: RawSource) -> Option<String> {
        match (raw.env, raw.file, raw.value) {
            (Some(name), None, None) => {
                let value = self.env.value(&name).map(str::to_owned);
                if value.is_none() {
                    self.problem(format!("{path}.env"), format!("the variable {name} is not set"));
                }
                value
            }
            (None, Some(file), None) => match std::fs::read_to_string(&file) {
                Ok(text) => Some(text),
                Err(error) => {
                    self.problem(format!("{path}.file"), format!("`{file}`: {error}"));
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

    fn header(&mut self, path: &str, name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
        let (header, value) = (name.parse::<HeaderName>(), HeaderValue::from_str(value));
        if header.is_err() {
            self.problem(path, "is no header name");
        } else if value.is_err() {
            self.problem(path, "the value is no header value");
        }
        Some((header.ok()?, value.ok()?))
    }

    fn set_headers(
        &mut self,
        path: &str,
        raw: std::collections::BTreeMap<String, String>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, value) in raw {
            headers.extend(self.header(&format!("{path}.{name}"), &name, &value));
        }
        headers
    }

    fn timeouts(&mut self, path: &str, raw: &RawTimeouts) -> Timeouts {
        let mut limit = |name: &str, raw: &RawDuration| self.limit(&format!("{path}.{name}"), raw);
        Timeouts {
            connect: limit("connect", &raw.connect),
            head: limit("head", &raw.head),
            idle: limit("idle", &raw.idle),
        }
    }
}

/// Whether a file can be written, or made where there is none; nothing is left behind.
fn writable(file: &Path) -> std::io::Result<()> {
    if file.exists() {
        return std::fs::OpenOptions::new().append(true).open(file).map(drop);
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    tempfile::tempfile_in(dir.unwrap_or(Path::new("."))).map(drop)
}

const fn public_address(kind: ProviderType) -> &'static str {
    match kind {
        ProviderType::Anthropic => "https://api.anthropic.com",
        ProviderType::OpenAi => "https://api.openai.com/v1",
        ProviderType::Copilot => "https://api.githubcopilot.com",
        // Each region has its own.
        ProviderType::Bedrock => "",
    }
}
