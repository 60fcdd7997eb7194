//! One pass over many rows in tiles that stay in the cache: a region of the pool in which each thread takes whole tiles,
//! and runs several ops on each before it goes on to the next.
//!
//! The cut into tiles depends on the ISA alone, so sums over rows that are kept a tile each ([`Parts`]) and added up in
//! order do not depend on the number of threads.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Range, RangeInclusive};

use crate::buf::Buf;
use crate::exec::{Exec, Shared};
use crate::simd::{Op, Simd, Store, each};
use crate::size::area;

/// Rows of a tile on any ISA: bounds for memory that is laid out before the ISA is known.
pub const TILE_ROWS: RangeInclusive<usize> = 48..=64;

/// A buffer of `width` elements per row, of which a tile gets its rows.
pub struct Rows<'a, T>(pub &'a mut [T], pub usize);

/// A buffer of `width` elements per tile, of which a tile gets its own.
pub struct Parts<'a, T>(pub &'a mut [T], pub usize);

/// What can be cut into the shares of tiles.
pub trait Split {
    /// Ready to be cut from several threads.
    type Cut: Sync;
    /// One tile's share.
    type Share<'a>;
    /// Checks the size for `rows` rows in `tiles` tiles.
    fn cut(self, rows: usize, tiles: usize) -> Self::Cut;
    /// The share of tile number `tile`.
    ///
    /// # Safety
    /// Each tile's share is taken once, with the rows of that tile, and dropped before the borrow of the buffer ends.
    unsafe fn share<'a>(cut: &Self::Cut, tile: usize, rows: &Range<usize>) -> Self::Share<'a>;
}

macro_rules! split {
    ($view:ident, |$width:ident, $tile:ident, $rows:ident| $range:expr, |$n_rows:ident, $n_tiles:ident| $needed:expr) => {
        impl<'v, T: Send + 'static> Split for $view<'v, T> {
            type Cut = (Shared<T>, usize);
            type Share<'a> = &'a mut [T];
            fn cut(self, $n_rows: usize, $n_tiles: usize) -> Self::Cut {
                let $width = self.1;
                let needed = area($needed);
                assert!(self.0.len() >= needed, "buffer of {} for {} tiles", self.0.len(), $n_tiles);
                (Shared::new(self.0), self.1)
            }
            unsafe fn share<'a>(cut: &Self::Cut, $tile: usize, $rows: &Range<usize>) -> &'a mut [T] {
                let $width = cut.1;
                // SAFETY: shares of different tiles are disjoint, and the caller takes each once.
                let share = unsafe { cut.0.range($range) };
                // SAFETY: the same memory, which the caller promises to outlive the share.
                unsafe { std::slice::from_raw_parts_mut(share.as_mut_ptr(), share.len()) }
            }
        }
    };
}

split!(Rows, |width, _tile, rows| rows.start * width..rows.end * width, |rows, _tiles| [rows, width]);
split!(Parts, |width, tile, _rows| tile * width..(tile + 1) * width, |_rows, tiles| [tiles, width]);

/// Sequences of `T` rows of `heads * width` elements, of which a tile of one unit gets the columns of one head of one sequence:
/// `(buffer, T, heads, width)`. Units are numbered `sequence * heads + head`.
pub struct Heads<'a, T>(pub &'a mut [T], pub usize, pub usize, pub usize);

/// The columns of one head in the `T` rows of a sequence.
pub struct Block<'a, T> {
    start: *mut T,
    rows: usize,
    ld: usize,
    width: usize,
    marker: PhantomData<&'a mut [T]>,
}

impl<T> Block<'_, T> {
    /// Row `at`: `[width]`.
    pub fn row(&mut self, at: usize) -> &mut [T] {
        assert!(at < self.rows);
        // SAFETY: the row is inside the buffer, its columns belong to this block alone, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at * self.ld), self.width) }
    }
}

impl<A: Store> Block<'_, A> {
    /// `y: [rows, width]` from the rows `rows` here.
    pub fn load(&mut self, cx: &Exec, y: &mut [A::E], rows: Range<usize>) {
        assert!(y.len() == rows.len() * self.width && rows.end <= self.rows);
        if y.is_empty() {
            return;
        }
        // SAFETY: the rows are inside the buffer.
        cx.op(Load { y, x: unsafe { self.start.add(rows.start * self.ld) }, ld: self.ld, width: self.width });
    }

    /// Rows from `first` on from `x: [rows, width]`.
    pub fn store(&mut self, cx: &Exec, x: &[A::E], first: usize) {
        let rows = x.len() / self.width.max(1);
        assert!(first <= self.rows && rows <= self.rows - first);
        if rows == 0 {
            return;
        }
        // SAFETY: the rows are inside the buffer.
        cx.op(Keep { y: unsafe { self.start.add(first * self.ld) }, x, ld: self.ld, width: self.width });
    }
}

struct Load<'a, A: Store> {
    y: &'a mut [A::E],
    x: *const A,
    ld: usize,
    width: usize,
}

impl<A: Store> Op<A::E> for Load<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        for (i, y) in self.y.chunks_exact_mut(self.width).enumerate() {
            // SAFETY: the caller has checked the rows.
            each!(S, self.width, |j, n| unsafe {
                S::put(y.as_mut_ptr().add(j), A::get::<S>(self.x.add(i * self.ld + j), n), n);
            });
        }
    }
}

struct Keep<'a, A: Store> {
    y: *mut A,
    x: &'a [A::E],
    ld: usize,
    width: usize,
}

impl<A: Store> Op<A::E> for Keep<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        for (i, x) in self.x.chunks_exact(self.width).enumerate() {
            // SAFETY: the caller has checked the rows.
            each!(S, self.width, |j, n| unsafe {
                A::put::<S>(self.y.add(i * self.ld + j), S::get(x.as_ptr().add(j), n), n);
            });
        }
    }
}

impl<'v, T: Send + 'static> Split for Heads<'v, T> {
    type Cut = (Shared<T>, usize, usize, usize);
    type Share<'a> = Block<'a, T>;
    fn cut(self, rows: usize, tiles: usize) -> Self::Cut {
        let Heads(buffer, len, heads, width) = self;
        assert!(rows == tiles && rows.is_multiple_of(heads), "heads are shared a unit each");
        let needed = area([rows, len, width]);
        assert!(buffer.len() >= needed, "buffer of {} for {tiles} heads", buffer.len());
        (Shared::new(buffer), len, heads, width)
    }
    unsafe fn share<'a>(cut: &Self::Cut, tile: usize, _: &Range<usize>) -> Block<'a, T> {
        let (buffer, rows, heads, width) = (&cut.0, cut.1, cut.2, cut.3);
        let ld = heads * width;
        let at = if rows == 0 { 0 } else { tile / heads * rows * ld + tile % heads * width };
        // SAFETY: `cut` has checked that the last row of every unit is inside the buffer.
        Block { start: unsafe { buffer.as_ptr().add(at) }, rows, ld, width, marker: PhantomData }
    }
}

macro_rules! tuple {
    ($($name:ident),*) => {
        #[allow(non_snake_case)]
        impl<$($name: Split),*> Split for ($($name,)*) {
            type Cut = ($($name::Cut,)*);
            type Share<'a> = ($($name::Share<'a>,)*);
            fn cut(self, rows: usize, tiles: usize) -> Self::Cut {
                let ($($name,)*) = self;
                ($($name.cut(rows, tiles),)*)
            }
            unsafe fn share<'a>(cut: &Self::Cut, tile: usize, rows: &Range<usize>) -> Self::Share<'a> {
                let ($($name,)*) = cut;
                // SAFETY: the caller's promise.
                unsafe { ($($name::share($name, tile, rows),)*) }
            }
        }
    };
}

tuple!(A);
tuple!(A, B);
tuple!(A, B, C);
tuple!(A, B, C, D);
tuple!(A, B, C, D, F);
tuple!(A, B, C, D, F, G);
tuple!(A, B, C, D, F, G, H);
tuple!(A, B, C, D, F, G, H, I);

/// A number whose every bit pattern is a value.
///
/// # Safety
/// It is so, and 8 bytes aligned suffice.
pub unsafe trait Plain: Copy {}

// SAFETY: [`Store`] promises it.
unsafe impl<A: Store> Plain for A {}
// SAFETY: an integer.
unsafe impl Plain for i8 {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: an integer.
unsafe impl Plain for i32 {}

/// Most buffers that one tile may take.
const SLOTS: usize = 16;

thread_local! {
    /// Working memory of this thread, one buffer a slot, grown when a larger one is asked for.
    static MEMORY: UnsafeCell<[Option<Buf<f64>>; SLOTS]> = const { UnsafeCell::new([const { None }; SLOTS]) };
}

thread_local! {
    /// Whether this thread works on a tile: its memory is then given away.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Working memory of one tile.
pub struct Local {
    taken: Cell<usize>,
}

impl Local {
    /// # Panics
    /// Inside of another tile of the same thread, which would share its memory.
    fn new() -> Self {
        assert!(!BUSY.replace(true), "a tile cannot be cut into tiles");
        Local { taken: Cell::new(0) }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        BUSY.set(false);
    }
}

impl Local {
    /// Runs `f` with memory that is given back after it; meanwhile nothing can be taken from here.
    pub fn within<R>(&self, f: impl FnOnce(&Local) -> R) -> R {
        let taken = self.taken.replace(SLOTS);
        // Not dropped: the thread stays on its tile.
        let inner = ManuallyDrop::new(Local { taken: Cell::new(taken) });
        let out = f(&inner);
        self.taken.set(taken);
        out
    }

    /// `len` elements of no promised value, for as long as the tile lasts.
    #[allow(clippy::mut_from_ref)]
    pub fn take<T: Plain>(&self, len: usize) -> &mut [T] {
        let slot = self.taken.replace(self.taken.get() + 1);
        let size = area([len, size_of::<T>()]).div_ceil(size_of::<f64>());
        // SAFETY: a thread has one `Local` at a time, and a slot is taken once from it or from one within it,
        // whose borrows end with it, so nothing else refers to its buffer;
        // a thread keeps its memory for longer than any region. Every bit pattern is a value of a `Store`.
        unsafe {
            let buf = MEMORY.with(|memory| &mut (&mut (*memory.get()))[slot] as *mut Option<Buf<f64>>);
            if (*buf).as_ref().is_none_or(|buf| buf.len() < size) {
                *buf = Some(Buf::scratch(size));
            }
            let start = (*buf).as_mut().map_or(std::ptr::NonNull::dangling().as_ptr(), |buf| buf.as_mut_ptr());
            std::slice::from_raw_parts_mut(start.cast::<T>(), len)
        }
    }
}

impl Exec {
    /// Rows of one tile: a multiple of the tile of the ISA's fastest matmul, few enough for its activations to stay in L2, and
    /// for a pass of some thousand rows to keep eight or more threads busy.
    pub fn tile_rows(&self) -> usize {
        self.isa().tile_rows()
    }

    /// Tiles of `rows` rows.
    pub fn tile_count(&self, rows: usize) -> usize {
        rows.div_ceil(self.tile_rows())
    }

    /// Runs `f(serial executor, rows of the tile, its shares of the buffers, working memory)` for each tile of `0..rows`.
    #[track_caller]
    pub fn tiles<V: Split>(
        &self,
        rows: usize,
        buffers: V,
        f: impl Fn(&Exec, Range<usize>, V::Share<'_>, &Local) + Sync,
    ) {
        self.tiles_by(self.tile_rows(), rows, buffers, f);
    }

    /// The same in tiles of `height` rows.
    #[track_caller]
    pub fn tiles_by<V: Split>(
        &self,
        height: usize,
        rows: usize,
        buffers: V,
        f: impl Fn(&Exec, Range<usize>, V::Share<'_>, &Local) + Sync,
    ) {
        let tiles = rows.div_ceil(height);
        let cut = buffers.cut(rows, tiles);
        let serial = self.serial();
        self.pool().each(tiles, |tile| {
            let rows = tile * height..rows.min((tile * height).saturating_add(height));
            // SAFETY: every tile is visited once, and `buffers` were borrowed for the whole call.
            let share = unsafe { V::share(&cut, tile, &rows) };
            f(serial, rows, share, &Local::new());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::all_isas;

    #[test]
    #[should_panic(expected = "cannot be cut into tiles")]
    fn a_tile_is_not_cut_again() {
        let cx = Exec::new(crate::Isa::SCALAR, 1);
        cx.tiles(1, (Rows(&mut [0u8; 1], 1),), |cx, _, _, _| cx.tiles(1, (Rows(&mut [0u8; 1], 1),), |_, _, _, _| ()));
    }

    #[test]
    fn a_tile_that_uses_the_outer_executor_is_a_panic() {
        for threads in [1, 2] {
            let cx = Exec::new(crate::Isa::SCALAR, threads);
            let (mut rows, sum) = (vec![1f32; 500], [1f32; 4000]);
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                cx.tiles(500, (Rows(&mut rows, 1),), |_, _, _, _| _ = crate::ops::sum_squares(&cx, &sum));
            }));
            let text = *panic.unwrap_err().downcast::<&str>().unwrap();
            assert!(text.starts_with("parallel regions do not nest"), "{text}");
            // Its threads take the next tiles.
            cx.tiles(500, (Rows(&mut rows, 1),), |_, _, (rows,), local| rows.copy_from_slice(local.take(rows.len())));
        }
    }

    #[test]
    #[should_panic(expected = "more elements than memory can hold")]
    fn a_tile_cannot_take_more_bytes_than_can_be_counted() {
        let cx = Exec::new(crate::Isa::SCALAR, 1);
        cx.tiles(1, (Rows(&mut [0u8; 1], 1),), |_, _, _, local| assert_ne!(local.take::<f64>(1 << 61).len(), 1 << 61));
    }

    #[test]
    fn shares_larger_than_the_buffer_are_refused() {
        let cx = Exec::new(crate::Isa::SCALAR, 1);
        let mut x = [0f32; 8];
        let mut refused = |rows: usize, width: usize, which: usize| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match which {
                0 => cx.tiles_by(1, rows, (Rows(&mut x, width),), |_, _, _, _| ()),
                1 => cx.tiles_by(1, rows, (Parts(&mut x, width),), |_, _, _, _| ()),
                _ => cx.tiles_by(1, rows, (Heads(&mut x, width, 1, 1),), |_, _, _, _| ()),
            }))
            .is_err()
        };
        for which in 0..3 {
            assert!(!refused(2, 4, which) && refused(2, 5, which) && refused(2, 1 << 63, which), "{which}");
        }
    }

    #[test]
    fn heads_are_columns_of_their_sequence() {
        all_isas(|cx| {
            for (b, t, h, d) in [(1, 1, 1, 1), (2, 5, 3, 7), (3, 17, 4, 36), (2, 0, 3, 5)] {
                let mut x = vec![crate::Bf16::NAN; b * t * h * d];
                let value = |unit: usize, row: usize, j: usize| ((unit * 31 + row * 7 + j) % 251) as f32;
                cx.tiles_by(1, b * h, (Heads(&mut x, t, h, d),), |cx, unit, (mut block,), _| {
                    let own: Vec<f32> = (0..t * d).map(|at| value(unit.start, at / d, at % d)).collect();
                    block.store(cx, &own, 0);
                    let mut back = vec![0.0; t.saturating_sub(1) * d];
                    block.load(cx, &mut back, 1.min(t)..t);
                    assert!(t == 0 || back == own[d..]);
                    (0..t).for_each(|row| assert_eq!(block.row(row)[0].to_f32(), own[row * d]));
                });
                for (at, x) in x.iter().enumerate() {
                    let (row, column) = (at / (h * d), at % (h * d));
                    assert_eq!(x.to_f32(), value(row / t * h + column / d, row % t, column % d));
                }
            }
        });
    }

    #[test]
    fn tiles_cover_all_rows_once_with_their_own_memory() {
        all_isas(|cx| {
            for rows in [0, 1, 55, 56, 57, 130, 1000] {
                let (mut a, mut b) = (vec![0u32; rows * 3], vec![0u32; cx.tile_count(rows) * 2]);
                assert!(TILE_ROWS.contains(&cx.tile_rows()));
                cx.tiles(rows, (Rows(&mut a, 3), Parts(&mut b, 2)), |cx, rows, (a, b), local| {
                    assert_eq!((cx.pool().threads(), a.len(), b.len()), (1, rows.len() * 3, 2));
                    let (x, y) = (local.take::<f32>(rows.len()), local.take::<f64>(7));
                    x.fill(1.0);
                    y.fill(2.0);
                    assert!(x.iter().all(|&x| x == 1.0));
                    a.iter_mut().for_each(|a| *a += 1);
                    b[0] += rows.len() as u32;
                });
                assert!(a.iter().all(|&a| a == 1));
                assert_eq!(b.iter().sum::<u32>() as usize, rows);
            }
        });
    }
}
