use http::{HeaderMap, HeaderName, HeaderValue};

use super::{CredentialKind, bearer, presented_token};
use crate::config::GOVERNANCE_HEADERS;

fn found(headers: &[(&'static str, &'static str)]) -> (CredentialKind, Option<String>) {
    found_with(headers, None)
}

fn found_with(
    headers: &[(&'static str, &'static str)],
    query: Option<&str>,
) -> (CredentialKind, Option<String>) {
    let governance = GOVERNANCE_HEADERS.map(HeaderName::from_static);
    let map: HeaderMap = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    let (kind, text) = presented_token(&governance, &map, query);
    (kind, text.map(Into::into))
}

#[test]
fn each_governance_header_selects_byok() {
    for name in GOVERNANCE_HEADERS {
        let (kind, text) = found(&[("authorization", "Bearer sk-own"), (name, " kb_x ")]);
        assert_eq!((kind, text.as_deref()), (CredentialKind::Byok, Some("kb_x")));
    }
}

#[test]
fn an_empty_governance_header_holds_no_token() {
    let found = found(&[("x-ai-governance-token", ""), ("authorization", "Bearer kb_x")]);
    assert_eq!(found, (CredentialKind::Byok, None));
}

#[test]
fn a_centralized_token_is_read_from_the_header_of_any_client() {
    let centralized = |text: &str| (CredentialKind::Centralized, Some(text.to_owned()));
    assert_eq!(found(&[("authorization", "bEaReR  kb_x")]), centralized("kb_x"));
    assert_eq!(found(&[("x-api-key", "kb_y")]), centralized("kb_y"));
    assert_eq!(
        found(&[("authorization", "Bearer kb_x"), ("x-api-key", "kb_y")]),
        centralized("kb_x")
    );
    assert_eq!(
        found(&[("authorization", "Bearer sk"), ("x-api-key", "kb_y")]),
        centralized("kb_y")
    );
    for name in ["api-key", "x-goog-api-key"] {
        assert_eq!(found(&[(name, "kb_z")]), centralized("kb_z"));
        assert_eq!(found(&[("x-api-key", "own"), (name, "kb_z")]), centralized("kb_z"));
    }
    assert_eq!(found_with(&[], Some("a=1&key=kb_q")), centralized("kb_q"));
    assert_eq!(found_with(&[("api-key", "kb_z")], Some("key=kb_q")), centralized("kb_z"));
    assert_eq!(found_with(&[], Some("key=other")), (CredentialKind::Centralized, None));
    assert_eq!(found(&[("authorization", "Basic a2I=")]), (CredentialKind::Centralized, None));
    assert_eq!(found(&[]), (CredentialKind::Centralized, None));
}

#[test]
fn a_bearer_is_exactly_two_words() {
    for value in ["Bearer", "Bearer a b", "Basic a", "a"] {
        assert_eq!(bearer(&HeaderValue::from_static(value)), None, "{value}");
    }
}
