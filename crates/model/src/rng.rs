//! The random number generator of the whole project: xoshiro256++, seeded by splitmix64.
//!
//! ```text
//! r = rotl(s0 + s3, 23) + s0;  t = s1 << 17;  s2 ^= s0;  s3 ^= s1;  s1 ^= s2;  s0 ^= s3;  s2 ^= t;  s3 = rotl(s3, 45)
//! ```
//!
//! The state is four words and nothing else (no cached half of a normal pair), so a checkpoint that keeps them
//! continues the very same stream. Integers and `uniform` are identical on every machine; `normal` goes
//! through the platform's `ln` and `cos` and may differ in the last bit between platforms.
//! Sources: Blackman and Vigna, "Scrambled Linear Pseudorandom Number Generators" (arXiv 1805.01407);
//! bounded integers: Lemire, arXiv 1805.10941; normals: Box and Muller 1958.

/// A stream of pseudo-random numbers. Not for cryptography.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    s: [u64; 4],
}

/// One step of splitmix64: advances `x` and returns the next word.
fn splitmix64(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *x;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// A stream for `seed`; any seed is good, neighbouring seeds give unrelated streams.
    pub fn new(mut seed: u64) -> Self {
        Self { s: std::array::from_fn(|_| splitmix64(&mut seed)) }
    }

    /// The whole state, to be given back to [`Rng::from_state`].
    pub fn state(&self) -> [u64; 4] {
        self.s
    }

    /// Continues a stream where [`Rng::state`] left it. `None` for four zeros, which no stream can reach and
    /// which would give zeros for ever.
    pub fn from_state(s: [u64; 4]) -> Option<Self> {
        (s != [0; 4]).then_some(Self { s })
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.s;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    /// Standard normal: `sqrt(-2 ln u) cos(2 pi v)` with `u` in `(0, 1]`. Always takes two words.
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.uniform();
        let v = self.uniform();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Uniform in `0..n`, without bias.
    ///
    /// # Panics
    /// If `n` is zero: there is no number to return.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "Rng::below needs n > 0");
        // The high half of x * n is the answer. Each answer has floor(2^64 / n) or one more x that lead to it;
        // low halves under 2^64 mod n are the surplus and are drawn again.
        let surplus = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= surplus {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_reference_words() {
        // Output of the authors' splitmix64.c, as quoted in the tests of the crate rand_xoshiro.
        let mut x = 1477776061723855037;
        let expected = [
            1985237415132408290,
            2979275885539914483,
            13511426838097143398,
            8488337342461049707,
            15141737807933549159,
            17093170987380407015,
        ];
        assert_eq!(expected, std::array::from_fn(|_| splitmix64(&mut x)));
    }

    #[test]
    fn xoshiro_gives_the_reference_words() {
        // Output of the authors' xoshiro256plusplus.c, as quoted in the tests of the crate rand.
        let mut rng = Rng::from_state([1, 2, 3, 4]).unwrap();
        let expected = [
            41943041,
            58720359,
            3588806011781223,
            3591011842654386,
            9228616714210784205,
            9973669472204895162,
            14011001112246962877,
            12406186145184390807,
            15849039046786891736,
            10450023813501588000,
        ];
        assert_eq!(expected, std::array::from_fn(|_| rng.next_u64()));
    }

    #[test]
    fn seeding_gives_the_reference_words() {
        // Seed 0 through splitmix64, as quoted in the tests of the crate rand.
        let mut rng = Rng::new(0);
        let expected = [5987356902031041503, 7051070477665621255, 6633766593972829180, 211316841551650330];
        assert_eq!(expected, std::array::from_fn(|_| rng.next_u64()));
    }

    #[test]
    fn the_state_is_the_whole_state() {
        let mut a = Rng::new(7);
        for take in 0..9 {
            // An odd number of normals: a cached half would make the streams part.
            for _ in 0..take {
                a.normal();
            }
            let mut b = Rng::from_state(a.state()).unwrap();
            let draw = |r: &mut Rng| (r.normal().to_bits(), r.uniform().to_bits(), r.below(10));
            assert_eq!(draw(&mut a), draw(&mut b));
        }
        assert_eq!(Rng::from_state([0; 4]), None);
    }

    #[test]
    fn uniform_is_the_top_53_bits() {
        let (mut a, mut b) = (Rng::new(3), Rng::new(3));
        for _ in 0..1000 {
            let u = a.uniform();
            assert!((0.0..1.0).contains(&u));
            assert_eq!(u * 9007199254740992.0, (b.next_u64() >> 11) as f64);
        }
    }

    #[test]
    fn normal_has_the_moments_of_a_normal() {
        let n = 400_000;
        let mut rng = Rng::new(11);
        let (mut sum, mut inside) = ([0f64; 4], [0f64; 2]);
        for _ in 0..n {
            let x = rng.normal();
            for (power, s) in sum.iter_mut().enumerate() {
                *s += x.powi(power as i32 + 1);
            }
            inside[0] += f64::from(u8::from(x.abs() < 1.0));
            inside[1] += f64::from(u8::from(x.abs() < 2.0));
        }
        // E x^k = 0, 1, 0, 3 with variances 1, 2, 15, 96; P(|x| < 1) and P(|x| < 2) from tables. Five sigma.
        let close = |sum: f64, mean: f64, var: f64| {
            let error = (sum / f64::from(n) - mean).abs();
            assert!(error < 5.0 * (var / f64::from(n)).sqrt(), "{error}");
        };
        close(sum[0], 0.0, 1.0);
        close(sum[1], 1.0, 2.0);
        close(sum[2], 0.0, 15.0);
        close(sum[3], 3.0, 96.0);
        close(inside[0], 0.682_689_492_1, 0.217);
        close(inside[1], 0.954_499_736_1, 0.0435);
    }

    #[test]
    fn below_is_unbiased() {
        let mut rng = Rng::new(5);
        for n in [1u64, 2, 3, 10, 61] {
            let mut counts = vec![0f64; n as usize];
            let draws = 20_000 * n;
            for _ in 0..draws {
                counts[rng.below(n) as usize] += 1.0;
            }
            let chi2: f64 = counts.iter().map(|c| (c - 2e4) * (c - 2e4) / 2e4).sum();
            let freedom = (n - 1) as f64;
            assert!(chi2 <= freedom + 5.0 * (2.0 * freedom).sqrt(), "{n}: {chi2}");
        }
        // With n = 3/4 of 2^64, a plain multiply without rejection would give every third number twice as often.
        let n = 3u64 << 62;
        let thirds = (0..30_000).filter(|_| rng.below(n).is_multiple_of(3)).count() as f64;
        assert!((thirds - 1e4).abs() < 5.0 * (3e4f64 * 2.0 / 9.0).sqrt(), "{thirds}");
    }
}
