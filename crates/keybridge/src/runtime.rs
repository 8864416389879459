//! The async runtime of a command.

use std::future::Future;

use anyhow::Context;

use crate::cli::Exit;

/// Runs a command on an async runtime of its own.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let result = runtime.block_on(command);
    // Dropping it would wait for every blocking thread, such as that of the retention job. Everything
    // has been written: closing the ledger is part of the command.
    runtime.shutdown_background();
    result
}
