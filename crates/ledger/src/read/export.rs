//! Pages of whole records for exports: oldest first, bounded in rows and in bytes, with one statement for
//! each table.

use std::collections::HashMap;

use uuid::Uuid;

use crate::{
    InterceptionDetail, InterceptionFilter, InterceptionItem, LedgerError, Page,
    read::{
        lists::{Conditions, only_attempt, select_items},
        page::{self, MAX_PAGE_BYTES, ROW_BYTES},
        walk::{IdRange, Selection},
    },
    store::sql::{Cells, Database, FromRow, Value, all, count, required},
};

/// Maximum number of rows on a page. Each has sums of its own, and a page must be read within the time limit
/// of a read.
const MAX_ROWS: u32 = 500;

/// The child tables, and of those with texts of any length the columns with these.
const TABLES: [(&str, &[&str]); 7] = [
    ("token_usages", &["raw"]),
    ("prompts", &["prompt"]),
    ("tool_usages", &["arguments", "result"]),
    ("thoughts", &["content"]),
    ("answers", &["content"]),
    ("attachments", &[]),
    ("upstream_attempts", &[]),
];

pub(crate) fn page(
    database: &dyn Database,
    filter: &InterceptionFilter,
    after: Option<Uuid>,
) -> Result<Page<InterceptionDetail>, LedgerError> {
    let Some(selection) = Selection::new(database, filter)? else {
        return Ok(Page { items: Vec::new(), next_cursor: None, searched_until: None });
    };
    // The table is read in the order of its ids, which begin with the time of the start: no page reads through
    // the records outside the period.
    let after = after.map(|id| Uuid::from_u128(id.as_u128().saturating_add(1)));
    let range = IdRange { from: selection.range.from.max(after), ..selection.range };
    let mut conditions = Conditions::default();
    selection.add_to(&mut conditions, range);
    let limit = filter.limit.clamp(1, MAX_ROWS);
    let sql = format!(
        "{} WHERE {} ORDER BY i.id LIMIT {}",
        select_items(""),
        conditions.text(),
        limit + 1
    );
    let id = |item: &InterceptionItem| item.interception.id;
    let mut items = page::page(database, &sql, &conditions.values, limit, id)?;
    // The children are measured before they are read: PostgreSQL hands over all rows of a statement at once.
    let children = Children::of(&items.items);
    let sizes = children.sizes(database)?;
    let fitting = fitting_rows(&items.items, &sizes);
    if fitting < items.items.len() {
        items.items.truncate(fitting);
        items.next_cursor = items.items.last().map(|item| id(item).to_string());
    }
    let children = Children::of(&items.items);
    let details = children.read(database, items.items, &sizes)?;
    Ok(Page { items: details, next_cursor: items.next_cursor, searched_until: None })
}

/// How many records, and at least one, fit on a page with their children.
fn fitting_rows(items: &[InterceptionItem], sizes: &HashMap<Uuid, usize>) -> usize {
    let mut total = 0;
    let fits = items.iter().take_while(|item| {
        total += ROW_BYTES + sizes.get(&item.interception.id).copied().unwrap_or_default();
        total <= MAX_PAGE_BYTES
    });
    fits.count().max(1)
}

/// The child rows of the records of a page.
struct Children {
    /// `($1, $2, …)`.
    places: String,
    ids: Vec<Value>,
}

impl Children {
    fn of(items: &[InterceptionItem]) -> Self {
        let places: Vec<String> = (1..=items.len()).map(|number| format!("${number}")).collect();
        let ids = items.iter().map(|item| item.interception.id.into()).collect();
        Self { places: format!("({})", places.join(", ")), ids }
    }

    /// The approximate size of the children of each record that has any.
    fn sizes(&self, database: &dyn Database) -> Result<HashMap<Uuid, usize>, LedgerError> {
        if self.ids.is_empty() {
            return Ok(HashMap::new());
        }
        let of_table = |(table, texts): &(&str, &[&str])| {
            let length = |text: &&str| format!(" + coalesce(octet_length({text}), 0)");
            let lengths: String = texts.iter().map(length).collect();
            format!(
                "SELECT interception_id, {ROW_BYTES}{lengths} AS bytes FROM {table}
                 WHERE interception_id IN {}",
                self.places
            )
        };
        let tables: Vec<String> = TABLES.iter().map(of_table).collect();
        let sql = format!(
            "SELECT interception_id, CAST(sum(bytes) AS BIGINT) FROM ({}) sizes GROUP BY interception_id",
            tables.join(" UNION ALL ")
        );
        let sizes: Vec<Size> = all(database, &sql, &self.ids)?;
        Ok(sizes.into_iter().map(|Size { id, bytes }| (id, bytes)).collect())
    }

    /// Adds the children to their records.
    fn read(
        &self,
        database: &dyn Database,
        items: Vec<InterceptionItem>,
        sizes: &HashMap<Uuid, usize>,
    ) -> Result<Vec<InterceptionDetail>, LedgerError> {
        let mut token_usages = self.rows(database, "token_usages")?;
        let mut prompts = self.rows(database, "prompts")?;
        let mut tool_usages = self.rows(database, "tool_usages")?;
        let mut thoughts = self.rows(database, "thoughts")?;
        let mut answers = self.rows(database, "answers")?;
        let mut attachments = self.rows(database, "attachments")?;
        let mut upstream_attempts = self.rows(database, "upstream_attempts")?;
        let with_children = |item: InterceptionItem| {
            let id = item.interception.id;
            let mut upstream_attempts = upstream_attempts.remove(&id).unwrap_or_default();
            if upstream_attempts.is_empty() {
                upstream_attempts.extend(only_attempt(&item.interception));
            }
            InterceptionDetail {
                token_usages: token_usages.remove(&id).unwrap_or_default(),
                prompts: prompts.remove(&id).unwrap_or_default(),
                tool_usages: tool_usages.remove(&id).unwrap_or_default(),
                thoughts: thoughts.remove(&id).unwrap_or_default(),
                answers: answers.remove(&id).unwrap_or_default(),
                attachments: attachments.remove(&id).unwrap_or_default(),
                upstream_attempts,
                size_bytes: sizes.get(&id).copied().unwrap_or_default(),
                item,
            }
        };
        Ok(items.into_iter().map(with_children).collect())
    }

    /// The rows of a child table by their record, in the order of their ids.
    fn rows<T: FromRow>(
        &self,
        database: &dyn Database,
        table: &'static str,
    ) -> Result<HashMap<Uuid, Vec<T>>, LedgerError> {
        let mut found: HashMap<Uuid, Vec<T>> = HashMap::new();
        if self.ids.is_empty() {
            return Ok(found);
        }
        let sql = format!(
            "SELECT interception_id, {} FROM {table} WHERE interception_id IN {} ORDER BY id",
            T::COLUMNS,
            self.places
        );
        for Owned { owner, row } in all(database, &sql, &self.ids)? {
            found.entry(owner).or_default().push(row);
        }
        Ok(found)
    }
}

/// The size of the children of a record, in bytes.
struct Size {
    id: Uuid,
    bytes: usize,
}

impl FromRow for Size {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let id = required(row.id()?)?;
        Ok(Self { id, bytes: usize::try_from(count(row)?).unwrap_or(usize::MAX) })
    }
}

/// A child row after the id of its record.
struct Owned<T> {
    owner: Uuid,
    row: T,
}

impl<T: FromRow> FromRow for Owned<T> {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self { owner: required(row.id()?)?, row: T::from_row(row)? })
    }
}
