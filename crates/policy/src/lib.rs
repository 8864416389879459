//! Policies for requests: integer arithmetic and state machines, without I/O and without their own
//! clock.

mod backoff;
mod limits;

pub use backoff::Backoff;
pub use limits::{LimitExceeded, LimitsConfig, RequestLimits, Slot, UserSlot};
