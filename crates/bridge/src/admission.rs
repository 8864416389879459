//! Who makes a request, for which endpoint, with which body, and whether there is room for it.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod identify;
pub(crate) mod limits;
pub(crate) mod route;
