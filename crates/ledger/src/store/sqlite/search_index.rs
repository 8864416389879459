//! The index of prompts by their words. Opening a record does not write it: a serving process adds what was
//! committed in small transactions, and searches read what is not added yet.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use crate::{
    LedgerError,
    store::{IndexStep, interceptions::seconds},
    words::words,
};

/// Maximum number of prompts that are added in one transaction, for which commits wait.
const MAX_PROMPTS: u32 = 200;
/// Maximum size of these prompts in bytes; a larger one is added alone.
const MAX_BYTES: usize = 128 * 1024;
/// The numbers of the prompts of one second: more than are recorded in it.
const NUMBER_BITS: u32 = 20;

/// The condition under which the prompt at the position is still the one that was added last. It is not when
/// it was deleted, or after a VACUUM.
pub(crate) const IS_POSITION_VALID: &str = "(last_rowid = 0 OR EXISTS (SELECT 1 FROM prompts p
    WHERE p.rowid = last_rowid AND p.id = last_id))";

/// The word by which the prompts of a user are found.
pub(crate) fn owner(user: Uuid) -> String {
    format!("u{}", user.simple())
}

/// The numbers of the prompts of interceptions that have ids of one second.
pub(crate) fn numbers(second: i64) -> Range<i64> {
    let first = |second: i64| second.saturating_mul(1 << NUMBER_BITS);
    first(second)..first(second.saturating_add(1))
}

/// The second of an interception's id, from the number of its prompt.
pub(crate) const fn second(number: i64) -> i64 {
    number >> NUMBER_BITS
}

/// How far the index goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    last_rowid: i64,
    is_repair: bool,
    is_valid: bool,
}

pub(super) fn position(connection: &Connection) -> Result<Position, LedgerError> {
    let sql = format!("SELECT last_rowid, is_repair, {IS_POSITION_VALID} FROM search_position");
    let mut select = connection.prepare_cached(&sql)?;
    Ok(select.query_row([], |row| {
        Ok(Position { last_rowid: row.get(0)?, is_repair: row.get(1)?, is_valid: row.get(2)? })
    })?)
}

/// A prompt that is not in the index.
struct Unindexed {
    rowid: i64,
    id: String,
    interception_id: String,
    /// `None`: it belongs to no interception.
    words: Option<IndexedWords>,
}

/// What is indexed of a prompt.
struct IndexedWords {
    second: i64,
    prompt: String,
    owner: String,
}

/// How many prompts have been written since the last one that is indexed: row numbers grow one by one.
pub(super) fn backlog(connection: &Connection) -> Result<u64, LedgerError> {
    let sql =
        "SELECT coalesce((SELECT max(rowid) FROM prompts), 0) - last_rowid FROM search_position";
    let backlog: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(backlog).unwrap_or(u64::MAX))
}

/// Adds the next prompts to the index.
pub(super) fn step(connection: &mut Connection) -> Result<IndexStep, LedgerError> {
    let mut before = position(connection)?;
    let stored = before.clone();
    if !before.is_valid {
        tracing::warn!(
            "checking the index of prompts, because its last prompt is not where it was"
        );
        before = Position { last_rowid: 0, is_repair: true, is_valid: true };
    }
    let (found, is_last) = unindexed(connection, before.last_rowid)?;
    if found.is_empty() && !before.is_repair {
        return Ok(IndexStep::Complete);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if position(&transaction)? != stored {
        // Another process indexes, or retention has deleted the last prompt.
        return Ok(IndexStep::Indexed(0));
    }
    let Some(last) = found.last() else {
        transaction.execute("UPDATE search_position SET is_repair = 0", [])?;
        transaction.commit()?;
        return Ok(IndexStep::Complete);
    };
    for prompt in &found {
        add(&transaction, prompt, before.is_repair)?;
    }
    transaction
        .prepare_cached("UPDATE search_position SET last_rowid = ?1, last_id = ?2, is_repair = ?3")?
        .execute(params![last.rowid, last.id, before.is_repair])?;
    transaction.commit()?;
    if is_last && !before.is_repair {
        return Ok(IndexStep::Complete);
    }
    Ok(IndexStep::Indexed(u64::try_from(found.len()).unwrap_or(u64::MAX)))
}

/// The prompts after a position, and whether these are all. Read and split into words before the transaction,
/// for which commits wait.
fn unindexed(connection: &Connection, after: i64) -> Result<(Vec<Unindexed>, bool), LedgerError> {
    let mut select = connection.prepare_cached(
        "SELECT p.rowid, p.id, p.interception_id, p.prompt, i.user_id
         FROM prompts p LEFT JOIN interceptions i ON i.id = p.interception_id
         WHERE p.rowid > ?1 ORDER BY p.rowid LIMIT ?2",
    )?;
    let mut rows = select.query(params![after, MAX_PROMPTS])?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let (interception_id, prompt): (String, String) = (row.get(2)?, row.get(3)?);
        bytes += prompt.len();
        if bytes > MAX_BYTES && !found.is_empty() {
            return Ok((found, false));
        }
        let id = interception_id.parse().ok();
        let user = row.get::<_, Option<String>>(4)?.and_then(|user| user.parse().ok());
        let words = id.zip(user).map(|(id, user)| IndexedWords {
            second: seconds(id),
            prompt: words(&prompt).collect::<Vec<_>>().join(" "),
            owner: owner(user),
        });
        found.push(Unindexed { rowid: row.get(0)?, id: row.get(1)?, interception_id, words });
    }
    let is_last = found.len() < usize::try_from(MAX_PROMPTS).unwrap_or(usize::MAX);
    Ok((found, is_last))
}

/// Adds a prompt to the index, unless it was deleted since it was read, or is there already.
fn add(
    transaction: &Transaction<'_>,
    prompt: &Unindexed,
    is_repair: bool,
) -> Result<(), LedgerError> {
    let Some(words) = &prompt.words else { return Ok(()) };
    let exists = transaction
        .prepare_cached("SELECT 1 FROM prompts WHERE rowid = ?1 AND id = ?2")?
        .exists(params![prompt.rowid, prompt.id])?;
    let numbers = numbers(words.second);
    let is_indexed = || -> Result<bool, LedgerError> {
        let mut select = transaction.prepare_cached(
            "SELECT 1 FROM indexed_prompts
             WHERE number >= ?1 AND number < ?2 AND interception_id = ?3",
        )?;
        Ok(select.exists(params![numbers.start, numbers.end, prompt.interception_id])?)
    };
    if !exists || (is_repair && is_indexed()?) {
        return Ok(());
    }
    let last: Option<i64> = transaction
        .prepare_cached(
            "SELECT max(number) FROM indexed_prompts WHERE number >= ?1 AND number < ?2",
        )?
        .query_row(params![numbers.start, numbers.end], |row| row.get(0))
        .optional()?
        .flatten();
    let number = last.map_or(numbers.start, |last| last + 1);
    transaction
        .prepare_cached("INSERT INTO indexed_prompts (number, interception_id) VALUES (?1, ?2)")?
        .execute(params![number, prompt.interception_id])?;
    transaction
        .prepare_cached("INSERT INTO prompt_index (rowid, prompt, owner) VALUES (?1, ?2, ?3)")?
        .execute(params![number, words.prompt, words.owner])?;
    Ok(())
}

/// Removes the words of interceptions, of which `first` and `last` are the smallest and the largest id, after
/// their prompts; `ids` is the JSON array of all. The position is that before these were deleted.
pub(super) fn remove(
    transaction: &Transaction<'_>,
    ids: &str,
    (first, last): (Uuid, Uuid),
    position: &Position,
) -> Result<(), LedgerError> {
    let numbers = numbers(seconds(first)).start..numbers(seconds(last)).end;
    let of_these = "number >= ?1 AND number < ?2
        AND interception_id IN (SELECT value FROM json_each(?3))";
    for sql in [
        format!(
            "DELETE FROM prompt_index
             WHERE rowid IN (SELECT number FROM indexed_prompts WHERE {of_these})"
        ),
        format!("DELETE FROM indexed_prompts WHERE {of_these}"),
    ] {
        transaction.prepare_cached(&sql)?.execute(params![numbers.start, numbers.end, ids])?;
    }
    if !position.is_valid {
        return Ok(());
    }
    // All before the position are in the index: so are those before one that is deleted.
    let before = "(SELECT p.rowid FROM prompts p WHERE p.rowid < last_rowid
        ORDER BY p.rowid DESC LIMIT 1)";
    let sql = format!(
        "UPDATE search_position SET last_rowid = coalesce({before}, 0),
           last_id = (SELECT p.id FROM prompts p WHERE p.rowid = {before})
         WHERE NOT {IS_POSITION_VALID}"
    );
    transaction.prepare_cached(&sql)?.execute([])?;
    Ok(())
}
