//! `keybridge interceptions --follow`: the requests that end, in the order of the trail.

use std::{io::Write, thread, time::Duration};

use keybridge_ledger::{InterceptionFilter, InterceptionItem, Ledger, LedgerError, TrailKind};
use keybridge_telemetry::escape_controls;

use super::{Cli, Exit, interceptions::cells};
use crate::print::{self, json_lines};

/// Pause between two polls of the store.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Entries of the trail that are read at a time.
const PAGE_SIZE: u32 = 500;
/// How many of the last entries are searched for requests to begin with.
const MAX_LOOK_BACK: u64 = 10_000;

/// Prints the latest requests that have ended, or all since a time, and then, until the process is stopped, each
/// further one when it ends.
pub(super) fn follow(cli: &Cli, ledger: &Ledger, filter: InterceptionFilter) -> Result<(), Exit> {
    let (mut follower, mut ended) = Follower::start(ledger, filter)?;
    let mut is_failing = false;
    loop {
        if cli.json {
            json_lines(&ended)?;
        } else {
            ended.iter().try_for_each(print_row)?;
        }
        ended = match follower.poll() {
            Ok(Some(more)) => more,
            Ok(None) => {
                is_failing = false;
                thread::sleep(POLL_INTERVAL);
                Vec::new()
            }
            Err(error) if may_recover(&error) => {
                if !is_failing {
                    print::error(&format!("{error}; trying again until it succeeds"));
                }
                is_failing = true;
                thread::sleep(POLL_INTERVAL);
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
    }
}

/// Whether a later poll may succeed.
const fn may_recover(error: &LedgerError) -> bool {
    matches!(
        error,
        LedgerError::Database(_)
            | LedgerError::Unreachable { .. }
            | LedgerError::Open { .. }
            | LedgerError::ReadTimeout(_)
            | LedgerError::ReadersBusy(_)
    )
}

/// Reads each request that ends once, because it remembers its position in the trail.
struct Follower<'a> {
    ledger: &'a Ledger,
    filter: InterceptionFilter,
    /// All entries up to this position have been read.
    position: u64,
}

impl<'a> Follower<'a> {
    /// A follower, and the requests that it begins with.
    fn start(
        ledger: &'a Ledger,
        filter: InterceptionFilter,
    ) -> Result<(Self, Vec<InterceptionItem>), LedgerError> {
        if let Some(since) = filter.since {
            let position = ledger.trail_position_before(since)?;
            return Ok((Self { ledger, filter, position }, Vec::new()));
        }
        let position = ledger.trail_head()?;
        let follower = Self { ledger, filter, position };
        let latest = follower.latest()?;
        Ok((follower, latest))
    }

    /// The latest requests that have ended, at most as many as the filter allows.
    fn latest(&self) -> Result<Vec<InterceptionItem>, LedgerError> {
        let limit = usize::try_from(self.filter.limit).unwrap_or(usize::MAX);
        let first = self.position.saturating_sub(MAX_LOOK_BACK);
        let (mut latest, mut end) = (Vec::new(), self.position);
        while end > first && latest.len() < limit {
            let start = end.saturating_sub(PAGE_SIZE.into());
            let mut earlier = Self { position: start, filter: self.filter.clone(), ..*self };
            let mut found = Vec::new();
            while earlier.position < end {
                let Some(more) = earlier.read(end)? else { break };
                found.extend(more);
            }
            found.append(&mut latest);
            latest = found;
            end = start;
        }
        latest.drain(..latest.len().saturating_sub(limit));
        Ok(latest)
    }

    /// The next requests that have ended; `None` when nothing is new.
    fn poll(&mut self) -> Result<Option<Vec<InterceptionItem>>, LedgerError> {
        self.read(u64::MAX)
    }

    /// Reads a page of entries, none of which is after `end`.
    fn read(&mut self, end: u64) -> Result<Option<Vec<InterceptionItem>>, LedgerError> {
        let limit = u32::try_from(end - self.position).unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
        let page = self.ledger.trail(self.position, limit)?;
        let Some(last) = page.items.last() else { return Ok(None) };
        self.position = last.position;
        // A request that was amended was printed when it had settled.
        let settled = page.items.into_iter().filter(|entry| entry.kind == TrailKind::Settled);
        let ended = settled.filter_map(|entry| entry.interception);
        Ok(Some(ended.filter(|item| self.includes(item)).collect()))
    }

    /// Whether a request is one of those that are followed.
    fn includes(&self, item: &InterceptionItem) -> bool {
        let InterceptionFilter { user, provider, session, since, .. } = &self.filter;
        let record = &item.interception;
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == found
        };
        is(user, Some(&item.user))
            && is(provider, Some(&record.provider))
            && is(session, record.session_id.as_deref())
            && since.is_none_or(|since| record.started_at >= since)
    }
}

fn print_row(item: &InterceptionItem) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", escape_controls(&cells(item).join("  "))).map_err(Exit::from)
}
