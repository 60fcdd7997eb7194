//! The leaky integrator in training. Where a row needs no other, rows go in tiles; the recurrence takes a thread for each sequence.

use flashlm_kernels::ops::narrow;
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Elem, Exec, Store};

use super::Params;
use crate::layer::linear::BitLinear;
use crate::layer::norm::{Input, Tiles};
use crate::layer::pass::Pass;
use crate::layer::scratch::{Scratch, WIDE};
use crate::mixer::forms::Mixer;

/// Its weights.
pub struct Train<A: Store> {
    of: Params,
    up: BitLinear<A>,
    down: BitLinear<A>,
    /// `a: [D]`, made once after each step: functions such as `exp` are not for every element of every row.
    a: Buf<A::E>,
}

/// `v` and `s`, both `[rows, D]`.
pub struct Saved<A: Store> {
    v: Buf<A>,
    s: Buf<A>,
}

impl<A: Store> Train<A> {
    /// Room for the weights.
    pub(crate) fn new(of: Params, training: bool) -> Self {
        let (up, down) = (BitLinear::new(&of.up, training), BitLinear::new(&of.down, training));
        Train { up, down, a: Buf::scratch(of.down.outputs), of }
    }
}

impl<A: Store> Mixer<A> for Train<A> {
    type Saved = Saved<A>;

    fn saved(&self, rows: usize, _training: bool) -> Saved<A> {
        let d = self.of.down.outputs;
        Saved { v: Buf::scratch(rows * d), s: Buf::scratch(rows * d) }
    }

    fn wide(&self) -> [usize; WIDE] {
        let d = self.of.down.outputs;
        [d, d, 0, 0, 0]
    }

    fn state_len(&self) -> usize {
        self.of.state_len()
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.up.prepare(cx, params, s);
        self.down.prepare(cx, params, s);
        for (a, decay) in self.a.iter_mut().zip(&params[self.of.decay.0.clone()]) {
            *a = A::E::from_f64(1.0 / (1.0 + (-decay.to_f64()).exp()));
        }
    }

    fn forward(&self, pass: Pass<A::E>, y: &mut [A::E], saved: &mut Saved<A>, state: Option<&mut [A::E]>, h: &[A::E]) {
        let Pass { cx, params, span, .. } = pass;
        let (Train { of, up, down, a }, Saved { v, s }) = (self, saved);
        let (d, rows, t) = (of.down.outputs, span.rows(), span.len);
        cx.tiles(rows, (Rows(v, d),), |cx, r, (v,), local| {
            let (x, z) = (local.take(v.len()), local.take(v.len()));
            let x = of.norm.forward(cx, x, &h[r.start * d..r.end * d], params);
            up.forward(cx, z, x, pass, local, false);
            narrow(cx, v, z);
        });
        // Without a state each sequence starts at zero.
        let held = if state.is_some() { d } else { 0 };
        let buffers = (Rows(s, t * d), Rows(state.unwrap_or_default(), held));
        cx.tiles_by(1, span.batch, buffers, |_, sequence, (s, state), local| {
            let now = if held > 0 { state } else { local.take(d) };
            let (past, v) = (&span.past[sequence.start * t..], &v[sequence.start * t * d..]);
            for ((s, v), &past) in s.chunks_exact_mut(d).zip(v.chunks_exact(d)).zip(past) {
                if past == 0 {
                    now.fill(A::E::ZERO);
                }
                for (((s, v), now), &a) in s.iter_mut().zip(v).zip(&mut *now).zip(&a[..]) {
                    *now = a * *now + (A::E::ONE - a) * v.widen();
                    *s = A::narrow(*now);
                }
            }
        });
        cx.tiles(rows, (Rows(y, d),), |cx, r, (y,), local| {
            let cells = r.start * d..r.end * d;
            y.copy_from_slice(&h[cells.clone()]);
            down.forward(cx, y, Input::Saved(&s[cells]), pass, local, true);
        });
    }

    /// With `g_t = ds_t + a g_{t+1}`: `dv_t = (1 - a) g_t`, `da = sum_t g_t (s_{t-1} - v_t)`, `ddecay = a (1 - a) da`.
    fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &mut Saved<A>,
        h: &[A::E],
        scratch: &mut Scratch<A>,
    ) {
        let Pass { cx, params, span, .. } = pass;
        let (Train { of, up, down, a }, Saved { v, s }) = (self, saved);
        let (d, rows, t, width) = (of.down.outputs, span.rows(), span.len, of.part);
        let sums = cx.tile_count(rows) * width;
        let [g, dv, ..] = &mut scratch.wide;
        let buffers = (Rows(&mut scratch.dy, d), Rows(&mut *g, d), Parts(&mut scratch.parts[..sums], width));
        cx.tiles(rows, buffers, |cx, r, (dy, ds, part), local| {
            part.fill(A::E::ZERO);
            let cells = r.start * d..r.end * d;
            let z = local.take(cells.len());
            narrow(cx, dy, &dh[cells.clone()]);
            down.backward_input(cx, z, part, dy, Input::Saved(&s[cells]), pass, local, false);
            narrow(cx, ds, z);
        });
        cx.tiles_by(1, span.batch, (Rows(&mut *g, t * d),), |_, sequence, (g,), local| {
            let (past, next) = (&span.past[sequence.start * t..][..t], local.take(d));
            next.fill(A::E::ZERO);
            for (g, &past) in g.chunks_exact_mut(d).zip(past).rev() {
                for ((g, next), &a) in g.iter_mut().zip(&mut *next).zip(&a[..]) {
                    *next = g.widen() + a * *next;
                    *g = A::narrow(*next);
                }
                if past == 0 {
                    next.fill(A::E::ZERO);
                }
            }
        });
        let buffers =
            (Rows(dh, d), Rows(&mut scratch.x, d), Rows(&mut *dv, d), Parts(&mut scratch.parts[..sums], width));
        cx.tiles(rows, buffers, |cx, r, (dh, x, dv, part), local| {
            let h = &h[r.start * d..r.end * d];
            for (row, dv) in r.zip(dv.chunks_exact_mut(d)) {
                for (i, ddecay) in part[of.decay.1.clone()].iter_mut().enumerate() {
                    let at = row * d + i;
                    let before = if span.past[row] == 0 { A::E::ZERO } else { s[at - d].widen() };
                    let (a, g) = (a[i], g[at].widen());
                    *ddecay += a * (A::E::ONE - a) * g * (before - v[at].widen());
                    dv[i] = A::narrow((A::E::ONE - a) * g);
                }
            }
            let dx = local.take(h.len());
            let x = of.norm.forward(cx, x, h, params);
            up.backward_input(cx, dx, part, dv, x, pass, local, false);
            of.norm.backward(cx, dh, part, dx, h, params);
        });
        let tiles = &Tiles { sums: &scratch.parts[..sums], width };
        let (x, s) = (of.norm.input(&scratch.x[..rows * d], h), Input::Saved(&s[..rows * d]));
        let w = &mut scratch.weights;
        BitLinear::backward_weights(pass, grads, &[(down, &scratch.dy[..rows * d])], s, w, tiles);
        BitLinear::backward_weights(pass, grads, &[(up, &dv[..rows * d])], x, w, tiles);
        of.norm.add_parts(grads, tiles);
        tiles.add(grads, &of.decay.0, &of.decay.1);
    }
}
