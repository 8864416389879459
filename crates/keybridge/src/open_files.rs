//! The limit on open files, which limits connections, too.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files for everything but connections: the store, listeners, logs, MCP servers.
const OTHER_FILES: u64 = 256;
/// A client's connection, and the one to the provider that its request is sent on.
const FILES_PER_CONNECTION: u64 = 2;

/// Raises the limit on open files as far as the system lets a process do so, and returns it; `None` if
/// there is none.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current == limit.maximum || setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum;
    }
    limit.current
}

/// The number of connections that the limit on open files has room for, at most `configured` unless
/// that is 0.
pub(crate) fn max_connections(configured: usize, open_files: Option<u64>) -> usize {
    let Some(files) = open_files else { return configured };
    let room = (files.saturating_sub(OTHER_FILES) / FILES_PER_CONNECTION).max(1);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if configured == 0 {
        return room;
    }
    if configured > room {
        tracing::warn!(
            max_connections = room,
            open_files = files,
            "limits.max_connections is lowered to what the limit on open files allows (`ulimit -n`)"
        );
    }
    configured.min(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        assert_eq!(max_connections(10_000, Some(1_048_576)), 10_000);
        assert_eq!(max_connections(10_000, Some(4_096)), 1_920);
        assert_eq!(max_connections(0, Some(20_256)), 10_000);
        assert_eq!(max_connections(10_000, Some(100)), 1);
        assert_eq!(max_connections(0, None), 0);
    }
}
