//! A limit on the log lines of one kind: half a million refusals are not half a million lines.
//!
//! A kind is a place in the source that logs. What is left out is counted and reported each second. The
//! log of requests ([`REQUEST_LOG`]) and lines below `info` are not limited.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier, field::Visit};
use tracing_subscriber::{Layer, layer::Context};

/// The name of the event that is logged once for each settled request, which is never left out.
pub const REQUEST_LOG: &str = "request";
/// The name of the event that says what was left out.
const REPORT: &str = "omitted_lines";
/// Maximum number of kinds that are counted apart.
const MAX_KINDS: usize = 1_000;
/// Time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Leaves out lines of a kind beyond the limit; clones share their counts.
#[derive(Debug, Clone)]
pub(super) struct Limiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    started: Instant,
    state: Mutex<State>,
    /// Wakes the reporter when something was left out.
    has_omitted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Lines of a kind in a second; 0: no limit.
    lines_per_second: u32,
    kinds: HashMap<Option<Identifier>, Kind>,
}

#[derive(Debug, Default)]
struct Kind {
    second: u64,
    written: u32,
    omitted: u64,
    /// The message of the first line that was left out.
    message: String,
}

/// What was left out of a kind.
#[derive(Debug, PartialEq, Eq)]
struct Omitted {
    lines: u64,
    message: String,
}

impl Limiter {
    pub(super) fn new(lines_per_second: u32) -> Self {
        let state = State { lines_per_second, kinds: HashMap::new() };
        Self(Arc::new(Shared {
            started: now(),
            state: Mutex::new(state),
            has_omitted: Condvar::new(),
        }))
    }

    /// Starts the thread that reports what is left out; it sleeps as long as nothing is.
    pub(super) fn start_reports(&self) {
        let limiter = self.clone();
        let reporter = thread::Builder::new().name("log-limiter".into());
        let started = reporter.spawn(move || {
            loop {
                limiter.wait_for_omitted();
                thread::sleep(REPORT_INTERVAL);
                for Omitted { lines, message } in limiter.take_omitted() {
                    tracing::warn!(name: REPORT, lines, message_left_out = message, "log lines were left out");
                }
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "cannot start the thread that counts omitted log lines");
        }
    }

    pub(super) fn set(&self, lines_per_second: u32) {
        self.state().lines_per_second = lines_per_second;
    }

    /// Whether a line of a kind is written in this second of the process; `message` describes it.
    fn admit(&self, kind: Identifier, second: u64, message: impl FnOnce() -> String) -> bool {
        let mut state = self.state();
        let limit = state.lines_per_second;
        if limit == 0 {
            return true;
        }
        let key = Some(kind);
        let is_known = state.kinds.len() < MAX_KINDS || state.kinds.contains_key(&key);
        let kind = state.kinds.entry(key.filter(|_| is_known)).or_default();
        if kind.second != second {
            (kind.second, kind.written) = (second, 0);
        }
        if kind.written < limit {
            kind.written += 1;
            return true;
        }
        kind.omitted += 1;
        if kind.omitted == 1 {
            kind.message = message();
            self.0.has_omitted.notify_one();
        }
        false
    }

    fn wait_for_omitted(&self) {
        let nothing_omitted =
            |state: &mut State| state.kinds.values().all(|kind| kind.omitted == 0);
        let state = self.state();
        let _state = self
            .0
            .has_omitted
            .wait_while(state, nothing_omitted)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// What was left out since the last call.
    fn take_omitted(&self) -> Vec<Omitted> {
        let mut state = self.state();
        let omitting = state.kinds.values_mut().filter(|kind| kind.omitted > 0);
        let take = |kind: &mut Kind| Omitted {
            lines: std::mem::take(&mut kind.omitted),
            message: std::mem::take(&mut kind.message),
        };
        omitting.map(take).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Limiter {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if !is_limited(metadata) {
            return true;
        }
        let second = now().saturating_duration_since(self.0.started).as_secs();
        self.admit(metadata.callsite(), second, || message(event))
    }
}

fn is_limited(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO && !matches!(metadata.name(), REQUEST_LOG | REPORT)
}

/// The message of an event.
fn message(event: &Event<'_>) -> String {
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    let mut message = Message(String::new());
    event.record(&mut message);
    message.0
}

#[expect(clippy::disallowed_methods, reason = "lines are counted in real seconds")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use tracing::callsite::Identifier;

    use super::{Limiter, Omitted};

    struct Place;

    impl tracing::Callsite for Place {
        fn set_interest(&self, _interest: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            panic!("no metadata is read")
        }
    }

    // A place is told from others by its address, so it has a size.
    static PLACES: [(Place, u8); 2] = [(Place, 0), (Place, 1)];

    fn admit(limiter: &Limiter, place: usize, second: u64) -> bool {
        limiter.admit(Identifier(&PLACES[place].0), second, || format!("message {place}"))
    }

    #[test]
    fn lines_of_a_kind_beyond_the_limit_are_left_out_and_counted() {
        let limiter = Limiter::new(3);
        let written = |place, second| (0..10).filter(|_| admit(&limiter, place, second)).count();
        assert_eq!((written(0, 1), written(1, 1), written(0, 2)), (3, 3, 3));
        let mut omitted = limiter.take_omitted();
        omitted.sort_by(|a, b| a.message.cmp(&b.message));
        assert_eq!(
            omitted,
            [
                Omitted { lines: 14, message: "message 0".into() },
                Omitted { lines: 7, message: "message 1".into() }
            ]
        );
        assert_eq!(limiter.take_omitted(), []);
    }

    #[test]
    fn a_limit_of_0_leaves_nothing_out_and_the_limit_can_be_changed() {
        let limiter = Limiter::new(0);
        assert!((0..100).all(|_| admit(&limiter, 0, 1)));
        limiter.set(1);
        assert_eq!((0..10).filter(|_| admit(&limiter, 0, 1)).count(), 1);
    }
}
