//! For tests: the plans of the statements that a read runs.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    InterceptionFilter, LedgerError, WalkBudget,
    read::interceptions::interceptions,
    record::Outcome,
    store::sql::{Cells, Database, Flavour, STATEMENT_TIMEOUT, Value, required},
};

/// A database that has each statement explained before it runs it.
struct Explaining<'a> {
    database: &'a dyn Database,
    plans: Mutex<Vec<Plan>>,
}

/// A statement and its plan.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) sql: String,
    pub(crate) lines: Vec<String>,
}

impl Database for Explaining<'_> {
    fn flavour(&self) -> Flavour {
        self.database.flavour()
    }

    fn run(
        &self,
        timeout: Duration,
        sql: &str,
        values: &[Value],
        row: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let flavour = self.flavour();
        let explain = match flavour {
            Flavour::Sqlite => format!("EXPLAIN QUERY PLAN {sql}"),
            Flavour::Postgres => format!("EXPLAIN {sql}"),
        };
        let mut lines = Vec::new();
        self.database.run(STATEMENT_TIMEOUT, &explain, values, &mut |cells| {
            if flavour == Flavour::Sqlite {
                // The numbers of the step and of the one that it belongs to, and one that means nothing.
                for _ in 0..3 {
                    cells.integer()?;
                }
            }
            lines.push(required(cells.text()?)?);
            Ok(())
        })?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.push(Plan { sql: sql.to_owned(), lines });
        drop(plans);
        self.database.run(timeout, sql, values, row)
    }
}

/// The plans of a list.
pub(crate) fn explain(database: &dyn Database, filter: &InterceptionFilter) -> Vec<Plan> {
    let explaining = Explaining { database, plans: Mutex::default() };
    let budget = WalkBudget::Windows { count: 2, rows: 10 };
    interceptions(&explaining, filter, budget).unwrap();
    explaining.plans.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Lists of each kind, each with what the plan of one of its statements contains.
pub(crate) fn lists(
    user: &str,
    thread: Uuid,
    since: Timestamp,
) -> Vec<(InterceptionFilter, &'static str)> {
    let any = InterceptionFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let (of_user, words) = (
        InterceptionFilter { user: text(user), ..any() },
        InterceptionFilter { q: text("hello wor*"), ..any() },
    );
    vec![
        (any(), ""),
        (InterceptionFilter { since: Some(since), ..any() }, ""),
        (InterceptionFilter { until: Some(since), ..any() }, ""),
        (InterceptionFilter { model: text("m"), ..any() }, ""),
        (InterceptionFilter { provider: text("p"), since: Some(since), ..any() }, ""),
        (InterceptionFilter { outcome: Some(Outcome::Completed), ..any() }, ""),
        (InterceptionFilter { outcome: Some(Outcome::Refused), ..any() }, "by_outcome"),
        (InterceptionFilter { outcome: Some(Outcome::Failed), ..of_user.clone() }, "by_outcome"),
        (InterceptionFilter { outcome: Some(Outcome::InProgress), ..any() }, "open"),
        (of_user.clone(), "by_user"),
        (InterceptionFilter { model: text("m"), ..of_user.clone() }, "by_user"),
        (InterceptionFilter { session: text("s"), ..any() }, "by_session"),
        (
            InterceptionFilter { session: text(&thread.to_string()), ..of_user.clone() },
            "by_session",
        ),
        (InterceptionFilter { thread: Some(thread), ..any() }, "by_thread"),
        (words.clone(), "words"),
        (InterceptionFilter { model: text("m"), ..words.clone() }, "words"),
        (InterceptionFilter { since: Some(since), ..words.clone() }, "words"),
        (InterceptionFilter { user: text(user), ..words.clone() }, "words"),
        (InterceptionFilter { session: text("s"), ..words }, ""),
    ]
}
