//! The query string of a request to a provider: the client's, and what the configuration adds.

use std::{borrow::Cow, collections::BTreeMap};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

/// What is escaped in a name or a value: all but the unreserved characters (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A query parameter that may be secret.
#[derive(Debug, Clone)]
pub struct QueryParameter {
    /// Its name, not encoded.
    pub name: String,
    /// Its value, not encoded.
    pub value: SecretString,
}

impl PartialEq for QueryParameter {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.value.expose_secret() == other.value.expose_secret()
    }
}

/// The query string with the parameters that an instance sets, which replace the client's, and those that its
/// profile adds where the client has none of that name.
pub(crate) fn with_own<'a>(
    set: &[QueryParameter],
    added: &BTreeMap<String, String>,
    client: Option<&'a str>,
) -> Option<Cow<'a, str>> {
    if set.is_empty() && added.is_empty() {
        return client.map(Cow::Borrowed);
    }
    let is_set = |name: &str| set.iter().any(|parameter| parameter.name == name);
    let client: Vec<&str> = client
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter(|pair| !pair.is_empty() && !is_set(&name(pair)))
        .collect();
    let mut pairs: Vec<Cow<'_, str>> = client.iter().map(|pair| Cow::Borrowed(*pair)).collect();
    for (own, value) in added {
        if !is_set(own) && !client.iter().any(|pair| name(pair) == own.as_str()) {
            pairs.push(encoded(own, value).into());
        }
    }
    for parameter in set {
        pairs.push(encoded(&parameter.name, parameter.value.expose_secret()).into());
    }
    (!pairs.is_empty()).then(|| pairs.join("&").into())
}

/// A query string for a dump, with the values masked that the configuration sets.
pub(crate) fn masked(set: &[QueryParameter], query: &str) -> String {
    let is_set = |pair: &str| {
        let name = name(pair);
        set.iter().any(|parameter| parameter.name == name)
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _secret)) if is_set(pair) => format!("{name}=***"),
        _ => pair.to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// The decoded name of a parameter.
fn name(pair: &str) -> Cow<'_, str> {
    percent_decode_str(pair.split('=').next().unwrap_or(pair)).decode_utf8_lossy()
}

fn encoded(name: &str, value: &str) -> String {
    let [name, value] = [name, value].map(|text| utf8_percent_encode(text, ESCAPED));
    format!("{name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vendors::Profile;

    #[test]
    fn set_parameters_replace_the_clients_and_those_of_the_profile_do_not() {
        let none = BTreeMap::new();
        assert_eq!(with_own(&[], &none, Some("a=1")).as_deref(), Some("a=1"));
        assert_eq!(with_own(&[], &none, None), None);
        let added = &Profile::named("azure-openai-deployments").unwrap().query;
        let version = "api-version=2024-10-21";
        assert_eq!(with_own(&[], added, None).as_deref(), Some(version));
        let theirs = Some("api%2Dversion=2025-01-01&x");
        assert_eq!(with_own(&[], added, theirs).as_deref(), theirs);
        let set = [QueryParameter { name: "sub key".into(), value: "a/b c".to_owned().into() }];
        let sent = with_own(&set, added, Some("sub%20key=mine&x=1")).unwrap().into_owned();
        assert_eq!(sent, format!("x=1&{version}&sub%20key=a%2Fb%20c"));
        assert_eq!(masked(&set, &sent), format!("x=1&{version}&sub%20key=***"));
    }
}
