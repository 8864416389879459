//! The list of interceptions: finds the ids of a page, then reads its rows.

use crate::{
    InterceptionFilter, InterceptionItem, LedgerError, Page, WalkBudget,
    read::{
        lists::{Conditions, MAX_LIMIT, select_items},
        page::page,
        search,
        walk::{Found, Selection, add_ids},
    },
    store::{interceptions::time_of, sql::Database},
    words::Query,
};

/// A page of interceptions, newest first. A list never reads more than its budget allows.
pub(crate) fn interceptions(
    database: &dyn Database,
    filter: &InterceptionFilter,
    budget: WalkBudget,
) -> Result<Page<InterceptionItem>, LedgerError> {
    let limit = filter.limit.clamp(1, MAX_LIMIT);
    let found = find(database, filter, wanted(limit), budget)?;
    items(database, &found, limit)
}

/// The ids of the newest interceptions that a filter selects.
pub(super) fn find(
    database: &dyn Database,
    filter: &InterceptionFilter,
    wanted: usize,
    budget: WalkBudget,
) -> Result<Found, LedgerError> {
    let query = filter.q.as_deref().map(Query::parse).transpose()?;
    match (Selection::new(database, filter)?, query) {
        (None, _) => Ok(Found::default()),
        (Some(selection), None) => selection.find(database, wanted, budget),
        (Some(selection), Some(query)) => {
            search::find(database, &selection, &query, wanted, budget)
        }
    }
}

/// The number of ids of a page: one more than its rows shows that there is a next page.
fn wanted(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1)
}

/// The rows of the interceptions that were found.
fn items(
    database: &dyn Database,
    found: &Found,
    limit: u32,
) -> Result<Page<InterceptionItem>, LedgerError> {
    let mut page = match (found.ids.last(), found.ids.first()) {
        (Some(oldest), Some(newest)) => {
            let mut conditions = Conditions::default();
            conditions.values.extend([(*oldest).into(), (*newest).into()]);
            add_ids(&mut conditions, database.flavour(), &found.ids);
            let items = select_items(" AND interception_id >= $1 AND interception_id <= $2");
            let sql = format!("{items} WHERE {} ORDER BY i.id DESC", conditions.text());
            let id = |item: &InterceptionItem| item.interception.id;
            page(database, &sql, &conditions.values, limit, id)?
        }
        _ => Page { items: Vec::new(), next_cursor: None, searched_until: None },
    };
    if page.next_cursor.is_none()
        && let Some(id) = found.stopped_at
    {
        page.next_cursor = Some(id.to_string());
        page.searched_until = Some(time_of(id));
    }
    Ok(page)
}
