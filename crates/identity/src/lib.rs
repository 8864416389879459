//! Users and their bridge tokens, and the identification of callers.
//!
//! [`Accounts`] administers users and tokens in the ledger's store; [`Directory`] identifies callers for
//! the data path and the API, and caches users and tokens for a few seconds.

mod access;
mod accounts;
mod directory;
mod offline;
mod record;
pub mod token;

pub use crate::{
    access::{Access, AccessEnd},
    accounts::{AccountError, Accounts, NewUser, UserChange},
    directory::{Caller, CallerError, Directory, Identity},
    offline::{OfflineCache, OfflineError},
    record::{Role, Token, User, UserStatus},
    token::BridgeToken,
};
