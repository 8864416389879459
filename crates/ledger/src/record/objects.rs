//! Objects that a provider stores, such as responses and files: who made them, and with which key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Maximum length of the id of an object, in bytes; longer ones are neither recorded nor found. It is the key
/// of an index, which cannot take any length.
pub const MAX_OBJECT_ID_BYTES: usize = 1_024;
/// Maximum number of objects that are recorded for one answer.
pub const MAX_OBJECTS_PER_ANSWER: usize = 100;

/// What a user's request made or deleted at a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectChanges {
    /// The provider instance.
    pub provider: String,
    /// The name of the provider's key, if the request was sent with one.
    pub key: Option<String>,
    /// The user.
    pub user_id: Uuid,
    /// When the answer came.
    pub at: Timestamp,
    /// What was made. What is recorded already keeps its maker.
    pub made: Vec<NewObject>,
    /// The ids of what was deleted.
    pub deleted: Vec<String>,
}

/// An object that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewObject {
    /// `response`, `conversation`, `file` and the like.
    pub kind: String,
    /// The provider's id.
    pub id: String,
}

impl ObjectChanges {
    /// Whether nothing was made or deleted.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty() && self.deleted.is_empty()
    }

    /// Leaves out ids that are too long, and what is more than is recorded of one answer.
    pub(crate) fn bound(&mut self) {
        self.made.retain(|object| object.id.len() <= MAX_OBJECT_ID_BYTES);
        self.made.truncate(MAX_OBJECTS_PER_ANSWER);
        self.deleted.retain(|id| id.len() <= MAX_OBJECT_ID_BYTES);
        self.deleted.truncate(MAX_OBJECTS_PER_ANSWER);
    }
}

/// The maker of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMaker {
    /// The user.
    pub user_id: Uuid,
    /// The name of the provider's key; `None` where another credential made it.
    pub key: Option<String>,
    /// The record of the request that made it.
    pub interception_id: Uuid,
}
