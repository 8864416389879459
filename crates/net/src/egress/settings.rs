//! How connections out are made: trusted authorities, the proxy, and private networks.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Uri};

/// How connections to one address are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// The authorities that certificates are checked against.
    pub roots: Roots,
    /// The proxy for https addresses.
    pub proxy: Option<Proxy>,
    /// Whether a host name may resolve to an address in a private network. Literal addresses in the
    /// configuration, and `localhost`, are always allowed.
    pub allow_private: bool,
}

/// Certificate authorities.
#[derive(Clone)]
pub struct Roots(Arc<rustls::RootCertStore>);

/// A proxy for https addresses, which are reached through it by `CONNECT`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The proxy's own address, http or https, without user information.
    pub address: Uri,
    /// The value of `Proxy-Authorization`.
    pub authorization: Option<HeaderValue>,
    /// Hosts that are connected to directly: names with all their subdomains, addresses, networks
    /// such as `10.0.0.0/8`, or `*` for all.
    pub except: Vec<String>,
}

impl Roots {
    /// Returns these authorities and others.
    ///
    /// # Errors
    ///
    /// When a certificate is malformed.
    pub fn with(
        &self,
        certificates: Vec<rustls::pki_types::CertificateDer<'_>>,
    ) -> Result<Self, rustls::Error> {
        let mut store = rustls::RootCertStore::clone(&self.0);
        for certificate in certificates {
            store.add(certificate)?;
        }
        Ok(store.into())
    }

    pub(super) fn store(&self) -> Arc<rustls::RootCertStore> {
        Arc::clone(&self.0)
    }
}

impl From<rustls::RootCertStore> for Roots {
    fn from(store: rustls::RootCertStore) -> Self {
        Self(Arc::new(store))
    }
}

impl Default for Roots {
    /// No authority: no certificate is accepted.
    fn default() -> Self {
        rustls::RootCertStore::empty().into()
    }
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.roots == other.0.roots
    }
}

impl Eq for Roots {}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.0.len())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("except", &self.except)
            .finish_non_exhaustive()
    }
}
