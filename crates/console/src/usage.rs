//! Sums of requests and tokens over a period.

use axum::{
    Json,
    extract::{RawQuery, State},
};
use keybridge_ledger::UsageFilter;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Console,
    caller::Caller,
    failure::Failure,
    openapi::ReadErrors,
    query::{self, UsageQuery},
    views::UsageView,
};

pub(crate) fn router() -> OpenApiRouter<Console> {
    OpenApiRouter::new().routes(routes!(show_usage))
}

/// Sum requests and tokens over a period
///
/// A member gets their own, auditors and administrators those of all users. The sums are exact and outlive the
/// records; requests that have not ended are in `in_progress` alone.
#[utoipa::path(
    get, path = "/usage", tag = "records", params(UsageQuery),
    responses((status = 200, description = "The sums", body = UsageView), ReadErrors),
)]
async fn show_usage(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<UsageView>, Failure> {
    let query: UsageQuery = query::read(query.as_deref())?;
    let mut filter = UsageFilter::try_from(query)?;
    filter.user_id = caller.visible_user();
    let group_by = filter.group_by.clone();
    let usage = console.ledger.read(move |reader| reader.usage(&filter)).await?;
    Ok(Json(UsageView::new(&group_by, usage)))
}
