//! What the writing connection promises, batch by batch.

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    NewUser, Opening,
    read::lists,
    read::query::InterceptionFilter,
    record::{Interception, Role, Token, User},
    store::Write,
    store::sql::admin,
    store::{Store, StoreWriter},
};

fn store() -> (TempDir, SqliteStore, User) {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::new(&dir.path().join("ledger.db"));
    store.migrate().unwrap();
    let ada = NewUser { name: "ada".into(), email: None, role: Role::Member };
    let ada = admin::create_user(&store, &ada).unwrap();
    (dir, store, ada)
}

fn token(store: &SqliteStore, user: &User) -> Uuid {
    let token = Token {
        id: Uuid::now_v7(),
        user_id: user.id,
        name: None,
        token_hash: "hash".into(),
        hint: "kb_...".into(),
        created_at: Timestamp::now(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    };
    admin::insert_token(store, &token).unwrap();
    token.id
}

fn open(user_id: Uuid, token_id: Option<Uuid>, at: Timestamp) -> Write {
    let mut interception = Interception::new(Uuid::now_v7(), user_id, at);
    interception.token_id = token_id;
    let prompt = Some("hello".into());
    Write::Open(Uuid::nil(), Box::new(Opening { interception, prompt, tool_results: Vec::new() }))
}

fn last_use(store: &SqliteStore) -> Option<Timestamp> {
    admin::tokens(store, None).unwrap()[0].last_used_at
}

fn recorded(store: &SqliteStore) -> usize {
    lists::interceptions(store, &InterceptionFilter { limit: 100, ..Default::default() })
        .unwrap()
        .items
        .len()
}

fn results(writer: &mut dyn StoreWriter, batch: &[Write]) -> Vec<bool> {
    writer.commit(batch).unwrap().iter().map(Result::is_ok).collect()
}

#[test]
fn the_last_use_of_a_token_is_kept_to_the_minute() {
    let (_dir, store, ada) = store();
    let token = Some(token(&store, &ada));
    let mut writer = store.writer().unwrap();
    let first: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
    for (after, used) in [(0, 0), (30, 0), (60, 0), (61, 61), (62, 61), (121, 61), (122, 122)] {
        let at = first + SignedDuration::from_secs(after);
        assert_eq!(results(&mut *writer, &[open(ada.id, token, at)]), [true]);
        assert_eq!(last_use(&store), Some(first + SignedDuration::from_secs(used)), "{after}");
    }
}

#[test]
fn a_bad_record_takes_no_other_with_it_nor_the_use_of_a_token() {
    let (_dir, store, ada) = store();
    let token = Some(token(&store, &ada));
    let mut writer = store.writer().unwrap();
    let (nobody, at) = (Uuid::now_v7(), "2026-11-24T10:00:00Z".parse().unwrap());
    let batch = [open(ada.id, token, at), open(nobody, None, at), open(ada.id, token, at)];
    assert_eq!(results(&mut *writer, &batch), [true, false, true]);
    assert_eq!((last_use(&store), recorded(&store)), (Some(at), 2));
    assert_eq!(results(&mut *writer, &batch), [true, false, true], "once more");
    assert_eq!(recorded(&store), 2);
}
