//! Logs, and metric families of bounded size.

mod family;
pub mod log;

pub use family::{BoundedFamily, MAX_LABEL_BYTES, label_value};
