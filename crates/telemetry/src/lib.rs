//! Logs, and metric families of bounded size.

mod escape;
mod family;
pub mod log;

pub use escape::escape_controls;
pub use family::{BoundedFamily, MAX_LABEL_BYTES, label_text, label_value};
