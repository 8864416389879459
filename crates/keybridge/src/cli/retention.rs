//! `keybridge ledger retention`: what retention removed, what it would remove, and the confirmation of
//! the clock.

use jiff::Timestamp;
use keybridge_ledger::{RecordedRun, RetentionCheck, record::time_text};
use serde_json::json;

use super::{Cli, Exit, open_existing};
use crate::{
    env::Env,
    print::{self, Table},
};

pub(crate) fn command(cli: &Cli, env: &Env, confirm: bool) -> Result<(), Exit> {
    let config = cli.load(env)?;
    let ledger = open_existing(&config)?;
    let (policy, now) = (config.retention, Timestamp::now());
    let check = ledger.check_retention(&policy, now)?;
    let runs = ledger.retention_runs()?;
    if confirm {
        ledger.trust_clock(now)?;
    }
    if cli.json {
        return print::json_line(&json!({ "check": check, "confirmed": confirm, "runs": runs }));
    }
    if !runs.is_empty() {
        table(&runs).print()?;
    }
    print::text(&text(&check, confirm))
}

fn text(check: &RetentionCheck, confirmed: bool) -> String {
    let mut text = format!("the time is {}\n", time_text(check.now));
    let removes = match check.cutoff {
        Some(cutoff) => format!("retention removes what started before {}\n", time_text(cutoff)),
        None => "records are kept forever\n".into(),
    };
    text.push_str(&removes);
    if let Some(refusal) = &check.refusal {
        text.push_str(&format!("retention is not applied: {refusal}\n"));
    }
    if confirmed {
        text.push_str(
            "the time is confirmed; `keybridge serve` applies retention within the hour\n",
        );
    }
    text
}

fn table(runs: &[RecordedRun]) -> Table {
    let mut table = Table::new(["STARTED", "BEFORE", "RECORDS", "OLDEST", "NEWEST", "PROCESS"]);
    let id = |id: Option<uuid::Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    for run in runs {
        table.row(&[
            time_text(run.started_at),
            time_text(run.cutoff),
            run.interceptions().to_string(),
            id(run.first_id),
            id(run.last_id),
            run.replica_id.to_string(),
        ]);
    }
    table
}
