//! The resident memory of the process, which is returned to the system after it has grown.

use std::time::Duration;

use tokio_util::task::TaskTracker;

/// How often the resident memory is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// The part of the least resident memory after a release that it must differ by: less is not worth the
/// search for free memory.
const MIN_CHANGE: usize = 16;

/// Returns free memory to the system as long as more is resident than was the least after a release, or
/// clearly less: whether what is resident is in use is not known before it is tried.
pub(crate) fn start_releasing() {
    let job = async {
        let mut least = 0;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let Some(resident) = bytes() else { return };
            if resident.abs_diff(least) <= least / MIN_CHANGE {
                continue;
            }
            let released = tokio::task::spawn_blocking(|| {
                keybridge_allocator::release_free_memory();
                bytes()
            });
            let Ok(Some(rest)) = released.await else { return };
            tracing::debug!(before = resident, after = rest, "returned free memory to the system");
            least = if least == 0 { rest } else { least.min(rest) };
        }
    };
    // Ends with the runtime.
    let _job = TaskTracker::new().spawn(job);
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
