//! `GET /export`: all records of a period, oldest first, in constant memory. Each page is one read of the
//! ledger, which starts when the client has taken the page before: a client that stops reading holds no
//! reader.

mod csv;

use std::{collections::VecDeque, io};

use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, Stream};
use keybridge_identity::BridgeToken;
use keybridge_ledger::{InterceptionDetail, InterceptionFilter, LedgerError, Page};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Console,
    caller::Caller,
    failure::Failure,
    openapi::ReadErrors,
    query::{self, ExportQuery},
    views::{InterceptionDetailView, InterceptionItemView},
};

/// About the size of the pieces of a response: small enough that a client which stops reading holds little.
const CHUNK_BYTES: usize = 64 << 10;
/// How often a page is tried while all readers are busy, each time for the timeout of a read.
const MAX_PAGE_TRIES: u32 = 12;

keybridge_ledger::word_enum! {
    /// The form of an export.
    #[derive(Default, ToSchema)]
    #[schema(rename_all = "lowercase")]
    ExportFormat {
        /// A JSON object on each line.
        #[default]
        Jsonl = "jsonl",
        /// A table without contents.
        Csv = "csv",
    }
}

impl ExportFormat {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Jsonl => "application/jsonl",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }

    const fn disposition(self) -> &'static str {
        match self {
            Self::Jsonl => "attachment; filename=\"keybridge-interceptions.jsonl\"",
            Self::Csv => "attachment; filename=\"keybridge-interceptions.csv\"",
        }
    }

    /// What stands before the first record.
    fn head(self) -> Vec<u8> {
        match self {
            Self::Jsonl => Vec::new(),
            Self::Csv => csv::header().into_bytes(),
        }
    }

    /// Appends a record.
    fn append(self, text: &mut Vec<u8>, detail: InterceptionDetail) -> io::Result<()> {
        match self {
            Self::Jsonl => {
                serde_json::to_writer(&mut *text, &InterceptionDetailView::from(detail))?;
                text.push(b'\n');
            }
            Self::Csv => {
                let item = serde_json::to_value(InterceptionItemView::from(detail.item))?;
                text.extend_from_slice(csv::row(&item).as_bytes());
            }
        }
        Ok(())
    }
}

pub(crate) fn router() -> OpenApiRouter<Console> {
    OpenApiRouter::new().routes(routes!(export_interceptions))
}

/// Export all interceptions of a period, oldest first
///
/// A member gets their own, auditors and administrators those of all users. The response is complete if it
/// ends as HTTP says; after a failure the connection is closed before.
#[utoipa::path(
    get, path = "/export", tag = "records", params(ExportQuery),
    responses(
        (status = 200, description = "The records", content(
            (String = "application/jsonl"),
            (String = "text/csv"),
        )),
        ReadErrors,
    ),
)]
async fn export_interceptions(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let mut query: ExportQuery = query::read(query.as_deref())?;
    let format = query::optional("format", query.format.take())?.unwrap_or_default();
    let mut filter = InterceptionFilter::try_from(query)?;
    filter.user_id = caller.visible_user();
    let mut export = Export {
        console,
        token: caller.token,
        filter,
        format,
        text: format.head(),
        items: VecDeque::new(),
        next: Next::Page(None),
    };
    // What fails here still gets an error response.
    export.read_page().await?;
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::CONTENT_DISPOSITION, format.disposition()),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(export.into_stream())).into_response())
}

/// What comes after the records of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The page after this id.
    Page(Option<Uuid>),
    /// Nothing.
    End,
}

/// An export in progress.
struct Export {
    console: Console,
    token: BridgeToken,
    filter: InterceptionFilter,
    format: ExportFormat,
    /// What was not sent yet.
    text: Vec<u8>,
    /// The records of the page that are no text yet.
    items: VecDeque<InterceptionDetail>,
    next: Next,
}

impl Export {
    /// Reads the next page, if there is one.
    async fn read_page(&mut self) -> Result<(), LedgerError> {
        let Next::Page(after) = self.next else { return Ok(()) };
        let filter = self.filter.clone();
        let read = self.console.ledger.read(move |reader| reader.export_page(&filter, after));
        let Page { items, next_cursor, .. } = read.await?;
        self.items = items.into();
        let next = next_cursor.map(|cursor| cursor.parse()).transpose();
        let next = next.map_err(|_invalid| LedgerError::Cursor)?;
        self.next = next.map_or(Next::End, |id| Next::Page(Some(id)));
        Ok(())
    }

    /// Reads a later page, unless the caller has lost access in the meantime.
    async fn read_further_page(&mut self) -> Result<(), String> {
        let mut tries = 1;
        loop {
            let allowed = self.console.identify(&self.token).await;
            allowed.map_err(|refused| refused.to_string())?;
            match self.read_page().await {
                // Others read too; what was sent would be lost.
                Err(LedgerError::ReadersBusy(_)) if tries < MAX_PAGE_TRIES => tries += 1,
                read => return read.map_err(|error| error.to_string()),
            }
        }
    }

    /// The next piece; none at the end.
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        while self.text.len() < CHUNK_BYTES {
            if let Some(detail) = self.items.pop_front() {
                self.format.append(&mut self.text, detail)?;
            } else if self.next == Next::End {
                break;
            } else {
                self.read_further_page().await.map_err(io::Error::other)?;
            }
        }
        let text = std::mem::take(&mut self.text);
        Ok((!text.is_empty()).then(|| text.into()))
    }

    /// The body. An error closes the connection, so that what was sent does not look complete.
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::try_unfold(self, |mut export| async move {
            match export.next_chunk().await {
                Ok(chunk) => Ok(chunk.map(|chunk| (chunk, export))),
                Err(error) => {
                    tracing::warn!(%error, "an export was aborted");
                    Err(error)
                }
            }
        })
    }
}
