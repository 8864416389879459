//! `keybridge ledger spool`.

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::anyhow;
use jiff::Timestamp;
use keybridge_ledger::{LedgerError, SpoolFile, SpoolReplay, export_spool, spool_files};
use serde::Serialize;
use uuid::Uuid;

use super::{Cli, Exit, SpoolCommand, open_existing};
use crate::{config::Config, env::Env, print};

pub(crate) fn command(cli: &Cli, env: &Env, command: SpoolCommand) -> Result<(), Exit> {
    let config = cli.load(env)?;
    let Some(dir) = config.ledger.spool.as_ref().map(|spool| spool.dir.clone()) else {
        return Err(anyhow!("there is no spool").into());
    };
    match command {
        SpoolCommand::List => list(cli, &config, &dir),
        SpoolCommand::Replay { of_store } => replay(cli, &config, &dir, of_store),
        SpoolCommand::Export => export(&dir),
    }
}

/// A file of the spool, as it is listed.
#[derive(Debug, Serialize)]
struct ListedFile {
    #[serde(flatten)]
    file: SpoolFile,
    /// Whether it belongs to the configured store; not known while the store cannot be reached, or where an
    /// earlier release wrote the file.
    of_this_store: Option<bool>,
    age_seconds: u64,
}

fn list(cli: &Cli, config: &Config, dir: &Path) -> Result<(), Exit> {
    // The list must not need the store.
    let store_id = open_existing(config).ok().and_then(|ledger| ledger.known_store_id().ok()?);
    let now = Timestamp::now();
    let listed =
        spool_files(dir).map_err(|error| spool_error(&error))?.into_iter().map(|file| ListedFile {
            of_this_store: store_id.and_then(|store| Some(file.store_id? == store)),
            age_seconds: now.duration_since(file.modified_at).as_secs().try_into().unwrap_or(0),
            file,
        });
    let listed: Vec<ListedFile> = listed.collect();
    if cli.json {
        return print::json_lines(&listed);
    }
    let mut table = print::Table::new([
        "FILE", "KIND", "STORE", "ENTRIES", "DAMAGED", "BYTES", "AGE", "REASON",
    ]);
    for listed in &listed {
        table.row(&cells(listed));
    }
    table.print()
}

fn cells(listed: &ListedFile) -> [String; 8] {
    let file = &listed.file;
    let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut kind = file.kind.to_string();
    if file.in_use {
        kind.push_str(" (in use)");
    }
    let store = match (listed.of_this_store, file.store_id) {
        (Some(true), _) => "this".to_owned(),
        (_, Some(store)) => store.to_string(),
        (_, None) => "unknown".to_owned(),
    };
    let reasons: Vec<String> =
        file.reasons.iter().map(|(reason, entries)| format!("{entries}: {reason}")).collect();
    [
        // The store stands in a column of its own.
        name.split('.').next().unwrap_or_default().to_owned(),
        kind,
        store,
        file.entries.to_string(),
        file.damaged.to_string(),
        file.bytes.to_string(),
        format!("{} s", listed.age_seconds),
        reasons.join("; "),
    ]
}

fn replay(cli: &Cli, config: &Config, dir: &Path, of: Option<Uuid>) -> Result<(), Exit> {
    let done = open_existing(config)?.replay_spool(dir, of)?;
    if cli.json {
        print::json_line(&done)?;
    } else {
        print::text(&text(&done))?;
    }
    if done.refused + done.damaged == 0 {
        return Ok(());
    }
    Err(anyhow!("some entries are still refused or damaged; see `keybridge ledger spool list`")
        .into())
}

fn text(done: &SpoolReplay) -> String {
    let rows = [
        ("in the store", done.committed),
        ("still refused", done.refused),
        ("damaged", done.damaged),
        ("files of other stores", done.foreign_files),
        ("files in use", done.files_in_use),
    ];
    rows.iter().map(|(name, number)| format!("{name:<32}{number:>12}\n")).collect()
}

fn export(dir: &Path) -> Result<(), Exit> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    export_spool(dir, &mut |entry| {
        serde_json::to_writer(&mut out, &entry)?;
        out.write_all(b"\n")
    })
    .map_err(|error| spool_error(&error))?;
    out.flush().map_err(Exit::from)
}

fn spool_error(error: &io::Error) -> Exit {
    LedgerError::Spool(error.to_string()).into()
}
