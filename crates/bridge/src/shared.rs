//! The state that requests share.

use std::sync::Arc;

use aws_lc_rs::hmac;
use keybridge_identity::Directory;
use keybridge_ledger::{ContinuationStore, ObjectStore, Recorder};
use keybridge_providers::{metrics::ProviderMetrics, provider::Provider};

use crate::{
    admission::limits::Limits, attempt::DispatchContext, config::BridgeConfig, headers::Forwarding,
    tools::InjectedTools,
};

/// The state shared by all requests that started with the same configuration.
pub(crate) struct Shared {
    pub(crate) config: BridgeConfig,
    pub(crate) providers: Vec<Arc<Provider>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) continuations: ContinuationStore,
    pub(crate) objects: ObjectStore,
    pub(crate) recorder: Recorder,
    pub(crate) fingerprint_key: hmac::Key,
    pub(crate) tools: Arc<InjectedTools>,
    pub(crate) provider_metrics: Arc<ProviderMetrics>,
    pub(crate) limits: Limits,
}

impl Shared {
    /// The provider instance with a name.
    pub(crate) fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| provider.config.name == name)
    }

    /// The part that a dispatch is prepared with.
    pub(crate) fn dispatch_context(&self) -> DispatchContext<'_> {
        let forwarding =
            if self.config.trust_forwarded_headers { Forwarding::Pass } else { Forwarding::Drop };
        DispatchContext {
            fingerprint_key: &self.fingerprint_key,
            governance_headers: &self.config.governance_headers,
            forwarding,
            tools: &self.tools,
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("providers", &self.providers).finish_non_exhaustive()
    }
}
