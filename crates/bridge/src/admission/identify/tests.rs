use http::{HeaderMap, HeaderName, HeaderValue};

use super::{CredentialKind, bearer, presented};
use crate::config::GOVERNANCE_HEADERS;

fn found(headers: &[(&'static str, &'static str)]) -> (CredentialKind, Option<String>) {
    let governance = GOVERNANCE_HEADERS.map(HeaderName::from_static);
    let map: HeaderMap = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    let (kind, text) = presented(&governance, &map);
    (kind, text.map(Into::into))
}

#[test]
fn each_governance_header_announces_an_own_credential() {
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
fn a_central_token_is_read_from_either_header() {
    let central = |text: &str| (CredentialKind::Centralized, Some(text.to_owned()));
    assert_eq!(found(&[("authorization", "bEaReR  kb_x")]), central("kb_x"));
    assert_eq!(found(&[("x-api-key", "kb_y")]), central("kb_y"));
    assert_eq!(found(&[("authorization", "Bearer kb_x"), ("x-api-key", "kb_y")]), central("kb_x"));
    assert_eq!(found(&[("authorization", "Bearer sk"), ("x-api-key", "kb_y")]), central("kb_y"));
    assert_eq!(found(&[("authorization", "Basic a2I=")]), (CredentialKind::Centralized, None));
    assert_eq!(found(&[]), (CredentialKind::Centralized, None));
}

#[test]
fn a_bearer_is_exactly_two_words() {
    for value in ["Bearer", "Bearer a b", "Basic a", "a"] {
        assert_eq!(bearer(&HeaderValue::from_static(value)), None, "{value}");
    }
}
