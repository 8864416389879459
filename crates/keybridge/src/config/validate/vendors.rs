//! The vendor profile of a provider, with what its configuration overrides.

use http::Uri;
use keybridge_providers::{
    config::ProviderType,
    vendors::{AskUsage, Profile},
};

use super::Check;
use crate::config::raw::RawProvider;

impl Check<'_> {
    /// The profile that a provider names, or the one of its type.
    pub(super) fn named_profile(
        &mut self,
        path: &str,
        name: Option<&str>,
        kind: ProviderType,
    ) -> Profile {
        let Some(name) = name else { return Profile::of_type(kind) };
        let Some(profile) = Profile::named(name) else {
            let names: Vec<&str> = Profile::names().collect();
            let names = names.join(", ");
            self.problem(path, format!("there is no profile `{name}`; the profiles are {names}"));
            return Profile::of_type(kind);
        };
        if !profile.types.contains(&kind) {
            let types: Vec<String> = profile.types.iter().map(|kind| format!("`{kind}`")).collect();
            let types = types.join(" or ");
            self.problem(
                path,
                format!("`{name}` is for providers of the type {types}, not `{kind}`"),
            );
        }
        profile.clone()
    }

    /// The profile of a provider at an address, with what the configuration overrides.
    pub(super) fn profile(
        &mut self,
        path: &str,
        raw: &RawProvider,
        (kind, base_url): (ProviderType, &Uri),
    ) -> Profile {
        let mut profile = match raw.profile {
            None => Profile::of_address(kind, base_url),
            // A problem with the name has been reported.
            Some(ref name) => Profile::named(name).cloned().unwrap_or_default(),
        };
        if let Some(text) = &raw.ask_usage {
            match text.as_str() {
                "yes" => profile.ask_usage = AskUsage::Yes,
                "never" => profile.ask_usage = AskUsage::Never,
                "sent" => profile.ask_usage = AskUsage::Sent,
                other => self.problem(
                    format!("{path}.ask_usage"),
                    format!("`{other}` is not `yes`, `never` or `sent`"),
                ),
            }
        }
        profile
    }
}

#[cfg(test)]
mod tests;
