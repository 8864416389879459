//! Resolves host names, and leaves out addresses in private networks where they are not allowed.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

use super::{failure::ConnectFailure, private::is_private};
use crate::BoxError;

/// The system's resolver. Connections are made only to the addresses that this returns, so that a
/// check here cannot be bypassed.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    system: GaiResolver,
    allow_private: bool,
}

impl Resolver {
    pub(super) fn new(allow_private: bool) -> Self {
        Self { system: GaiResolver::new(), allow_private }
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.system.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let allow_private = self.allow_private || is_localhost(name.as_str());
        let host = name.as_str().to_owned();
        let resolving = self.system.call(name);
        Box::pin(async move {
            let all: Vec<_> = resolving.await?.collect();
            let allowed = filter_allowed(&all, allow_private);
            if allowed.is_empty() && !all.is_empty() {
                return Err(ConnectFailure::Private { host }.into());
            }
            Ok(allowed.into_iter())
        })
    }
}

fn filter_allowed(addresses: &[SocketAddr], allow_private: bool) -> Vec<SocketAddr> {
    let is_allowed = |address: &&SocketAddr| allow_private || !is_private(address.ip());
    addresses.iter().filter(is_allowed).copied().collect()
}

/// Whether a name is this machine by definition (RFC 6761, section 6.3).
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use tower::{Service, ServiceExt};

    use super::{ConnectFailure, Resolver, filter_allowed, is_localhost};

    #[test]
    fn private_addresses_are_left_out_unless_allowed() {
        let both = ["10.0.0.1:443".parse().unwrap(), "93.184.216.34:443".parse().unwrap()];
        assert_eq!(filter_allowed(&both, true), both);
        assert_eq!(filter_allowed(&both, false), [both[1]]);
    }

    #[test]
    fn localhost_and_its_subdomains_are_this_machine() {
        for name in ["localhost", "LocalHost.", "sim.localhost"] {
            assert!(is_localhost(name), "{name}");
        }
        for name in ["localhost.example", "notlocalhost", ""] {
            assert!(!is_localhost(name), "{name}");
        }
    }

    /// The system resolves this name without a server: it is 127.0.0.1 as one number.
    #[tokio::test]
    async fn a_private_address_written_as_one_number_is_checked_as_a_name() {
        let mut resolver = Resolver::new(false);
        let name = "2130706433".parse().unwrap();
        let error = resolver.ready().await.unwrap().call(name).await.unwrap_err();
        let failure = error.downcast_ref::<ConnectFailure>().unwrap();
        assert!(matches!(failure, ConnectFailure::Private { host } if host == "2130706433"));
        let mut resolver = Resolver::new(true);
        let name = "2130706433".parse().unwrap();
        let mut found = resolver.ready().await.unwrap().call(name).await.unwrap();
        assert!(found.next().unwrap().ip().is_loopback());
    }
}
