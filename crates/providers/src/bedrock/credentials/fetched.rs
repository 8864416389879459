//! AWS's own chain of credential sources, profiles and assumed roles.
//!
//! It reads the environment and files as every tool of AWS does: the one place of the data path
//! that is not told all by its host.

use std::time::Duration;

use aws_config::{
    BehaviorVersion, ConfigLoader, Region, profile::ProfileFileCredentialsProvider,
    sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials as Keys,
    provider::{ProvideCredentials, SharedCredentialsProvider},
};
use keybridge_net::error_chain;
use secrecy::ExposeSecret;
use tokio::sync::OnceCell;

use crate::bedrock::{AssumeRole, AwsSource, BedrockConfig};

/// Longest that one source may take.
const SOURCE_TIME: Duration = Duration::from_secs(8);
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// A source that is asked over and over.
pub(super) struct Fetched {
    region: String,
    source: AwsSource,
    assume_role: Option<AssumeRole>,
    provider: OnceCell<SharedCredentialsProvider>,
}

impl Fetched {
    pub(super) fn new(config: &BedrockConfig) -> Self {
        Self {
            region: config.region.clone(),
            source: config.source.clone(),
            assume_role: config.assume_role.clone(),
            provider: OnceCell::new(),
        }
    }

    pub(super) async fn fetch(&self) -> Result<Keys, String> {
        let provider = self.provider.get_or_try_init(|| self.provider()).await?;
        provider.provide_credentials().await.map_err(|error| error_chain(&error))
    }

    async fn provider(&self) -> Result<SharedCredentialsProvider, String> {
        let config = self.loader().load().await;
        let Some(role) = &self.assume_role else {
            return config.credentials_provider().ok_or_else(|| "the chain is empty".into());
        };
        let mut builder = AssumeRoleProvider::builder(&role.arn)
            .session_name(&role.session_name)
            .configure(&config);
        if let Some(external_id) = &role.external_id {
            builder = builder.external_id(external_id);
        }
        Ok(SharedCredentialsProvider::new(builder.build().await))
    }

    fn loader(&self) -> ConfigLoader {
        let limits = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIME)
            .operation_timeout(SOURCE_TIME)
            .build();
        let loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .timeout_config(limits);
        match &self.source {
            AwsSource::Chain => loader,
            AwsSource::Profile(name) => {
                let profile = ProfileFileCredentialsProvider::builder().profile_name(name).build();
                loader.profile_name(name).credentials_provider(profile)
            }
            AwsSource::Static { access_key_id, secret_access_key, session_token } => {
                let token = session_token.as_ref().map(|token| token.expose_secret().to_owned());
                let secret = secret_access_key.expose_secret();
                let keys = Keys::new(access_key_id, secret, token, None, "configuration");
                loader.credentials_provider(keys)
            }
        }
    }
}
