//! What keybridge says of itself: logs, and metrics whose labels are bounded.

mod family;
pub mod log;

pub use family::{BoundedFamily, MAX_LABEL_BYTES, label_value};
