//! Stores in which some reads do not end by themselves, and PostgreSQL databases of their own.

use std::path::Path;

use tokio_postgres::{Client, NoTls};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// A view without end takes the place of a SQLite store's thoughts, which are not written from then on.
/// To read an interception with all that belongs to it never ends.
pub fn make_thoughts_endless(file: &Path) {
    let connection = rusqlite::Connection::open(file).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
    connection
        .execute_batch(
            "ALTER TABLE thoughts RENAME TO recorded_thoughts;
             CREATE VIEW thoughts AS
               WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)
               SELECT n AS id, CAST(n AS TEXT) AS interception_id, '' AS source, '' AS content,
                 '' AS created_at
               FROM numbers;",
        )
        .unwrap();
}

/// A database on the server of `scripts/test postgres`, dropped by [`Database::remove`].
pub struct Database {
    server: String,
    name: String,
}

impl Database {
    pub async fn create() -> Self {
        let server = std::env::var("KEYBRIDGE_TEST_POSTGRES").unwrap_or_else(|_| {
            panic!("KEYBRIDGE_TEST_POSTGRES is not set: scripts/test postgres")
        });
        let database = Self { server, name: format!("keybridge_{}", Uuid::now_v7().simple()) };
        let create = format!("CREATE DATABASE {}", database.name);
        database.connect_to("postgres").await.batch_execute(&create).await.unwrap();
        database
    }

    pub fn url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }

    pub async fn connect(&self) -> Client {
        self.connect_to(&self.name).await
    }

    async fn connect_to(&self, name: &str) -> Client {
        let url = format!("{}/{name}", self.server);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        drop(TaskTracker::new().spawn(connection));
        client
    }

    pub async fn remove(self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        self.connect_to("postgres").await.batch_execute(&drop).await.unwrap();
    }
}
