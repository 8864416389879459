//! What the data path learns of a token, and for how long it is cached.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use keybridge_identity::{
    AccessEnd, Accounts, BridgeToken, CallerError, Directory, NewUser, Role, UserStatus,
};
use keybridge_ledger::store::execute;

use crate::support::{Fixture, Sqlite};

struct World {
    accounts: Accounts,
    directory: Directory,
    _store: Sqlite,
    ledger: keybridge_ledger::Ledger,
}

/// A directory over a store with the user `ada`. It is kept whole: its store ends with it.
fn world() -> World {
    let store = Sqlite::new();
    let ledger = store.open();
    let accounts = Accounts::new(ledger.clone());
    let ada = NewUser { name: "ada".into(), email: None, role: Role::Member };
    accounts.create_user(&ada).unwrap();
    World { accounts, directory: Directory::new(ledger.clone()), _store: store, ledger }
}

#[tokio::test]
async fn a_token_is_accepted_until_it_expires_is_revoked_or_its_user_is_suspended() {
    let world = world();
    let World { accounts, directory, .. } = &world;
    let (token, secret) = accounts.create_token("ada", None, None).unwrap();
    let identity = directory.identify(&secret).await.unwrap();
    assert_eq!((identity.user.name.as_str(), identity.token.id), ("ada", token.id));
    let unknown = BridgeToken::generate().unwrap();
    assert_eq!(directory.identify(&unknown).await, Err(CallerError::Unknown));
    let past = Timestamp::now() - SignedDuration::from_secs(60);
    let (_token, expired) = accounts.create_token("ada", None, Some(past)).unwrap();
    assert_eq!(directory.identify(&expired).await, Err(CallerError::Expired));

    // The cached answer ends with the announcement of a change.
    accounts.set_user_status("ada", UserStatus::Suspended).unwrap();
    assert_eq!(directory.identify(&secret).await, Err(CallerError::Suspended));
    accounts.set_user_status("ada", UserStatus::Active).unwrap();
    assert!(directory.identify(&secret).await.is_ok());
    accounts.revoke_token(token.id).unwrap();
    assert_eq!(directory.identify(&secret).await, Err(CallerError::Revoked));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_announces_is_noticed_after_two_seconds() {
    let world = world();
    let World { accounts, directory, ledger, .. } = &world;
    let (_token, secret) = accounts.create_token("ada", None, None).unwrap();
    assert!(directory.identify(&secret).await.is_ok());
    let sql = "UPDATE users SET status = 'suspended'";
    execute(ledger.database(), sql, &[]).unwrap();
    assert!(directory.identify(&secret).await.is_ok(), "the answer is cached");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(directory.identify(&secret).await, Err(CallerError::Suspended));
}

#[tokio::test]
async fn the_first_administrators_token_expires_unless_it_is_used() {
    let world = world();
    let World { accounts, directory, .. } = &world;
    let secret = accounts.create_first_admin("admin").unwrap();
    let expiry = || accounts.tokens(Some("admin")).unwrap()[0].expires_at;
    let left = expiry().unwrap().duration_since(Timestamp::now());
    assert!(left > SignedDuration::from_hours(23) && left <= SignedDuration::from_hours(24));
    // Another one of this label keeps its expiry.
    let soon = Timestamp::now() + SignedDuration::from_hours(1);
    let (_token, other) = accounts.create_token("ada", Some("first"), Some(soon)).unwrap();
    assert!(directory.identify(&other).await.is_ok());
    assert!(accounts.tokens(Some("ada")).unwrap()[0].expires_at.is_some());

    let identity = directory.identify(&secret).await.unwrap();
    assert_eq!((identity.user.role, identity.token.expires_at), (Role::Admin, None));
    assert_eq!(expiry(), None);
}

#[tokio::test]
async fn the_first_administrators_token_is_refused_when_it_has_expired() {
    let world = world();
    let World { accounts, directory, ledger, .. } = &world;
    let secret = accounts.create_first_admin("admin").unwrap();
    let past = Timestamp::now() - SignedDuration::from_secs(1);
    let sql = "UPDATE tokens SET expires_at = $1";
    execute(ledger.database(), sql, &[past.into()]).unwrap();
    assert_eq!(directory.identify(&secret).await, Err(CallerError::Expired));
    assert!(accounts.tokens(Some("admin")).unwrap()[0].expires_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_access_of_open_requests_ends_with_their_token_and_not_that_of_others() {
    let world = world();
    let World { accounts, directory, .. } = &world;
    let (token, secret) = accounts.create_token("ada", None, None).unwrap();
    let (_token, other) = accounts.create_token("ada", None, None).unwrap();
    let (first, second) = (
        directory.open_request(&secret).await.unwrap(),
        directory.open_request(&secret).await.unwrap(),
    );
    let other = directory.open_request(&other).await.unwrap();
    tokio::select! {
        () = directory.watch() => unreachable!("it never returns"),
        end = async {
            accounts.revoke_token(token.id).unwrap();
            first.access.wait().await
        } => assert_eq!(end, AccessEnd::Revoked),
    }
    assert_eq!(second.access.ended(), Some(AccessEnd::Revoked));
    assert_eq!(other.access.ended(), None);
    directory.end_requests();
    assert_eq!(other.access.wait().await, AccessEnd::ShuttingDown);
    assert_eq!(second.access.ended(), Some(AccessEnd::Revoked));
}
