//! The executor: which ISA runs and on how many threads. Every op takes it first.

use std::ops::Range;

use crate::dispatch::Isa;
use crate::pool::Pool;
use crate::simd::{Elem, Op};

/// An ISA and a pool.
pub struct Exec {
    isa: Isa,
    pool: Pool,
    /// The same ISA on the calling thread alone; none in itself.
    serial: Option<Box<Exec>>,
}

impl Exec {
    /// `threads` threads (0 means 1) on `isa`.
    pub fn new(isa: Isa, threads: usize) -> Self {
        let serial = Exec { isa, pool: Pool::new(1), serial: None };
        Exec { isa, pool: Pool::new(threads.max(1)), serial: Some(Box::new(serial)) }
    }

    /// The calling thread alone, which plays `threads` threads (at least 1): [`Pool::timeline`] tells what they would take.
    pub fn replay(isa: Isa, threads: usize) -> Self {
        Exec { pool: Pool::replay(threads.max(1)), ..Exec::new(isa, 1) }
    }

    /// The same ISA on the calling thread alone.
    pub(crate) fn serial(&self) -> &Exec {
        self.serial.as_deref().unwrap_or(self)
    }

    /// The ISA in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The pool in use.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs one op body on this thread.
    #[inline]
    pub(crate) fn op<E: Elem, O: Op<E>>(&self, op: O) -> O::Out {
        E::run_on(self.isa, op)
    }

    /// Runs `f` over `0..rows`, one contiguous range a thread.
    #[track_caller]
    pub(crate) fn rows(&self, rows: usize, f: impl Fn(Range<usize>) + Sync) {
        self.pool.split(rows, 1, f);
    }
}

/// A mutable slice that several threads write in disjoint ranges.
#[derive(Clone, Copy)]
pub struct Shared<E> {
    ptr: *mut E,
    len: usize,
}

// SAFETY: a slice may be sent where its elements may; to reach them takes a promise of disjoint ranges.
unsafe impl<E: Send> Send for Shared<E> {}
// SAFETY: as above; two threads never reach one element.
unsafe impl<E: Send> Sync for Shared<E> {}

impl<E> Shared<E> {
    pub(crate) fn new(slice: &mut [E]) -> Self {
        Shared { ptr: slice.as_mut_ptr(), len: slice.len() }
    }

    /// # Safety
    /// No two live ranges overlap, and the slice outlives them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [E] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.end - range.start) }
    }

    pub(crate) fn as_ptr(&self) -> *mut E {
        self.ptr
    }
}
