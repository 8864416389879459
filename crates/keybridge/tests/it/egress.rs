//! Connections to providers: through a proxy, with TLS, and into private networks.

use std::net::SocketAddr;

use futures_util::FutureExt;
use http::{HeaderValue, Method};
use keybridge::config::Config;
use keybridge_net::egress::{Egress, Proxy};
use keybridge_providers::config::ProviderConfig;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    Answer, ENDPOINTS, World, body,
    tcp::serve,
    tls::{Authority, ConnectProxy},
};

/// The provider's host name in certificates; no resolver knows it.
const NAME: &str = "api.provider.test";

async fn ask(world: &World, stream: bool) -> Answer {
    let path = ENDPOINTS[0];
    world.send(world.centralized(path, &body(path, "text", stream))).await
}

fn sim_address(provider: &ProviderConfig) -> SocketAddr {
    provider.base_url.authority().unwrap().as_str().parse().unwrap()
}

/// Puts TLS, a host name and a proxy in front of the first provider.
fn through_proxy(
    config: &mut Config,
    authority: &Authority,
    status: &'static str,
    except: &[&str],
) -> ConnectProxy {
    let provider = &mut config.providers[0];
    let terminated = authority.terminate(NAME, sim_address(provider));
    let proxy = ConnectProxy::start(terminated, status);
    provider.base_url = format!("https://{NAME}/anthropic").parse().unwrap();
    provider.max_retries = 2;
    provider.egress = Egress {
        roots: authority.roots(),
        proxy: Some(Proxy {
            address: format!("http://{}/", proxy.address).parse().unwrap(),
            authorization: Some(HeaderValue::from_static("Basic YWRhOnBAc3M=")),
            except: except.iter().map(|host| (*host).to_owned()).collect(),
        }),
        allow_private: false,
    };
    proxy
}

#[tokio::test]
async fn a_provider_is_reached_through_a_proxy_that_sees_only_its_name() {
    for http2 in [false, true] {
        let authority = Authority::new();
        let mut proxy = None;
        let world = World::with(|config| {
            proxy = Some(through_proxy(config, &authority, "200 OK", &["other.test"]));
            config.providers[0].http2 = http2;
        })
        .await;
        let answer = ask(&world, true).await;
        assert_status!(answer, 200, "{http2}");
        assert!(!answer.truncated);
        let heads = proxy.unwrap().heads();
        assert_eq!(
            heads,
            [format!(
                "CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\n\
                 Proxy-Authorization: Basic YWRhOnBAc3M=\r\n\r\n"
            )]
        );
        let seen = world.last_exchange();
        assert!(seen.headers.iter().all(|(name, _)| !name.as_str().starts_with("proxy-")));
        assert_eq!(world.settled_record().await["outcome"], "completed");
    }
}

#[tokio::test]
async fn a_refusal_by_the_proxy_is_reported_and_not_retried() {
    for status in ["403 Forbidden", "407 Proxy Authentication Required", "garbage"] {
        let authority = Authority::new();
        let mut proxy = None;
        let world = World::with(|config| {
            proxy = Some(through_proxy(config, &authority, status, &[]));
        })
        .await;
        let answer = ask(&world, false).await;
        assert_status!(answer, 502, "{status}");
        assert!(answer.text().contains("the proxy does not connect"), "{}", answer.text());
        assert!(!answer.text().contains("YWRhOnBAc3M"));
        assert_eq!(answer.headers["x-should-retry"], "false");
        assert_eq!(proxy.unwrap().heads().len(), 1, "a retry would be refused as well");
        let record = world.settled_record().await;
        assert_eq!((&record["outcome"], &record["attempts"]), (&json!("failed"), &json!(1)));
    }
}

#[tokio::test]
async fn hosts_excepted_from_the_proxy_are_connected_to_directly() {
    let authority = Authority::new();
    let mut proxy = None;
    let world = World::with(|config| {
        proxy = Some(through_proxy(config, &authority, "200 OK", &["provider.test"]));
    })
    .await;
    // The name does not resolve, so the direct connection fails.
    let answer = ask(&world, false).await;
    assert_status!(answer, 502);
    assert!(answer.text().contains("no connection to the provider"), "{}", answer.text());
    assert_eq!(proxy.unwrap().heads().len(), 0);
}

#[tokio::test]
async fn only_the_certificate_authorities_of_the_provider_are_trusted() {
    let (trusted, other) = (Authority::new(), Authority::new());
    for (roots, status) in [(trusted.roots(), 200), (other.roots(), 502)] {
        let world = World::with(|config| {
            let provider = &mut config.providers[0];
            let terminated = trusted.terminate("localhost", sim_address(provider));
            let address = format!("https://localhost:{}/anthropic", terminated.port());
            provider.base_url = address.parse().unwrap();
            provider.egress.roots = roots;
            provider.max_retries = 2;
        })
        .await;
        let answer = ask(&world, true).await;
        assert_status!(answer, status);
        assert_eq!(answer.text().contains("certificate"), status == 502, "{}", answer.text());
        assert_eq!(world.settled_record().await["attempts"], 1);
    }
}

/// A number is not a literal address, but a host name that the system resolves to one.
#[tokio::test]
async fn a_host_name_in_a_private_network_is_refused_unless_allowed() {
    for (allow_private, status) in [(false, 502), (true, 200)] {
        let world = World::with(|config| {
            let provider = &mut config.providers[0];
            let port = sim_address(provider).port();
            provider.base_url = format!("http://2130706433:{port}/anthropic").parse().unwrap();
            provider.egress.allow_private = allow_private;
            provider.max_retries = 2;
        })
        .await;
        let answer = ask(&world, false).await;
        assert_status!(answer, status);
        assert_eq!(answer.text().contains("allow_private"), !allow_private);
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], if allow_private { "completed" } else { "failed" });
        assert_eq!(record["attempts"], 1);
    }
}

/// Answers every request with a redirect.
fn start_redirecting_server(status: &'static str, location: String) -> SocketAddr {
    serve(move |mut stream| {
        let answer =
            format!("HTTP/1.1 {status}\r\nlocation: {location}\r\ncontent-length: 5\r\n\r\nthere");
        async move {
            let mut head = [0; 16 * 1024];
            let _read = stream.read(&mut head).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
}

#[tokio::test]
async fn a_redirect_is_neither_followed_nor_relayed() {
    for status in [
        "300 Multiple Choices",
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let location = format!("http://{}/v1/messages", elsewhere.local_addr().unwrap());
        let world = World::with(|config| {
            let address = start_redirecting_server(status, location.clone());
            config.providers[0].base_url = format!("http://{address}").parse().unwrap();
            config.providers[0].max_retries = 2;
        })
        .await;
        let own = [("x-api-key", "sk-own-0123456789"), ("x-ai-governance-token", &*world.token)];
        let bearer = format!("Bearer {}", world.token);
        let (path, bearer) = ("/anthropic/v1/messages", [("authorization", bearer.as_str())]);
        for answer in [
            ask(&world, true).await,
            ask(&world, false).await,
            world.send(world.post(path, &own, body(path, "text", true))).await,
            world.send(world.request(Method::GET, "/anthropic/v1/models", &bearer)).await,
            world.send(world.post("/anthropic/v1/messages/count_tokens", &bearer, "{}")).await,
        ] {
            assert_status!(answer, 502, "{status}");
            assert!(!answer.headers.contains_key("location"));
            assert_eq!(answer.headers["x-should-retry"], "false");
            let text = answer.text();
            assert!(text.contains("api_error") && text.contains("base_url"), "{text}");
            assert!(text.contains(location.strip_suffix("/v1/messages").unwrap()), "{text}");
        }
        assert!(elsewhere.accept().now_or_never().is_none(), "the redirect was followed");
        for record in world.settled_records(3).await {
            assert_eq!(record["upstream_status"].to_string(), status[..3]);
            assert_eq!(
                (&record["outcome"], &record["status_code"]),
                (&"failed".into(), &502.into())
            );
            assert_eq!(record["attempts"], 1);
        }
    }
}

/// An answer that is no redirect passes.
#[tokio::test]
async fn not_modified_passes() {
    let world = World::with(|config| {
        let address = serve(|mut stream| async move {
            let mut head = [0; 16 * 1024];
            let _read = stream.read(&mut head).await.unwrap();
            stream.write_all(b"HTTP/1.1 304 Not Modified\r\netag: \"one\"\r\n\r\n").await.unwrap();
        });
        config.providers[0].base_url = format!("http://{address}").parse().unwrap();
    })
    .await;
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("if-none-match", "\"one\"")];
    let answer = world.send(world.request(Method::GET, "/anthropic/v1/models", &headers)).await;
    assert_status!(answer, 304);
    assert_eq!(answer.headers["etag"], "\"one\"");
    assert!(answer.body.is_empty());
}
