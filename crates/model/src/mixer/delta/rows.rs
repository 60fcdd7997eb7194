//! What both passes make of rows: the gates, what goes into the rule, and what goes into the output projection.

use std::ops::Range;

use flashlm_kernels::ops::{conv_forward, gate_forward, silu_unit_forward};
use flashlm_kernels::{Buf, Elem, Exec, Span, Store};

use super::train::Train;

impl<A: Store> Train<A> {
    /// Taps of the convolutions.
    pub(super) fn k(&self) -> usize {
        self.of.convs[0].k
    }

    /// `g` and `beta` from `a` and `b`, one head of one row.
    pub(super) fn gates_forward(&self, head: usize, a: A::E, b: A::E, params: &[A::E]) -> (A::E, A::E) {
        let (a, b) = (a.to_f64(), b.to_f64());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let g = match &self.of.decay {
            None => -softplus(-a) / 16.0,
            Some([(log, _), (bias, _)]) => {
                -params[log.start + head].to_f64().exp() * softplus(a + params[bias.start + head].to_f64())
            }
        };
        (A::E::from_f64(g), A::E::from_f64(self.of.strength / (1.0 + (-b).exp())))
    }

    /// Gradients of `a` and `b`, and of `A_log` and `dt_bias`, from those of `g` and `beta`.
    pub(super) fn gates_backward(&self, head: usize, gates: [A::E; 2], dgates: [A::E; 2], params: &[A::E]) -> [f64; 4] {
        let ([g, beta], [dg, dbeta]) = (gates.map(A::E::to_f64), dgates.map(A::E::to_f64));
        // 1 - sigmoid(a) = 1 - exp(logsigmoid(a)), and sigmoid(z) = 1 - exp(-softplus(z)).
        let (da, dlog, dbias) = match &self.of.decay {
            None => (dg * -(16.0 * g).exp_m1() / 16.0, 0.0, 0.0),
            Some([(log, _), _]) => {
                let rate = params[log.start + head].to_f64().exp();
                let da = dg * rate * (g / rate).exp_m1();
                (da, dg * g, da)
            }
        };
        [da, dbeta * beta * (1.0 - beta / self.of.strength), dlog, dbias]
    }

    /// Elements of one head's state.
    pub(super) fn head_state(&self) -> usize {
        self.of.dk * self.of.dv + (self.k() - 1) * (2 * self.of.dk + self.of.dv)
    }

    /// Keys and queries of unit norm, stacked, and values of rows `run` of one head of one sequence: what comes out of the
    /// convolutions, or where `gains` what [`silu_unit_forward`] makes of it, in `sums`, and after SiLU and norms in `units`.
    /// `history` is the head's state behind `S`.
    pub(super) fn make_inputs(
        &self,
        cx: &Exec,
        u: &[Buf<A>; 3],
        sums: (&mut [A::E], &mut [A::E]),
        units: (&mut [A::E], &mut [A::E]),
        gains: bool,
        history: Option<&[A::E]>,
        (sequence, head): (usize, usize),
        (run, span): (Range<usize>, &Span),
    ) {
        let (n, dk, dv) = (run.len(), self.of.dk, self.of.dv);
        let ((keys, queries), (unit_keys, unit_queries)) = (sums.0.split_at_mut(n * dk), units.0.split_at_mut(n * dk));
        let mut at = 0;
        for (i, (sums, width)) in [(queries, dk), (keys, dk), (sums.1, dv)].into_iter().enumerate() {
            let all = self.of.heads * width;
            let u = (&u[i][sequence * span.len * all..], all, head * width);
            let len = (self.k() - 1) * width;
            let history = history.map(|history| &history[at..at + len]);
            at += len;
            let place = (run.clone(), span, (width, self.k()));
            conv_forward(cx, sums, u, history, (&self.taps[i], all, head * width), place);
            match i {
                0 => silu_unit_forward(cx, unit_queries, sums, Some(self.of.units[0]), gains, dk),
                1 => silu_unit_forward(cx, unit_keys, sums, Some(self.of.units[1]), gains, dk),
                _ => silu_unit_forward(cx, units.1, sums, None, gains, dv),
            }
        }
    }

    /// `g` and `beta` of rows `run` of one head of one sequence.
    pub(super) fn copy_gates(
        &self,
        (g, beta): (&mut [A::E], &mut [A::E]),
        gates: &[A::E],
        (sequence, head): (usize, usize),
        run: Range<usize>,
        t: usize,
    ) {
        let rows = gates[sequence * t * 2 * self.of.heads..].chunks_exact(2 * self.of.heads);
        for ((g, beta), row) in g.iter_mut().zip(beta).zip(rows.skip(run.start)) {
            (*g, *beta) = (row[head], row[self.of.heads + head]);
        }
    }

    /// The output's input, `m: [rows, H dv]`, from the gate and the rule's output; `normed` becomes that output with its norm,
    /// where there is one.
    pub(super) fn gated(&self, cx: &Exec, m: &mut [A], normed: &mut [A], gate: &[A], o: &[A], params: &[A::E]) {
        match &self.of.head_norm {
            None => gate_forward(cx, m, gate, o, self.of.act),
            Some(norm) => {
                norm.forward(cx, normed, o, params);
                gate_forward(cx, m, gate, normed, self.of.act);
            }
        }
    }
}
