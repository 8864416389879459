use http::{HeaderMap, HeaderName, HeaderValue, header};
use proptest::prelude::*;

use super::{accept_encoding, query_to_provider, to_client};

fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    map
}

#[test]
fn headers_of_the_connection_and_the_origin_are_removed_from_an_answer() {
    let mut headers = map(&[
        ("request-id", "req_1"),
        ("connection", "x-hop, close"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("set-cookie", "a=b"),
        ("alt-svc", "h3=\":443\""),
        ("strict-transport-security", "max-age=31536000"),
        ("clear-site-data", "\"*\""),
        ("report-to", "{}"),
        ("x-codex-turn-state", "s"),
        ("anthropic-ratelimit-requests-remaining", "1"),
        ("x-keybridge-error", "forged"),
        ("via", "a"),
        ("via", "b"),
    ]);
    to_client(&mut headers);
    let left: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(
        left,
        [
            ("request-id", "req_1"),
            ("x-codex-turn-state", "s"),
            ("anthropic-ratelimit-requests-remaining", "1"),
            ("via", "a"),
            ("via", "b"),
        ]
    );
}

#[test]
fn a_key_in_the_query_is_removed() {
    let rows = [
        ("limit=1&after=x%20y", Some("limit=1&after=x%20y")),
        ("", Some("")),
        ("key=secret", None),
        ("a=1&key=secret&b", Some("a=1&b")),
        ("%6bey=secret&monkey=1&keys=2", Some("monkey=1&keys=2")),
    ];
    for (query, sent) in rows {
        assert_eq!(query_to_provider(query).as_deref(), sent, "{query}");
    }
}

#[test]
fn streams_are_requested_without_encoding() {
    let client = map(&[("accept-encoding", "gzip, deflate, br, zstd")]);
    assert_eq!(accept_encoding(&client, true), "identity");
    assert_eq!(accept_encoding(&client, false), "gzip, deflate, br, zstd");
    let odd = map(&[("accept-encoding", "sdch, gzip;q=0.5, *")]);
    assert_eq!(accept_encoding(&odd, false), "gzip;q=0.5");
    assert_eq!(accept_encoding(&HeaderMap::new(), false), "identity");
}

proptest! {
    #[test]
    fn connection_cannot_remove_headers_that_describe_the_body(name in "content-(type|encoding)") {
        let mut headers = map(&[("content-type", "text/event-stream"), ("content-encoding", "br")]);
        headers.insert(header::CONNECTION, HeaderValue::from_str(&name).unwrap());
        to_client(&mut headers);
        prop_assert_eq!(headers.len(), 2);
    }
}
