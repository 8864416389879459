//! The configuration in force through the API of the real binary, before and after reloads.

use std::{fs, io::Read, thread, time::Duration};

use serde_json::{Value, json};

use super::{Serving, read_until};

/// What must not be shown anywhere.
const CANARY: &str = "canary-0123456789";

/// `GET /config`; the text, and what it says.
fn configuration(serving: &Serving) -> (String, Value) {
    let mut stream = serving.get("/api/v1/config");
    let mut seen = read_until(&mut stream, "\r\n\r\n");
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    let mut buffer = [0; 4096];
    loop {
        let body = seen.split_once("\r\n\r\n").unwrap().1;
        if let Ok(configuration) = serde_json::from_str(body) {
            return (seen, configuration);
        }
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

fn setting<'a>(configuration: &'a Value, name: &str) -> &'a Value {
    let settings = configuration["settings"].as_array().unwrap();
    settings.iter().find(|setting| setting["name"] == name).unwrap_or_else(|| panic!("{name}"))
}

#[test]
fn the_configuration_in_force_is_shown_with_its_last_reload_and_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keybridge.toml");
    let text = |max_body: &str, keep_alive: &str| {
        format!(
            "[server]\nmax_body = {max_body}\nkeep_alive = \"{keep_alive}\"\n\
             [[providers]]\ntype = \"anthropic\"\nkeys = [{{ value = \"{CANARY}\" }}]\n\
             set_headers = {{ X-Key = \"{CANARY}\" }}\n"
        )
    };
    fs::write(&file, text("\"8 MiB\"", "61s")).unwrap();
    let max_retries = ("KEYBRIDGE_PROVIDERS__ANTHROPIC__MAX_RETRIES", "4");
    let serving = Serving::start_with(dir.path(), None, &[max_retries]);

    let (all, started) = configuration(&serving);
    assert!(!all.contains(CANARY), "{all}");
    assert_eq!(started["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&started["file"], &started["last_reload"]),
        (&json!("keybridge.toml"), &Value::Null)
    );
    let rows = [
        ("server.listen", json!("127.0.0.1:0"), "command_line"),
        ("server.max_body", json!("8 MiB"), "file"),
        ("server.max_upload", json!("512 MiB"), "default"),
        ("providers[0].max_retries", json!(4), "environment"),
        ("providers[0].keys[0].value", json!("***"), "file"),
        ("providers[0].set_headers.X-Key", json!("***"), "file"),
    ];
    for (name, value, origin) in rows {
        let setting = setting(&started, name);
        assert_eq!((&setting["value"], &setting["origin"]), (&value, &json!(origin)), "{name}");
    }
    assert_eq!(setting(&started, "providers[0].max_retries")["variable"], max_retries.0);

    // A value of the wrong kind, which may be a secret in the wrong place.
    fs::write(&file, text(&format!("[\"{CANARY}\"]"), "61s")).unwrap();
    read_until(&mut serving.post("/api/v1/config/reload"), "invalid_configuration");
    let (all, refused) = configuration(&serving);
    assert!(!all.contains(CANARY), "{all}");
    let last = &refused["last_reload"];
    assert_eq!(
        (&last["applied"], &last["requested_by"]),
        (&json!(false), &json!("admin through the API"))
    );
    assert_eq!(last["problems"][0]["path"], "server.max_body");
    assert_eq!(setting(&refused, "server.max_body")["value"], "8 MiB");

    fs::write(&file, text("\"9 MiB\"", "62s")).unwrap();
    serving.signal("-HUP");
    let reloaded = loop {
        let (_, configuration) = configuration(&serving);
        if configuration["last_reload"]["requested_by"] == "SIGHUP" {
            break configuration;
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(reloaded["last_reload"]["applied"], true);
    assert_eq!(reloaded["restart_needed"], json!(["server.keep_alive"]));
    assert_eq!(setting(&reloaded, "server.keep_alive")["value"], "61s");
    assert_eq!(setting(&reloaded, "server.max_body")["value"], "9 MiB");
    assert_eq!(reloaded["replica"], started["replica"]);
}
