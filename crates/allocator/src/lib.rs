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

/// Makes the allocator return large blocks to the system as soon as they are freed.
///
/// glibc by itself raises the size from which it maps a block alone to up to 32 MiB, and then keeps up to
/// 64 MiB at the end of each thread's heap, which [`release_free_memory`] does not reach. Called once,
/// before the first large block is allocated.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a function of the C library")]
    // SAFETY: it takes no pointer, and locks what it changes. It cannot fail for values in range.
    unsafe {
        let _is_set = libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        let _is_set = libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BLOCK);
    }
}

/// The size from which a block is mapped alone, and of the free end of a heap that is kept.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK: libc::c_int = 1 << 20;
