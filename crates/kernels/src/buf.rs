//! One aligned allocation of zeros; in debug builds [`Buf::scratch`] is filled with NaN, so that a read before a write shows.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::elem::Elem;

const ALIGN: usize = 64;

/// A fixed-size buffer aligned to a cache line.
pub struct Buf<E: Elem> {
    ptr: NonNull<E>,
    len: usize,
}

impl<E: Elem> Buf<E> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is never of size zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr.cast::<E>()) else { handle_alloc_error(layout) };
        Buf { ptr, len }
    }

    /// `len` elements of no promised value.
    pub fn scratch(len: usize) -> Self {
        let mut buf = Self::zeros(len);
        if cfg!(debug_assertions) {
            buf.fill(E::NAN);
        }
        buf
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<E>(len.max(1)).and_then(|l| l.align_to(ALIGN)).expect("buffer larger than the address space")
    }
}

impl<E: Elem> From<&[E]> for Buf<E> {
    fn from(values: &[E]) -> Self {
        let mut buf = Self::zeros(values.len());
        buf.copy_from_slice(values);
        buf
    }
}

impl<E: Elem> Clone for Buf<E> {
    fn clone(&self) -> Self {
        Buf::from(&**self)
    }
}

impl<E: Elem> Drop for Buf<E> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeros` with the same layout.
        unsafe { dealloc(self.ptr.as_ptr().cast(), Self::layout(self.len)) }
    }
}

impl<E: Elem> Deref for Buf<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        // SAFETY: `len` initialised elements live behind `ptr`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<E: Elem> DerefMut for Buf<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

// SAFETY: a `Buf` owns its elements like a `Vec` does.
unsafe impl<E: Elem> Send for Buf<E> {}
// SAFETY: as above.
unsafe impl<E: Elem> Sync for Buf<E> {}
