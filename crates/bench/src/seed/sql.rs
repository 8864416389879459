//! The SQL of both stores from one template, with macros for what they write differently.

use anyhow::{Context, bail};

use super::words::PHRASES;

/// Prime, so that a square modulo it has no short period.
const MODULUS: u64 = 2_147_483_647;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    Sqlite,
    Postgres,
}

impl Flavour {
    /// Settings of the connection that change nothing of the store.
    pub(super) const fn settings(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "PRAGMA synchronous = OFF; PRAGMA foreign_keys = FALSE; PRAGMA cache_size = -1000000;
                 PRAGMA temp_store = MEMORY"
            }
            Self::Postgres => {
                "SET synchronous_commit = off; SET TimeZone = 'UTC'; SET work_mem = '256MB';
                 SET maintenance_work_mem = '256MB'; SET temp_buffers = '256MB'; SET jit = off"
            }
        }
    }

    /// Counts the columns of interceptions that are called `session_id`, which a later schema has.
    pub(super) const fn has_session_id(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "SELECT count(*) FROM pragma_table_info('interceptions') WHERE name = 'session_id'"
            }
            Self::Postgres => {
                "SELECT count(*) FROM pg_attribute
                 WHERE attrelid = 'interceptions'::regclass AND attname = 'session_id'"
            }
        }
    }

    /// Creates the partitions of the months that the migrations do not create, because they are past.
    pub(super) const fn partitions(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => include_str!("partitions.sql"),
        }
    }

    /// What the planner needs, and what the server would do itself some minutes later.
    pub(super) const fn after(self) -> &'static str {
        match self {
            Self::Sqlite => "ANALYZE; PRAGMA wal_checkpoint(TRUNCATE)",
            Self::Postgres => "VACUUM (ANALYZE)",
        }
    }

    /// Statements that are committed together.
    pub(super) fn transaction(self, statements: &str) -> String {
        match self {
            Self::Sqlite => format!("BEGIN; {statements}; COMMIT"),
            // A message with several statements is a transaction.
            Self::Postgres => statements.to_owned(),
        }
    }

    /// Replaces the macros `@name(arguments)` of a template:
    ///
    /// - `@random(n)`: a number below 2³¹ - 1 from the column `key` and the number of the draw
    /// - `@phrase(n)`: a phrase by the number of the draw
    /// - `@id(us, session, step, number)`: a `UUIDv7` of a time in microseconds
    /// - `@time(us)`, `@hex(number, digits)`, `@json(text)`, `@least(a, b)`
    /// - `@steps()`: the join that makes a row for each request of a session
    /// - `@session_column()`, `@session_value(value)`: nothing without that column
    pub(super) fn expand(self, template: &str, has_session_id: bool) -> anyhow::Result<String> {
        let mut text = template.to_owned();
        // The last one has no further macro in its arguments.
        while let Some(start) = text.rfind('@') {
            let call = text.get(start + 1..).unwrap_or_default();
            let (name, rest) = call.split_once('(').context("a macro has no arguments")?;
            let arguments = arguments(rest)?;
            let length = 1 + name.len() + 1 + arguments.iter().map(|a| a.len() + 1).sum::<usize>();
            let values: Vec<&str> = arguments.iter().map(|argument| argument.trim()).collect();
            let expanded = match (name, values.as_slice()) {
                ("session_column", _) if has_session_id => ", session_id".to_owned(),
                ("session_value", [value]) if has_session_id => format!(", {value}"),
                ("session_column", _) | ("session_value", [_]) => String::new(),
                _ => self.call(name, &values)?,
            };
            text.replace_range(start..start + length, &expanded);
        }
        Ok(text)
    }

    fn call(self, name: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let sqlite = self == Self::Sqlite;
        Ok(match (name, arguments) {
            ("random", [draw]) => {
                let shift = draw.parse::<u64>()? * 1_768_787_431 % MODULUS;
                let linear = format!("((key * 48271 + {shift}) % {MODULUS})");
                format!("(({linear} * {linear} + {linear}) % {MODULUS})")
            }
            ("phrase", [draw]) => {
                let number = self.call("random", &[*draw])?;
                format!("(SELECT phrase FROM seed_phrases WHERE number = {number} % {PHRASES})")
            }
            ("id", [us, session, step, number]) => self.id(us, session, step, number),
            ("time", [us]) if sqlite => format!(
                "(strftime('%Y-%m-%dT%H:%M:%S', ({us}) / 1000000, 'unixepoch')
                 || printf('.%06dZ', ({us}) % 1000000))"
            ),
            ("time", [us]) => format!("to_timestamp(({us})::float8 / 1000000)"),
            ("hex", [number, digits]) if sqlite => format!("printf('%0{digits}x', {number})"),
            ("hex", [number, digits]) => format!("lpad(to_hex({number}), {digits}, '0')"),
            ("json", [text]) if sqlite => (*text).to_owned(),
            ("json", [text]) => format!("({text})::jsonb"),
            ("least", [a, b]) if sqlite => format!("min({a}, {b})"),
            ("least", [a, b]) => format!("least({a}, {b})"),
            ("steps", _) if sqlite => "JOIN seed_steps t ON t.step < s.requests".into(),
            ("steps", _) => {
                "CROSS JOIN LATERAL generate_series(0::bigint, s.requests - 1) AS t (step)".into()
            }
            _ => bail!("there is no macro @{name} with {} arguments", arguments.len()),
        })
    }

    /// A `UUIDv7`: milliseconds; microseconds; then session, step and number, which make it unique.
    fn id(self, us: &str, session: &str, step: &str, number: &str) -> String {
        // The factors of a literal are 64 bits wide, too.
        let end = format!(
            "((({session}) * 8192 + CAST({step} AS BIGINT)) * 48271 + ({number}) * 7919) % 1048573"
        );
        let low = format!(
            "({session}) % 4096 * 68719476736 + CAST({step} AS BIGINT) * 1048576 + ({end})"
        );
        match self {
            Self::Sqlite => format!(
                "printf('%08x-%04x-7%03x-8%03x-%012x', ({us}) / 65536000, ({us}) / 1000 % 65536,
                 ({us}) % 1000, ({session}) / 4096, {low})"
            ),
            Self::Postgres => format!(
                "(lpad(to_hex(({us}) / 1000), 12, '0') || '7' || lpad(to_hex(({us}) % 1000), 3, '0')
                 || '8' || lpad(to_hex(({session}) / 4096), 3, '0') || lpad(to_hex({low}), 12, '0'))::uuid"
            ),
        }
    }
}

/// The arguments of a macro from the text after its opening parenthesis.
fn arguments(text: &str) -> anyhow::Result<Vec<&str>> {
    let (mut depth, mut start, mut found) = (0_u32, 0, Vec::new());
    for (place, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            ',' | ')' if depth == 0 => {
                found.push(text.get(start..place).unwrap_or_default());
                start = place + 1;
                if character == ')' {
                    return Ok(found);
                }
            }
            _ => {}
        }
    }
    bail!("a macro has no closing parenthesis")
}

/// The start of a statement, for an error.
pub(super) fn shown(sql: &str) -> String {
    sql.chars().take(2_000).collect()
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn value(template: &str) -> String {
        let sql = Flavour::Sqlite.expand(template, false).unwrap();
        Connection::open_in_memory().unwrap().query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn macros_may_be_nested() {
        assert_eq!(value("SELECT @hex(@least((1 + 2) * 5, 300), 4)"), "000f");
        assert!(Flavour::Sqlite.expand("SELECT @hex((1, 2)", false).is_err());
        assert!(Flavour::Sqlite.expand("SELECT @unknown(1)", false).is_err());
    }

    #[test]
    fn an_id_is_a_uuid_of_version_7_with_its_time() {
        let id = value("SELECT @id(1764410400123456, 70000, 4999, 0)");
        let id: uuid::Uuid = id.parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.as_u128() >> 80, 1_764_410_400_123);
        assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
    }

    #[test]
    fn a_time_has_six_digits_and_an_unknown_one_is_null() {
        assert_eq!(value("SELECT @time(1764410400000007)"), "2025-11-29T10:00:00.000007Z");
        assert_eq!(value("SELECT coalesce(@time(NULL), 'null')"), "null");
    }

    #[test]
    fn the_column_of_the_session_is_left_out_where_there_is_none() {
        let template = "id@session_column() VALUES 1@session_value(coalesce(a, b))";
        let expand = |has| Flavour::Postgres.expand(template, has).unwrap();
        assert_eq!(expand(false), "id VALUES 1");
        assert_eq!(expand(true), "id, session_id VALUES 1, coalesce(a, b)");
    }
}
