use flashlm_kernels::{ops::*, *};
use std::time::Instant;
fn go<A: Store>(cx: &Exec, m: usize, n: usize, k: usize) {
    let a = vec![A::ZERO; m * k];
    let w = vec![A::ZERO; k * n];
    let mut p = Packed::<A>::new(k, n);
    p.pack(cx, &w, n, k, n);
    let mut c = vec![A::E::ZERO; m * n];
    let mut best = f64::MAX;
    for _ in 0..20 {
        let t = Instant::now();
        matmul(cx, &mut c, &a, k, &p, m, false);
        best = best.min(t.elapsed().as_secs_f64());
    }
    let x = vec![A::ZERO; k * n]; // tn: a [k,m]
    let mut s = Packed::<A>::new(k, n);
    let mut bt = f64::MAX;
    for _ in 0..20 {
        let t = Instant::now();
        matmul_tn(cx, &mut c, &mut s, &a, m, &x, n, (m, n, k), true);
        bt = bt.min(t.elapsed().as_secs_f64());
    }
    let f = 2.0 * (m * n * k) as f64 / 1e9;
    println!("{:>12} {:>5} {m}x{n}x{k}: nn {:.0} GFLOP/s  tn {:.0}", cx.isa().name(), A::NAME, f / best, f / bt);
}
fn main() {
    for isa in Isa::available() {
        if isa.name() == "scalar" {
            continue;
        }
        let cx = Exec::new(isa, 1);
        for (m, n, k) in [(56, 512, 192), (56, 192, 512), (2048, 512, 192), (512, 192, 2048)] {
            go::<f32>(&cx, m, n, k);
            go::<Bf16>(&cx, m, n, k);
        }
    }
}
