//! Counts clients' connections, and limits them in all and per address.
//!
//! A trusted proxy has no limit of its own: what it forwards counts for the address that it names in
//! `X-Forwarded-For`, each request in flight like a connection.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::HeaderMap;
use ipnet::IpNet;
use tokio::time::Instant;

/// Minimum time between two log lines on refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// How many connections are accepted, and from whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Maximum number of connections; 0 = unlimited.
    pub max_connections: usize,
    /// Maximum number of connections per address, or per network of 64 bits with IPv6; 0 = unlimited.
    pub max_per_address: usize,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// The connections of a listener; clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    limits: ConnectionLimits,
    counts: Mutex<Counts>,
    refused: Refusals,
}

#[derive(Debug, Default)]
struct Counts {
    open: usize,
    /// Only addresses that count are listed.
    addresses: HashMap<IpAddr, usize>,
}

/// Connections and forwarded requests that were refused, by the limit.
#[derive(Debug, Default)]
struct Refusals {
    total: AtomicU64,
    per_address: AtomicU64,
    /// When they were logged, and how many there were.
    logged: Mutex<Option<(Instant, u64)>>,
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    shared: Arc<Shared>,
    peer: Peer,
}

#[derive(Debug)]
enum Peer {
    TrustedProxy,
    Client { _slot: AddressSlot },
}

/// A connection or a forwarded request that counts for its address until it is dropped.
#[derive(Debug)]
struct AddressSlot {
    shared: Arc<Shared>,
    address: IpAddr,
}

/// The client of a request that a trusted proxy has forwarded; an extension of the request. The request
/// counts for the client's address until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct ForwardedClient {
    /// The client's address.
    pub address: IpAddr,
    slot: Option<Arc<AddressSlot>>,
}

impl ForwardedClient {
    /// Whether the address has too many requests in flight.
    pub const fn is_over_limit(&self) -> bool {
        self.slot.is_none()
    }
}

impl Connections {
    /// No connections yet.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self(Arc::new(Shared { limits, ..Shared::default() }))
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.0.counts().open
    }

    /// How many connections were refused because there were too many in all.
    pub fn refused_in_total(&self) -> u64 {
        self.0.refused.total.load(Relaxed)
    }

    /// How many connections and forwarded requests were refused because there were too many from their
    /// address.
    pub fn refused_per_address(&self) -> u64 {
        self.0.refused.per_address.load(Relaxed)
    }

    /// Counts a connection, or returns `None` if there are too many.
    pub(super) fn admit(&self, peer: IpAddr) -> Option<Box<ConnectionSlot>> {
        let shared = &self.0;
        let peer = peer.to_canonical();
        let max = shared.limits.max_connections;
        {
            let mut counts = shared.counts();
            if max > 0 && counts.open >= max {
                drop(counts);
                shared.refused.count(&shared.refused.total, "too many connections");
                return None;
            }
            counts.open += 1;
        }
        // Counted from here on: dropping it releases the connection.
        let mut slot =
            Box::new(ConnectionSlot { shared: Arc::clone(shared), peer: Peer::TrustedProxy });
        if !shared.is_trusted_proxy(peer) {
            slot.peer = Peer::Client { _slot: shared.enter(peer)? };
        }
        Some(slot)
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.limits.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// Counts a connection or a forwarded request of an address, unless there are too many.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressSlot> {
        let (address, max) = (limited_network(address), self.limits.max_per_address);
        let mut counts = self.counts();
        let count = counts.addresses.entry(address).or_default();
        if max > 0 && *count >= max {
            drop(counts);
            self.refused.count(&self.refused.per_address, "too many connections from one address");
            return None;
        }
        *count += 1;
        Some(AddressSlot { shared: Arc::clone(self), address })
    }

    /// The last address in `X-Forwarded-For` that is not a trusted proxy's; what stands before it may be
    /// made up by the client.
    fn forwarded_address(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let mut last = None;
        for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
            for text in value.to_str().ok()?.rsplit(',') {
                let Some(address) = parse_address(text.trim()) else { return last };
                last = Some(address);
                if !self.is_trusted_proxy(address) {
                    return last;
                }
            }
        }
        last
    }
}

impl ConnectionSlot {
    /// The client of a request, if the connection is a trusted proxy's that names one.
    pub(super) fn forwarded_client(&self, headers: &HeaderMap) -> Option<ForwardedClient> {
        match self.peer {
            Peer::Client { .. } => None,
            Peer::TrustedProxy => {
                let address = self.shared.forwarded_address(headers)?;
                Some(ForwardedClient { address, slot: self.shared.enter(address).map(Arc::new) })
            }
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.shared.counts().open -= 1;
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut counts = self.shared.counts();
        if let Some(count) = counts.addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.addresses.remove(&self.address);
            }
        }
    }
}

impl Refusals {
    /// Counts a refusal, and logs it now and then.
    fn count(&self, refused: &AtomicU64, reason: &str) {
        refused.fetch_add(1, Relaxed);
        let now = Instant::now();
        let all = self.total.load(Relaxed) + self.per_address.load(Relaxed);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match *logged {
            Some((since, _)) if now.duration_since(since) < LOG_INTERVAL => return,
            Some((_, before)) => before,
            None => 0,
        };
        *logged = Some((now, all));
        drop(logged);
        let refused = all.saturating_sub(before);
        tracing::warn!(refused, reason, "refused connections since the last such message");
    }
}

/// The addresses that share a limit: one address, or the network of a site with IPv6, which has 2^64.
fn limited_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Reads `10.0.0.1`, `10.0.0.1:80`, `::1` or `[::1]:80`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let address = text.parse().ok().or_else(|| {
        let bracketed = text.strip_prefix('[').and_then(|text| text.split_once(']'));
        let (host, _port) = bracketed.or_else(|| text.split_once(':'))?;
        host.parse().ok()
    });
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn connections(max_connections: usize, max_per_address: usize) -> Connections {
        let trusted_proxies = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Connections::new(ConnectionLimits { max_connections, max_per_address, trusted_proxies })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn forwarded_for(values: &[&'static str]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_static(value));
        values.map(|value| (http::HeaderName::from_static(X_FORWARDED_FOR), value)).collect()
    }

    #[test]
    fn connections_are_limited_in_all_and_per_address() {
        let connections = connections(3, 2);
        let ada = address("192.0.2.1");
        let first = connections.admit(ada).unwrap();
        let _second = connections.admit(address("::ffff:192.0.2.1")).unwrap();
        assert!(connections.admit(ada).is_none(), "the same address");
        assert_eq!(connections.open(), 2);
        let _third = connections.admit(address("192.0.2.2")).unwrap();
        assert!(connections.admit(address("192.0.2.3")).is_none(), "too many in all");
        drop(first);
        assert!(connections.admit(ada).is_some());
        assert_eq!((connections.refused_in_total(), connections.refused_per_address()), (1, 1));
    }

    #[test]
    fn a_network_of_64_bits_counts_as_one_address() {
        let connections = connections(0, 1);
        let _first = connections.admit(address("2001:db8:0:1::1")).unwrap();
        assert!(connections.admit(address("2001:db8:0:1:ffff::2")).is_none());
        assert!(connections.admit(address("2001:db8:0:2::1")).is_some());
    }

    #[test]
    fn requests_of_a_trusted_proxy_count_for_the_last_address_that_is_not_a_proxy() {
        let connections = connections(0, 1);
        let proxy = connections.admit(address("10.0.0.1")).unwrap();
        let other = connections.admit(address("10.0.0.1")).expect("proxies have no limit");
        let cases: &[(&[&str], &str)] = &[
            (&["192.0.2.1"], "192.0.2.1"),
            (&["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
            (&["6.6.6.6", "192.0.2.1:4711, 10.0.0.7"], "192.0.2.1"),
            (&["made up, 2001:db8::1, fd00::1"], "2001:db8::1"),
            (&["[2001:db8::1]:80"], "2001:db8::1"),
            (&["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ];
        for (values, expected) in cases {
            let client = proxy.forwarded_client(&forwarded_for(values)).unwrap();
            assert_eq!(client.address, address(expected), "{values:?}");
            assert!(!client.is_over_limit());
            let second = other.forwarded_client(&forwarded_for(values)).unwrap();
            assert!(second.is_over_limit(), "while the first is in flight");
        }
        assert!(proxy.forwarded_client(&forwarded_for(&["unknown"])).is_none());
        let direct = connections.admit(address("192.0.2.9")).unwrap();
        assert!(direct.forwarded_client(&forwarded_for(&["192.0.2.1"])).is_none(), "not believed");
    }
}
