//! Sending a request to a provider instance. A fallback is a second [`Dispatch`], never a mutation of
//! the first.

mod dispatch;
pub(crate) mod usage_refusal;

pub(crate) use self::dispatch::{Dispatch, DispatchContext, exhausted_status};
