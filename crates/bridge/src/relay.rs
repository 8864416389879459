//! The answer on its way to the client.

pub(crate) mod pump;
pub(crate) mod respond;
