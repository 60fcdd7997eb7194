//! The first `k` columns of `U S` of a tall matrix `W = U S V^T: [n, d]`, which is `W V_k`: what is left of `W` in `k` dimensions with the
//! least squared error.
//!
//! `V` are the eigenvectors of `W^T W: [d, d]`, summed in f64. They come from Householder's tridiagonal form and the QL iteration with
//! implicit shifts (EISPACK's `tred2` and `tql2`). Of the two signs of a column that is taken which makes its entry in `V` of the
//! largest magnitude positive, so that the same matrix always gives the same numbers, on any number of threads.

use flashlm_kernels::Exec;
use flashlm_kernels::tile::Rows;

/// Columns, or rows, of a tile.
const TILE: usize = 16;
/// Most steps of the iteration for an eigenvalue.
const STEPS: usize = 60;

/// What is left of a matrix.
pub struct Truncated {
    /// `U S`, `[n, k]`.
    pub values: Vec<f32>,
    /// The part of the sum of squares that it has.
    pub kept: f64,
}

/// `w: [n, d]` in `k <= d` dimensions; none where it is not of finite numbers, or `stop` says so on the way.
pub fn truncated(cx: &Exec, w: &[f32], (d, k): (usize, usize), stop: &dyn Fn() -> bool) -> Option<Truncated> {
    assert!(d > 0 && k <= d && w.len().is_multiple_of(d));
    if w.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let mut gram = vec![0.0f64; d * d];
    cx.tiles_by(TILE, d, (Rows(&mut gram, d),), |_, r, (gram,), local| {
        let wide = local.take::<f64>(d);
        gram.fill(0.0);
        for w in w.chunks_exact(d) {
            wide.iter_mut().zip(w).for_each(|(wide, &w)| *wide = f64::from(w));
            for (i, gram) in r.clone().zip(gram.chunks_exact_mut(d)) {
                // The other half follows by symmetry.
                let x = wide[i];
                gram[i..].iter_mut().zip(&wide[i..]).for_each(|(gram, y)| *gram += x * y);
            }
        }
    });
    for i in 0..d {
        (0..i).for_each(|j| gram[i * d + j] = gram[j * d + i]);
    }
    let eigenvalues = eigen(&mut gram, d, stop)?;
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&a, &b| eigenvalues[b].total_cmp(&eigenvalues[a]).then(a.cmp(&b)));
    // `V_k`, `[d, k]`.
    let mut v = vec![0.0f64; d * k];
    for (to, &from) in order[..k].iter().enumerate() {
        let column = |i: usize| gram[i * d + from];
        let largest = (0..d).fold(0.0f64, |most, i| if column(i).abs() > most.abs() { column(i) } else { most });
        (0..d).for_each(|i| v[i * k + to] = column(i) * largest.signum());
    }
    let mut values = vec![0.0f32; w.len() / d * k];
    cx.tiles_by(TILE, w.len() / d, (Rows(&mut values, k),), |_, r, (values,), local| {
        let sum = local.take::<f64>(k);
        for (values, w) in values.chunks_exact_mut(k.max(1)).zip(w[r.start * d..].chunks_exact(d)) {
            sum.fill(0.0);
            for (&w, v) in w.iter().zip(v.chunks_exact(k.max(1))) {
                let w = f64::from(w);
                sum.iter_mut().zip(v).for_each(|(sum, v)| *sum += w * v);
            }
            values.iter_mut().zip(&*sum).for_each(|(value, &sum)| *value = sum as f32);
        }
    });
    let all: f64 = eigenvalues.iter().map(|l| l.max(0.0)).sum();
    let kept: f64 = order[..k].iter().map(|&i| eigenvalues[i].max(0.0)).sum();
    Some(Truncated { values, kept: if all > 0.0 { kept / all } else { 1.0 } })
}

/// Turns a symmetric `a: [n, n]` into its eigenvectors, a column each, and returns the eigenvalues in the same order; none where the
/// iteration does not end.
fn eigen(a: &mut [f64], n: usize, stop: &dyn Fn() -> bool) -> Option<Vec<f64>> {
    let (mut d, mut e) = (vec![0.0; n], vec![0.0; n]);
    if !tridiagonal(a, n, &mut d, &mut e, stop) {
        return None;
    }
    e.copy_within(1.., 0);
    e[n - 1] = 0.0;
    let (mut shift, mut size) = (0.0f64, 0.0f64);
    // Rows of the turned matrix, so that a rotation works on neighbours in memory.
    let mut turned = vec![0.0; n * n];
    (0..n * n).for_each(|at| turned[at % n * n + at / n] = a[at]);
    for l in 0..n {
        if stop() {
            return None;
        }
        size = size.max(d[l].abs() + e[l].abs());
        let small = (l..n).find(|&m| e[m].abs() <= f64::EPSILON * size).unwrap_or(n - 1);
        let mut steps = if small > l { STEPS } else { 0 };
        while steps > 0 {
            steps -= 1;
            let (g, p) = (d[l], (d[l + 1] - d[l]) / (2.0 * e[l]));
            let r = p.hypot(1.0).copysign(p);
            d[l] = e[l] / (p + r);
            d[l + 1] = e[l] * (p + r);
            let (next, h) = (d[l + 1], g - d[l]);
            d[l + 2..].iter_mut().for_each(|d| *d -= h);
            shift += h;
            let (mut p, mut c, mut c2, mut c3, mut s, mut s2) = (d[small], 1.0f64, 1.0, 1.0, 0.0, 0.0);
            let below = e[l + 1];
            for i in (l..small).rev() {
                (c3, c2, s2) = (c2, c, s);
                let (g, h) = (c * e[i], c * p);
                let r = p.hypot(e[i]);
                e[i + 1] = s * r;
                (s, c) = (e[i] / r, p / r);
                p = c * d[i] - s * g;
                d[i + 1] = h + s * (c * g + s * d[i]);
                let (low, high) = turned.split_at_mut((i + 1) * n);
                for (v, w) in low[i * n..].iter_mut().zip(&mut high[..n]) {
                    let h = *w;
                    *w = s * *v + c * h;
                    *v = c * *v - s * h;
                }
            }
            p = -s * s2 * c3 * below * e[l] / next;
            e[l] = s * p;
            d[l] = c * p;
            if e[l].abs() <= f64::EPSILON * size {
                break;
            }
            if steps == 0 {
                return None;
            }
        }
        d[l] += shift;
        e[l] = 0.0;
    }
    (0..n * n).for_each(|at| a[at] = turned[at % n * n + at / n]);
    Some(d)
}

/// Householder's reduction of a symmetric `a` to a tridiagonal matrix: `d` on the diagonal, `e[1..]` below it; `a` becomes the orthogonal
/// matrix that leads there; whether `stop` let it.
fn tridiagonal(a: &mut [f64], n: usize, d: &mut [f64], e: &mut [f64], stop: &dyn Fn() -> bool) -> bool {
    let at = |i: usize, j: usize| i * n + j;
    d.copy_from_slice(&a[at(n - 1, 0)..]);
    for i in (1..n).rev() {
        if stop() {
            return false;
        }
        let scale: f64 = d[..i].iter().map(|d| d.abs()).sum();
        let mut h = 0.0;
        if scale == 0.0 {
            e[i] = d[i - 1];
            for j in 0..i {
                d[j] = a[at(i - 1, j)];
                (a[at(i, j)], a[at(j, i)]) = (0.0, 0.0);
            }
        } else {
            for d in &mut d[..i] {
                *d /= scale;
                h += *d * *d;
            }
            let f = d[i - 1];
            let g = -h.sqrt().copysign(f);
            e[i] = scale * g;
            h -= f * g;
            d[i - 1] = f - g;
            e[..i].fill(0.0);
            for j in 0..i {
                let f = d[j];
                a[at(j, i)] = f;
                let mut g = e[j] + a[at(j, j)] * f;
                for k in j + 1..i {
                    g += a[at(k, j)] * d[k];
                    e[k] += a[at(k, j)] * f;
                }
                e[j] = g;
            }
            let mut f = 0.0;
            for j in 0..i {
                e[j] /= h;
                f += e[j] * d[j];
            }
            let hh = f / (h + h);
            for j in 0..i {
                e[j] -= hh * d[j];
            }
            for j in 0..i {
                let (f, g) = (d[j], e[j]);
                for k in j..i {
                    a[at(k, j)] -= f * e[k] + g * d[k];
                }
                d[j] = a[at(i - 1, j)];
                a[at(i, j)] = 0.0;
            }
        }
        d[i] = h;
    }
    for i in 0..n - 1 {
        if stop() {
            return false;
        }
        a[at(n - 1, i)] = a[at(i, i)];
        a[at(i, i)] = 1.0;
        let h = d[i + 1];
        if h != 0.0 {
            for k in 0..=i {
                d[k] = a[at(k, i + 1)] / h;
            }
            for j in 0..=i {
                let g: f64 = (0..=i).map(|k| a[at(k, i + 1)] * a[at(k, j)]).sum();
                (0..=i).for_each(|k| a[at(k, j)] -= g * d[k]);
            }
        }
        (0..=i).for_each(|k| a[at(k, i + 1)] = 0.0);
    }
    for j in 0..n {
        d[j] = a[at(n - 1, j)];
        a[at(n - 1, j)] = 0.0;
    }
    a[at(n - 1, n - 1)] = 1.0;
    e[0] = 0.0;
    true
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::Isa;
    use flashlm_model::rng::Rng;

    use super::*;

    /// A matrix made of a known `U S V^T`: singular values 9, 5, 2 and 0.5, vectors by Gram and Schmidt.
    #[test]
    fn a_matrix_of_known_singular_values_is_cut_where_it_should_be() {
        let (n, d, singular) = (60, 7, [9.0, 5.0, 2.0, 0.5]);
        let mut rng = Rng::new(3);
        let mut orthonormal = |len: usize| {
            let mut all: Vec<Vec<f64>> = Vec::new();
            while all.len() < singular.len() {
                let mut x: Vec<f64> = (0..len).map(|_| rng.normal()).collect();
                for before in &all {
                    let dot: f64 = x.iter().zip(before).map(|(x, y)| x * y).sum();
                    x.iter_mut().zip(before).for_each(|(x, y)| *x -= dot * y);
                }
                let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                all.push(x.into_iter().map(|x| x / norm).collect());
            }
            all
        };
        let (u, v) = (orthonormal(n), orthonormal(d));
        let entry = |i: usize, j: usize| (0..4).map(|s| singular[s] * u[s][i] * v[s][j]).sum::<f64>();
        let w: Vec<f32> = (0..n * d).map(|at| entry(at / d, at % d) as f32).collect();
        for k in 0..=4 {
            let one = truncated(&Exec::new(Isa::SCALAR, 1), &w, (d, k), &|| false).unwrap();
            let more = truncated(&Exec::new(Isa::detect().unwrap(), 3), &w, (d, k), &|| false).unwrap();
            assert!(one.values == more.values, "threads");
            let squares = |part: &[f64]| part.iter().map(|s| s * s).sum::<f64>();
            let want = squares(&singular[..k]) / squares(&singular);
            assert!((one.kept - want).abs() < 1e-6, "{k}: {} for {want}", one.kept);
            for s in 0..k {
                // Up to the sign, which is that of the largest entry of `v`.
                let largest = v[s].iter().fold(0.0f64, |most, &x| if x.abs() > most.abs() { x } else { most });
                for (i, u) in u[s].iter().enumerate() {
                    let want = singular[s] * u * largest.signum();
                    let got = f64::from(one.values[i * k + s]);
                    assert!((got - want).abs() < 1e-5, "{got} for {want} at {i}, {s} of {k}");
                }
            }
        }
        assert!(truncated(&Exec::new(Isa::SCALAR, 1), &[1.0, f32::NAN], (2, 1), &|| false).is_none());
        let zeros = truncated(&Exec::new(Isa::SCALAR, 1), &[0.0; 12], (3, 2), &|| false).unwrap();
        assert_eq!((zeros.values, zeros.kept), (vec![0.0; 8], 1.0));
    }

    /// Wider: what is left of noise keeps all distances where nothing is cut.
    #[test]
    fn all_dimensions_keep_every_product_of_rows() {
        let (n, d) = (90, 64);
        let mut rng = Rng::new(5);
        let w: Vec<f32> = (0..n * d).map(|_| rng.normal() as f32).collect();
        let all = truncated(&Exec::new(Isa::SCALAR, 2), &w, (d, d), &|| false).unwrap();
        let dot = |m: &[f32], i: usize, j: usize| -> f64 {
            (0..d).map(|c| f64::from(m[i * d + c]) * f64::from(m[j * d + c])).sum()
        };
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            assert!((dot(&w, i, j) - dot(&all.values, i, j)).abs() < 1e-4, "{i}, {j}");
        }
        assert!((all.kept - 1.0).abs() < 1e-12);
        assert!(truncated(&Exec::new(Isa::SCALAR, 2), &w, (d, d), &|| true).is_none());
    }
}
