//! The schemas of fields that have one of a few words.

use std::borrow::Cow;

use keybridge_identity::{Role, UserStatus};
use keybridge_ledger::record::{Outcome, Quality, UsageKind};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

/// Kinds of credentials, as a query names them.
pub(crate) const CREDENTIAL_KINDS: &[&str] = &["centralized", "byok"];

/// Defines the schema of an enum from its words.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident as $schema:literal: $words:expr;)+) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let words = ObjectBuilder::new().schema_type(Type::String);
                words.enum_values(Some($words.iter().copied())).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                $schema.into()
            }
        }
    )+};
}

words! {
    /// What a user may read and change.
    RoleWord as "Role": Role::WORDS;
    /// Whether the tokens of a user are accepted.
    UserStatusWord as "UserStatus": UserStatus::WORDS;
    /// How a request ended.
    OutcomeWord as "Outcome": Outcome::WORDS;
    /// How far token counts can be trusted.
    QualityWord as "Quality": Quality::WORDS;
    /// What tokens were spent on.
    UsageKindWord as "UsageKind": UsageKind::WORDS;
    /// Whose credential was used.
    CredentialKindWord as "CredentialKind": CREDENTIAL_KINDS;
}
