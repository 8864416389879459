//! The description of the API (OpenAPI 3.1), which comes from the handlers and their types.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response as HttpResponse},
};
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{
        ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, RefOr, Response,
        SecurityRequirement,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
        tag::TagBuilder,
    },
};

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Console,
    views::{ErrorResponse, ErrorView, error_responses},
};

/// The name of the security scheme.
const BRIDGE_TOKEN: &str = "bridge_token";

const DESCRIPTION: &str = "\
Reads the records of keybridge and administers it. Requests carry a bridge token as \
`Authorization: Bearer kb_…`. A member sees only their own records, an auditor all of them, an administrator \
can also make changes.

Every error has the form `{\"error\": {\"kind\", \"message\", \"hint\"}}`; `hint` may be absent. A method that an \
endpoint does not have gets status 405, with the header `Allow`, and an unknown endpoint 404. Lists come in \
pages: `next_cursor` is the `cursor` of the next page. Times are UTC with microseconds. Members may be added to \
any object: ignore those that you do not know.";

/// The description without its paths.
pub(crate) fn base() -> OpenApi {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0"));
    let info = InfoBuilder::new()
        .title("keybridge")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(license.build()));
    let scheme =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("kb_…").description(Some(
            "A bridge token: `keybridge token create`, or `POST /users/{name}/tokens`",
        ));
    let mut schemas = Vec::new();
    <ErrorResponse<ErrorView> as ToSchema>::schemas(&mut schemas);
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .schema_from::<ErrorView>()
        .schema_from::<ErrorResponse<ErrorView>>()
        .security_scheme(BRIDGE_TOKEN, SecurityScheme::Http(scheme.build()));
    let tag = |name: &str, description: &str| {
        TagBuilder::new().name(name).description(Some(description)).build()
    };
    OpenApiBuilder::new()
        .info(info.build())
        .components(Some(components.build()))
        .security(Some([SecurityRequirement::new(BRIDGE_TOKEN, Vec::<String>::new())]))
        .tags(Some([
            tag("records", "What was asked and answered"),
            tag("accounts", "Users and their tokens"),
            tag("operation", "The state of the bridge and its configuration"),
            tag("description", "This description"),
        ]))
        .build()
}

pub(crate) fn router() -> OpenApiRouter<Console> {
    OpenApiRouter::new().routes(routes!(describe_api))
}

/// Describe the API
///
/// This document. It needs no token.
#[utoipa::path(
    get, path = "/openapi.json", tag = "description", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
async fn describe_api(State(console): State<Console>) -> HttpResponse {
    ([(header::CONTENT_TYPE, "application/json")], console.document).into_response()
}

/// Names sets of error responses.
macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident: $($status:literal),+;)+) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                error_responses(&[$($status),+])
            }
        }
    )+};
}

errors! {
    /// Of every call that needs a token.
    CallerErrors: 401, 503;
    /// Of calls that not every role may make.
    AccessErrors: 401, 403, 503;
    /// Of lists of records.
    ReadErrors: 400, 401, 503, 504;
    /// Of reads of one record or session.
    FindErrors: 400, 401, 404, 503, 504;
    /// Of calls that read accounts.
    AccountErrors: 400, 401, 500, 503;
    /// Of calls that read accounts and records.
    AccountReadErrors: 401, 500, 503, 504;
    /// Of calls that not every role may make.
    Forbidden: 403;
    /// Of calls that name something.
    NotFound: 404;
    /// Of calls that the present state may forbid.
    Conflict: 409;
    /// Of calls with a body.
    BodyErrors: 413, 415;
}
