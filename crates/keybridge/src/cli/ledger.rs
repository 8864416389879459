//! `keybridge migrate` and `keybridge ledger verify`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, anyhow};
use keybridge_ledger::{Comparison, HandedOut, Ledger, LedgerError, Recount, spool_leftovers};
use serde::Serialize;
use serde_json::json;

use super::{Cli, Exit, LedgerCommand, MigrateOptions, store_problem};
use crate::{config::Overrides, env::Env, print};

/// Ids that are listed one by one.
const LISTED: usize = 20;

pub(crate) fn migrate(cli: &Cli, env: &Env, options: &MigrateOptions) -> Result<(), Exit> {
    let url = cli.load(env, &Overrides::default())?.store_url;
    let (names, verb) = if options.plan {
        (Ledger::pending_migrations(&url).map_err(|error| store_problem(&error))?, "pending")
    } else {
        (Ledger::migrate(&url).map_err(|error| store_problem(&error))?, "applied")
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

/// What a recount found, as it is printed.
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
            ("without end", recount.without_end),
            ("usages without interception", recount.usages_without_interception),
            ("duplicate response ids", recount.duplicate_response_ids),
            ("spool leftovers", self.spool_leftovers),
        ];
        let count = |ids: &[String]| u64::try_from(ids.len()).unwrap_or(u64::MAX);
        if let Some(found) = &self.against {
            rows.push(("response ids handed out", found.response_ids));
            rows.push(("  found", found.found));
            rows.push(("  found by request", found.found_by_request));
            rows.push(("  missing", count(&found.missing)));
            rows.push(("  doubled", count(&found.doubled)));
        }
        let mut text: String =
            rows.iter().map(|(name, number)| format!("{name:<32}{number:>12}\n")).collect();
        for (what, ids) in self
            .against
            .iter()
            .flat_map(|found| [("missing", &found.missing), ("doubled", &found.doubled)])
        {
            for id in ids.iter().take(LISTED) {
                text.push_str(&format!("{what} {id}\n"));
            }
        }
        text
    }
}

pub(crate) fn command(cli: &Cli, env: &Env, command: &LedgerCommand) -> Result<(), Exit> {
    let LedgerCommand::Verify { against } = command;
    let config = cli.load(env, &Overrides::default())?;
    let handed_out = against.as_deref().map(handed_out).transpose()?;
    let ledger = Ledger::open(&config.store_url).map_err(|error| store_problem(&error))?;
    let leftovers = match &config.ledger.spool {
        Some(spool) => spool_leftovers(&spool.dir),
        None => Ok(0),
    };
    let report = Report {
        recount: ledger.recount()?,
        spool_leftovers: leftovers.map_err(|error| LedgerError::Spool(error.to_string()))?,
        against: handed_out.map(|lines| ledger.compare(&lines)).transpose()?,
    };
    if cli.json {
        print::json_line(&report)?;
    } else {
        print::text(&report.text())?;
    }
    if report.is_sound() { Ok(()) } else { Err(anyhow!("the trail is not sound").into()) }
}

/// What a provider says it gave, a line each.
fn handed_out(path: &Path) -> anyhow::Result<Vec<HandedOut>> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.with_context(|| format!("{} cannot be read", path.display()))?;
        if !line.trim().is_empty() {
            let parsed = serde_json::from_str(&line);
            found.push(parsed.with_context(|| format!("{}:{number}", path.display()))?);
        }
    }
    Ok(found)
}
