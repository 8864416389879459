//! What requests may do: integer arithmetic and state machines, without I/O and without a clock of
//! their own.

mod backoff;
mod limits;

pub use backoff::Backoff;
pub use limits::{LimitExceeded, LimitsConfig, RequestLimits, Slot, UserSlot};
