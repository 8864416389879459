//! `keybridge migrate` and `keybridge ledger verify`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, anyhow};
use keybridge_ledger::{
    Comparison, Ledger, LedgerError, ProviderLogEntry, Recount, spool_leftovers,
};
use keybridge_telemetry::escape_controls;
use serde::Serialize;
use serde_json::json;

use super::{Cli, Exit, LedgerCommand, MigrateOptions, open_existing, retention, store_error};
use crate::{env::Env, print};

/// How many missing or duplicated ids are printed.
const MAX_LISTED: usize = 20;

pub(crate) fn migrate(cli: &Cli, env: &Env, options: &MigrateOptions) -> Result<(), Exit> {
    let url = cli.load(env)?.store_url;
    let (names, verb) = if options.plan {
        (Ledger::pending_migrations(&url).map_err(|error| store_error(&error))?, "pending")
    } else {
        (Ledger::migrate(&url).map_err(|error| store_error(&error))?, "applied")
    };
    if cli.json {
        return print::json_line(&json!({ verb: names }));
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
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Comparison>,
}

impl Report {
    fn is_sound(&self) -> bool {
        let agrees = self
            .against
            .as_ref()
            .is_none_or(|found| found.missing.is_empty() && found.doubled.is_empty());
        self.recount.is_sound() && self.spool_leftovers == 0 && agrees
    }

    fn text(&self) -> String {
        let recount = &self.recount;
        let mut rows = vec![
            ("interceptions", recount.interceptions),
            ("  in progress", recount.in_progress),
            ("  interrupted", recount.interrupted),
            ("left without an end", recount.without_end),
            ("rows without interception", recount.usages_without_interception),
            ("duplicate response ids", recount.duplicate_response_ids),
            ("records left in the spool", self.spool_leftovers),
        ];
        let count = |ids: &[String]| u64::try_from(ids.len()).unwrap_or(u64::MAX);
        if let Some(found) = &self.against {
            rows.push(("responses of the provider", found.response_ids));
            rows.push(("  found", found.found));
            rows.push(("  found by request", found.found_by_request));
            rows.push(("  missing", count(&found.missing)));
            rows.push(("  duplicated", count(&found.doubled)));
        }
        let mut text: String =
            rows.iter().map(|(name, number)| format!("{name:<32}{number:>12}\n")).collect();
        for (what, ids) in self
            .against
            .iter()
            .flat_map(|found| [("missing", &found.missing), ("duplicated", &found.doubled)])
        {
            for id in ids.iter().take(MAX_LISTED) {
                text.push_str(&format!("{what} {}\n", escape_controls(id)));
            }
        }
        text
    }
}

pub(crate) fn command(cli: &Cli, env: &Env, command: &LedgerCommand) -> Result<(), Exit> {
    match command {
        LedgerCommand::Verify { against } => verify(cli, env, against.as_deref()),
        LedgerCommand::Retention { confirm } => retention::command(cli, env, *confirm),
    }
}

fn verify(cli: &Cli, env: &Env, against: Option<&Path>) -> Result<(), Exit> {
    let config = cli.load(env)?;
    let responses = against.map(read_provider_log).transpose()?;
    let ledger = open_existing(&config)?;
    let leftovers = match &config.ledger.spool {
        Some(spool) => spool_leftovers(&spool.dir),
        None => Ok(0),
    };
    let report = Report {
        recount: ledger.recount()?,
        spool_leftovers: leftovers.map_err(|error| LedgerError::Spool(error.to_string()))?,
        against: responses.map(|lines| ledger.compare(&lines)).transpose()?,
    };
    if cli.json {
        print::json_line(&report)?;
    } else {
        print::text(&report.text())?;
    }
    if report.is_sound() { Ok(()) } else { Err(anyhow!("the records are not complete").into()) }
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
