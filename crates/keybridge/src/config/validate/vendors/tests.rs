use keybridge_providers::{
    config::{Fallback, ProviderConfig, ProviderType},
    vendors::{AskUsage, CredentialForm, Profile},
};

use crate::{
    config::{Config, Overrides},
    env::Env,
};

/// The provider of a configuration that has this provider alone.
fn provider(settings: &str) -> Result<ProviderConfig, Vec<String>> {
    let text = format!("[[providers]]\n{settings}");
    Config::parse(&text, &Env::default(), &Overrides::default())
        .map(|mut config| config.providers.remove(0))
        .map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
}

fn problem(settings: &str) -> String {
    provider(settings).unwrap_err().join("; ")
}

#[test]
fn every_profile_can_be_configured_by_its_name() {
    for name in Profile::names() {
        for kind in &Profile::named(name).unwrap().types {
            let mut settings = format!("type = '{kind}'\nprofile = '{name}'\n");
            if Profile::named(name).unwrap().base_url(*kind).is_none() {
                settings.push_str("base_url = 'https://llm.example.org/v1'\n");
            }
            if *kind == ProviderType::Bedrock {
                settings.push_str("[providers.bedrock]\nregion = 'eu-central-1'\nmodel = 'm'\n");
            }
            let provider = provider(&settings).unwrap();
            assert_eq!(provider.profile, *Profile::named(name).unwrap(), "{name}");
        }
    }
}

#[test]
fn an_unknown_profile_is_reported_with_those_that_there_are() {
    let text = problem("type = 'openai'\nprofile = 'openroute'");
    assert!(text.contains("providers[0].profile: there is no profile `openroute`"), "{text}");
    assert!(text.contains("mistral, moonshot, ollama, openai, openrouter, "), "{text}");
    let text = problem("type = 'anthropic'\nprofile = 'mistral'");
    assert!(text.contains("`mistral` is for providers of the type `openai`"), "{text}");
    let text = problem("type = 'openai'\nprofile = 'azure-openai'");
    assert!(text.contains("providers[0].base_url: is missing"), "{text}");
}

#[test]
fn fields_of_a_profile_can_be_overridden() {
    let mistral = provider("type = 'openai'\nprofile = 'mistral'").unwrap();
    assert_eq!(mistral.base_url.to_string(), "https://api.mistral.ai/v1");
    assert_eq!(mistral.profile.ask_usage, AskUsage::Never);
    let mistral = provider("type = 'openai'\nprofile = 'mistral'\nask_usage = 'sent'").unwrap();
    assert_eq!(mistral.profile.ask_usage, AskUsage::Sent);
    let text = problem("type = 'openai'\nask_usage = 'maybe'");
    assert!(text.contains("providers[0].ask_usage: `maybe` is not"), "{text}");
}

#[test]
fn the_form_of_a_credential_can_be_set() {
    let own = provider("type = 'openai'\ncredential = 'header:api-key'").unwrap();
    let api_key = CredentialForm::Header("api-key".parse().unwrap());
    assert_eq!(
        (&own.profile.credential, own.profile.accepts()),
        (&api_key, &[api_key.clone()][..])
    );
    let own = provider(
        "type = 'openai'\ncredential = 'header:api-key'\naccepts = ['bearer', 'header:api-key']",
    )
    .unwrap();
    assert_eq!(own.profile.accepts(), [CredentialForm::Bearer, api_key]);
    assert!(!own.is_keyless());
    let keyless = "type = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'\n";
    assert!(provider(keyless).unwrap().is_keyless(), "a compatible server needs no key");
    assert!(!provider(&format!("{keyless}key_optional = false")).unwrap().is_keyless());
    assert!(!provider(&format!("{keyless}keys = [{{ value = 'k' }}]")).unwrap().is_keyless());
    assert!(provider("type = 'anthropic'\ncredential = 'none'").unwrap().is_keyless());
    let rows = [
        ("credential = 'basic'", "providers[0].credential: `basic` is not `bearer`, `none` or"),
        ("credential = 'aws'", "providers[0].credential: `aws` is for the type `bedrock` only"),
        ("credential = 'header:host'", "providers[0].credential: `host` cannot carry"),
        ("accepts = ['bearer', 'x']", "providers[0].accepts[1]: `x` is not"),
        ("credential = 'none'\nkeys = [{ value = 'k' }]", "providers[0].keys: must be empty"),
        (
            "paths = { '/v1/responses' = 'responses' }",
            "providers[0].paths./v1/responses: `responses`",
        ),
    ];
    for (settings, expected) in rows {
        let text = problem(&format!("type = 'openai'\n{settings}"));
        assert!(text.contains(expected), "{settings}: {text}");
    }
}

#[test]
fn headers_and_query_parameters_may_be_references() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from-file\n").unwrap();
    let settings = format!(
        "type = 'openai'\nset_headers = {{ X-A = 'text', X-B = {{ file = '{path}' }} }}\n\
         set_query = {{ a = {{ file = '{path}' }}, b = 'c' }}\nquery = {{ api-version = '1' }}",
        path = file.path().display()
    );
    let provider = provider(&settings).unwrap();
    let headers: Vec<_> = provider
        .set_headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap(), value.is_sensitive()))
        .collect();
    assert_eq!(headers, [("x-a", "text", false), ("x-b", "from-file", true)]);
    let uri = provider.uri("/models", Some("b=theirs&api-version=2")).unwrap();
    assert_eq!(uri.query(), Some("api-version=2&a=from-file&b=c"));
    assert!(!format!("{provider:?}").contains("from-file"));
    let text = problem("type = 'openai'\nset_query = { a = { env = 'UNSET' } }");
    assert!(
        text.contains("providers[0].set_query.a.env: the environment variable UNSET"),
        "{text}"
    );
}

#[test]
fn a_fallback_names_a_provider_and_perhaps_a_model() {
    let two = |fallback: &str, second: &str| {
        provider(&format!(
            "type = 'anthropic'\nkeys = [{{ value = 'k' }}]\nfallback = {fallback}\n[[providers]]\nname = 'second'\n{second}"
        ))
    };
    let keyed = "type = 'anthropic'\nprofile = 'deepseek'\nkeys = [{ value = 'k' }]";
    let second = |model: Option<&str>| {
        Some(Fallback { provider: "second".into(), model: model.map(str::to_owned) })
    };
    assert_eq!(two("'second'", keyed).unwrap().fallback, second(None));
    let with_model = "{ provider = 'second', model = 'm' }";
    assert_eq!(two(with_model, keyed).unwrap().fallback, second(Some("m")));
    let bedrock = "type = 'bedrock'\n[providers.bedrock]\nregion = 'eu-central-1'\nmodel = 'm'";
    assert_eq!(two(with_model, bedrock).unwrap().fallback, second(Some("m")));
    let ollama = "type = 'anthropic'\nprofile = 'ollama'";
    assert_eq!(two("'second'", ollama).unwrap().fallback, second(None));
    let text = two("'second'", "type = 'openai'\nkeys = [{ value = 'k' }]").unwrap_err().join("; ");
    assert!(text.contains("providers[0].fallback: `second` has other dialects"), "{text}");
    let text = two("{ provider = 'second', model = '' }", keyed).unwrap_err().join("; ");
    assert!(text.contains("providers[0].fallback.model: is empty"), "{text}");
    let text = two("{ provider = 'second' }", keyed).unwrap_err().join("; ");
    assert!(text.contains("providers[0].fallback: "), "{text}");
}
