//! How the allocator of the C library keeps memory. That of glibc takes large blocks from its heaps once some were freed (its threshold
//! for a mapping of their own rises up to 32 MiB), and has heaps for each thread: blocks of a MB that come and go leave holes which are
//! never given back.

/// For a program that runs long: from 128 KiB on every block is a mapping of its own and leaves with it, and there are two heaps. Other C
/// libraries are left as they are.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    {
        use std::ffi::c_int;
        // malloc.h
        const M_MMAP_THRESHOLD: c_int = -3;
        const M_ARENA_MAX: c_int = -8;
        // SAFETY: the signature of glibc.
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        for (parameter, value) in [(M_MMAP_THRESHOLD, 128 << 10), (M_ARENA_MAX, 2)] {
            // SAFETY: it takes the lock of the heap; both are parameters that may be set at any time. Where it refuses, nothing changes.
            unsafe { mallopt(parameter, value) };
        }
    }
}
