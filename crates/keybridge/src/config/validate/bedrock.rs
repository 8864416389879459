//! Settings of providers on Amazon Bedrock.

use http::Uri;
use keybridge_providers::bedrock::{
    AssumeRole, AwsSource, BedrockApi, BedrockConfig, HAS_CREDENTIAL_CHAIN, Rules,
};
use secrecy::SecretString;

use super::Check;
use crate::config::raw::{RawAssumeRole, RawBedrock, RawText};

/// Default session name of an assumed role, as shown in CloudTrail.
const SESSION_NAME: &str = "keybridge";
/// Maximum length of the session name of an assumed role.
const MAX_SESSION_CHARS: usize = 64;

impl Check<'_> {
    /// Settings of a provider on Bedrock.
    pub(super) fn bedrock(&mut self, path: &str, raw: Option<RawBedrock>) -> Option<BedrockConfig> {
        let Some(raw) = raw else {
            self.problem(path, "is missing: set at least `region` and `model`");
            return None;
        };
        let api = match raw.api.as_str() {
            "runtime" => BedrockApi::Runtime,
            "mantle" => BedrockApi::Mantle,
            other => {
                self.problem(
                    format!("{path}.api"),
                    format!("`{other}` is not `runtime` or `mantle`"),
                );
                return None;
            }
        };
        let is_region = |region: &str| {
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !region.is_empty() && region.chars().all(is_word)
        };
        if !is_region(&raw.region) {
            let message = "must be the name of an AWS region, such as `eu-central-1`";
            self.problem(format!("{path}.region"), message);
        }
        self.models(path, &raw, api);
        let rules = self.rules(&format!("{path}.rules_file"), raw.rules_file.as_deref());
        let assume_role = raw.assume_role.clone().and_then(|role| self.role(path, role));
        let (region, model) = (raw.region.clone(), raw.model.clone().unwrap_or_default());
        let small_fast_model = raw.small_fast_model.clone();
        let source = self.aws_source(path, raw);
        if !HAS_CREDENTIAL_CHAIN
            && (assume_role.is_some() || !matches!(source, Some(AwsSource::Static { .. })))
        {
            self.problem(
                path,
                "this build of keybridge supports only access keys in the configuration",
            );
        }
        let (source, rules) = (source?, rules?);
        Some(BedrockConfig { region, api, model, small_fast_model, source, assume_role, rules })
    }

    fn models(&mut self, path: &str, raw: &RawBedrock, api: BedrockApi) {
        let models = [("model", &raw.model), ("small_fast_model", &raw.small_fast_model)];
        for (name, model) in models {
            let path = format!("{path}.{name}");
            match (model, api) {
                (Some(_), BedrockApi::Mantle) => {
                    self.problem(
                        path,
                        "has no effect with `api = \"mantle\"`: clients name the model",
                    );
                }
                (Some(model), BedrockApi::Runtime) if model.trim().is_empty() => {
                    self.problem(path, "is empty");
                }
                (None, BedrockApi::Runtime) if name == "model" => {
                    self.problem(
                        path,
                        "is missing: set a model id, an inference profile or its ARN",
                    );
                }
                _ => {}
            }
        }
    }

    fn rules(&mut self, path: &str, file: Option<&str>) -> Option<Rules> {
        let read = match file {
            None => Rules::built_in().map_err(|error| error.to_string()),
            Some(file) => std::fs::read_to_string(file)
                .map_err(|error| error.to_string())
                .and_then(|text| Rules::read(&text).map_err(|error| error.to_string()))
                .map_err(|error| format!("`{file}`: {error}")),
        };
        read.map_err(|message| self.problem(path, message)).ok()
    }

    fn role(&mut self, path: &str, raw: RawAssumeRole) -> Option<AssumeRole> {
        let path = format!("{path}.assume_role");
        if !raw.arn.starts_with("arn:") || !raw.arn.contains(":role/") {
            self.problem(format!("{path}.arn"), format!("`{}` is not the ARN of a role", raw.arn));
            return None;
        }
        let session_name = raw.session_name.unwrap_or_else(|| SESSION_NAME.into());
        let is_word = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        if !(2..=MAX_SESSION_CHARS).contains(&session_name.len())
            || !session_name.chars().all(is_word)
        {
            let rule = "2 to 64 letters, digits and characters of `+=,.@_-`";
            self.problem(format!("{path}.session_name"), format!("must be {rule}"));
        }
        Some(AssumeRole { arn: raw.arn, session_name, external_id: raw.external_id })
    }

    fn aws_source(&mut self, path: &str, raw: RawBedrock) -> Option<AwsSource> {
        let RawBedrock { access_key_id, secret_access_key, session_token, profile, .. } = raw;
        let has_token = session_token.is_some();
        let mut text = |name: &str, value: Option<RawText>| {
            value.map(|value| self.aws_text(&format!("{path}.{name}"), value))
        };
        let id = text("access_key_id", access_key_id);
        let secret = text("secret_access_key", secret_access_key);
        let session_token = text("session_token", session_token);
        match (id, secret, profile) {
            (None, None, Some(_) | None) if has_token => {
                self.problem(
                    path,
                    "`session_token` requires `access_key_id` and `secret_access_key`",
                );
                None
            }
            (None, None, Some(profile)) => Some(AwsSource::Profile(profile)),
            (None, None, None) => Some(AwsSource::Chain),
            (Some(id), Some(secret), None) => Some(AwsSource::Static {
                access_key_id: id?,
                secret_access_key: SecretString::from(secret?),
                session_token: match session_token {
                    None => None,
                    Some(token) => Some(SecretString::from(token?)),
                },
            }),
            (Some(_), Some(_), Some(_)) => {
                self.problem(
                    format!("{path}.profile"),
                    "set either `profile` or an access key, not both",
                );
                None
            }
            _ => {
                self.problem(path, "`access_key_id` and `secret_access_key` must be set together");
                None
            }
        }
    }

    fn aws_text(&mut self, path: &str, value: RawText) -> Option<String> {
        let text = self.text(path, value)?.trim().to_owned();
        if text.is_empty() || text.contains(char::is_whitespace) {
            self.problem(path, "must not be empty or contain spaces");
            return None;
        }
        Some(text)
    }
}

/// The public address of Bedrock in a region.
pub(super) fn public_address(bedrock: &BedrockConfig) -> Option<Uri> {
    let region = &bedrock.region;
    let text = match bedrock.api {
        BedrockApi::Runtime => format!("https://bedrock-runtime.{region}.amazonaws.com"),
        BedrockApi::Mantle => format!("https://bedrock-mantle.{region}.api.aws/anthropic"),
    };
    text.parse().ok()
}
