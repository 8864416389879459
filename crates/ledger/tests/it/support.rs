//! Stores for tests: an SQLite file, or a new database on a PostgreSQL server.

use jiff::Timestamp;
use keybridge_ledger::{Ledger, LedgerOptions, store::execute};
use tokio_postgres::NoTls;
use uuid::Uuid;

/// Creates a user, as the crate that manages users does, and returns their id.
pub(crate) fn user(ledger: &Ledger, name: &str) -> Uuid {
    let id = Uuid::now_v7();
    execute(
        ledger.database(),
        "INSERT INTO users (id, name, role, status, created_at)
         VALUES ($1, $2, 'member', 'active', $3)",
        &[id.into(), name.into(), Timestamp::now().into()],
    )
    .unwrap();
    id
}

/// A store of one kind, which can be opened more than once.
pub(crate) trait Fixture {
    fn url(&self) -> String;

    fn open(&self) -> Ledger {
        self.open_with(&LedgerOptions::default())
    }

    fn open_with(&self, options: &LedgerOptions) -> Ledger {
        Ledger::open_with(&self.url(), options).unwrap()
    }
}

pub(crate) struct Sqlite(tempfile::TempDir);

impl Sqlite {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Fixture for Sqlite {
    fn url(&self) -> String {
        format!("sqlite://{}", self.0.path().join("k.db").display())
    }
}

/// A database on the server in `KEYBRIDGE_TEST_POSTGRES`.
pub(crate) struct Postgres {
    server: String,
    database: String,
}

impl Postgres {
    pub(crate) fn new() -> Self {
        let server = server();
        let database = format!("keybridge_{}", Uuid::now_v7().simple());
        administer(&server, &format!("CREATE DATABASE {database}"));
        Self { server, database }
    }
}

/// The URL of the server, without a database.
#[expect(clippy::disallowed_methods, clippy::expect_used, reason = "the test's settings")]
fn server() -> String {
    std::env::var("KEYBRIDGE_TEST_POSTGRES")
        .expect("KEYBRIDGE_TEST_POSTGRES is not set: scripts/test postgres")
}

impl Fixture for Postgres {
    fn url(&self) -> String {
        format!("{}/{}", self.server, self.database)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        administer(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.database));
    }
}

/// Runs a statement on the server, from any thread.
fn administer(server: &str, sql: &str) {
    let (url, sql) = (format!("{server}/postgres"), sql.to_owned());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
            tokio::select! {
                done = client.batch_execute(&sql) => done.unwrap(),
                _ = connection => panic!("the server closed the connection"),
            }
        });
    })
    .join()
    .unwrap();
}
