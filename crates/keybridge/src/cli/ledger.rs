//! `keybridge migrate` and `keybridge ledger verify`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use keybridge_ledger::{
    Comparison, Ledger, LedgerError, ProviderLogEntry, RecordedRun, Recount, StoreCheck,
    record::{serialize_optional_time, time_text},
    spool_leftovers,
};
use keybridge_telemetry::escape_controls;
use serde::Serialize;
use serde_json::json;

use super::{
    Cli, Exit, LedgerCommand, MigrateOptions, open_existing, retention, rollups, spool, store_error,
};
use crate::{config::Config, env::Env, print};

/// How many missing or duplicated ids are printed.
const MAX_LISTED: usize = 20;

pub(crate) fn migrate(cli: &Cli, env: &Env, options: &MigrateOptions) -> Result<(), Exit> {
    let url = cli.load(env)?.store_url;
    let (names, verb) = if options.plan {
        (Ledger::pending_migrations(&url).map_err(|error| store_error(&error))?, "pending")
    } else {
        (Ledger::migrate(&url).map_err(|error| store_error(&error))?, "applied")
    };
    let summed = if options.plan { 0 } else { rollups::sum_records(&url)? };
    if cli.json {
        return print::json_line(&json!({ verb: names, "summed": summed }));
    }
    if summed > 0 {
        print::text(&format!("summed {summed} records\n"))?;
    }
    if names.is_empty() {
        return print::text("the store is up to date\n");
    }
    let lines: String = names.iter().map(|name| format!("{verb} {name}\n")).collect();
    print::text(&lines)
}

/// The result of `ledger verify`, as it is printed.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    recount: Recount,
    spool_leftovers: u64,
    retention: RetentionTotals,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Comparison>,
    /// What is wrong beside the figures.
    findings: Vec<String>,
    /// What an operator should know, although nothing is wrong.
    warnings: Vec<String>,
}

/// What retention removed.
#[derive(Debug, Default, Serialize)]
struct RetentionTotals {
    runs: u64,
    removed_interceptions: u64,
    #[serde(serialize_with = "serialize_optional_time")]
    last_run_at: Option<Timestamp>,
    #[serde(serialize_with = "serialize_optional_time")]
    removed_before: Option<Timestamp>,
}

impl RetentionTotals {
    fn of(runs: &[RecordedRun]) -> Self {
        Self {
            runs: to_u64(runs.len()),
            removed_interceptions: runs.iter().map(RecordedRun::interceptions).sum(),
            last_run_at: runs.iter().map(|run| run.changed_at).max(),
            removed_before: runs.iter().map(|run| run.cutoff).max(),
        }
    }
}

impl Report {
    fn new(
        recount: Recount,
        spool_leftovers: u64,
        runs: &[RecordedRun],
        store: Option<StoreCheck>,
        against: Option<Comparison>,
    ) -> Self {
        let mut warnings = Vec::new();
        if recount.duplicate_response_ids > 0 {
            warnings.push(format!(
                "{} response ids occur more than once: the provider repeats them, or a response was \
                 recorded twice",
                recount.duplicate_response_ids
            ));
        }
        let now = Timestamp::now();
        warnings.extend(runs.iter().filter(|run| run.started_at > now).map(|run| {
            let started_at = time_text(run.started_at);
            let records = run.interceptions();
            format!(
                "the run of retention {} removed {records} records at {started_at}, which is in the \
                 future: the clock of its process was wrong",
                run.id
            )
        }));
        let findings = store.as_ref().map(StoreCheck::findings).unwrap_or_default();
        let retention = RetentionTotals::of(runs);
        Self { recount, spool_leftovers, retention, store, against, findings, warnings }
    }

    fn is_sound(&self) -> bool {
        let agrees = self
            .against
            .as_ref()
            .is_none_or(|found| found.missing.is_empty() && found.doubled.is_empty());
        self.recount.is_sound() && self.spool_leftovers == 0 && self.findings.is_empty() && agrees
    }

    fn text(&self) -> String {
        let recount = &self.recount;
        let mut rows = vec![
            ("interceptions", recount.interceptions),
            ("  in progress", recount.in_progress),
            ("  interrupted", recount.interrupted),
            ("left without an end", recount.without_end),
            ("rows without interception", recount.usages_without_interception),
            ("repeated response ids", recount.duplicate_response_ids),
            ("sums compared", recount.compared_sums),
            ("  different", recount.different_sums),
            ("  not summed yet", recount.not_summed),
            ("trail entries", recount.trail_entries),
            ("  not in order yet", recount.trail_not_in_order),
            ("  positions missing", recount.trail_gaps),
            ("  records without an entry", recount.trail_without_entry),
            ("  repeated entries", recount.trail_repeated),
            ("records left in the spool", self.spool_leftovers),
            ("removed by retention", self.retention.removed_interceptions),
        ];
        if let Some(found) = &self.against {
            rows.push(("responses of the provider", found.response_ids));
            rows.push(("  found", found.found));
            rows.push(("  found by request", found.found_by_request));
            rows.push(("  missing", to_u64(found.missing.len())));
            rows.push(("  duplicated", to_u64(found.doubled.len())));
        }
        let mut text: String =
            rows.iter().map(|(name, number)| format!("{name:<32}{number:>12}\n")).collect();
        if let Some(before) = self.retention.removed_before {
            text.push_str(&format!(
                "retention removed what started before {}\n",
                time_text(before)
            ));
        }
        for (what, ids) in self
            .against
            .iter()
            .flat_map(|found| [("missing", &found.missing), ("duplicated", &found.doubled)])
        {
            for id in ids.iter().take(MAX_LISTED) {
                text.push_str(&format!("{what} {}\n", escape_controls(id)));
            }
        }
        for (kind, lines) in [("finding", &self.findings), ("warning", &self.warnings)] {
            for line in lines.iter().take(MAX_LISTED) {
                text.push_str(&format!("{kind}: {line}\n"));
            }
        }
        text
    }
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

pub(crate) fn command(cli: &Cli, env: &Env, command: &LedgerCommand) -> Result<(), Exit> {
    match command {
        LedgerCommand::Verify { against } => verify(cli, env, against.as_deref()),
        LedgerCommand::Retention { confirm } => retention::command(cli, env, *confirm),
        LedgerCommand::Rollups { rebuild, since } => rollups::command(cli, env, *rebuild, *since),
        LedgerCommand::Spool(command) => spool::command(cli, env, *command),
    }
}

fn verify(cli: &Cli, env: &Env, against: Option<&Path>) -> Result<(), Exit> {
    let config = cli.load(env)?;
    let ledger = open_existing(&config)?;
    let report = report(&config, &ledger, against).map_err(Exit::Store)?;
    if cli.json {
        print::json_line(&report)?;
    } else {
        print::text(&report.text())?;
    }
    if report.is_sound() { Ok(()) } else { Err(anyhow!("the records are not complete").into()) }
}

fn report(config: &Config, ledger: &Ledger, against: Option<&Path>) -> anyhow::Result<Report> {
    let responses = against.map(read_provider_log).transpose()?;
    let (spool_leftovers, store) = match &config.ledger.spool {
        Some(spool) => {
            let leftovers = spool_leftovers(&spool.dir, ledger.known_store_id()?)
                .map_err(|error| LedgerError::Spool(error.to_string()))?;
            (leftovers, Some(ledger.check_store(&spool.dir)?))
        }
        None => (0, None),
    };
    let against = responses.map(|lines| ledger.compare(&lines)).transpose()?;
    let (recount, runs) = (ledger.recount()?, ledger.retention_runs()?);
    Ok(Report::new(recount, spool_leftovers, &runs, store, against))
}

/// Reads a provider's own log, a line for each response.
fn read_provider_log(path: &Path) -> anyhow::Result<Vec<ProviderLogEntry>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut responses = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        if !line.trim().is_empty() {
            let parsed = serde_json::from_str(&line);
            responses.push(parsed.with_context(|| format!("{}:{number}", path.display()))?);
        }
    }
    Ok(responses)
}
