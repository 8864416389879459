use keybridge_providers::{
    config::{ProviderConfig, ProviderType},
    vendors::{AskUsage, Profile},
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
