//! What was received and what was answered.

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

use crate::memory::{Gates, Responses};

/// Most exchanges kept.
const MOST: usize = 10_000;
/// Most bytes of bodies kept; the latest exchange is kept whatever its size.
const MOST_BYTES: usize = 64 << 20;

/// One request and its answer so far.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    /// Method.
    pub method: String,
    /// Path and query as received.
    pub path_and_query: String,
    /// Headers in their order, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body as received.
    pub body: Bytes,
    /// What a provider would not expect from a client.
    pub problems: Vec<String>,
    /// Status answered; 0 while there is none.
    pub status: u16,
    /// Headers answered.
    pub response_headers: Vec<(String, Vec<u8>)>,
    /// Body bytes handed out so far.
    pub response_sent: Bytes,
    /// Whether the answer was played to its end.
    pub finished: bool,
    /// Whether the client left before that.
    pub client_left: bool,
    /// When it was noticed that the client had left.
    pub disconnected_at: Option<Instant>,
    /// What a provider's prompt cache sees of the request: a rolling SHA-256 after each part, in
    /// the order in which the provider reads them.
    pub prefix: Vec<String>,
}

impl Exchange {
    /// Whether this request begins, for the provider's prompt cache, with all that an earlier one
    /// to the same path held, and goes on after it.
    pub fn extends(&self, earlier: &Self) -> bool {
        let path = |exchange: &Self| {
            exchange.path_and_query.split('?').next().unwrap_or_default().to_owned()
        };
        !earlier.prefix.is_empty()
            && self.prefix.len() > earlier.prefix.len()
            && self.prefix.starts_with(&earlier.prefix)
            && path(self) == path(earlier)
    }

    /// The exchange with bodies as text.
    pub(crate) fn to_json(&self) -> Value {
        let headers = |headers: &[(String, Vec<u8>)]| {
            headers
                .iter()
                .map(|(name, value)| json!([name, String::from_utf8_lossy(value)]))
                .collect::<Vec<_>>()
        };
        json!({
            "method": self.method,
            "path": self.path_and_query,
            "headers": headers(&self.headers),
            "body": String::from_utf8_lossy(&self.body),
            "problems": self.problems,
            "status": self.status,
            "response_headers": headers(&self.response_headers),
            "response": String::from_utf8_lossy(&self.response_sent),
            "finished": self.finished,
            "client_left": self.client_left,
            "prefix": self.prefix,
        })
    }
}

/// An exchange being played.
#[derive(Debug, Clone)]
pub(crate) struct Playing {
    exchange: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    exchange: Exchange,
    sent: Vec<u8>,
    /// The bytes of all exchanges that are kept, until this one is forgotten.
    kept_bytes: Option<Arc<AtomicUsize>>,
}

/// Notes that the client left, unless it has stayed.
pub(crate) struct Leaving(Option<Playing>);

impl Leaving {
    pub(crate) fn has_stayed(mut self) {
        self.0 = None;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(playing) = &self.0 {
            playing.client_left();
        }
    }
}

impl Playing {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Exchange)) {
        change(&mut self.exchange.lock().unwrap_or_else(PoisonError::into_inner).exchange);
    }

    /// Notes that the client left before the answer's end.
    pub(crate) fn client_left(&self) {
        self.change(|exchange| {
            exchange.client_left = true;
            exchange.disconnected_at = Some(Instant::now());
        });
    }

    /// Notes that the client left if what this gives is dropped.
    pub(crate) fn leaving(&self) -> Leaving {
        Leaving(Some(self.clone()))
    }

    pub(crate) fn sent(&self, bytes: &[u8]) {
        let mut running = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept_bytes) = &running.kept_bytes {
            kept_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
            running.sent.extend_from_slice(bytes);
        }
    }

    /// Notes what a prompt cache sees; the room it takes counts.
    pub(crate) fn set_prefix(&self, prefix: Vec<String>) {
        let mut running = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept_bytes) = &running.kept_bytes {
            kept_bytes.fetch_add(size(&prefix), Ordering::Relaxed);
            running.exchange.prefix = prefix;
        }
    }

    /// Gives back its share of the bytes; what is sent from now on is not kept.
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

/// The latest exchanges.
#[derive(Debug, Default)]
pub(crate) struct Log {
    exchanges: VecDeque<Playing>,
    /// The bytes of their bodies.
    bytes: Arc<AtomicUsize>,
    /// Ids of background answers, each with its model.
    background: VecDeque<(String, String)>,
    /// What a later request may go on from.
    pub(crate) responses: Responses,
    /// The holds of scripted turns.
    pub(crate) gates: Gates,
    /// How many requests of a name came.
    counts: HashMap<String, usize>,
    /// Credentials that are answered with a status, whatever they ask for.
    refused: HashMap<String, KeyAnswer>,
}

/// What a credential is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAnswer {
    /// The status.
    pub status: u16,
    /// Seconds for `Retry-After`; without, the status decides.
    pub retry_after: Option<u32>,
}

impl Log {
    pub(crate) fn begin(&mut self, exchange: Exchange) -> Playing {
        let added = exchange.body.len();
        while self.exchanges.len() >= MOST
            || self.bytes.load(Ordering::Relaxed) + added > MOST_BYTES
        {
            let Some(oldest) = self.exchanges.pop_front() else { break };
            oldest.forget();
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
        let kept_bytes = Some(Arc::clone(&self.bytes));
        let running = Running { exchange, sent: Vec::new(), kept_bytes };
        let playing = Playing { exchange: Arc::new(Mutex::new(running)) };
        self.exchanges.push_back(playing.clone());
        playing
    }

    pub(crate) fn all(&self) -> Vec<Exchange> {
        self.exchanges.iter().map(Playing::snapshot).collect()
    }

    pub(crate) fn last(&self) -> Option<Exchange> {
        self.exchanges.back().map(Playing::snapshot)
    }

    pub(crate) fn clear(&mut self) {
        for exchange in self.exchanges.drain(..) {
            exchange.forget();
        }
        self.background.clear();
        self.gates.clear();
        self.counts.clear();
    }

    /// How many requests of a name came before; this one is counted too.
    pub(crate) fn count(&mut self, name: &str) -> usize {
        if self.counts.len() >= MOST {
            self.counts.clear();
        }
        let count = self.counts.entry(name.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    /// Answers a credential with a status from now on, or as usual.
    pub(crate) fn answer_key(&mut self, key: &str, answer: Option<KeyAnswer>) {
        match answer {
            Some(answer) if self.refused.len() < MOST => {
                self.refused.insert(key.to_owned(), answer);
            }
            _ => {
                self.refused.remove(key);
            }
        }
    }

    /// What the credential in a header's value is answered with.
    pub(crate) fn key_answer(&self, value: &str) -> Option<KeyAnswer> {
        let key = value.strip_prefix("Bearer ").unwrap_or(value);
        self.refused.get(key).copied()
    }

    /// Notes a background answer, which is fetched later.
    pub(crate) fn store(&mut self, id: String, model: String) {
        if self.background.len() >= MOST {
            self.background.pop_front();
        }
        self.background.push_back((id, model));
    }

    /// Whether a response is one that this simulator answered in the background.
    pub(crate) fn is_background(&self, id: &str) -> bool {
        self.background.iter().any(|(stored, _)| stored == id)
    }

    /// The model of a background answer.
    pub(crate) fn stored_model(&self, id: &str) -> Option<String> {
        let stored = self.background.iter().find(|(stored, _)| stored == id);
        stored.map(|(_, model)| model.clone())
    }
}
