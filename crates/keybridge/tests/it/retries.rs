//! Retries of transient failures, which clients do not notice.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::support::{Answer, ENDPOINTS, World, body, provider};

async fn world(retries: u32) -> World {
    World::with(|config| {
        config.providers.iter_mut().for_each(|provider| provider.max_retries = retries);
    })
    .await
}

/// Sends a request to a provider whose first responses have these statuses.
async fn ask(world: &World, path: &str, stream: bool, first: &str) -> Answer {
    let bearer = format!("Bearer {}", world.token);
    let first = format!("{}:{first}", uuid::Uuid::now_v7());
    let headers = [("authorization", bearer.as_str()), ("x-sim-first", first.as_str())];
    world.send(world.post(path, &headers, body(path, "text", stream))).await
}

#[tokio::test]
async fn a_transient_failure_is_not_visible_to_the_client() {
    for path in ENDPOINTS {
        for stream in [true, false] {
            let (world, mut count) = (world(2).await, 0);
            for first in ["503/1", "429/1,529/1", "500/1,408/1"] {
                world.sim.clear();
                let answer = ask(&world, path, stream, first).await;
                count += 1;
                assert_status!(answer, 200, "{path} {first}");
                let attempts = first.split(',').count() + 1;
                let exchanges = world.sim.exchanges();
                assert_eq!(exchanges.len(), attempts);
                assert!(exchanges.windows(2).all(|pair| pair[0].body == pair[1].body));
                assert!(exchanges.windows(2).all(|pair| pair[0].headers == pair[1].headers));
                let record = world.settled_records(count).await.pop().unwrap();
                assert_eq!(record["outcome"], "completed");
                assert_eq!(record["attempts"], attempts);
                assert_eq!(record["token_usages"].as_array().unwrap().len(), 1);
            }
        }
    }
}

#[tokio::test]
async fn the_last_response_of_the_provider_passes_unchanged() {
    let world = world(1).await;
    for (count, path) in ENDPOINTS.into_iter().enumerate() {
        world.sim.clear();
        let answer = ask(&world, path, true, "503/1,529/1,500/1").await;
        assert_status!(answer, 529, "{path}");
        assert_eq!(answer.headers["retry-after-ms"], "1");
        let exchanges = world.sim.exchanges();
        assert_eq!((exchanges.len(), &exchanges[1].response_sent), (2, &answer.body));
        let record = world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!((&record["outcome"], &record["attempts"]), (&json!("failed"), &json!(2)));
        assert_eq!(record["upstream_status"], 529);
    }
}

#[tokio::test]
async fn an_answer_that_a_retry_cannot_change_passes_at_once() {
    for (retries, first) in [(2, "400"), (2, "401"), (2, "404"), (2, "429/60001"), (0, "503/1")] {
        let world = world(retries).await;
        let answer = ask(&world, ENDPOINTS[0], true, first).await;
        let status: u16 = first.split('/').next().unwrap().parse().unwrap();
        assert_status!(answer, status, "{first}");
        assert_eq!(world.sim.exchanges().len(), 1, "{first}");
        assert_eq!(world.settled_record().await["attempts"], 1);
    }
}

#[tokio::test]
async fn retries_do_not_multiply_an_outage() {
    let world = world(10).await;
    let mut asked = 0;
    for _ in 0..20 {
        let first = ["500/1"; 11].join(",");
        let answer = ask(&world, ENDPOINTS[0], true, &first).await;
        assert_status!(answer, 500);
        asked = world.sim.exchanges().len();
    }
    // The budget is ten retries and a fifth of the requests.
    assert!((31..=34).contains(&asked), "{asked}");
}

/// Forwards connections, but closes the first ones without a response.
async fn flaky(to: SocketAddr, broken: usize) -> (SocketAddr, Arc<AtomicUsize>, TaskTracker) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (count, tasks) = (Arc::new(AtomicUsize::new(0)), TaskTracker::new());
    let (counting, piping) = (Arc::clone(&count), tasks.clone());
    tasks.spawn(async move {
        loop {
            let (mut from, _peer) = listener.accept().await.unwrap();
            if counting.fetch_add(1, Ordering::SeqCst) < broken {
                continue;
            }
            piping.spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    (address, count, tasks)
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_answer_is_retried() {
    let sim = keybridge_sim::Sim::new();
    let server = sim.start().await.unwrap();
    let (address, count, _tasks) = flaky(server.addr, 2).await;
    let world = World::with(|config| {
        for one in &mut config.providers {
            *one = provider(one.kind, &format!("http://{address}"));
            one.max_retries = 2;
            one.timeouts.head = Duration::from_secs(10);
        }
    })
    .await;
    let path = ENDPOINTS[0];
    let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
    assert_status!(answer, 200);
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let record: Value = world.settled_record().await;
    assert_eq!((&record["outcome"], &record["attempts"]), (&json!("completed"), &json!(3)));
}
