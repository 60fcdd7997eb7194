//! One aligned allocation of zeros; in debug builds [`Buf::scratch`] is filled with NaN, so that a read before a write shows.

use crate::simd::Store;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const ALIGN: usize = 64;

/// A fixed-size buffer aligned to a cache line.
pub struct Buf<T: Store> {
    ptr: NonNull<T>,
    len: usize,
}

impl<T: Store> Buf<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is never of size zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr.cast::<T>()) else { handle_alloc_error(layout) };
        Buf { ptr, len }
    }

    /// `len` elements of no promised value.
    pub fn scratch(len: usize) -> Self {
        let mut buf = Self::zeros(len);
        if cfg!(debug_assertions) {
            buf.fill(T::NAN);
        }
        buf
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<T>(len.max(1)).and_then(|l| l.align_to(ALIGN)).expect("buffer larger than the address space")
    }
}

impl<T: Store> From<&[T]> for Buf<T> {
    fn from(values: &[T]) -> Self {
        let mut buf = Self::zeros(values.len());
        buf.copy_from_slice(values);
        buf
    }
}

impl<T: Store> Clone for Buf<T> {
    fn clone(&self) -> Self {
        Buf::from(&**self)
    }
}

impl<T: Store> Drop for Buf<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeros` with the same layout.
        unsafe { dealloc(self.ptr.as_ptr().cast(), Self::layout(self.len)) }
    }
}

impl<T: Store> Deref for Buf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements live behind `ptr`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Store> DerefMut for Buf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

// SAFETY: a `Buf` owns its elements like a `Vec` does.
unsafe impl<T: Store> Send for Buf<T> {}
// SAFETY: as above.
unsafe impl<T: Store> Sync for Buf<T> {}
