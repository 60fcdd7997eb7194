//! Sizes of buffers from sizes of matrices, checked: a product that does not fit in a `usize` would wrap to a small one, which
//! any slice is long enough for.

const TOO_LARGE: &str = "sizes of more elements than memory can hold";

/// The product of all.
///
/// # Panics
/// If it does not fit; so do all that follow.
#[track_caller]
#[inline]
pub(crate) fn area<const N: usize>(sizes: [usize; N]) -> usize {
    let mut all = 1usize;
    for size in sizes {
        all = all.checked_mul(size).expect(TOO_LARGE);
    }
    all
}

/// From the start of the first to the end of the last of `rows` rows of `width`, `ld` apart.
#[track_caller]
#[inline]
pub(crate) fn strided(rows: usize, ld: usize, width: usize) -> usize {
    match rows {
        0 => 0,
        _ => end(area([rows - 1, ld]), width),
    }
}

/// The end of `width` columns from `first` on.
#[track_caller]
#[inline]
pub(crate) fn end(first: usize, width: usize) -> usize {
    first.checked_add(width).expect(TOO_LARGE)
}

/// The next multiple of `unit`.
#[track_caller]
#[inline]
pub(crate) fn whole(size: usize, unit: usize) -> usize {
    size.checked_next_multiple_of(unit).expect(TOO_LARGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_fit_are_plain_arithmetic() {
        assert_eq!((area([]), area([3, 5, 7]), area([0, usize::MAX])), (1, 105, 0));
        assert_eq!((strided(0, 9, 4), strided(1, usize::MAX, 4), strided(3, 10, 4)), (0, 4, 24));
        assert_eq!((end(7, 2), whole(17, 16), whole(0, 16)), (9, 32, 0));
    }

    #[test]
    fn sizes_that_do_not_are_refused() {
        let too_large: [fn() -> usize; 5] = [
            || area([1 << 32, 1 << 32]),
            || strided(3, 1 << 63, 0),
            || strided(2, usize::MAX, 1),
            || end(usize::MAX, 1),
            || whole(usize::MAX, 16),
        ];
        for size in too_large {
            let panic = std::panic::catch_unwind(size).unwrap_err();
            assert_eq!(
                panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied()),
                Some(TOO_LARGE)
            );
        }
    }
}
