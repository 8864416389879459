//! Relays the answer to the client: bytes pass unchanged, events are observed.
//!
//! [`pump::Pump`] decides what passes and does no I/O; [`body`] feeds it from the provider's HTTP body
//! as the client's connection pulls, so that a slow client slows the provider and a client that
//! disconnects cancels the exchange upstream.

mod body;
mod key_mask;
pub(crate) mod list;
mod pump;
pub(crate) mod refusal;
pub(crate) mod respond;
mod watch;
