//! From logits to a token.
//!
//! The chain, in the order of Hugging Face's `generate`: temperature, top-k, top-p, min-p, draw. Ties go to the lower
//! token id. Everything is computed from the request's own logits, seed and token count, so a request draws the
//! same tokens in any batch.

pub mod rng;

use crate::error::{Error, Result};
use crate::memory::{Scrubbed, Secret};

/// How a token is chosen. Checked by [`crate::Request`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; above, logits are divided by it.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens whose probabilities first sum to this.
    pub top_p: f32,
    /// Keep tokens at least this times as likely as the most likely one.
    pub min_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

/// The sampler's scratch: one key per token of the vocabulary, allocated once.
///
/// A key sorts by falling logit, then by rising id: the logit's bits made monotonous and inverted, above the id.
#[derive(Debug)]
pub struct Sampler {
    keys: Secret<Vec<u64>>,
}

impl Sampler {
    /// For a vocabulary of `vocab` tokens.
    pub fn new(vocab: usize) -> Self {
        Self { keys: Secret::<Vec<u64>>::with_capacity(vocab) }
    }

    /// Chooses the request's `index`-th token from its logits.
    ///
    /// # Errors
    /// A logit is not finite.
    pub fn sample(&mut self, logits: &[f32], sampling: &Sampling, index: u64) -> Result<u32> {
        if !logits.iter().fold(true, |finite, logit| finite & logit.is_finite()) {
            return Err(Error::NotFinite);
        }
        if sampling.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        let keys = self.keys.refill(logits.iter().enumerate().map(|(id, &logit)| key(logit, id as u32)));
        let draw = rng::uniform(sampling.seed, index);
        Ok(choose(keys, sampling, draw))
    }

    /// Overwrites the scratch.
    pub fn scrub(&mut self) -> Scrubbed {
        self.keys.wipe()
    }
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

fn key(logit: f32, id: u32) -> u64 {
    let bits = logit.to_bits();
    let rising = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!rising) << 32 | u64::from(id)
}

fn logit(key: u64) -> f32 {
    let rising = !((key >> 32) as u32);
    f32::from_bits(if rising >> 31 == 1 { rising & !(1 << 31) } else { !rising })
}

/// Filters `keys` and takes the token at `draw`, 0 to 1, of what is left.
fn choose(keys: &mut [u64], sampling: &Sampling, draw: f64) -> u32 {
    let mut keys = keys;
    if sampling.top_k > 0 && sampling.top_k < keys.len() {
        keys.select_nth_unstable(sampling.top_k - 1);
        keys = &mut keys[..sampling.top_k];
        keys.sort_unstable(); // sums below must not depend on the order of selection
    }
    let max = logit(*keys.iter().min().expect("a vocabulary is never empty"));
    let temperature = f64::from(sampling.temperature);
    let weight = |key: u64| (f64::from(logit(key) - max) / temperature).exp();
    let mut kept = keys.len();
    if sampling.top_p < 1.0 {
        let total: f64 = keys.iter().map(|&key| weight(key)).sum();
        kept = nucleus(keys, f64::from(sampling.top_p) * total, weight);
    }
    if sampling.min_p > 0.0 {
        let floor = f64::from(sampling.min_p);
        kept = partition(&mut keys[..kept], |key| weight(key) >= floor);
        keys[..kept].sort_unstable();
    }
    let kept = &keys[..kept];
    let mut left = draw * kept.iter().map(|&key| weight(key)).sum::<f64>();
    for &key in kept {
        left -= weight(key);
        if left < 0.0 {
            return key as u32;
        }
    }
    // Rounding may leave a trace of the sum: it belongs to the last token that has any weight.
    *kept.iter().rfind(|&&key| weight(key) > 0.0).expect("the most likely token has weight 1") as u32
}

/// Sorts as many of the most likely keys to the front as it takes to reach `wanted`; returns how many.
///
/// Sorting a vocabulary of 128k takes 8 ms; the nucleus is nearly always among the first few hundred.
fn nucleus(keys: &mut [u64], wanted: f64, weight: impl Fn(u64) -> f64) -> usize {
    let (mut sum, mut sorted, mut chunk) = (0.0, 0, 256);
    while sorted < keys.len() {
        let rest = &mut keys[sorted..];
        let count = chunk.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable(count - 1);
        }
        rest[..count].sort_unstable();
        for (i, &key) in rest[..count].iter().enumerate() {
            sum += weight(key);
            if sum >= wanted {
                return sorted + i + 1;
            }
        }
        sorted += count;
        chunk *= 8;
    }
    keys.len()
}

/// Moves the keys that pass to the front; returns how many.
fn partition(keys: &mut [u64], pass: impl Fn(u64) -> bool) -> usize {
    let mut kept = 0;
    for i in 0..keys.len() {
        if pass(keys[i]) {
            keys.swap(kept, i);
            kept += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

    /// Probabilities 0.5, 0.25, 0.15, 0.1 at ids 2, 0, 3, 1.
    fn keys() -> Vec<u64> {
        [0.25_f32, 0.1, 0.5, 0.15].iter().enumerate().map(|(id, p)| key(p.ln(), id as u32)).collect()
    }

    /// Which ids can come out, in order of first appearance over a sweep of draws.
    fn reachable(sampling: &Sampling) -> Vec<u32> {
        let mut ids = Vec::new();
        for i in 0..1000 {
            let id = choose(&mut keys(), sampling, f64::from(i) / 1000.0);
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        ids
    }

    #[test]
    fn keys_keep_the_logit_and_sort_by_it() {
        let logits = [f32::MIN, -3.5, -0.0, 0.0, 1e-40, 2.0, f32::MAX];
        for pair in logits.windows(2) {
            assert!(key(pair[0], 7) > key(pair[1], 7));
        }
        for value in logits {
            assert_eq!(logit(key(value, 9)).to_bits(), value.to_bits());
        }
    }

    #[test]
    fn filters_keep_what_their_definitions_say() {
        assert_eq!(reachable(&PLAIN), [0, 1, 2, 3]);
        assert_eq!(reachable(&Sampling { top_k: 2, ..PLAIN }), [0, 2]);
        assert_eq!(reachable(&Sampling { top_p: 0.5, ..PLAIN }), [2]);
        assert_eq!(reachable(&Sampling { top_p: 0.51, ..PLAIN }), [0, 2]);
        assert_eq!(reachable(&Sampling { top_p: 0.8, ..PLAIN }), [0, 2, 3]);
        assert_eq!(reachable(&Sampling { min_p: 0.29, ..PLAIN }), [0, 2, 3]);
        assert_eq!(reachable(&Sampling { min_p: 0.31, ..PLAIN }), [0, 2]);
        // top-p is over what top-k left: 0.5 / 0.75 reaches 0.6 alone
        assert_eq!(reachable(&Sampling { top_k: 2, top_p: 0.6, ..PLAIN }), [2]);
        // a low temperature sharpens before the nucleus is cut
        assert_eq!(reachable(&Sampling { temperature: 0.25, top_p: 0.9, ..PLAIN }), [2]);
    }

    #[test]
    fn a_large_nucleus_equals_a_full_sort() {
        let logits: Vec<f32> = (0..5000).map(|i| (rng::uniform(1, i) * 8.0) as f32).collect();
        let keys: Vec<u64> = logits.iter().enumerate().map(|(id, &l)| key(l, id as u32)).collect();
        let weight = |key: u64| f64::from(logit(key)).exp();
        let total: f64 = keys.iter().map(|&key| weight(key)).sum();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        for share in [0.01, 0.5, 0.9, 0.999] {
            let mut sum = 0.0;
            let expected = sorted
                .iter()
                .take_while(|&&key| {
                    let more = sum < share * total;
                    sum += weight(key);
                    more
                })
                .count();
            let mut mine = keys.clone();
            let kept = nucleus(&mut mine, share * total, weight);
            assert_eq!((kept, &mine[..kept]), (expected, &sorted[..expected]));
        }
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits: Vec<f32> = [0.25_f32, 0.1, 0.5, 0.15].iter().map(|p| p.ln()).collect();
        let mut sampler = Sampler::new(4);
        let mut counts = [0.0_f64; 4];
        for index in 0..20_000 {
            counts[sampler.sample(&logits, &PLAIN, index).unwrap() as usize] += 1.0;
        }
        let expected = [5000.0, 2000.0, 10_000.0, 3000.0];
        let chi_square: f64 = counts.iter().zip(expected).map(|(c, e)| (c - e) * (c - e) / e).sum();
        assert!(chi_square < 16.3, "chi-square {chi_square} with 3 degrees of freedom (p < 0.001)");
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_bad_logits_are_an_error() {
        let greedy = Sampling { temperature: 0.0, ..PLAIN };
        assert_eq!(Sampler::new(4).sample(&[1.0, 3.0, 3.0, 2.0], &greedy, 0).unwrap(), 1);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(matches!(Sampler::new(2).sample(&[1.0, bad], &PLAIN, 0), Err(Error::NotFinite)));
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (rng::uniform(3, i) * 4.0) as f32).collect();
        let run = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(100);
            (0..50).map(|i| sampler.sample(&logits, &Sampling { seed, ..PLAIN }, i).unwrap()).collect()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }
}
