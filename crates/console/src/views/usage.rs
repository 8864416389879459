//! Sums of requests and tokens.

use jiff::Timestamp;
use keybridge_ledger::{GroupBy, Usage, UsageGroup, UsageSums, record::serialize_time};
use serde::Serialize;
use utoipa::ToSchema;

use super::records::TokenSumsView;

/// The usage of a period.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(crate) struct UsageView {
    /// The start of the first half hour that is summed.
    #[serde(serialize_with = "serialize_time")]
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// The end of the last one.
    #[serde(serialize_with = "serialize_time")]
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
    /// The time zone in which days and hours begin.
    time_zone: String,
    /// Whether days or hours of this zone begin within a half hour of UTC, which then counts for the one that it
    /// begins in.
    approximate: bool,
    /// Requests of the period that have not ended; the sums do not have them.
    in_progress: u64,
    /// The sums of each group, in the order of what they are grouped by.
    items: Vec<UsageGroupView>,
    /// The sums of all.
    total: UsageSumsView,
}

/// Sums of requests that have something in common. It has the members that `group_by` names; null stands for a
/// name that is not known.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageGroup)]
struct UsageGroupView {
    /// Name of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Option<String>>,
    /// Name of the provider instance that served.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<Option<String>>,
    /// Requested model, cut to 128 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Option<String>>,
    /// Name of the agent or SDK, cut to 128 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<Option<String>>,
    /// `centralized` or `byok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    credential_kind: Option<Option<String>>,
    /// The date.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<Option<String>>,
    /// The start of the hour, with the offset from UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    hour: Option<Option<String>>,
    #[serde(flatten)]
    sums: UsageSumsView,
}

/// Sums of requests that have ended.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageSums)]
struct UsageSumsView {
    /// Number of requests.
    requests: u64,
    /// Number of completed ones.
    completed: u64,
    /// Number of failed ones.
    failed: u64,
    /// Number of those that the client cancelled.
    cancelled: u64,
    /// Number of refused ones.
    refused: u64,
    /// Number of those whose process died.
    interrupted: u64,
    #[serde(flatten)]
    tokens: TokenSumsView,
    /// Number of tool calls.
    tool_calls: u64,
}

impl From<UsageSums> for UsageSumsView {
    fn from(sums: UsageSums) -> Self {
        let requests = sums.requests();
        let UsageSums { completed, failed, cancelled, refused, interrupted, tokens, tool_calls } =
            sums;
        let tokens = tokens.into();
        Self { requests, completed, failed, cancelled, refused, interrupted, tokens, tool_calls }
    }
}

impl UsageView {
    /// The usage, with what it was grouped by.
    pub(crate) fn new(group_by: &[GroupBy], usage: Usage) -> Self {
        let Usage { since, until, time_zone, is_approximate, in_progress, groups, total } = usage;
        Self {
            since,
            until,
            time_zone,
            approximate: is_approximate,
            in_progress,
            items: groups.into_iter().map(|group| UsageGroupView::new(group_by, group)).collect(),
            total: total.into(),
        }
    }
}

impl UsageGroupView {
    fn new(group_by: &[GroupBy], UsageGroup { values, sums }: UsageGroup) -> Self {
        let mut view = Self {
            user: None,
            provider: None,
            model: None,
            client: None,
            credential_kind: None,
            day: None,
            hour: None,
            sums: sums.into(),
        };
        for (by, value) in group_by.iter().zip(values) {
            let member = match by {
                GroupBy::User => &mut view.user,
                GroupBy::Provider => &mut view.provider,
                GroupBy::Model => &mut view.model,
                GroupBy::Client => &mut view.client,
                GroupBy::CredentialKind => &mut view.credential_kind,
                GroupBy::Day => &mut view.day,
                GroupBy::Hour => &mut view.hour,
            };
            *member = Some(value);
        }
        view
    }
}
