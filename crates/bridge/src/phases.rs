//! When the phases of a request ended.

use keybridge_ledger::Settlement;
use tokio::time::Instant;

/// When the phases of a request ended, in microseconds after its start; `None` for one that it has not come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseTimes {
    started: Instant,
    identified_us: Option<u64>,
    body_read_us: Option<u64>,
    credential_us: Option<u64>,
    opened_us: Option<u64>,
}

impl PhaseTimes {
    /// The times of a request that starts now.
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            identified_us: None,
            body_read_us: None,
            credential_us: None,
            opened_us: None,
        }
    }

    /// Notes that the caller has been identified.
    pub(crate) fn note_identified(&mut self) {
        self.identified_us = self.now_us();
    }

    /// Notes that the whole body has been read.
    pub(crate) fn note_body_read(&mut self) {
        self.body_read_us = self.now_us();
    }

    /// Notes that the credential has been chosen and the request is admitted.
    pub(crate) fn note_credential(&mut self) {
        self.credential_us = self.now_us();
    }

    /// Notes that the record has been committed.
    pub(crate) fn note_opened(&mut self) {
        self.opened_us = self.now_us();
    }

    /// Puts the times into a settlement that is made now; `connected` is when a connection to a provider first
    /// took the request.
    pub(crate) fn put_into(&self, settlement: &mut Settlement, connected: Option<Instant>) {
        settlement.identified_us = self.identified_us;
        settlement.body_read_us = self.body_read_us;
        settlement.credential_us = self.credential_us;
        settlement.opened_us = self.opened_us;
        settlement.connected_us = connected.and_then(|connected| self.offset_us(connected));
        settlement.settled_us = self.now_us();
    }

    fn now_us(&self) -> Option<u64> {
        self.offset_us(Instant::now())
    }

    fn offset_us(&self, time: Instant) -> Option<u64> {
        u64::try_from(time.saturating_duration_since(self.started).as_micros()).ok()
    }
}
