//! What the API shows: its own types, so that a change of a stored row does not change the API by itself.

mod accounts;
mod attention;
mod errors;
mod records;
mod sessions;
mod usage;
mod words;

pub(crate) use self::{
    accounts::{CreatedTokenView, MeView, TokenView, UserView},
    attention::{AttentionKind, AttentionView, Severity},
    errors::{
        AmbiguousView, ErrorKind, ErrorResponse, ErrorView, InvalidConfigurationView,
        error_responses,
    },
    records::{InterceptionDetailView, InterceptionItemView, InterceptionView, TokenCountsView},
    sessions::{SessionDetailView, SessionView},
    usage::UsageView,
    words::{CREDENTIAL_KINDS, CredentialKindWord, OutcomeWord, RoleWord, UserStatusWord},
};

use jiff::Timestamp;
use keybridge_ledger::{Page, record::serialize_optional_time};
use serde::Serialize;
use utoipa::ToSchema;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Page)]
pub(crate) struct PageView<T> {
    /// The rows.
    pub(crate) items: Vec<T>,
    /// The `cursor` of the next page; null on the last one.
    #[schema(required)]
    pub(crate) next_cursor: Option<String>,
    /// The time back to which was searched, if the search stopped before the page was full: the next page goes
    /// on from there.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_optional_time")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) searched_until: Option<Timestamp>,
}

impl<T> PageView<T> {
    /// A page whose rows become views.
    pub(crate) fn of<R: Into<T>>(page: Page<R>) -> Self {
        let Page { items, next_cursor, searched_until } = page;
        let items = items.into_iter().map(Into::into).collect();
        Self { items, next_cursor, searched_until }
    }
}

/// All rows of a short list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = List)]
pub(crate) struct ListView<T> {
    /// The rows.
    pub(crate) items: Vec<T>,
}

/// A view whose fields can be the columns of a table.
pub(crate) trait Fields {
    /// The names of its fields, in order.
    const FIELDS: &'static [&'static str];
}

/// Defines the view of a stored row that has the same fields: a field that the row gets later is an error
/// here until it is decided whether the API shows it.
macro_rules! view {
    (
        $(#[$meta:meta])*
        $name:ident as $schema:ident from $source:ident {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, serde::Serialize, utoipa::ToSchema)]
        #[schema(as = $schema)]
        pub(crate) struct $name {
            $($(#[$field_meta])* #[schema(required)] pub(crate) $field: $type,)+
        }

        impl crate::views::Fields for $name {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),+];
        }

        impl From<$source> for $name {
            fn from(row: $source) -> Self {
                let $source { $($field),+ } = row;
                Self { $($field),+ }
            }
        }
    };
}

pub(crate) use view;
