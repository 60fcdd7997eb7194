//! Ternary weights as bytes: the operand `[k, n]` of an int8 matmul, in panels of 16 columns, `[ceil(n/16)][depth/4][16][4]`, byte
//! `w + 1` of four consecutive depths side by side.

use crate::dot::CELL;
use crate::simd::{Elem, Store};
use crate::size::{area, whole};

/// Depths are filled up to whole steps of a tile register.
pub(super) const STEP: usize = 64;
/// Panels that the widest tile takes at once.
const PANELS: usize = 2;

/// Ternary weights `[k, n]` with one scale.
pub struct Codes {
    pub(super) data: Vec<u8>,
    pub(super) alpha: f32,
    k: usize,
    n: usize,
}

impl Codes {
    /// Room for `k x n`.
    pub fn new(k: usize, n: usize) -> Self {
        Codes { data: vec![0; area([whole(k, STEP), whole(n, PANELS * CELL)])], alpha: 0.0, k, n }
    }

    /// Inputs of the matmul.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Outputs of the matmul.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes of one panel.
    pub(super) fn panel(&self) -> usize {
        whole(self.k, STEP) * CELL
    }

    /// From `src: [k, n]`, all of whose elements are 0 or plus or minus one number.
    pub fn pack<A: Store>(&mut self, src: &[A], k: usize, n: usize) {
        self.fill(src, k, n, |p, j| (p * n, j));
    }

    /// From the transpose `src: [n, k]`.
    pub fn pack_transposed<A: Store>(&mut self, src: &[A], k: usize, n: usize) {
        self.fill(src, k, n, |p, j| (j * k, p));
    }

    /// `at(p, j)` is where the row of depth `p` and column `j` begins, and the place in it.
    fn fill<A: Store>(&mut self, src: &[A], k: usize, n: usize, at: impl Fn(usize, usize) -> (usize, usize)) {
        assert!((k, n) == (self.k, self.n) && src.len() == area([k, n]), "weights of another size");
        let largest =
            src.iter().fold(A::E::ZERO, |most, w| if w.widen().abs() > most { w.widen().abs() } else { most });
        self.alpha = largest.to_f64() as f32;
        let size = self.panel();
        for (first, panel) in (0..n).step_by(CELL).zip(self.data.chunks_exact_mut(size.max(1))) {
            for j in first..n.min(first + CELL) {
                for p in 0..k {
                    let (row, place) = at(p, j);
                    let w = src[row + place].widen();
                    let code = 1 + u8::from(w > A::E::ZERO) - u8::from(w < A::E::ZERO);
                    panel[(p / 4 * CELL + (j - first)) * 4 + p % 4] = code;
                }
            }
        }
    }
}
