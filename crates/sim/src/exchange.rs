//! The requests received and their responses.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    credentials::{fingerprints, masked_headers, masked_path},
    memory::{Gates, Responses},
};

/// The maximum number of exchanges kept.
const MAX_EXCHANGES: usize = 10_000;
/// The maximum total size of bodies kept; the latest exchange is kept whatever its size.
const MAX_BYTES: usize = 64 << 20;

/// A request and its response so far.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    /// The method.
    pub method: String,
    /// The path and query as received.
    pub path_and_query: String,
    /// The headers in order, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body as received.
    pub body: Bytes,
    /// What a provider would reject or not expect from a client.
    pub problems: Vec<String>,
    /// The response status; 0 while there is none.
    pub status: u16,
    /// The response headers.
    pub response_headers: Vec<(String, Vec<u8>)>,
    /// The response body sent so far.
    pub response_sent: Bytes,
    /// Whether the response was sent completely.
    pub finished: bool,
    /// Whether the client disconnected before that.
    pub client_left: bool,
    /// When the disconnect was noticed.
    pub disconnected_at: Option<Instant>,
    /// The request as a prompt cache sees it: a rolling SHA-256 after each part, in the order in which
    /// the provider reads them.
    pub prefix: Vec<String>,
}

impl Exchange {
    /// Whether this request extends, for the provider's prompt cache, an earlier one to the same path.
    pub fn extends(&self, earlier: &Self) -> bool {
        let path = |exchange: &Self| {
            exchange.path_and_query.split('?').next().unwrap_or_default().to_owned()
        };
        !earlier.prefix.is_empty()
            && self.prefix.len() > earlier.prefix.len()
            && self.prefix.starts_with(&earlier.prefix)
            && path(self) == path(earlier)
    }

    /// The exchange as JSON, with bodies as text and the credentials of the request masked.
    pub(crate) fn to_json(&self) -> Value {
        let response_headers: Vec<_> = self
            .response_headers
            .iter()
            .map(|(name, value)| json!([name, String::from_utf8_lossy(value)]))
            .collect();
        json!({
            "method": self.method,
            "path": masked_path(&self.path_and_query),
            "headers": masked_headers(&self.headers),
            "credentials": fingerprints(&self.headers),
            "body": String::from_utf8_lossy(&self.body),
            "problems": self.problems,
            "status": self.status,
            "response_headers": response_headers,
            "response": String::from_utf8_lossy(&self.response_sent),
            "finished": self.finished,
            "client_left": self.client_left,
            "prefix": self.prefix,
        })
    }
}

/// An exchange in progress.
#[derive(Debug, Clone)]
pub(crate) struct ActiveExchange {
    exchange: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    exchange: Exchange,
    sent: Vec<u8>,
    /// The total size of all exchanges kept; `None` once this one is dropped.
    kept_bytes: Option<Arc<AtomicUsize>>,
}

/// Records a disconnect when dropped, unless disarmed.
pub(crate) struct DisconnectGuard(Option<ActiveExchange>);

impl DisconnectGuard {
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for DisconnectGuard {
    fn drop(&mut self) {
        if let Some(active) = &self.0 {
            active.client_left();
        }
    }
}

impl ActiveExchange {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Exchange)) {
        change(&mut self.exchange.lock().unwrap_or_else(PoisonError::into_inner).exchange);
    }

    /// Records that the client disconnected before the end of the response.
    pub(crate) fn client_left(&self) {
        self.change(|exchange| {
            exchange.client_left = true;
            exchange.disconnected_at = Some(Instant::now());
        });
    }

    /// Returns a guard that records a disconnect when dropped.
    pub(crate) fn guard_disconnect(&self) -> DisconnectGuard {
        DisconnectGuard(Some(self.clone()))
    }

    pub(crate) fn sent(&self, bytes: &[u8]) {
        let mut running = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept_bytes) = &running.kept_bytes {
            kept_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
            running.sent.extend_from_slice(bytes);
        }
    }

    /// Records what a prompt cache sees; its size counts towards the limit.
    pub(crate) fn set_prefix(&self, prefix: Vec<String>) {
        let mut running = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept_bytes) = &running.kept_bytes {
            kept_bytes.fetch_add(size(&prefix), Ordering::Relaxed);
            running.exchange.prefix = prefix;
        }
    }

    /// Releases its share of the total size; bytes sent from now on are not recorded.
    fn forget(&self) {
        let mut running = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept_bytes) = running.kept_bytes.take() {
            let prefix = size(&running.exchange.prefix);
            let bytes = running.exchange.body.len() + running.sent.len() + prefix;
            kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn snapshot(&self) -> Exchange {
        let running = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        Exchange {
            response_sent: Bytes::copy_from_slice(&running.sent),
            ..running.exchange.clone()
        }
    }
}

fn size(prefix: &[String]) -> usize {
    prefix.iter().map(String::len).sum()
}

/// The log of the latest exchanges.
#[derive(Debug, Default)]
pub(crate) struct ExchangeLog {
    exchanges: VecDeque<ActiveExchange>,
    /// The total size of their bodies.
    bytes: Arc<AtomicUsize>,
    /// The ids of background responses with their models.
    background: VecDeque<(String, String)>,
    /// The responses that a later request may continue from.
    pub(crate) responses: Responses,
    /// The holds of scripted turns.
    pub(crate) gates: Gates,
    /// The number of requests received by name.
    counts: HashMap<String, usize>,
    /// The credentials with a fixed response.
    refused: HashMap<String, KeyOverride>,
}

/// The fixed response to a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyOverride {
    /// The status.
    pub status: u16,
    /// The seconds for `Retry-After`; if `None`, the status decides.
    pub retry_after: Option<u32>,
}

impl ExchangeLog {
    pub(crate) fn begin(&mut self, exchange: Exchange) -> ActiveExchange {
        let added = exchange.body.len();
        while self.exchanges.len() >= MAX_EXCHANGES
            || self.bytes.load(Ordering::Relaxed) + added > MAX_BYTES
        {
            let Some(oldest) = self.exchanges.pop_front() else { break };
            oldest.forget();
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
        let kept_bytes = Some(Arc::clone(&self.bytes));
        let running = Running { exchange, sent: Vec::new(), kept_bytes };
        let active = ActiveExchange { exchange: Arc::new(Mutex::new(running)) };
        self.exchanges.push_back(active.clone());
        active
    }

    pub(crate) fn all(&self) -> Vec<Exchange> {
        self.exchanges.iter().map(ActiveExchange::snapshot).collect()
    }

    pub(crate) fn last(&self) -> Option<Exchange> {
        self.exchanges.back().map(ActiveExchange::snapshot)
    }

    pub(crate) fn clear(&mut self) {
        for exchange in self.exchanges.drain(..) {
            exchange.forget();
        }
        self.background.clear();
        self.gates.clear();
        self.counts.clear();
    }

    /// Counts a request by name; returns how many came before it.
    pub(crate) fn count(&mut self, name: &str) -> usize {
        if self.counts.len() >= MAX_EXCHANGES {
            self.counts.clear();
        }
        let count = self.counts.entry(name.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    /// Sets or removes the fixed response to a credential.
    pub(crate) fn override_key(&mut self, key: &str, answer: Option<KeyOverride>) {
        match answer {
            Some(answer) if self.refused.len() < MAX_EXCHANGES => {
                self.refused.insert(key.to_owned(), answer);
            }
            _ => {
                self.refused.remove(key);
            }
        }
    }

    /// The fixed response to the credential in a header value.
    pub(crate) fn key_override(&self, value: &str) -> Option<KeyOverride> {
        let key = value.strip_prefix("Bearer ").unwrap_or(value);
        self.refused.get(key).copied()
    }

    /// Stores a background response, which is fetched later.
    pub(crate) fn store(&mut self, id: String, model: String) {
        if self.background.len() >= MAX_EXCHANGES {
            self.background.pop_front();
        }
        self.background.push_back((id, model));
    }

    /// Whether a response is a background response of this simulator.
    pub(crate) fn is_background(&self, id: &str) -> bool {
        self.background.iter().any(|(stored, _)| stored == id)
    }

    /// The model of a background response.
    pub(crate) fn stored_model(&self, id: &str) -> Option<String> {
        let stored = self.background.iter().find(|(stored, _)| stored == id);
        stored.map(|(_, model)| model.clone())
    }
}
