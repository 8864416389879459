//! Returns the memory that the allocator holds unused to the system.
//!
//! glibc keeps what a program frees, unless it lies at the end of a heap: after a flood, most of its
//! memory stays resident. Other C libraries have no such function, and nothing is done.

/// Returns all free pages of the allocator to the system. Takes some microseconds, or milliseconds after
/// hundreds of MiB were freed; meanwhile allocations of other threads may have to wait.
pub fn release_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a function of the C library")]
    // SAFETY: it takes no pointer, and locks what it changes.
    unsafe {
        let _released = libc::malloc_trim(0);
    }
}
