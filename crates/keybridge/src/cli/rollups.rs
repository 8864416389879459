//! `keybridge ledger rollups`: the sums of the records, compared with these or made anew.

use std::time::Duration;

use anyhow::anyhow;
use jiff::Timestamp;
use keybridge_ledger::{Ledger, LedgerOptions, Rebuilt};
use serde_json::json;
use tokio::time::Instant;

use super::{Cli, Exit, open_existing, store_error};
use crate::{env::Env, print};

/// How often the progress is printed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Records that are summed in one transaction.
const RECORDS_PER_STEP: u32 = 500;

pub(crate) fn command(
    cli: &Cli,
    env: &Env,
    rebuild: bool,
    since: Option<Timestamp>,
) -> Result<(), Exit> {
    let ledger = open_existing(&cli.load(env)?)?;
    if rebuild { rebuild_all(cli, &ledger, since) } else { compare(cli, &ledger) }
}

fn compare(cli: &Cli, ledger: &Ledger) -> Result<(), Exit> {
    let recount = ledger.recount()?;
    let (compared, different) = (recount.compared_sums, recount.different_sums);
    if cli.json {
        print::json_line(&json!({
            "compared_sums": compared,
            "different_sums": different,
            "not_summed": recount.not_summed,
        }))?;
    } else {
        print::text(&format!(
            "{compared} sums compared, {different} different, {} records not summed yet\n",
            recount.not_summed
        ))?;
    }
    if different == 0 {
        return Ok(());
    }
    Err(anyhow!("sums differ from the records: `keybridge ledger rollups --rebuild`").into())
}

fn rebuild_all(cli: &Cli, ledger: &Ledger, since: Option<Timestamp>) -> Result<(), Exit> {
    sum(ledger)?;
    let mut reported = Instant::now();
    let rebuilt = ledger.rebuild_rollups(since, &mut |done| {
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            print::lines(&text(done));
        }
    })?;
    if cli.json {
        return print::json_line(&json!({
            "slots": rebuilt.slots,
            "sessions": rebuilt.sessions,
            "kept": rebuilt.kept,
        }));
    }
    print::text(&format!("{}\n", text(&rebuilt)))
}

fn text(rebuilt: &Rebuilt) -> String {
    let Rebuilt { slots, sessions, kept } = rebuilt;
    format!(
        "summed {slots} half hours and {sessions} sessions anew, kept {kept} whose records are removed"
    )
}

/// Sums the records of a store that an earlier release wrote, and returns their number.
pub(crate) fn sum_records(url: &str) -> Result<u64, Exit> {
    let ledger = Ledger::open_existing(url, &LedgerOptions::default())
        .map_err(|error| store_error(&error))?;
    sum(&ledger)
}

fn sum(ledger: &Ledger) -> Result<u64, Exit> {
    let to_sum = ledger.records_to_sum()?;
    let mut reported = Instant::now();
    let summed = ledger.sum_all_records(RECORDS_PER_STEP, &mut |summed, _took| {
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            print::lines(&format!("summed {summed} of {to_sum} records"));
        }
    })?;
    Ok(summed)
}
