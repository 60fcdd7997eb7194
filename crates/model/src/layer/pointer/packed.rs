//! Pointers in the packed runtime.

use flashlm_kernels::ops::{exact_matvec, exact_pointer, exact_pointer_keep, pointer_slots};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Exec, Token};

use super::PointerParams;
use super::words::Words;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;

/// The state is a ring of keys, then one of the tokens after them ([`exact_pointer`]) as they are read; after the last key, 1 where its token
/// opens.
pub(crate) struct Packed {
    /// `W: [D, D]`.
    key: Vec<f32>,
    /// `scale D^-1/2`.
    by: f32,
    bias: f32,
    window: usize,
    d: usize,
    words: Words,
}

impl Packed {
    pub(crate) fn read(from: &Reader, of: &PointerParams) -> Result<Self, PackError> {
        let number = |place| -> Result<f32, PackError> { Ok(from.floats(place)?[0]) };
        let d = of.key.inputs;
        let by = (f64::from(number(&of.scale)?) * (d as f64).powf(-0.5)) as f32;
        let mut words = Words::default();
        if let Some([twin, opens]) = &of.words {
            let v = twin.len();
            words.read(&[from.floats(twin)?, from.floats(opens)?].concat(), &[0..v, v..2 * v]);
            if let Some(found) = words.wrong() {
                return Err(from.wrong("pointer.twin", "pairs of tokens", found));
            }
        }
        Ok(Packed { words, key: from.floats(&of.key.weight)?, by, bias: number(&of.bias)?, window: of.window, d })
    }

    fn slots(&self) -> usize {
        pointer_slots(self.window)
    }

    pub(crate) fn state_len(&self) -> usize {
        self.slots() * (self.d + 1)
    }

    /// Whether a state from outside holds tokens of a vocabulary of `v` where tokens are.
    pub(crate) fn holds_tokens(&self, state: &[f32], v: usize) -> bool {
        state[self.slots() * self.d..].iter().all(|&x| (0.0..v as f32).contains(&x) && x.fract() == 0.0)
    }

    /// Queries and keys of rows of the head's input, all `[rows, D]`.
    pub(crate) fn project(&self, cx: &Exec, q: &mut [f32], k: &mut [f32], x: &[f32]) {
        for ((q, k), x) in q.chunks_exact_mut(self.d).zip(k.chunks_exact_mut(self.d)).zip(x.chunks_exact(self.d)) {
            exact_matvec(cx, k, &self.key, x);
            for ((q, k), x) in q.iter_mut().zip(k).zip(x) {
                (*q, *k) = (x * self.by, *k + x);
            }
        }
    }

    /// Takes in the row of `token` after `past` others, with the key `k`.
    pub(crate) fn keep(&self, state: &mut [f32], k: &[f32], token: Token, past: u32) {
        let (keys, next) = state.split_at_mut(self.slots() * self.d);
        if let Some(before) = past.checked_sub(1) {
            let next = &mut next[before as usize % self.slots()];
            *next = self.words.read_as(*next != 0.0, token).into();
        }
        next[past as usize % self.slots()] = u8::from(self.words.opens(token)).into();
        exact_pointer_keep(keys, k, past);
    }

    /// Changes the logits `z: [V]` of the row of `token` after `past` others, with the query `q`, which has been taken in.
    pub(crate) fn point(
        &self,
        cx: &Exec,
        z: &mut [f32],
        q: &[f32],
        state: &[f32],
        (token, past): (Token, u32),
        local: &Local,
    ) {
        let mass = local.take::<f32>(z.len());
        mass.fill(0.0);
        let (keys, mut next) = state.split_at(self.slots() * self.d);
        if self.words.opens(token) {
            let read = local.take::<f32>(next.len());
            read.iter_mut().zip(next).for_each(|(read, &next)| *read = self.words.read_as(true, next as Token).into());
            next = read;
        }
        let work = (local.take(self.slots()), mass);
        exact_pointer(cx, z, q, (keys, next), work, (past, self.window, self.bias));
    }
}
