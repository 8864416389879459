//! What is logged of a request: every line names it.

use keybridge_net::egress::Egress;

use crate::support::{CapturedLog, ENDPOINTS, World, body, in_own_process};

#[test]
fn each_log_line_of_a_request_carries_its_interception_id() {
    if !in_own_process("logs::each_log_line_of_a_request_carries_its_interception_id") {
        return;
    }
    let log = CapturedLog::start(tracing::Level::INFO);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let world = World::with(|config| {
            let mut unreachable = config.providers[0].clone();
            unreachable.name = "unreachable".into();
            unreachable.base_url = "http://127.0.0.1:1".parse().unwrap();
            unreachable.egress = Egress::default();
            unreachable.max_retries = 1;
            config.providers.push(unreachable);
        })
        .await;
        // What is logged of the start is not of a request.
        let path = ENDPOINTS[2];
        world.send(world.centralized(path, &body(path, "text", true))).await;
        world.settled_record().await;
        for (path, scenario) in [
            (ENDPOINTS[0], "broken"),
            (ENDPOINTS[1], "error-401"),
            (ENDPOINTS[2], "text"),
            ("/unreachable/v1/messages", "text"),
        ] {
            let before = log.text().len();
            let answer = world.send(world.centralized(path, &body(path, scenario, true))).await;
            let id = answer.headers["x-keybridge-interception-id"].to_str().unwrap().to_owned();
            world.records().await;
            let lines = log.text().split_off(before);
            let lines: Vec<&str> = lines.lines().collect();
            assert!(!lines.is_empty(), "{path} {scenario}");
            for line in lines {
                assert!(line.contains(&id), "{path} {scenario}: {line}");
            }
        }
        let text = log.text();
        assert!(text.contains("closed the stream before completion"), "{text}");
        assert!(text.contains(r#"provider="unreachable""#), "the provider is named: {text}");
    });
}
