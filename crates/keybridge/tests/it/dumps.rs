//! Dumps: readable only by their owner, without credentials, and limited in size.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use keybridge_providers::config::DumpConfig;

use keybridge_sim::mcp_server::McpSim;

use crate::support::{ENDPOINTS, World, body, mcp_server};

async fn world(dump: &DumpConfig) -> World {
    World::with(|config| {
        config.providers.iter_mut().for_each(|provider| provider.dump = Some(dump.clone()));
    })
    .await
}

/// The files of a directory with their contents.
fn files(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let read = |path| fs::read_to_string(path).unwrap();
    entries.map(|entry| (entry.file_name().into_string().unwrap(), read(entry.path()))).collect()
}

/// A file that ends with these contents; files are written in the background.
async fn written(dir: &Path, name: &str, end: &str) -> String {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let file = fs::read_to_string(dir.join(name)).unwrap_or_default();
        if !file.is_empty() && file.ends_with(end) {
            return file;
        }
        assert!(tokio::time::Instant::now() < deadline, "{name}: {file}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_exchange_is_a_pair_of_files_that_only_their_owner_can_read() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("dumps");
    for path in ENDPOINTS {
        for stream in [true, false] {
            let world = world(&crate::support::dumps(&dir)).await;
            let pasted = format!("say {}", world.token);
            let asked = body(path, "text", stream).replace("say h\\u0069", &pasted);
            let answer = world.send(world.centralized(path, &asked)).await;
            let hint = format!("{}...{}", &world.token[..4], &world.token[world.token.len() - 4..]);
            let asked = asked.replace(&world.token, &hint);
            let id = answer.headers["x-keybridge-interception-id"].to_str().unwrap();
            let response = written(&dir, &format!("{id}.response"), &answer.text()).await;
            let request = fs::read_to_string(dir.join(format!("{id}.request"))).unwrap();
            assert!(request.starts_with("POST http://") && request.ends_with(&asked), "{request}");
            assert!(!request.contains(&world.token) && request.contains("..."), "{request}");
            assert!(response.starts_with("200 OK\n"), "{response}");
            assert!(response.ends_with(&answer.text()), "{path}");
        }
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let names = files(&dir);
    assert_eq!(names.len(), 12);
    assert!(names.keys().all(|name| mode(&dir.join(name)) == 0o600));
}

#[tokio::test]
async fn old_files_and_those_over_the_size_limit_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let now = fs::metadata(dir).unwrap().modified().unwrap();
    let hours = |hours: u64| now - Duration::from_secs(hours * 3_600);
    let put = |name: &str, bytes: usize, age| {
        fs::write(dir.join(name), "x".repeat(bytes)).unwrap();
        File::options().append(true).open(dir.join(name)).unwrap().set_modified(age).unwrap();
    };
    put("old.request", 10, hours(30));
    put("large-1.response", 6_000, hours(3));
    put("large-2.response", 6_000, hours(2));
    put("small.request", 100, hours(1));
    put("notes.txt", 20_000, hours(90));
    let dump =
        DumpConfig { max_bytes: 10_000, max_age: Duration::from_secs(86_400), dir: dir.into() };
    let world = world(&dump).await;
    let path = ENDPOINTS[0];
    world.send(world.centralized(path, &body(path, "text", false))).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while dir.join("large-1.response").exists() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", files(dir).keys());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left = files(dir);
    assert!(!left.contains_key("old.request"));
    assert!(left.contains_key("large-2.response") && left.contains_key("small.request"));
    assert!(left.contains_key("notes.txt"), "other files are kept");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_fails_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let world = world(&crate::support::dumps(&file.join("below"))).await;
    let path = ENDPOINTS[0];
    let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
    assert_status!(answer, 200);
}

#[tokio::test]
async fn every_turn_of_a_tool_loop_is_dumped_with_its_head() {
    let folder = tempfile::tempdir().unwrap();
    let dump = crate::support::dumps(folder.path());
    let mcp = McpSim::new().start().await.unwrap();
    let world = World::with(|config| {
        config.tools.servers.push(mcp_server("sim", &mcp.url()));
        config.providers.iter_mut().for_each(|provider| provider.dump = Some(dump.clone()));
    })
    .await;
    let bearer = format!("Bearer {}", world.token);
    let turns = r#"[[{"call":"bmcp_sim_echo","arguments":{"text":"x"}}],[{"text":"done"}]]"#;
    let headers = [("authorization", bearer.as_str()), ("x-sim-turns", turns)];
    for path in ENDPOINTS {
        for stream in [true, false] {
            // Not one of the simulator's own scenarios: the header scripts the turns.
            let text = body(path, "text", stream).replace("sim-text", "m");
            let answer = world.send(world.post(path, &headers, text)).await;
            assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.text());
            let id = answer.headers["x-keybridge-interception-id"].to_str().unwrap();
            for turn in ["", ".1"] {
                let name = format!("{id}{turn}.response");
                let response = written(folder.path(), &name, "").await;
                assert!(response.starts_with("200 OK\n"), "{path} {stream} {turn}: {response}");
            }
        }
    }
}
