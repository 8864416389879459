//! Reads the items of lists from rows.

use crate::{
    InterceptionItem, LedgerError, Session, TokenCounts, TokenSums,
    record::Interception,
    store::sql::{Cells, FromRow, count, required},
};

/// Maximum number of models that are listed of a session.
const MAX_MODELS: usize = 100;

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

impl FromRow for Session {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.text()?)?,
            user: required(row.text()?)?,
            client: row.text()?,
            first_at: required(row.time()?)?,
            last_at: required(row.time()?)?,
            ended_at: row.time()?,
            models: {
                let text = required(row.text()?)?;
                let mut models: Vec<String> = serde_json::from_str::<Vec<Option<String>>>(&text)
                    .map_err(|error| LedgerError::Row(error.to_string()))?
                    .into_iter()
                    .flatten()
                    .collect();
                models.sort();
                models.truncate(MAX_MODELS);
                models
            },
            requests: count(row)?,
            tokens: TokenSums::from_row(row)?,
            tools: count(row)?,
        })
    }
}
