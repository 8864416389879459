//! Reads the items of lists from rows.

use crate::{
    InterceptionItem, LedgerError, TokenCounts, TokenSums, UsageSums,
    record::Interception,
    store::sql::{Cells, FromRow, count, required},
};

impl FromRow for TokenCounts {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            input_tokens: count(row)?,
            output_tokens: count(row)?,
            cache_read_input_tokens: count(row)?,
            cache_write_input_tokens: count(row)?,
        })
    }
}

impl FromRow for TokenSums {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            exact: TokenCounts::from_row(row)?,
            estimated: TokenCounts::from_row(row)?,
            unknown_usages: count(row)?,
        })
    }
}

impl FromRow for InterceptionItem {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            interception: Interception::from_row(row)?,
            user: required(row.text()?)?,
            tokens: TokenSums::from_row(row)?,
            tool_calls: count(row)?,
        })
    }
}

/// Reads the sums of requests in the order of the columns of the roll-ups.
pub(super) fn sums_from(row: &mut dyn Cells) -> Result<UsageSums, LedgerError> {
    Ok(UsageSums {
        completed: count(row)?,
        failed: count(row)?,
        cancelled: count(row)?,
        refused: count(row)?,
        interrupted: count(row)?,
        tokens: TokenSums::from_row(row)?,
        tool_calls: count(row)?,
    })
}
