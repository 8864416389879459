//! Settings of a provider on Amazon Bedrock.

use secrecy::{ExposeSecret, SecretString};

use super::rules::Rules;

/// Whether this build has AWS's credential chain, profiles and assumed roles; else only static keys.
pub const HAS_CREDENTIAL_CHAIN: bool = cfg!(feature = "bedrock-credentials");

/// Settings of a provider of the type `bedrock`.
#[derive(Debug, Clone, PartialEq)]
pub struct BedrockConfig {
    /// The AWS region that requests are signed for.
    pub region: String,
    /// The protocol.
    pub api: BedrockApi,
    /// Model id, inference profile or its ARN; unused with [`BedrockApi::Mantle`].
    pub model: String,
    /// The same for requests whose model's name contains `haiku`.
    pub small_fast_model: Option<String>,
    /// Where the credentials come from.
    pub source: AwsSource,
    /// A role to assume with them.
    pub assume_role: Option<AssumeRole>,
    /// What Bedrock accepts in a request.
    pub rules: Rules,
}

/// The protocol towards Bedrock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BedrockApi {
    /// `InvokeModel` and `InvokeModelWithResponseStream`: requests are translated.
    Runtime,
    /// The Messages API as it is, with AWS's signature.
    Mantle,
}

impl BedrockApi {
    /// The service's name in a signature.
    pub(crate) const fn service(self) -> &'static str {
        match self {
            Self::Runtime => "bedrock",
            Self::Mantle => "bedrock-mantle",
        }
    }
}

/// Where AWS credentials come from.
#[derive(Debug, Clone)]
pub enum AwsSource {
    /// Keys of the configuration.
    Static {
        /// The access key's id, which records show masked.
        access_key_id: String,
        /// The access key.
        secret_access_key: SecretString,
        /// The token of a temporary access key.
        session_token: Option<SecretString>,
    },
    /// A profile of the shared configuration and credentials files.
    Profile(String),
    /// AWS's default chain: environment, files, web identity, container, instance metadata.
    Chain,
}

impl PartialEq for AwsSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Static { access_key_id, secret_access_key, session_token },
                Self::Static { access_key_id: id, secret_access_key: key, session_token: token },
            ) => {
                access_key_id == id
                    && secret_access_key.expose_secret() == key.expose_secret()
                    && session_token.as_ref().map(ExposeSecret::expose_secret)
                        == token.as_ref().map(ExposeSecret::expose_secret)
            }
            (Self::Profile(profile), Self::Profile(other)) => profile == other,
            (Self::Chain, Self::Chain) => true,
            _ => false,
        }
    }
}

/// A role to assume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssumeRole {
    /// Its ARN.
    pub arn: String,
    /// The session's name in AWS's audit log.
    pub session_name: String,
    /// The external id that the owner of the role requires.
    pub external_id: Option<String>,
}
