//! What requests may do: integer arithmetic and state machines, without I/O and without a clock of
//! their own.

mod limits;

pub use limits::{LimitExceeded, LimitsConfig, RequestLimits, Slot, UserSlot};
