//! What keybridge says of itself: logs, and metrics whose labels are bounded.

mod label;
pub mod log;

pub use label::BoundedLabel;
