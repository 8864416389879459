//! AWS's own chain of credential sources, profiles and assumed roles.
//!
//! It reads the environment and files as every tool of AWS does: the only place of the data path
//! that does so.

use std::{fmt, time::Duration};

use aws_config::{
    BehaviorVersion, ConfigLoader, Region, profile::ProfileFileCredentialsProvider,
    sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials as Keys,
    provider::{
        self, ProvideCredentials, SharedCredentialsProvider, error::CredentialsError,
        future::ProvideCredentials as Providing,
    },
};
use secrecy::ExposeSecret;
use tokio::sync::OnceCell;

use crate::bedrock::{AssumeRole, AwsSource, BedrockConfig};

/// Timeout of one source.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(8);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The sources of one provider, loaded with the first fetch.
pub(super) struct Chain {
    region: String,
    source: AwsSource,
    assume_role: Option<AssumeRole>,
    provider: OnceCell<SharedCredentialsProvider>,
}

impl Chain {
    pub(super) fn new(config: &BedrockConfig) -> Self {
        Self {
            region: config.region.clone(),
            source: config.source.clone(),
            assume_role: config.assume_role.clone(),
            provider: OnceCell::new(),
        }
    }

    async fn fetch(&self) -> provider::Result {
        let provider = self.provider.get_or_try_init(|| self.provider()).await?;
        provider.provide_credentials().await
    }

    async fn provider(&self) -> Result<SharedCredentialsProvider, CredentialsError> {
        let config = self.loader().load().await;
        let Some(role) = &self.assume_role else {
            let empty = || CredentialsError::not_loaded("the credential chain is empty");
            return config.credentials_provider().ok_or_else(empty);
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
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_timeout(SOURCE_TIMEOUT)
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

impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(&'a self) -> Providing<'a>
    where
        Self: 'a,
    {
        Providing::new(self.fetch())
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("region", &self.region).finish_non_exhaustive()
    }
}
