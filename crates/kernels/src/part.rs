//! A thread's share of a matmul `C[m,n] (+)= A[m,k] B[k,n]`, as vectors (`ops/matmul`) and tile registers (`isa/amx`)
//! both take it, and how both bring rows of `A` to the cache. `B` lies in panels of columns, `[k][columns]` each.

use std::ops::Range;

use crate::simd::Store;

/// Working memory of a thread, in f64.
pub(crate) const BLOCK: usize = 112 * 256;

/// The rows and panels of one thread.
pub(crate) struct Part<A: Store> {
    /// Working memory of [`BLOCK`] f64.
    pub block: *mut A,
    pub c: *mut A::E,
    pub a: *const A,
    pub lda: usize,
    pub transposed: bool,
    pub b: *const A,
    /// Depths of one panel in memory.
    pub depth: usize,
    pub k: usize,
    pub n: usize,
    pub rows: Range<usize>,
    pub panels: Range<usize>,
    pub accumulate: bool,
}

#[cfg(target_arch = "x86_64")]
impl<A: Store> Part<A> {
    /// The same part, its store known to be `B`.
    pub fn cast<B: Store>(self) -> Part<B> {
        debug_assert!(A::NAME == B::NAME);
        let Part { block, c, a, lda, transposed, b, depth, k, n, rows, panels, accumulate } = self;
        let (block, c, a, b) = (block.cast(), c.cast(), a.cast(), b.cast());
        Part { block, c, a, lda, transposed, b, depth, k, n, rows, panels, accumulate }
    }
}

/// Rows that [`prefetch`] is asked for in advance. Rows of a block lie too far apart for the processor to guess the next.
pub(crate) const AHEAD: usize = 16;

/// Asks for `n` elements to be brought to the cache; an address outside of memory does no harm.
#[inline(always)]
pub(crate) fn prefetch<A>(p: *const A, n: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let mut at = 0;
        while at < n * size_of::<A>() {
            // SAFETY: SSE is part of x86-64, and a prefetch reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast::<i8>().wrapping_add(at)) };
            at += 64;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (p, n);
}
