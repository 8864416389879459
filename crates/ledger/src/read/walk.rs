//! Finds the ids of a page of interceptions, newest first: along an index where one serves the filter, otherwise
//! back by id in growing windows, until the page is full or the budget is spent.

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    InterceptionFilter, LedgerError, WalkBudget,
    read::lists::{Conditions, last_id},
    record::Outcome,
    store::{
        interceptions::{ID_MARGIN, first_id},
        read_limit::Windows,
        sql::{Database, Flavour, all, first},
    },
};

/// A range of ids of interceptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct IdRange {
    /// The first id.
    pub(super) from: Option<Uuid>,
    /// The id after the last one.
    pub(super) below: Option<Uuid>,
}

impl IdRange {
    /// The ids of a period, and below that of a cursor.
    fn of(filter: &InterceptionFilter) -> Result<Self, LedgerError> {
        let moved = |time: Timestamp, by| time.checked_add(by).unwrap_or(time);
        let from = filter.since.map(|since| first_id(moved(since, -ID_MARGIN)));
        let until = filter.until.map(|until| first_id(moved(until, ID_MARGIN)));
        let cursor = filter.cursor.as_deref().map(last_id).transpose()?;
        Ok(Self { from, below: cursor.into_iter().chain(until).min() })
    }

    /// Adds the bounds of a column; on the key of a partitioned table they select the partitions.
    pub(super) fn add_to(self, conditions: &mut Conditions, column: &str) {
        conditions.add_some(&format!("{column} >= ?"), self.from);
        conditions.add_some(&format!("{column} < ?"), self.below);
    }
}

/// The ids of a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The ids, newest first.
    pub(super) ids: Vec<Uuid>,
    /// If the budget was spent: the id back to which was searched.
    pub(super) stopped_at: Option<Uuid>,
}

/// What leads to the interceptions of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AccessPath {
    /// An index of a session, a thread or the open requests: few ids, which are sorted.
    Session,
    Thread,
    Open,
    /// An index that is sorted by id within an outcome or a user.
    Outcome,
    User,
    /// All ids.
    All,
}

impl AccessPath {
    /// Whether its index is not sorted by id.
    const fn is_set(self) -> bool {
        matches!(self, Self::Session | Self::Thread | Self::Open)
    }
}

/// The interceptions that a filter selects, apart from the words of their prompts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection<'a> {
    filter: &'a InterceptionFilter,
    flavour: Flavour,
    /// The user, by id or by name.
    pub(super) user_id: Option<Uuid>,
    path: AccessPath,
    /// The ids of the period, and below that of the cursor.
    pub(super) range: IdRange,
}

impl<'a> Selection<'a> {
    /// `None` when there is no such user.
    pub(super) fn new(
        database: &dyn Database,
        filter: &'a InterceptionFilter,
    ) -> Result<Option<Self>, LedgerError> {
        let range = IdRange::of(filter)?;
        let mut user_id = filter.user_id;
        if let Some(name) = &filter.user {
            let sql = "SELECT id FROM users WHERE name = $1";
            let named: Option<Uuid> = first(database, sql, &[name.as_str().into()])?;
            if named.is_none() || user_id.is_some_and(|id| Some(id) != named) {
                return Ok(None);
            }
            user_id = named;
        }
        let path = if filter.session.is_some() {
            AccessPath::Session
        } else if filter.thread.is_some() {
            AccessPath::Thread
        } else {
            match filter.outcome {
                Some(Outcome::InProgress) => AccessPath::Open,
                Some(outcome) if outcome != Outcome::Completed => AccessPath::Outcome,
                _ if user_id.is_some() => AccessPath::User,
                _ => AccessPath::All,
            }
        };
        Ok(Some(Self { filter, flavour: database.flavour(), user_id, path, range }))
    }

    /// The same in another range.
    pub(super) const fn within(self, range: IdRange) -> Self {
        Self { range, ..self }
    }

    /// Whether its access path is all ids.
    pub(super) fn is_of_all(&self) -> bool {
        self.path == AccessPath::All
    }

    /// Adds the condition of the access path.
    pub(super) fn add_path(&self, conditions: &mut Conditions) {
        let filter = self.filter;
        match self.path {
            AccessPath::Session => {
                conditions.add_some("i.session_id = ?", filter.session.clone());
                // The user is the next column of the index.
                conditions.add_some("i.user_id = ?", self.user_id);
            }
            AccessPath::Thread => conditions.add_some("i.thread_id = ?", filter.thread),
            AccessPath::Open => conditions.sql.push("i.outcome = 'in_progress'".into()),
            AccessPath::Outcome => {
                conditions.add_some("i.outcome = ?", filter.outcome.map(|it| it.as_str()));
                // As the index says.
                conditions.sql.push("i.outcome NOT IN ('completed', 'in_progress')".into());
            }
            AccessPath::User => conditions.add_some("i.user_id = ?", self.user_id),
            AccessPath::All => {}
        }
    }

    /// Adds the conditions that the access path does not serve; returns whether there are others than those
    /// of time, which the range of ids serves.
    fn add_rest(&self, conditions: &mut Conditions) -> bool {
        let (filter, path) = (self.filter, self.path);
        let before = conditions.sql.len();
        match (path, self.flavour) {
            (AccessPath::User | AccessPath::Session, _) => {}
            // The plus keeps SQLite, which has no statistics, from taking the user's index instead.
            (_, Flavour::Sqlite) => conditions.add_some("+i.user_id = ?", self.user_id),
            (_, Flavour::Postgres) => conditions.add_some("i.user_id = ?", self.user_id),
        }
        if path != AccessPath::Thread {
            conditions.add_some("i.thread_id = ?", filter.thread);
        }
        if !matches!(path, AccessPath::Open | AccessPath::Outcome) {
            conditions.add_some("i.outcome = ?", filter.outcome.map(|it| it.as_str()));
        }
        conditions.add_some("i.provider = ?", filter.provider.clone());
        conditions.add_some("(i.model = ? OR i.model_served = ?)", filter.model.clone());
        conditions.add_some("i.client = ?", filter.client.clone());
        conditions.add_some("i.credential_kind = ?", filter.credential_kind.clone());
        let has_rest = conditions.sql.len() > before;
        conditions.add_some("i.started_at >= ?", filter.since);
        conditions.add_some("i.started_at < ?", filter.until);
        has_rest
    }

    /// Adds all conditions.
    pub(super) fn add_to(&self, conditions: &mut Conditions, range: IdRange) {
        self.add_path(conditions);
        self.add_rest(conditions);
        range.add_to(conditions, "i.id");
    }

    /// The newest ids.
    pub(super) fn find(
        &self,
        database: &dyn Database,
        wanted: usize,
        budget: WalkBudget,
    ) -> Result<Found, LedgerError> {
        if self.path.is_set() || !self.add_rest(&mut Conditions::default()) {
            let statement = self.statement(self.range, wanted);
            return Ok(Found { ids: statement.ids(database)?, stopped_at: None });
        }
        self.walk(database, wanted, budget, |range, missing| {
            self.statement(range, missing).ids(database)
        })
    }

    /// The statement that selects the newest ids of a range.
    pub(super) fn statement(&self, range: IdRange, limit: usize) -> Statement {
        let mut conditions = Conditions::default();
        self.add_to(&mut conditions, range);
        self.newest(conditions, &format!("LIMIT {limit}"))
    }

    /// The statement that selects the newest ids under conditions.
    fn newest(&self, conditions: Conditions, limit: &str) -> Statement {
        let text = conditions.text();
        let sql = if self.path.is_set() {
            // Otherwise the database may walk back by id, in the hope to meet one soon.
            format!(
                "WITH listed AS MATERIALIZED (SELECT i.id FROM interceptions i WHERE {text})
                 SELECT id FROM listed ORDER BY id DESC {limit}"
            )
        } else {
            format!("SELECT i.id FROM interceptions i WHERE {text} ORDER BY i.id DESC {limit}")
        };
        Statement { sql, conditions }
    }

    /// Walks back in windows along the access path. `select` returns the newest ids of a window, at most as many
    /// as are missing.
    pub(super) fn walk(
        &self,
        database: &dyn Database,
        wanted: usize,
        budget: WalkBudget,
        mut select: impl FnMut(IdRange, usize) -> Result<Vec<Uuid>, LedgerError>,
    ) -> Result<Found, LedgerError> {
        let mut windows = Windows::new(budget);
        let (mut found, mut range) = (Found::default(), self.range);
        while let Some(rows) = windows.next() {
            let edge = self.edge(database, range, rows)?;
            let window = IdRange { from: edge.or(range.from), ..range };
            found.ids.extend(select(window, wanted - found.ids.len())?);
            if edge.is_none() || found.ids.len() >= wanted {
                return Ok(found);
            }
            range.below = edge;
        }
        found.stopped_at = range.below;
        Ok(found)
    }

    /// The id of the row of this number on the access path, newest first; `None` when there are fewer.
    pub(super) fn edge(
        &self,
        database: &dyn Database,
        range: IdRange,
        rows: u32,
    ) -> Result<Option<Uuid>, LedgerError> {
        Ok(self.edge_statement(range, rows).ids(database)?.pop())
    }

    pub(super) fn edge_statement(&self, range: IdRange, rows: u32) -> Statement {
        let mut conditions = Conditions::default();
        self.add_path(&mut conditions);
        range.add_to(&mut conditions, "i.id");
        self.newest(conditions, &format!("LIMIT 1 OFFSET {}", rows.saturating_sub(1)))
    }

    /// Those of these interceptions that are selected, newest first.
    pub(super) fn among(
        &self,
        database: &dyn Database,
        ids: &[Uuid],
        range: IdRange,
    ) -> Result<Vec<Uuid>, LedgerError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.among_statement(database.flavour(), ids, range).ids(database)
    }

    fn among_statement(&self, flavour: Flavour, ids: &[Uuid], range: IdRange) -> Statement {
        let mut conditions = Conditions::default();
        add_ids(&mut conditions, flavour, ids);
        self.add_to(&mut conditions, range);
        let text = conditions.text();
        let sql = format!("SELECT i.id FROM interceptions i WHERE {text} ORDER BY i.id DESC");
        Statement { sql, conditions }
    }
}

/// A statement that selects ids.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) conditions: Conditions,
}

impl Statement {
    pub(super) fn ids(&self, database: &dyn Database) -> Result<Vec<Uuid>, LedgerError> {
        all(database, &self.sql, &self.conditions.values)
    }
}

/// Adds the condition that an interception is one of these.
pub(super) fn add_ids(conditions: &mut Conditions, flavour: Flavour, ids: &[Uuid]) {
    conditions.add(&flavour.is_listed("i.id", "?"), flavour.id_list(ids));
    if flavour == Flavour::Postgres {
        // Unlike the array, these are known when the server selects the partitions.
        conditions.add_some("i.id >= ?", ids.iter().min().copied());
        conditions.add_some("i.id <= ?", ids.iter().max().copied());
    }
}
