//! The time limits of client connections that are not configurable.

use std::time::Duration;

/// How long a TLS handshake may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request head may take, from its first byte; for the first request of a connection, from
/// the moment that it could be sent.
pub(super) const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of a response.
pub(super) const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the orderly close of a connection may take.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
