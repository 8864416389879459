//! The people of keybridge: users, their bridge tokens, and who a token belongs to.
//!
//! [`Accounts`] administers users and tokens in the ledger's store; [`Directory`] answers the data
//! path and the API, and caches what the store said for a few seconds.

mod accounts;
mod directory;
mod record;
pub mod token;

pub use crate::{
    accounts::{AccountError, Accounts, NewUser},
    directory::{Caller, CallerError, Directory, Identity},
    record::{Role, Token, User, UserStatus},
    token::BridgeToken,
};
