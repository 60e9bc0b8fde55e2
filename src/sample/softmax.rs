//! Logits as weights of a draw.
//!
//! A token's weight is e^((logit - max) / temperature): 1 for the most likely, never above. Probabilities are weights
//! over their sum, and are never written down.

use super::BANNED;
pub use crate::backend::cpu::exponential::BLOCK;
use crate::backend::cpu::exponential::{exp, sum_of_exponentials};
use crate::memory::Secret;

const LANES: usize = 16;

/// How logits become weights.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The largest logit.
    pub max: f32,
    /// Above 0.
    pub temperature: f64,
}

impl Scale {
    /// The weight's logarithm.
    pub fn exponent(self, logit: f32) -> f64 {
        f64::from(logit - self.max) / self.temperature
    }

    /// 0 to 1.
    pub fn weight(self, logit: f32) -> f64 {
        exp(self.exponent(logit))
    }

    /// A logit that is surely not above those with a weight of e^`exponent`: 0.001 is more than rounding takes.
    pub fn floor(self, exponent: f64) -> f32 {
        let exact = f64::from(self.max) + self.temperature * (exponent - 1e-3);
        (exact as f32).next_down().max(f32::MIN)
    }

    /// The sum of all weights.
    pub fn total(self, logits: &[f32]) -> f64 {
        logits.chunks(BLOCK).map(|block| self.sum(block)).sum()
    }

    /// The sum of up to [`BLOCK`] weights.
    fn sum(self, block: &[f32]) -> f64 {
        sum_of_exponentials(block, self.max, self.temperature)
    }

    /// The token at `draw`, 0 to 1, of all: tokens by rising id, each as wide as its weight. `sums` is a scratch.
    pub fn draw(self, logits: &[f32], sums: &mut Secret<[u64]>, draw: f64) -> u32 {
        let sums = sums.refill(logits.chunks(BLOCK).map(|block| self.sum(block).to_bits()));
        let mut left = draw * sums.iter().map(|&sum| f64::from_bits(sum)).sum::<f64>();
        for (at, &sum) in sums.iter().enumerate() {
            let sum = f64::from_bits(sum);
            if left < sum {
                let block = &logits[at * BLOCK..logits.len().min((at + 1) * BLOCK)];
                return (at * BLOCK + self.within(block, left)) as u32;
            }
            left -= sum;
        }
        // Rounding may leave a trace of the sum: it belongs to the last token that has any weight.
        logits.iter().rposition(|&logit| self.weight(logit) > 0.0).unwrap_or(0) as u32
    }

    /// The place at `left` of a block's weights, or the last with any weight.
    fn within(self, block: &[f32], mut left: f64) -> usize {
        let mut last = 0;
        for (at, &logit) in block.iter().enumerate() {
            let weight = self.weight(logit);
            left -= weight;
            if weight > 0.0 {
                last = at;
            }
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// The largest logit of each block of [`BLOCK`].
pub fn peaks(logits: &[f32]) -> impl ExactSizeIterator<Item = f32> {
    logits.chunks(BLOCK).map(largest)
}

/// The largest; [`BANNED`] of none.
pub fn largest(logits: &[f32]) -> f32 {
    let mut lanes = [BANNED; LANES];
    let rows = logits.chunks_exact(LANES);
    let rest = rows.remainder();
    for row in rows {
        for (lane, &logit) in lanes.iter_mut().zip(row) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(BANNED, |max, &logit| if logit > max { logit } else { max })
}

/// The first of the largest, which is `max`.
pub fn first_of(max: f32, logits: &[f32]) -> u32 {
    let has = |block: &[f32]| block.iter().fold(false, |any, &logit| any | (logit == max));
    let block = logits.chunks(BLOCK).position(has).unwrap_or(0);
    let within = logits[block * BLOCK..].iter().position(|&logit| logit == max).unwrap_or(0);
    (block * BLOCK + within) as u32
}

/// Whether no logit is infinite or not a number.
pub fn finite(logits: &[f32]) -> bool {
    logits.iter().fold(true, |finite, logit| finite & logit.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::rng::uniform;

    #[test]
    fn block_passes_equal_plain_loops() {
        for len in [1, 15, 16, 17, 63, 64, 65, 200] {
            let logits: Vec<f32> = (0..len).map(|i| (uniform(len, i) * 9.0) as f32 - 20.0).collect();
            let max = logits.iter().copied().fold(BANNED, f32::max);
            assert_eq!(largest(&logits), max);
            assert_eq!(peaks(&logits).fold(BANNED, f32::max), max);
            assert_eq!(first_of(max, &logits) as usize, logits.iter().position(|&l| l == max).unwrap());
            let scale = Scale { max, temperature: 0.7 };
            let plain: f64 = logits.iter().map(|&l| (f64::from(l - max) / 0.7).exp()).sum();
            assert!((scale.total(&logits) / plain - 1.0).abs() < 1e-14);
        }
        assert_eq!(first_of(5.0, &[1.0, 5.0, 5.0]), 1);
        assert!(finite(&[0.0; 70]) && finite(&[]));
        for bad in [f32::NAN, f32::INFINITY, BANNED] {
            assert!(!finite(&[0.0, bad]));
        }
    }

    #[test]
    fn a_floor_is_never_too_high() {
        for i in 0..20_000 {
            let max = ((uniform(2, 2 * i) - 0.5) * 10_f64.powi((i % 30) as i32)) as f32;
            let scale = Scale { max, temperature: 0.001 + uniform(3, i) * 2.0 };
            let exponent = -60.0 * uniform(2, 2 * i + 1);
            let floor = scale.floor(exponent);
            assert!(scale.exponent(floor.next_down()) < exponent, "a token above the bound would be missed");
        }
        assert_eq!(Scale { max: f32::MIN, temperature: 2.0 }.floor(-60.0), f32::MIN);
    }

    #[test]
    fn a_draw_is_a_place_in_the_running_sum() {
        let logits: Vec<f32> =
            (0..150).map(|i| if i % 7 == 0 { BANNED } else { -(i as f32) / 50.0 }).collect();
        let scale = Scale { max: largest(&logits), temperature: 1.0 };
        let mut sums = Secret::default();
        let total = scale.total(&logits);
        let mut before = 0.0;
        for (id, &logit) in logits.iter().enumerate() {
            let weight = scale.weight(logit);
            if weight > 0.0 {
                let middle = (before + weight / 2.0) / total;
                assert_eq!(scale.draw(&logits, &mut sums, middle), id as u32);
            }
            before += weight;
        }
        assert_eq!(scale.draw(&logits, &mut sums, 0.0), 1, "never a banned token");
        assert_eq!(scale.draw(&logits, &mut sums, 1.0), 149, "rounding's trace belongs to the last");
    }
}
