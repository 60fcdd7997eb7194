//! Causal attention branch: `H` heads of width `dh = D / H`, each row seeing at most `window` rows of its story, itself included
//! ([`flashlm_kernels::ops::attention_forward`]). With `x = norm(h)`:
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x
//! q, k <- rope(norm(q)), rope(norm(k)) a head     norms with one scale of width dh for all heads (QK-norm, arXiv 2010.04245)
//! y = h + W_o attend(q dh^-1/2, k, v)
//! ```
//!
//! A row's angles are `past * base^(-2i/dh)` (RoPE, arXiv 2104.09864), `past` the rows of its story before it; a score then
//! depends on the distance of two rows. The state of a sequence is, for each head, the last `window` keys as they are multiplied,
//! and values; the row at `past` stands in slot `past % window`. With a state or without, in pieces or at once, a row is the
//! same to the bit. The backward pass makes the probabilities again from the logarithm of their sum, kept a row and head.

use flashlm_kernels::ops::{attention_backward, attention_forward, attention_work, narrow, rope};
use flashlm_kernels::tile::{Heads, Parts, Rows};
use flashlm_kernels::{Buf, Elem, Exec, Span, Store};

use crate::config::ModelConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::{Input, Norm, branch_backward, branch_forward, branch_input};
use crate::layer::{Need, Scratch};
use crate::mixer::Mixer;
use crate::params::Layout;

/// Most queries of a block.
const BLOCK: usize = 48;
/// Epsilon of the norms of queries and keys.
pub(crate) const NORM_EPS: f64 = 1e-6;

/// Four matrices, two norms, and what the forward pass saves.
pub struct Attention<A: Store> {
    norm: Option<Norm>,
    /// Of queries, keys and values.
    inputs: [Linear<A>; 3],
    /// Of queries and keys, one scale of `dh` for all heads.
    head_norms: [Norm; 2],
    output: Linear<A>,
    turns: Turns<A::E>,
    d: usize,
    heads: usize,
    window: usize,
    /// What comes out of the three matrices: `[rows, D]`.
    qkv: [Buf<A>; 3],
    /// Queries and keys as they are multiplied: `[rows, D]`.
    turned: [Buf<A>; 2],
    o: Buf<A>,
    /// `[B H, T]`.
    log_sum: Buf<A::E>,
}

impl<A: Store> Attention<A> {
    /// Adds its parameters under `prefix` to the layout; `norm` is in it already.
    pub fn new(
        layout: &mut Layout,
        prefix: &str,
        norm: Option<Norm>,
        config: &ModelConfig,
        rows: usize,
        training: bool,
    ) -> Self {
        let (d, c) = (config.dim, &config.attention);
        let mut linear = |part: &str| Linear::new(layout, &format!("{prefix}.{part}"), (d, d), config, training);
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(&mut linear);
        let output = Linear::output(layout, &format!("{prefix}.o_proj"), (d, d), config, training);
        let head_norms = ["q_norm.scale", "k_norm.scale"]
            .map(|part| Norm::new(layout, format!("{prefix}.{part}"), d / c.heads, NORM_EPS));
        Attention {
            norm,
            inputs: [q, k, v],
            head_norms,
            output,
            turns: Turns::new(d / c.heads, c.rope_base, rows),
            d,
            heads: c.heads,
            window: c.window,
            qkv: std::array::from_fn(|_| Buf::scratch(rows * d)),
            turned: std::array::from_fn(|_| Buf::scratch(rows * d)),
            o: Buf::scratch(rows * d),
            log_sum: Buf::scratch(rows * c.heads),
        }
    }

    /// See [`crate::mixer::sizes`].
    pub fn sizes(config: &ModelConfig) -> (usize, usize) {
        let (d, c) = (config.dim, &config.attention);
        let inputs = 3 * Linear::<A>::parameters((d, d), config);
        let output = Linear::<A>::output_parameters((d, d), config);
        (inputs + 2 * (d / c.heads) + output, 2 * c.window * d)
    }

    /// Width of a head.
    fn width(&self) -> usize {
        self.d / self.heads
    }

    /// What queries and keys are multiplied with.
    fn scales(&self) -> [f64; 2] {
        [(self.width() as f64).powf(-0.5), 1.0]
    }

    /// Where the gradients of one tile lie: the branch's norm, those of the three inputs, of the output, the norms of queries and
    /// of keys, and the end.
    fn places(&self) -> [usize; 8] {
        let mut ends = [0; 8];
        let inputs = self.inputs.iter().map(Linear::part_width);
        let parts = std::iter::once(self.norm.as_ref().map_or(0, Norm::width))
            .chain(inputs)
            .chain([self.output.part_width()])
            .chain(self.head_norms.iter().map(Norm::width));
        for (i, width) in parts.enumerate() {
            ends[i + 1] = ends[i] + width;
        }
        ends
    }
}

impl<A: Store> Mixer<A> for Attention<A> {
    fn linears(&mut self) -> Vec<&mut Linear<A>> {
        self.inputs.iter_mut().chain([&mut self.output]).collect()
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.inputs.iter_mut().for_each(|linear| linear.prepare(cx, params, s));
        self.output.prepare(cx, params, s);
    }

    fn need(&self) -> Need {
        let d = self.d;
        Need { matrix: d * d, input: d, part: self.places()[7], wide: [d, d, d, 0, 0] }
    }

    fn state_len(&self) -> usize {
        2 * self.window * self.d
    }

    fn forward(
        &mut self,
        cx: &Exec,
        y: &mut [A::E],
        state: Option<&mut [A::E]>,
        h: &[A::E],
        params: &[A::E],
        span: &Span,
    ) {
        let (scales, width) = (self.scales(), self.width());
        let Attention { norm, inputs, head_norms, output, turns, d, heads, window, qkv, turned, o, log_sum } = self;
        let (d, heads, window, rows, t) = (*d, *heads, *window, span.rows(), span.len);
        let ([q, k, v], [turned_q, turned_k]) = (qkv, turned);

        let buffers = (Rows(q, d), Rows(k, d), Rows(v, d), Rows(turned_q, d), Rows(turned_k, d));
        cx.tiles(rows, buffers, |cx, r, (q, k, v, turned_q, turned_k), local| {
            let (x, z) = (local.take(r.len() * d), local.take(r.len() * d));
            let x = branch_forward(cx, norm.as_ref(), x, &h[r.start * d..r.end * d], params);
            for (u, linear) in [&mut *q, &mut *k, v].into_iter().zip(&*inputs) {
                linear.forward(cx, z, x, params, local, false);
                narrow(cx, u, z);
            }
            let angles = local.take(r.len() * width);
            turns.fill(angles, &span.past[r]);
            for (i, (turned, u)) in [(turned_q, q), (turned_k, k)].into_iter().enumerate() {
                head_norms[i].forward(cx, z, u, params);
                rope(cx, turned, z, angles, (heads, width), scales[i], false);
            }
        });

        let most = BLOCK.min(t);
        let of_head = |buffer| Heads(buffer, t, heads, width);
        let buffers = (of_head(o), of_head(turned_q), of_head(turned_k), of_head(v), Rows(log_sum, t));
        match state {
            None => {
                cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, (mut o, mut q, mut k, mut v, sums), local| {
                    let span = &span.sequence(unit.start / heads);
                    let (keys, values) = (local.take(t * width), local.take(t * width));
                    let (queries, out) = (local.take(most * width), local.take(most * width));
                    let work = local.take(attention_work((most, width), t.min(window + most)));
                    k.load(cx, keys, 0..t);
                    v.load(cx, values, 0..t);
                    let mut at = 0;
                    while at < t {
                        let run = span.run(at..t, BLOCK);
                        let n = run.len();
                        let before = (span.past[at] as usize).min(window - 1);
                        let seen = (at - before) * width..run.end * width;
                        let (queries, out) = (&mut queries[..n * width], &mut out[..n * width]);
                        q.load(cx, queries, run.clone());
                        let pieces = [(&keys[seen.clone()], &values[seen])];
                        let sizes = (n, width, window);
                        attention_forward(cx, out, &mut sums[run], queries, &pieces, work, sizes);
                        o.store(cx, out, at);
                        at += n;
                    }
                });
            }
            Some(state) => {
                let (o, q, k, v, sums) = buffers;
                let buffers = (o, q, k, v, sums, Rows(state, 2 * window * width));
                cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, share, local| {
                    let (mut o, mut q, mut k, mut v, sums, state) = share;
                    let span = &span.sequence(unit.start / heads);
                    let (keys, values) = (local.take(most * width), local.take(most * width));
                    let (queries, out) = (local.take(most * width), local.take(most * width));
                    let work = local.take(attention_work((most, width), window + most));
                    let (past_keys, past_values) = state.split_at_mut(window * width);
                    let mut at = 0;
                    while at < t {
                        let run = span.run(at..t, BLOCK);
                        let n = run.len();
                        let (keys, values) = (&mut keys[..n * width], &mut values[..n * width]);
                        let (queries, out) = (&mut queries[..n * width], &mut out[..n * width]);
                        q.load(cx, queries, run.clone());
                        k.load(cx, keys, run.clone());
                        v.load(cx, values, run.clone());
                        // The rows before, from their slots on to the last one, and on from slot 0.
                        let past = span.past[at] as usize;
                        let before = past.min(window - 1);
                        let first = (past - before) % window;
                        let end = window.min(first + before);
                        let (older, newer) = (first * width..end * width, 0..(before + first - end) * width);
                        let pieces = [
                            (&past_keys[older.clone()], &past_values[older]),
                            (&past_keys[newer.clone()], &past_values[newer]),
                            (&*keys, &*values),
                        ];
                        let sizes = (n, width, window);
                        attention_forward(cx, out, &mut sums[run], queries, &pieces, work, sizes);
                        o.store(cx, out, at);
                        for (i, (key, value)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
                            let slot = (past + i) % window * width;
                            past_keys[slot..slot + width].copy_from_slice(key);
                            past_values[slot..slot + width].copy_from_slice(value);
                        }
                        at += n;
                    }
                });
            }
        }

        cx.tiles(rows, (Rows(y, d),), |cx, r, (y,), local| {
            let cells = r.start * d..r.end * d;
            y.copy_from_slice(&h[cells.clone()]);
            output.forward(cx, y, Input::Kept(&o[cells]), params, local, true);
        });
    }

    fn backward(
        &mut self,
        cx: &Exec,
        dh: &mut [A::E],
        grads: &mut [A::E],
        h: &[A::E],
        params: &[A::E],
        s: &mut Scratch<A>,
        span: &Span,
    ) {
        let (scales, width, at) = (self.scales(), self.width(), self.places());
        let Attention { norm, inputs, head_norms, output, turns, d, heads, window, qkv, turned, o, log_sum } = self;
        let (d, heads, window, rows, t) = (*d, *heads, *window, span.rows(), span.len);
        let part_width = at[7];

        let parts = &mut s.parts[..cx.tile_count(rows) * part_width];
        let [d_o, dq, dk, ..] = &mut s.wide;
        let buffers = (Rows(&mut s.dy, d), Rows(d_o, d), Parts(parts, part_width));
        cx.tiles(rows, buffers, |cx, r, (dy, d_o, part), local| {
            part.fill(A::E::ZERO);
            let cells = r.start * d..r.end * d;
            let z = local.take(cells.len());
            narrow(cx, dy, &dh[cells.clone()]);
            let o = Input::Kept(&o[cells]);
            output.backward_input(cx, z, &mut part[at[4]..at[5]], dy, o, params, local, false);
            narrow(cx, d_o, z);
        });
        let parts = &s.parts[..cx.tile_count(rows) * part_width];
        let w = &mut s.weights;
        let matrix = [(&*output, &s.dy[..rows * d], at[4])];
        Linear::backward_weights(cx, grads, &matrix, Input::Kept(&o[..rows * d]), params, w, (parts, part_width));

        // The gradient of values takes the place of that of the output.
        let most = BLOCK.min(t);
        let ([q, k], v) = (turned, &mut qkv[2]);
        let of_head = |buffer| Heads(buffer, t, heads, width);
        let buffers = (of_head(d_o), of_head(dq), of_head(dk), of_head(o), of_head(q), of_head(k), of_head(v));
        cx.tiles_by(1, span.batch * heads, buffers, |cx, unit, share, local| {
            let (mut d_o, mut dq, mut dk, mut o, mut q, mut k, mut v) = share;
            let sums = &log_sum[unit.start * t..][..t];
            let span = &span.sequence(unit.start / heads);
            let (keys, values) = (local.take(t * width), local.take(t * width));
            let (dkeys, dvalues) = (local.take(t * width), local.take(t * width));
            let (queries, dqueries) = (local.take(most * width), local.take(most * width));
            let (out, dout) = (local.take(most * width), local.take(most * width));
            let work = local.take(attention_work((most, width), 0));
            k.load(cx, keys, 0..t);
            v.load(cx, values, 0..t);
            dkeys.fill(A::E::ZERO);
            dvalues.fill(A::E::ZERO);
            let mut at = 0;
            while at < t {
                let run = span.run(at..t, BLOCK);
                let n = run.len();
                let before = (span.past[at] as usize).min(window - 1);
                let seen = (at - before) * width..run.end * width;
                let (queries, dqueries) = (&mut queries[..n * width], &mut dqueries[..n * width]);
                let (out, dout) = (&mut out[..n * width], &mut dout[..n * width]);
                q.load(cx, queries, run.clone());
                o.load(cx, out, run.clone());
                d_o.load(cx, dout, run.clone());
                let grads = (&mut *dqueries, &mut dkeys[seen.clone()], &mut dvalues[seen.clone()]);
                let operands = (&*queries, &keys[seen.clone()], &values[seen]);
                attention_backward(cx, grads, dout, (out, &sums[run]), operands, work, (n, width, window));
                dq.store(cx, dqueries, at);
                at += n;
            }
            dk.store(cx, dkeys, 0);
            d_o.store(cx, dvalues, 0);
        });

        let parts = &mut s.parts[..cx.tile_count(rows) * part_width];
        let [dv, dq, dk, ..] = &mut s.wide;
        let buffers = (Rows(dh, d), Rows(&mut s.x, d), Rows(dq, d), Rows(dk, d), Parts(parts, part_width));
        cx.tiles(rows, buffers, |cx, r, (dh, x, dq, dk, part), local| {
            let cells = r.start * d..r.end * d;
            let h = &h[cells.clone()];
            let x = branch_forward(cx, norm.as_ref(), x, h, params);
            let (angles, z, dx) = (local.take(r.len() * width), local.take(cells.len()), local.take(cells.len()));
            turns.fill(angles, &span.past[r]);
            for (i, du) in [&mut *dq, &mut *dk].into_iter().enumerate() {
                let u = &qkv[i][cells.clone()];
                rope(cx, z, du, angles, (heads, width), scales[i], true);
                head_norms[i].backward(cx, dx, &mut part[at[5 + i]..at[6 + i]], z, u, params, false);
                narrow(cx, du, dx);
            }
            for (i, (linear, du)) in inputs.iter().zip([&*dq, dk, &dv[cells]]).enumerate() {
                linear.backward_input(cx, dx, &mut part[at[1 + i]..at[2 + i]], du, x, params, local, i > 0);
            }
            branch_backward(cx, norm.as_ref(), dh, &mut part[..at[1]], dx, h, params);
        });

        let parts = &s.parts[..cx.tile_count(rows) * part_width];
        let x = branch_input(norm.as_ref(), &s.x[..rows * d], h);
        let dus = [&dq[..rows * d], &dk[..rows * d], &dv[..rows * d]];
        let matrices: [_; 3] = std::array::from_fn(|i| (&inputs[i], dus[i], at[1 + i]));
        Linear::backward_weights(cx, grads, &matrices, x, params, &mut s.weights, (parts, part_width));
        let norms = norm.iter().zip([at[0]]).chain(head_norms.iter().zip([at[5], at[6]]));
        norms.for_each(|(norm, at)| norm.add_parts(grads, parts, part_width, at));
    }
}

/// Cosines and sines of a row's angles.
pub(crate) struct Turns<E: Elem> {
    /// `base^(-2i/dh)`: `[dh / 2]`.
    rates: Vec<f64>,
    /// Of the first positions, which training takes: `[rows, dh]`.
    table: Buf<E>,
}

impl<E: Elem> Turns<E> {
    pub(crate) fn new(width: usize, base: f64, rows: usize) -> Self {
        let rates: Vec<f64> = (0..width / 2).map(|i| base.powf(-2.0 * i as f64 / width as f64)).collect();
        let mut table = Buf::zeros(rows * width);
        for (position, turns) in table.chunks_exact_mut(width).enumerate() {
            turn(turns, position as f64, &rates);
        }
        Turns { rates, table }
    }

    /// `[rows, dh]`, a row the cosines and then the sines, for the rows of these positions.
    pub(crate) fn fill(&self, out: &mut [E], positions: &[u32]) {
        let width = 2 * self.rates.len();
        for (out, &position) in out.chunks_exact_mut(width).zip(positions) {
            match self.table.get(position as usize * width..(position as usize + 1) * width) {
                Some(turns) => out.copy_from_slice(turns),
                None => turn(out, position.into(), &self.rates),
            }
        }
    }
}

fn turn<E: Elem>(out: &mut [E], position: f64, rates: &[f64]) {
    let (cos, sin) = out.split_at_mut(rates.len());
    for ((cos, sin), rate) in cos.iter_mut().zip(sin).zip(rates) {
        let angle = position * rate;
        (*cos, *sin) = (E::from_f64(angle.cos()), E::from_f64(angle.sin()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AttentionConfig, QuantConfig, ScaleKind};
    use crate::gradcheck::{noisy, tiny, tokens};
    use crate::io::safetensors::TensorFile;
    use crate::precision::Precision;
    use flashlm_kernels::{Isa, Token};
    use std::path::Path;

    /// Within a window and beyond it, over several blocks, with and without stories that end.
    #[test]
    fn a_state_changes_no_bit() {
        let cx = &Exec::new(Isa::detect().unwrap(), 2);
        for (precision, reset, window) in [
            (Precision::F32, false, 9),
            (Precision::F32, true, 64),
            (Precision::Bf16, true, 1),
            (Precision::Bf16, false, 100),
        ] {
            let mut config = ModelConfig { reset, ..tiny("attention") };
            config.attention.window = window;
            let (t, v) = (300, config.vocab_size);
            let mut lm = precision.build(&config, 2 * t, false).unwrap();
            let params: Vec<f32> = noisy(lm.layout().len(), 5).iter().map(|&p| p as f32).collect();
            lm.prepare(cx, &params);
            let data = tokens(2 * t, v, 6);
            let mut whole = vec![0.0; 2 * t * v];
            lm.logits(cx, &mut whole, &params, &data, None, (2, t));
            for piece in [1, 50, t] {
                let mut state = lm.state(2);
                for first in (0..t).step_by(piece) {
                    let part: Vec<Token> = data.chunks(t).flat_map(|s| s[first..][..piece].to_vec()).collect();
                    let mut out = vec![f32::NAN; 2 * piece * v];
                    lm.logits(cx, &mut out, &params, &part, Some(&mut state), (2, piece));
                    for (b, out) in out.chunks(piece * v).enumerate() {
                        assert_eq!(out, &whole[(b * t + first) * v..][..piece * v], "{piece} tokens from {first}");
                    }
                }
            }
        }
    }

    fn assert_close(got: &[f32], want: &[f32], what: &str) {
        let square = |x: f64| x * x;
        let off: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(g - w))).sum();
        let ratio = (off / want.iter().map(|&w| square(f64::from(w))).sum::<f64>()).sqrt();
        assert!(got.len() == want.len() && ratio < 2e-6, "{what}: RMS ratio {ratio:.1e}");
    }

    #[test]
    fn a_branch_equals_pytorch() {
        let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|above| above.join("tests/reference"));
        let folder = folders.into_iter().find(|folder| folder.is_dir()).expect("tests/reference");
        let file = TensorFile::open(&folder.join("attention.safetensors")).unwrap();
        let get = |name: &str| file.f32(name).unwrap();
        let past: Vec<u32> = file.i32("past").unwrap().iter().map(|&past| past as u32).collect();
        let (b, t, d) = (2, 60, 36);
        let quant = QuantConfig { scale: ScaleKind::None, ..tiny("attention").quant };
        let mut config = ModelConfig { dim: d, quant, ..tiny("attention") };
        config.attention = AttentionConfig { heads: 3, window: 20, rope_base: 500.0 };
        let span = &Span { batch: b, len: t, past: &past };
        let (h, dy) = (get("h"), get("dy"));

        for isa in Isa::available() {
            let cx = &Exec::new(isa, 2);
            let mut layout = Layout::default();
            let norm = Norm::new(&mut layout, "norm.scale".into(), d, config.norm_eps);
            let mut mixer = Attention::<f32>::new(&mut layout, "mixer", Some(norm), &config, b * t, true);
            let mut s = Scratch::new(&config, mixer.need(), b * t, true);
            let mut params = vec![0.0; layout.len()];
            for spec in layout.specs() {
                params[spec.range.clone()].copy_from_slice(&get(&format!("param.{}", spec.name)));
            }
            mixer.prepare(cx, &params, &mut s);
            let (mut y, mut dh, mut grads) = (vec![f32::NAN; h.len()], dy.clone(), vec![0.0; params.len()]);
            let mut state = vec![0.0; b * mixer.state_len()];
            mixer.forward(cx, &mut y, Some(&mut state), &h, &params, span);
            assert_close(&y, &get("y"), "y with a state");
            mixer.forward(cx, &mut y, None, &h, &params, span);
            assert_close(&y, &get("y"), "y");
            mixer.backward(cx, &mut dh, &mut grads, &h, &params, &mut s, span);
            assert_close(&dh, &get("dh"), "dh");
            for spec in layout.specs() {
                assert_close(&grads[spec.range.clone()], &get(&format!("grad.{}", spec.name)), &spec.name);
            }
        }
    }
}
