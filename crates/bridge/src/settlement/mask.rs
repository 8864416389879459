//! What is masked in the texts of a record and of its log lines.

use std::borrow::Cow;

use keybridge_identity::token::mask_tokens;
use keybridge_ledger::record::text::Mask;
use keybridge_providers::secrets::{Secret, Secrets};

use super::SettlementGuard;

/// Masks bridge tokens: in what a client sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenMask;

impl Mask for TokenMask {
    fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        mask_tokens(text)
    }
}

/// Masks bridge tokens, the secrets of the providers that a request was sent to, and the caller's own
/// credential: in what a provider answered.
#[derive(Debug)]
pub(super) struct AnswerMask<'a> {
    /// Those of the instance that served it, then those of the instance before a fallback.
    providers: [Option<&'a Secrets>; 2],
    own: Option<Secret>,
}

impl<'a> AnswerMask<'a> {
    pub(super) fn of(guard: &'a SettlementGuard) -> Self {
        // There is one fallback at most.
        let first = guard.earlier_dispatches.first().map(|first| &first.provider.secrets);
        Self {
            providers: [Some(&guard.dispatch.provider.secrets), first],
            own: guard.attempts.credential().own_secret(),
        }
    }
}

impl Mask for AnswerMask<'_> {
    fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let masked = mask_tokens(text);
        let secrets = self.providers.iter().flatten();
        let masked = secrets.fold(masked, |masked, secrets| secrets.mask_in(masked));
        match &self.own {
            Some(own) => own.mask_in(masked),
            None => masked,
        }
    }
}
