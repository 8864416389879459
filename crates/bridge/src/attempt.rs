//! A request on its way to a provider instance. A fallback is another [`Dispatch`], never a change of
//! the first.

mod dispatch;

pub(crate) use self::dispatch::{Dispatch, DispatchContext, exhausted_status};
