//! Why a connection out could not be made.

use std::{error::Error, io, time::Duration};

use http::Uri;

use super::chunk_joiner::TooManyInterimResponses;

/// A failure to connect that the operator can do something about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// The connection was not established in time.
    #[error("no connection within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// The host name resolves to addresses in private networks only.
    #[error("`{host}` is in a private network, which `allow_private` must permit")]
    Private {
        /// The host name.
        host: String,
    },
    /// The proxy cannot be reached, or refuses the connection.
    #[error("the proxy {address} does not connect: {reason}")]
    Proxy {
        /// The proxy's address.
        address: Uri,
        /// The proxy's answer, or what failed.
        reason: String,
        /// Whether the proxy was reached and refused the connection.
        is_refusal: bool,
    },
}

impl ConnectFailure {
    /// Finds the failure among an error and its causes.
    pub fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        find_cause(error)
    }

    /// Whether another attempt will fail in the same way until a setting changes.
    pub const fn is_permanent(&self) -> bool {
        match self {
            Self::Private { .. } => true,
            Self::Proxy { is_refusal, .. } => *is_refusal,
            Self::Timeout(_) => false,
        }
    }
}

/// Whether a connection failed because the peer's certificate is not trusted.
pub fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    matches!(find_cause(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether an exchange failed because the peer sent too many interim responses (RFC 9110, section 15.2).
pub fn has_too_many_interim_responses(error: &(dyn Error + 'static)) -> bool {
    find_cause::<TooManyInterimResponses>(error).is_some()
}

/// Finds an error of the type `T` among an error and its causes.
fn find_cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}
