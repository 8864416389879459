//! The resident memory of the process, which is returned to the system after it has grown.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// How often the resident memory is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often free memory is searched for while more than usual is resident and the amount stays: the
/// allocator keeps what is freed, so that an amount which stays may have become free.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// The part of an amount of memory by which another one must differ: less is not worth a search.
const MIN_CHANGE: usize = 16;

/// Returns free memory to the system while more is resident than was the least after a release, or clearly
/// less: then the least is not yet known.
pub(crate) fn start_releasing() {
    keybridge_allocator::return_large_blocks();
    let job = async {
        let mut least = None;
        let mut last: Option<(Instant, usize)> = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let Some(resident) = bytes() else { return };
            let is_unusual = least.is_none_or(|least| differs(resident, least));
            let is_due = last.is_none_or(|(released_at, rest)| {
                differs(resident, rest) || released_at.elapsed() >= RETRY_INTERVAL
            });
            if !is_unusual || !is_due {
                continue;
            }
            let released = tokio::task::spawn_blocking(|| {
                keybridge_allocator::release_free_memory();
                bytes()
            });
            let Ok(Some(rest)) = released.await else { return };
            tracing::debug!(before = resident, after = rest, "returned free memory to the system");
            least = Some(least.map_or(rest, |least: usize| least.min(rest)));
            last = Some((Instant::now(), rest));
        }
    };
    // Ends with the runtime.
    let _job = TaskTracker::new().spawn(job);
}

/// Whether an amount of memory differs enough from another one.
const fn differs(amount: usize, other: usize) -> bool {
    amount.abs_diff(other) > other / MIN_CHANGE
}

/// The resident memory of this process in bytes, where the system tells it.
pub(crate) fn bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::bytes;

    #[test]
    fn the_resident_memory_is_read_from_the_system() {
        let resident = bytes().unwrap();
        assert!((1 << 20..1 << 36).contains(&resident), "{resident}");
    }
}
