//! Values for PostgreSQL and cells from it.

use std::error::Error;

use bytes::BytesMut;
use jiff::Timestamp;
use tokio_postgres::{
    Row,
    types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked},
};
use uuid::Uuid;

use crate::{
    LedgerError,
    store::sql::{Cells, Value},
};

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const EPOCH: i64 = 946_684_800_000_000;

type BoxedError = Box<dyn Error + Sync + Send>;

/// A time as `timestamptz`: microseconds since PostgreSQL's epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) Timestamp);

impl ToSql for Time {
    fn to_sql(&self, _type: &Type, out: &mut BytesMut) -> Result<IsNull, BoxedError> {
        out.extend_from_slice(&(self.0.as_microsecond() - EPOCH).to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_type: &Type, raw: &'a [u8]) -> Result<Self, BoxedError> {
        let micros = i64::from_be_bytes(raw.try_into()?).saturating_add(EPOCH);
        Ok(Self(Timestamp::from_microsecond(micros)?))
    }

    accepts!(TIMESTAMPTZ);
}

/// A JSON text as `jsonb`: the version of the binary format, then the text.
#[derive(Debug, Clone)]
pub(super) struct JsonText(pub(super) String);

/// The only version of the binary format of `jsonb`.
const JSONB_VERSION: u8 = 1;

impl ToSql for JsonText {
    fn to_sql(&self, _type: &Type, out: &mut BytesMut) -> Result<IsNull, BoxedError> {
        out.extend_from_slice(&[JSONB_VERSION]);
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    accepts!(JSONB);
    to_sql_checked!();
}

/// A text, or the text of a `jsonb`.
struct Text(String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, BoxedError> {
        let text = match raw {
            [JSONB_VERSION, text @ ..] if *kind == Type::JSONB => text,
            text => text,
        };
        Ok(Self(String::from_sql(&Type::TEXT, text)?))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB || <String as FromSql<'_>>::accepts(kind)
    }
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, BoxedError> {
        match self {
            Self::Text(text) => text.to_sql(kind, out),
            Self::Id(id) => id.to_sql(kind, out),
            Self::Time(time) => time.map(Time).to_sql(kind, out),
            Self::Bytes(bytes) => bytes.to_sql(kind, out),
            Self::Integer(integer) => integer.to_sql(kind, out),
            Self::Boolean(boolean) => boolean.to_sql(kind, out),
        }
    }

    fn accepts(_type: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

pub(super) struct PostgresCells<'a> {
    row: &'a Row,
    next: usize,
}

impl<'a> PostgresCells<'a> {
    pub(super) const fn new(row: &'a Row) -> Self {
        Self { row, next: 0 }
    }

    fn take<T: FromSql<'a>>(&mut self) -> Result<Option<T>, LedgerError> {
        let cell = self.row.try_get(self.next);
        self.next += 1;
        cell.map_err(|error| LedgerError::Row(error.to_string()))
    }
}

impl Cells for PostgresCells<'_> {
    fn text(&mut self) -> Result<Option<String>, LedgerError> {
        Ok(self.take::<Text>()?.map(|text| text.0))
    }

    fn id(&mut self) -> Result<Option<Uuid>, LedgerError> {
        self.take()
    }

    fn time(&mut self) -> Result<Option<Timestamp>, LedgerError> {
        Ok(self.take::<Time>()?.map(|time| time.0))
    }

    fn integer(&mut self) -> Result<Option<i64>, LedgerError> {
        self.take()
    }

    fn boolean(&mut self) -> Result<Option<bool>, LedgerError> {
        self.take()
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>, LedgerError> {
        self.take()
    }
}
