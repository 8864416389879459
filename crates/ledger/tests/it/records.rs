//! Users and records for tests, and what runs a test with each kind of store.

use jiff::Timestamp;
use keybridge_ledger::{
    Ledger, Opening, Settlement,
    record::{Interception, Outcome},
    store::execute,
};
use uuid::Uuid;

/// A user of the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) id: Uuid,
}

/// Creates a user, as the crate that manages users does.
pub(crate) fn user(ledger: &Ledger, name: &str) -> User {
    let id = Uuid::now_v7();
    execute(
        ledger.database(),
        "INSERT INTO users (id, name, role, status, created_at)
         VALUES ($1, $2, 'member', 'active', $3)",
        &[id.into(), name.into(), Timestamp::now().into()],
    )
    .unwrap();
    User { id }
}

pub(crate) fn opening(user: &User) -> Opening {
    let interception = Interception::new(Uuid::now_v7(), user.id, Timestamp::now());
    Opening {
        interception,
        prompt: Some("hello".into()),
        tool_results: Vec::new(),
        attachments: Vec::new(),
    }
}

/// An opening at an earlier time, which its id contains too.
pub(crate) fn opening_at(user: &User, time: Timestamp) -> Opening {
    let millis = u128::try_from(time.as_millisecond()).unwrap();
    let id = Uuid::from_u128(millis << 80 | Uuid::now_v7().as_u128() & ((1 << 80) - 1));
    let interception = Interception::new(id, user.id, time);
    Opening { interception, ..opening(user) }
}

pub(crate) fn settled(outcome: Outcome) -> Settlement {
    Settlement::new(Timestamp::now(), outcome)
}

/// Tests for each kind of store.
macro_rules! contract {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(&$crate::support::Sqlite::new()).await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test]
                #[ignore = "needs PostgreSQL: scripts/test postgres"]
                async fn $test() {
                    super::$test(&$crate::support::Postgres::new()).await;
                }
            )+
        }
    };
}

pub(crate) use contract;
