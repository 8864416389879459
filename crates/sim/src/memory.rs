//! What the simulated providers store from one request to the next.

use std::collections::{HashMap, VecDeque};

use tokio_util::sync::CancellationToken;

/// The maximum number of responses stored; the oldest are dropped.
const MAX_RESPONSES: usize = 2_000;
/// The maximum number of named holds; the oldest are dropped.
const MAX_GATES: usize = 1_000;

/// A response that a later request may continue from.
#[derive(Debug, Clone, Default)]
pub(crate) struct PastResponse {
    /// The number of turns of the model since the user's latest prompt, including this one.
    pub(crate) turns: usize,
    /// The ids of its calls, for which the next request must have results.
    pub(crate) calls: Vec<String>,
    /// The ids of the calls in its own request.
    pub(crate) earlier_calls: Vec<String>,
    /// The response it continues from.
    pub(crate) previous: Option<String>,
    /// Whether the provider stores it.
    pub(crate) is_stored: bool,
}

/// The latest responses by id.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    responses: HashMap<String, PastResponse>,
    order: VecDeque<String>,
}

/// The holds by name; a released one stays open.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    gates: VecDeque<(String, CancellationToken)>,
}

impl Responses {
    pub(crate) fn remember(&mut self, id: String, past: PastResponse) {
        if self.order.len() >= MAX_RESPONSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.responses.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.responses.insert(id, past);
    }

    pub(crate) fn get(&self, id: &str) -> Option<&PastResponse> {
        self.responses.get(id)
    }

    /// Whether a call occurred in a response or before it; true if that is no longer known.
    pub(crate) fn has_call(&self, id: &str, call: &str) -> bool {
        let mut next = Some(id);
        while let Some(id) = next {
            let Some(past) = self.responses.get(id) else { return true };
            if past.calls.iter().chain(&past.earlier_calls).any(|known| known == call) {
                return true;
            }
            next = past.previous.as_deref();
        }
        false
    }
}

impl Gates {
    /// The gate of a name; its token is cancelled once it is released.
    pub(crate) fn gate(&mut self, name: &str) -> CancellationToken {
        if let Some((_, gate)) = self.gates.iter().find(|(known, _)| known == name) {
            return gate.clone();
        }
        if self.gates.len() >= MAX_GATES {
            self.gates.pop_front();
        }
        let gate = CancellationToken::new();
        self.gates.push_back((name.to_owned(), gate.clone()));
        gate
    }

    /// Opens a gate, also before anything waits for it.
    pub(crate) fn release(&mut self, name: &str) {
        self.gate(name).cancel();
    }

    /// Closes the open gates again; what waits for a closed one can still be released.
    pub(crate) fn clear(&mut self) {
        self.gates.retain(|(_, gate)| !gate.is_cancelled());
    }
}
