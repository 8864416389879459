//! Starting while PostgreSQL is away, for the people in the offline cache.

use std::{
    collections::HashSet,
    fs,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use http::Uri;
use jiff::{SignedDuration, Timestamp};
use keybridge_identity::BridgeToken;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    binary::{BINARY, Serving, TIMEOUT, json_lines, read_until},
    support::{proxy::Proxy, slow_store::Database},
};

/// A store that nobody serves: the port is reserved.
const AWAY: &str = "postgres://keybridge:secret@127.0.0.1:1/keybridge";
const AWAY_SHOWN: &str = "postgres://***@127.0.0.1:1/keybridge";

/// The settings of a bridge that may start without its store.
fn settings(url: &str) -> Vec<(&str, &str)> {
    vec![
        ("KEYBRIDGE_STORE__URL", url),
        ("KEYBRIDGE_LEDGER__ON_OUTAGE", "spool"),
        ("KEYBRIDGE_AUTH__OFFLINE_CACHE", "true"),
        ("KEYBRIDGE_SERVER__SHUTDOWN_GRACE", "300ms"),
    ]
}

fn run(dir: &Path, settings: &[(&str, &str)], words: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(words).env_clear().envs(settings.iter().copied()).current_dir(dir);
    command.output().unwrap()
}

fn cache_file(dir: &Path) -> PathBuf {
    dir.join("spool/offline-cache.json")
}

/// Writes a cache of the store that is away, with one token.
fn write_cache(dir: &Path, token: &BridgeToken, confirmed_at: Timestamp) {
    let cache = json!({
        "format": 1,
        "store_url": AWAY_SHOWN,
        "store_id": Uuid::now_v7(),
        "store_secret": "07".repeat(32),
        "entries": [{
            "token_hash": token.hash().map(|byte| format!("{byte:02x}")).concat(),
            "token_id": Uuid::now_v7(),
            "expires_at": null,
            "user_id": Uuid::now_v7(),
            "user_name": "ada",
            "role": "member",
            "used_at": confirmed_at.to_string(),
            "confirmed_at": confirmed_at.to_string(),
        }],
    });
    fs::create_dir_all(dir.join("spool")).unwrap();
    fs::write(cache_file(dir), cache.to_string()).unwrap();
    set_mode(dir, 0o600);
}

fn set_mode(dir: &Path, mode: u32) {
    fs::set_permissions(cache_file(dir), fs::Permissions::from_mode(mode)).unwrap();
}

/// The status of a request with this token, whose response is read to its end if it is a stream.
fn status(serving: &mut Serving, token: &str) -> String {
    serving.token = token.into();
    let mut stream = serving.ask("text");
    let seen = read_until(&mut stream, "\r\n");
    let status = seen.split(' ').nth(1).unwrap();
    if status == "200" && !seen.contains("message_stop") {
        read_until(&mut stream, "message_stop");
    }
    status.to_owned()
}

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_start_without_the_store_serves_those_who_are_known_and_spools_their_records() {
    let dir = tempfile::tempdir().unwrap();
    let (known, unknown) = (BridgeToken::generate().unwrap(), BridgeToken::generate().unwrap());
    write_cache(dir.path(), &known, Timestamp::now() - SignedDuration::from_hours(23));
    let mut serving = Serving::start_with(dir.path(), Some(known.expose()), &settings(AWAY));
    read_until(&mut serving.ask("text"), "message_stop");
    assert!(read_until(&mut serving.get("/readyz"), "degraded").starts_with("HTTP/1.1 200"));
    assert_eq!(status(&mut serving, unknown.expose()), "503");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
    let spooled = fs::read_dir(dir.path().join("spool")).unwrap().map(|file| file.unwrap().path());
    let spooled: Vec<_> =
        spooled.filter(|file| file.extension() == Some("spool".as_ref())).collect();
    assert_eq!(spooled.len(), 1, "{spooled:?}");
    assert!(fs::metadata(&spooled[0]).unwrap().len() > 0);
    let kept: Value = serde_json::from_slice(&fs::read(cache_file(dir.path())).unwrap()).unwrap();
    assert_eq!(kept["entries"][0]["user_name"], "ada", "it is kept for the next start");
}

#[test]
fn a_start_without_the_store_fails_unless_all_of_it_is_allowed_known_and_recent() {
    type Change = fn(&Path, &mut Vec<(&'static str, &'static str)>);
    let cases: [(Change, &str); 7] = [
        (|_dir, settings| settings.retain(|(name, _)| !name.ends_with("CACHE")), "cannot open"),
        (|_dir, settings| settings.retain(|(name, _)| !name.ends_with("OUTAGE")), "cannot open"),
        (|dir, _settings| fs::remove_file(cache_file(dir)).unwrap(), "cannot be read"),
        (|dir, _settings| set_mode(dir, 0o640), "accessible to others"),
        (|dir, _settings| fs::write(cache_file(dir), "{").unwrap(), "damaged"),
        (
            |_dir, settings| {
                settings.push(("KEYBRIDGE_STORE__URL", "postgres://keybridge@127.0.0.1:1/other"));
            },
            "is of the store",
        ),
        (
            |dir, _settings| {
                let token = BridgeToken::generate().unwrap();
                write_cache(dir, &token, Timestamp::now() - SignedDuration::from_hours(25));
            },
            "nobody",
        ),
    ];
    for (change, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        write_cache(dir.path(), &BridgeToken::generate().unwrap(), Timestamp::now());
        let mut settings = settings(AWAY);
        change(dir.path(), &mut settings);
        let words = ["serve", "--simulate", "--listen", "127.0.0.1:0"];
        let output = run(dir.path(), &settings, &words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{expected}: {text}");
        assert!(text.contains("store.url: cannot open the store"), "{expected}: {text}");
        assert!(text.contains(expected) && !text.contains("secret"), "{expected}: {text}");
    }
}

/// A database behind a proxy, and the folder of a bridge.
struct Away {
    database: Database,
    dir: tempfile::TempDir,
    server: SocketAddr,
    port: u16,
    /// The address of the store as the bridge is told it.
    url: String,
}

impl Away {
    async fn new() -> (Self, Proxy) {
        let database = Database::create().await;
        let direct = database.url();
        let authority = direct.parse::<Uri>().unwrap().authority().unwrap().to_string();
        let (user, server) = authority.rsplit_once('@').unwrap();
        let address = server.to_socket_addrs().unwrap().find(SocketAddr::is_ipv4).unwrap();
        let proxy = Proxy::start(0, address);
        let url = direct.replace(&authority, &format!("{user}@{}", proxy.address));
        let (dir, port) = (tempfile::tempdir().unwrap(), proxy.address.port());
        (Self { database, dir, server: address, port, url }, proxy)
    }

    fn start(&self, token: Option<&str>) -> Serving {
        Serving::start_with(self.dir.path(), token, &settings(&self.url))
    }

    /// Brings the server back.
    fn back(&self) -> Proxy {
        Proxy::start(self.port, self.server)
    }

    /// Runs a command directly on the database.
    fn cli(&self, words: &[&str]) -> Vec<Value> {
        let url = self.database.url();
        let words: Vec<&str> = ["--json"].into_iter().chain(words.iter().copied()).collect();
        json_lines(&run(self.dir.path(), &settings(&url), &words))
    }

    /// Creates a user; returns the token and its id.
    fn user(&self, name: &str) -> (String, String) {
        self.cli(&["user", "create", name]);
        let token = self.cli(&["token", "create", "--user", name]).remove(0);
        let text = |field: &str| token[field].as_str().unwrap().to_owned();
        (text("token"), text("id"))
    }

    fn cached_names(&self) -> Vec<String> {
        let cache = fs::read(cache_file(self.dir.path())).unwrap();
        let cache: Value = serde_json::from_slice(&cache).unwrap();
        let entries = cache["entries"].as_array().unwrap();
        let mut names: Vec<_> =
            entries.iter().map(|entry| entry["user_name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

fn stop(serving: Serving) {
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn postgres_may_be_away_at_the_start_and_gets_the_records_when_it_is_back() {
    let (away, proxy) = Away::new().await;
    let mut serving = away.start(None);
    let [(ada, ada_id), (bob, bob_id), (eve, eve_id)] =
        ["ada", "bob", "eve"].map(|name| away.user(name));
    for token in [&ada, &bob, &eve] {
        assert_eq!(status(&mut serving, token), "200");
    }
    stop(serving);
    assert_eq!(away.cached_names(), ["ada", "bob", "eve"]);
    let text = fs::read_to_string(cache_file(away.dir.path())).unwrap();
    assert!(![&ada, &bob, &eve].iter().any(|token| text.contains(*token)), "hashes only");

    // A revoked token leaves the file as soon as the bridge knows.
    let serving = away.start(Some(&ada));
    away.cli(&["token", "revoke", &eve_id]);
    until("eve leaves the file", || (away.cached_names() == ["ada", "bob"]).then_some(()));
    stop(serving);

    drop(proxy);
    let mut serving = away.start(Some(&ada));
    read_until(&mut serving.ask("text"), "message_stop");
    assert_eq!(status(&mut serving, &bob), "200");
    assert_eq!(status(&mut serving, &eve), "503");
    assert!(read_until(&mut serving.get("/readyz"), "degraded").starts_with("HTTP/1.1 200"));
    away.cli(&["token", "revoke", &bob_id]);

    let proxy = away.back();
    until("the outage ends", || {
        let answer = read_until(&mut serving.get("/readyz"), "}");
        answer.contains(r#""status":"ready""#).then_some(())
    });
    until("bob is refused", || (status(&mut serving, &bob) == "401").then_some(()));
    let count = |user: &str| away.cli(&["interceptions", "--user", user]).len();
    until("all records are in the store", || {
        (count("ada") == 2 && count("bob") == 2).then_some(())
    });
    for record in away.cli(&["interceptions"]) {
        assert_eq!(record["outcome"], "completed", "{record:#}");
    }
    let client = away.database.connect().await;
    let sql = "SELECT count(*) FROM replicas";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1, "it has a heartbeat");
    assert_eq!(status(&mut serving, &ada), "200");
    away.cli(&["token", "revoke", &ada_id]);
    until("changes are noticed", || (status(&mut serving, &ada) == "401").then_some(()));
    stop(serving);
    assert_eq!(away.cached_names(), <[String; 0]>::default());
    drop(proxy);
    away.database.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: scripts/test postgres"]
async fn postgres_with_another_store_at_the_address_gets_nothing() {
    let (away, proxy) = Away::new().await;
    let mut serving = away.start(None);
    let (ada, _id) = away.user("ada");
    assert_eq!(status(&mut serving, &ada), "200");
    stop(serving);
    drop(proxy);
    let serving = away.start(Some(&ada));
    read_until(&mut serving.ask("text"), "message_stop");

    // First one that has lost its id, then an empty one.
    let client = away.database.connect().await;
    client.batch_execute("DELETE FROM settings WHERE key = 'store_id'").await.unwrap();
    let proxy = away.back();
    is_tried(&client).await;
    let sql = "SELECT (SELECT count(*) FROM settings WHERE key = 'store_id')
                    + (SELECT count(*) FROM interceptions) - 1";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    client.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.unwrap();
    is_tried(&client).await;
    assert!(read_until(&mut serving.get("/readyz"), "}").contains("degraded"));
    stop(serving);
    let sql = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(proxy);
    away.database.remove().await;
}

/// Waits until a bridge has asked the store what it has, again and again.
async fn is_tried(client: &tokio_postgres::Client) {
    let sql = "SELECT query_start::text FROM pg_stat_activity
               WHERE application_name = 'keybridge' AND datname = current_database()";
    let (mut seen, deadline) = (HashSet::new(), Instant::now() + TIMEOUT);
    while seen.len() < 3 {
        assert!(Instant::now() < deadline, "the store is not tried");
        let rows = client.query(sql, &[]).await.unwrap();
        seen.extend(rows.iter().map(|row| row.get::<_, Option<String>>(0)));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
