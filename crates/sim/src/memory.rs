//! What the simulated providers remember from one request to the next.

use std::collections::{HashMap, VecDeque};

use tokio_util::sync::CancellationToken;

/// Most responses remembered; the oldest are forgotten.
const MOST_RESPONSES: usize = 2_000;
/// Most names of holds remembered; the oldest are forgotten.
const MOST_GATES: usize = 1_000;

/// A response that a later request may go on from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made {
    /// Turns of the model since the user's latest words, this one included.
    pub(crate) turns: usize,
    /// The ids of its calls, which the next request answers.
    pub(crate) calls: Vec<String>,
    /// The calls that its own request brought along.
    pub(crate) earlier_calls: Vec<String>,
    /// The response it goes on from.
    pub(crate) previous: Option<String>,
    /// Whether the provider keeps it.
    pub(crate) is_stored: bool,
}

/// The latest responses by their id.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    made: HashMap<String, Made>,
    order: VecDeque<String>,
}

/// The holds by their name; one that is released stays open.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    gates: VecDeque<(String, CancellationToken)>,
}

impl Responses {
    pub(crate) fn remember(&mut self, id: String, made: Made) {
        if self.order.len() >= MOST_RESPONSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.made.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.made.insert(id, made);
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Made> {
        self.made.get(id)
    }

    /// Whether a call was made in a response or before it; true where that is forgotten.
    pub(crate) fn has_call(&self, id: &str, call: &str) -> bool {
        let mut next = Some(id);
        while let Some(id) = next {
            let Some(made) = self.made.get(id) else { return true };
            if made.calls.iter().chain(&made.earlier_calls).any(|known| known == call) {
                return true;
            }
            next = made.previous.as_deref();
        }
        false
    }
}

impl Gates {
    /// The gate of a name, cancelled once it is released.
    pub(crate) fn gate(&mut self, name: &str) -> CancellationToken {
        if let Some((_, gate)) = self.gates.iter().find(|(known, _)| known == name) {
            return gate.clone();
        }
        if self.gates.len() >= MOST_GATES {
            self.gates.pop_front();
        }
        let gate = CancellationToken::new();
        self.gates.push_back((name.to_owned(), gate.clone()));
        gate
    }

    /// Opens a gate, also before it is waited at.
    pub(crate) fn release(&mut self, name: &str) {
        self.gate(name).cancel();
    }

    /// Closes the open gates again; what waits at a closed one can still be released.
    pub(crate) fn clear(&mut self) {
        self.gates.retain(|(_, gate)| !gate.is_cancelled());
    }
}
