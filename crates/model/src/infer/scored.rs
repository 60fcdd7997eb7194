//! How likely a model holds tokens to be: its own probabilities, before temperature, penalties, biases and bans.
//!
//! `ln p(token) = z[token] - ln sum exp z`, in nats, from f32 logits `z: [V]`. The same bits however the work is batched, and for a
//! token among the likeliest as for the one that came.

use std::cmp::Ordering;

use flashlm_kernels::Token;

/// One position of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// `ln p` of the token that came.
    pub log_prob: f64,
    /// The likeliest tokens and `ln p` of each, the likeliest first; of equals the lower id.
    pub top: Vec<(Token, f64)>,
}

impl Scored {
    /// `token` after the logits `z`, whose `ln sum exp` is `sum`, and the `top` likeliest.
    pub(crate) fn set(&mut self, z: &[f32], sum: f64, token: Token, top: usize) {
        let log_prob = |token: Token| f64::from(z[usize::from(token)]) - sum;
        self.log_prob = log_prob(token);
        self.top.clear();
        for (id, &x) in (0..=Token::MAX).zip(z) {
            let least = self.top.last().filter(|_| self.top.len() >= top).map(|last| z[usize::from(last.0)]);
            if top == 0 || least.is_some_and(|least| x <= least) {
                continue;
            }
            self.top.truncate(top - 1);
            let at = self.top.partition_point(|(id, _)| z[usize::from(*id)].total_cmp(&x) != Ordering::Less);
            self.top.insert(at, (id, log_prob(id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn the_likeliest_are_those_of_a_sort() {
        let (mut rng, mut scored) = (Rng::new(3), Scored::default());
        for round in 0..200 {
            // Rounded: ties are common.
            let z: Vec<f32> = (0..40).map(|_| (rng.uniform() * 20.0).round() as f32).collect();
            let top = round % 50;
            let mut sorted: Vec<Token> = (0..40).collect();
            sorted.sort_by(|a, b| z[usize::from(*b)].total_cmp(&z[usize::from(*a)]).then(a.cmp(b)));
            scored.set(&z, 2.5, 7, top);
            let wanted: Vec<_> =
                sorted.into_iter().take(top).map(|id| (id, f64::from(z[usize::from(id)]) - 2.5)).collect();
            assert_eq!((&scored.top, scored.log_prob), (&wanted, f64::from(z[7]) - 2.5));
        }
    }
}
