//! What the administration of users and tokens promises, on each store.

use jiff::Timestamp;
use keybridge_identity::{
    AccountError, Accounts, BridgeToken, NewUser, Role, User, UserChange, UserStatus,
};
use keybridge_ledger::{Opening, record::Interception};
use uuid::Uuid;

use crate::support::{Fixture, Postgres, Sqlite};

fn member(name: &str) -> NewUser {
    NewUser { name: name.into(), email: None, role: Role::Member }
}

fn create(accounts: &Accounts, name: &str) -> User {
    accounts.create_user(&member(name)).unwrap()
}

fn a_name_belongs_to_one_user(fixture: &impl Fixture) {
    let accounts = Accounts::new(fixture.open());
    let ada = create(&accounts, "ada");
    assert!(!accounts.has_administrators().unwrap());
    accounts.create_user(&NewUser { role: Role::Admin, ..member("root") }).unwrap();
    assert!(accounts.has_administrators().unwrap());
    let again = NewUser { role: Role::Admin, ..member("ada") };
    assert!(matches!(accounts.create_user(&again), Err(AccountError::UserExists(_))));
    for name in ["", "a b", &"x".repeat(65)] {
        let refused = accounts.create_user(&member(name));
        assert!(matches!(refused, Err(AccountError::UserName(_))), "{name:?}: {refused:?}");
    }
    assert_eq!(accounts.user("ada").unwrap(), ada);
    assert!(matches!(accounts.user("bob"), Err(AccountError::NoSuchUser(_))));
}

fn a_token_is_found_by_its_hash(fixture: &impl Fixture) {
    let accounts = Accounts::new(fixture.open());
    let ada = create(&accounts, "ada");
    let (token, secret) = accounts.create_token("ada", Some("laptop"), None).unwrap();
    let nobody = accounts.create_token("nobody", None, None);
    assert!(matches!(nobody, Err(AccountError::NoSuchUser(_))));
    let (found, owner) = accounts.find_token(&secret.hash()).unwrap().unwrap();
    assert_eq!((found.id, owner), (token.id, ada));
    let other = BridgeToken::generate().unwrap();
    assert!(accounts.find_token(&other.hash()).unwrap().is_none());
}

fn changes_of_access_are_announced(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let accounts = Accounts::new(ledger.clone());
    create(&accounts, "ada");
    let (token, _secret) = accounts.create_token("ada", None, None).unwrap();
    let before = ledger.access_version();
    let suspended = accounts.set_user_status("ada", UserStatus::Suspended).unwrap();
    assert_eq!(suspended.status, UserStatus::Suspended);
    assert!(ledger.access_version() > before);
    let before = ledger.access_version();
    let revoked = accounts.revoke_token(token.id).unwrap().revoked_at;
    assert!(revoked.is_some() && ledger.access_version() > before);
    let again = accounts.revoke_token(token.id).unwrap().revoked_at;
    assert_eq!(again, revoked, "the first time counts");
    let unknown = accounts.revoke_token(Uuid::now_v7());
    assert!(matches!(unknown, Err(AccountError::NoSuchToken(_))));
}

fn a_recorded_request_is_a_use_of_its_token(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let accounts = Accounts::new(ledger.clone());
    let ada = create(&accounts, "ada");
    let (token, _secret) = accounts.create_token("ada", None, None).unwrap();
    let mut interception = Interception::new(Uuid::now_v7(), ada.id, Timestamp::now());
    interception.token_id = Some(token.id);
    let opening =
        Opening { interception, prompt: None, tool_results: Vec::new(), attachments: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entry = runtime.block_on(ledger.recorder().open(opening)).unwrap();
    assert!(accounts.tokens(Some("ada")).unwrap()[0].last_used_at.is_some());
}

fn an_active_administrator_is_always_left(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let accounts = Accounts::new(ledger.clone());
    create(&accounts, "ada");
    accounts.create_user(&NewUser { role: Role::Admin, ..member("root") }).unwrap();
    accounts.create_user(&NewUser { role: Role::Admin, ..member("away") }).unwrap();
    let role = |role| UserChange { role: Some(role), ..UserChange::default() };
    accounts.set_user_status("away", UserStatus::Suspended).unwrap();
    for change in [
        role(Role::Member),
        UserChange { status: Some(UserStatus::Suspended), ..UserChange::default() },
        UserChange { status: Some(UserStatus::Suspended), ..role(Role::Admin) },
    ] {
        let refused = accounts.change_user("root", &change);
        assert!(matches!(refused, Err(AccountError::LastAdministrator(_))), "{refused:?}");
    }
    let email = UserChange { email: Some("r@example.com".into()), ..UserChange::default() };
    assert_eq!(accounts.change_user("root", &email).unwrap().role, Role::Admin);
    let before = ledger.access_version();
    assert_eq!(accounts.change_user("ada", &role(Role::Admin)).unwrap().role, Role::Admin);
    assert!(ledger.access_version() > before);
    let root = accounts.change_user("root", &role(Role::Member)).unwrap();
    assert_eq!((root.role, root.email.as_deref()), (Role::Member, Some("r@example.com")));
    let unknown = accounts.change_user("zoe", &role(Role::Member));
    assert!(matches!(unknown, Err(AccountError::NoSuchUser(_))), "{unknown:?}");
}

fn users_and_tokens_are_listed_in_pages(fixture: &impl Fixture) {
    let accounts = Accounts::new(fixture.open());
    let users = ["ada", "bob", "eve"].map(|name| create(&accounts, name));
    assert_eq!(accounts.users_after("", 2).unwrap(), users[..2]);
    assert_eq!(accounts.users_after("bob", 2).unwrap(), users[2..]);
    let made: Vec<Uuid> =
        (0..3).map(|_| accounts.create_token("ada", None, None).unwrap().0.id).collect();
    accounts.create_token("bob", None, None).unwrap();
    let page = |before, limit| -> Vec<Uuid> {
        let tokens = accounts.tokens_before("ada", before, limit).unwrap();
        tokens.iter().map(|token| token.id).collect()
    };
    assert_eq!(page(Uuid::max(), 2), [made[2], made[1]]);
    assert_eq!(page(made[1], 2), [made[0]]);
    assert_eq!(accounts.token(made[0]).unwrap().user_id, users[0].id);
}

/// The tests, for each kind of store.
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[test]
                fn $test() {
                    super::$test(&super::Sqlite::new());
                }
            )+
        }
        mod postgres {
            $(
                #[test]
                #[ignore = "needs PostgreSQL: scripts/test postgres"]
                fn $test() {
                    super::$test(&super::Postgres::new());
                }
            )+
        }
    };
}

on_both_stores!(
    a_name_belongs_to_one_user,
    a_token_is_found_by_its_hash,
    changes_of_access_are_announced,
    a_recorded_request_is_a_use_of_its_token,
    an_active_administrator_is_always_left,
    users_and_tokens_are_listed_in_pages,
);
