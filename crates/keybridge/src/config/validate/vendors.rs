//! The vendor profile of a provider, with what its configuration overrides.

use http::{HeaderName, Uri, header};
use keybridge_providers::{
    config::ProviderType,
    vendors::{AskUsage, CredentialForm, Profile},
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
        if let Some(form) = self.credential_form(&format!("{path}.credential"), &raw.credential) {
            profile.credential = form;
            // Otherwise the callers' own would still be looked for where the vendor's are.
            profile.set_accepts(vec![profile.credential.clone()]);
        }
        if let Some(forms) = &raw.accepts {
            let forms = forms.iter().enumerate().filter_map(|(at, form)| {
                self.credential_form(&format!("{path}.accepts[{at}]"), &Some(form.clone()))
            });
            profile.set_accepts(forms.collect());
        }
        profile.key_optional = raw.key_optional.unwrap_or(profile.key_optional);
        if let Some(query) = &raw.query {
            profile.query.clone_from(query);
        }
        if let Some(paths) = &raw.paths {
            for (endpoint, below) in paths {
                if !below.starts_with('/') || below.matches("{model}").count() != 1 {
                    self.problem(
                        format!("{path}.paths.{endpoint}"),
                        format!("`{below}` must begin with `/` and contain `{{model}}` once"),
                    );
                }
            }
            profile.paths.clone_from(paths);
        }
        profile
    }

    fn credential_form(&mut self, path: &str, text: &Option<String>) -> Option<CredentialForm> {
        let form: Result<CredentialForm, _> = text.as_ref()?.parse();
        match form {
            Ok(CredentialForm::Aws) => self.problem(path, "`aws` is for the type `bedrock` only"),
            Ok(CredentialForm::Header(name)) if is_reserved(&name) => {
                self.problem(path, format!("`{name}` cannot carry a credential"));
            }
            Ok(form) => return Some(form),
            Err(error) => self.problem(path, error.to_string()),
        }
        None
    }
}

/// Whether a header has a meaning of its own in every request.
fn is_reserved(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 8] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::ACCEPT_ENCODING,
        header::TE,
        header::UPGRADE,
    ];
    NAMES.contains(name)
}

#[cfg(test)]
mod tests;
