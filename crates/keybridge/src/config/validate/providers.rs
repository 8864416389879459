//! Settings of providers.

use std::{collections::BTreeMap, path::PathBuf};

use http::{HeaderName, HeaderValue, Uri};
use keybridge_net::egress::Egress;
use keybridge_net::path::normalize;
use keybridge_providers::{
    bedrock::BedrockConfig,
    config::{
        BreakerConfig, DumpConfig, Fallback, Key, KeySelection, ProviderConfig, ProviderType,
        QueryParameter, Timeouts, UnknownObjects,
    },
    routes::{AllowedRoute, Meter},
    vendors::CredentialForm,
};

use super::{Check, bedrock};
use crate::config::{
    raw::{
        RawBedrock, RawCircuitBreaker, RawDuration, RawFallback, RawFallbackModel, RawKey,
        RawMeteredRoute, RawProvider, RawRoute, RawText, RawTimeouts,
    },
    units,
};

/// Maximum of `max_retries`: the pause before each retry may be a minute.
const MAX_RETRIES: u32 = 10;

impl Check<'_> {
    pub(super) fn providers(
        &mut self,
        raw: Option<Vec<RawProvider>>,
        allow_byok: bool,
        egress: &Egress,
    ) -> Vec<ProviderConfig> {
        // They are missing only if they have been removed because of a problem.
        let Some(raw) = raw else { return Vec::new() };
        if raw.is_empty() {
            self.problem("providers", "must contain at least one provider");
        }
        let mut providers: Vec<ProviderConfig> = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("providers[{index}]");
            let Some(provider) = self.provider(&path, raw, allow_byok, egress) else { continue };
            if providers.iter().any(|other| other.name == provider.name) {
                self.problem(
                    format!("{path}.name"),
                    format!("`{}` is used by another provider", provider.name),
                );
            }
            providers.push(provider);
        }
        for (index, provider) in providers.iter().enumerate() {
            self.fallback(&format!("providers[{index}].fallback"), provider, &providers);
        }
        providers
    }

    fn fallback(&mut self, path: &str, provider: &ProviderConfig, all: &[ProviderConfig]) {
        let Some(Fallback { provider: name, model }) = &provider.fallback else { return };
        if model.as_deref().is_some_and(str::is_empty) {
            self.problem(format!("{path}.model"), "is empty");
        }
        match all.iter().find(|other| other.name == *name) {
            None => self.problem(path, format!("there is no provider `{name}`")),
            Some(other) if other.name == provider.name => {
                self.problem(path, "must be another provider");
            }
            Some(other) if other.kind.error_shape() != provider.kind.error_shape() => {
                let message =
                    format!("`{name}` has other dialects than the type `{}`", provider.kind);
                self.problem(path, message);
            }
            Some(other)
                if other.keys.is_empty() && other.bedrock.is_none() && !other.is_keyless() =>
            {
                self.problem(path, format!("`{name}` has no keys"));
            }
            Some(_fits) => {}
        }
    }

    fn circuit_breaker(&mut self, path: &str, raw: &RawCircuitBreaker) -> BreakerConfig {
        for (name, number) in [("failures", raw.failures), ("trial_requests", raw.trial_requests)] {
            if number == 0 {
                self.problem(format!("{path}.{name}"), "must not be 0");
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
        mut raw: RawProvider,
        allow_byok: bool,
        egress: &Egress,
    ) -> Option<ProviderConfig> {
        let kind = self.kind(&format!("{path}.type"), raw.kind.as_deref());
        let name = self.name(&format!("{path}.name"), raw.name.take(), kind);
        let bedrock = self.only_bedrock(&format!("{path}.bedrock"), raw.bedrock.take(), kind);
        let base_url = self.base_url(path, &raw, kind, bedrock.as_ref());
        let keys = self.keys(&format!("{path}.keys"), std::mem::take(&mut raw.keys));
        self.keys_of_type(&format!("{path}.keys"), kind, &keys);
        let key_selection = self.key_selection(path, &raw.key_selection);
        self.credentials(&format!("{path}.credentials"), &raw.credentials, !keys.is_empty());
        let set_headers = std::mem::take(&mut raw.set_headers);
        let set_headers = self.set_headers(&format!("{path}.set_headers"), set_headers);
        let allow_routes = self.routes(&format!("{path}.allow_routes"), &raw.allow_routes, kind);
        let set_query = std::mem::take(&mut raw.set_query);
        let set_query = self.set_query(&format!("{path}.set_query"), set_query);
        let fallback = raw.fallback.take().map(fallback);
        let timeouts = self.timeouts(&format!("{path}.timeouts"), &raw.timeouts);
        if raw.max_retries > MAX_RETRIES {
            self.problem(format!("{path}.max_retries"), format!("must be at most {MAX_RETRIES}"));
        }
        if kind == Some(ProviderType::Bedrock) && bedrock.is_none() {
            return None;
        }
        let egress = self.egress_to(path, egress, &raw.ca_bundle, raw.allow_private);
        let dump = self.dump(path, &raw);
        let circuit_breaker = raw
            .circuit_breaker
            .as_ref()
            .map(|breaker| self.circuit_breaker(&format!("{path}.circuit_breaker"), breaker));
        let takes = |whose: &str| raw.credentials.iter().any(|taken| taken == whose);
        let (kind, base_url) = (kind?, base_url?);
        let profile = self.profile(path, &raw, (kind, &base_url));
        if profile.credential == CredentialForm::None && !keys.is_empty() {
            let message = "must be empty: this provider is sent no key (`credential`)";
            self.problem(format!("{path}.keys"), message);
        }
        Some(ProviderConfig {
            name: name?,
            kind,
            profile,
            base_url,
            keys,
            key_selection,
            allow_central: takes("pool"),
            allow_byok: takes("request") && raw.allow_byok.unwrap_or(allow_byok),
            byok_fallback: raw.byok_fallback.unwrap_or(true),
            send_actor_headers: raw.send_actor_headers,
            set_headers,
            allow_routes,
            set_query,
            circuit_breaker,
            fallback,
            unknown_objects: self.unknown_objects(path, &raw.unknown_objects),
            max_retries: raw.max_retries,
            timeouts,
            egress,
            http2: raw.http2,
            dump,
            bedrock,
        })
    }

    fn dump(&mut self, path: &str, raw: &RawProvider) -> Option<DumpConfig> {
        let max_size = self.unit(&format!("{path}.dump_max_size"), units::size(&raw.dump_max_size));
        let dump = DumpConfig {
            dir: PathBuf::from(&raw.dump_dir),
            max_bytes: u64::try_from(max_size).unwrap_or(u64::MAX),
            max_age: self.limit(&format!("{path}.dump_max_age"), &raw.dump_max_age),
        };
        (!raw.dump_dir.is_empty()).then_some(dump)
    }

    fn key_selection(&mut self, path: &str, text: &str) -> KeySelection {
        match text {
            "first" => return KeySelection::First,
            "weighted" => return KeySelection::Weighted,
            other => self.problem(
                format!("{path}.key_selection"),
                format!("`{other}` is not `first` or `weighted`"),
            ),
        }
        KeySelection::First
    }

    /// Reports keys of a type that takes none.
    fn keys_of_type(&mut self, path: &str, kind: Option<ProviderType>, keys: &[Key]) {
        if keys.is_empty() {
            return;
        }
        match kind {
            Some(ProviderType::Copilot) => self.problem(
                path,
                "GitHub Copilot accepts only each user's own token (BYOK), not keys",
            ),
            Some(ProviderType::Bedrock) => self
                .problem(path, "Amazon Bedrock accepts AWS credentials, not keys: see `bedrock`"),
            Some(ProviderType::Anthropic | ProviderType::OpenAi) | None => {}
        }
    }

    /// The address of a provider: by default, its vendor's public one.
    fn base_url(
        &mut self,
        path: &str,
        raw: &RawProvider,
        kind: Option<ProviderType>,
        bedrock: Option<&BedrockConfig>,
    ) -> Option<Uri> {
        let kind = kind?;
        let profile = self.named_profile(&format!("{path}.profile"), raw.profile.as_deref(), kind);
        if let Some(url) = &raw.base_url {
            return self.address(&format!("{path}.base_url"), url);
        }
        if kind == ProviderType::Bedrock {
            return bedrock.and_then(bedrock::public_address);
        }
        let public = profile.base_url(kind);
        if public.is_none() {
            let message = "is missing: this vendor has no address that is the same for all";
            self.problem(format!("{path}.base_url"), message);
        }
        public?.parse().ok()
    }

    fn unknown_objects(&mut self, path: &str, text: &str) -> UnknownObjects {
        match text {
            "refuse" => UnknownObjects::Refuse,
            "allow" => UnknownObjects::Allow,
            other => {
                let message = format!("`{other}` is not `refuse` or `allow`");
                self.problem(format!("{path}.unknown_objects"), message);
                UnknownObjects::Refuse
            }
        }
    }

    /// The settings of Bedrock, which no other type may have.
    fn only_bedrock(
        &mut self,
        path: &str,
        raw: Option<RawBedrock>,
        kind: Option<ProviderType>,
    ) -> Option<BedrockConfig> {
        match (kind, &raw) {
            (Some(ProviderType::Bedrock), _) => self.bedrock(path, raw),
            (Some(kind), Some(_)) => {
                self.problem(
                    path,
                    format!("a provider of the type `{kind}` must not have these settings"),
                );
                None
            }
            _ => None,
        }
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
                    format!("`{other}` is not `anthropic`, `openai`, `copilot` or `bedrock`"),
                );
            }
            None => {
                self.problem(path, "is missing: set `anthropic`, `openai`, `copilot` or `bedrock`");
            }
        }
        None
    }

    /// Which credentials a provider accepts.
    fn credentials(&mut self, path: &str, raw: &[String], has_keys: bool) {
        if raw.is_empty() {
            self.problem(path, "must not be empty: no request would be accepted");
        }
        for other in raw.iter().filter(|whose| !matches!(whose.as_str(), "pool" | "request")) {
            self.problem(path, format!("`{other}` is not `pool` or `request`"));
        }
        if has_keys && !raw.iter().any(|whose| whose == "pool") {
            self.problem(path, "there are keys, which are used only with `pool`");
        }
    }

    fn keys(&mut self, path: &str, raw: Vec<RawKey>) -> Vec<Key> {
        let mut keys: Vec<Key> = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let name = raw.name.clone().unwrap_or_else(|| "main".into());
            if keys.iter().any(|key| key.name == name) {
                self.problem(format!("{path}.name"), format!("`{name}` is used by another key"));
            }
            let weight = raw.weight.unwrap_or(1);
            if weight == 0 {
                self.problem(
                    format!("{path}.weight"),
                    "must not be 0: the key would never be used",
                );
            }
            match self.secret(&path, raw) {
                Some(value) => keys.push(Key { name, value, weight }),
                None => continue,
            }
        }
        keys
    }

    fn set_headers(
        &mut self,
        path: &str,
        raw: BTreeMap<String, RawText>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, value) in raw {
            let path = format!("{path}.{name}");
            let is_secret = matches!(value, RawText::Source(_));
            let Some(text) = self.text(&path, value) else { continue };
            headers.extend(self.header(&path, &name, text.trim()).map(|(name, mut value)| {
                value.set_sensitive(is_secret);
                (name, value)
            }));
        }
        headers
    }

    /// The routes that are allowed beyond those of the type.
    fn routes(
        &mut self,
        path: &str,
        raw: &[RawRoute],
        kind: Option<ProviderType>,
    ) -> Vec<AllowedRoute> {
        let mut routes = Vec::new();
        let Some(kind) = kind else { return routes };
        if kind == ProviderType::Bedrock && !raw.is_empty() {
            self.problem(path, "Amazon Bedrock has no further routes: its requests are translated");
            return routes;
        }
        for (index, raw) in raw.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if self.problems.iter().any(|problem| problem.path == path) {
                // It was replaced by an empty table.
                continue;
            }
            let parsed = match raw {
                RawRoute::Text(text) => AllowedRoute::parse(kind, text),
                RawRoute::Metered(RawMeteredRoute { method, path, meter }) => meter
                    .as_deref()
                    .map(Meter::parse)
                    .transpose()
                    .and_then(|meter| AllowedRoute::new(kind, method, path, meter))
                    .map(|route| vec![route]),
            };
            let parsed = match parsed {
                Ok(parsed) => parsed,
                Err(error) => {
                    self.problem(path, error.to_string());
                    continue;
                }
            };
            for route in parsed {
                if !is_normal(route.path.as_str()) {
                    let message = "the path has segments or characters that no request may have";
                    self.problem(&path, message);
                } else if !routes.contains(&route) {
                    routes.push(route);
                }
            }
        }
        routes
    }

    fn set_query(&mut self, path: &str, raw: BTreeMap<String, RawText>) -> Vec<QueryParameter> {
        let mut parameters = Vec::new();
        for (name, value) in raw {
            let path = format!("{path}.{name}");
            if name.is_empty() {
                self.problem(&path, "is not the name of a query parameter");
            }
            let Some(text) = self.text(&path, value) else { continue };
            parameters.push(QueryParameter { name, value: text.trim().into() });
        }
        parameters
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

/// Whether a path is in the form in which those of requests are judged.
fn is_normal(path: &str) -> bool {
    let path = path.trim_start_matches('/');
    normalize(path).is_ok_and(|normal| normal == path)
}

fn fallback(raw: RawFallback) -> Fallback {
    match raw {
        RawFallback::Provider(provider) => Fallback { provider, model: None },
        RawFallback::Model(RawFallbackModel { provider, model }) => {
            Fallback { provider, model: Some(model) }
        }
    }
}
