//! top-k, top-p, min-p, typical-p: from all tokens to a short list.
//!
//! A token is a key that sorts by falling logit, then by rising id: the logit's bits made monotonous and inverted,
//! above the id. No filter sorts the vocabulary. Each first finds a logit below which nothing can be kept, then
//! collects what is not below it, passing over whole blocks by their largest logit; what is left is a few hundred keys.
//! Only typical-p on its own, whose tokens may be anywhere, selects among all.

use super::BANNED;
use super::settings::Sampling;
use super::softmax::{BLOCK, Scale, peaks};
use crate::memory::{Scrubbed, Secret};

/// The scratch of the filters, planned for a vocabulary.
#[derive(Debug)]
pub struct Filters {
    /// The largest logit of each block.
    peaks: Secret<[f32]>,
    keys: Secret<[u64]>,
}

impl Filters {
    pub fn new(vocab: usize) -> Self {
        let blocks = vocab.div_ceil(BLOCK);
        let keys = blocks * BLOCK;
        Self { peaks: Secret::<[f32]>::with_capacity(blocks), keys: Secret::<[u64]>::with_capacity(keys) }
    }

    /// Draws the token at `draw`, 0 to 1, of what the filters keep; `None` if every logit is [`BANNED`].
    pub fn sample_row(&mut self, logits: &[f32], sampling: &Sampling, draw: f64) -> Option<u32> {
        let Some((scale, keys)) = self.keep(logits, sampling)? else {
            let scale = self.scale(sampling)?;
            return Some(scale.draw(logits, &mut self.keys, draw));
        };
        let weight = |&key: &u64| scale.weight(logit(key));
        let mut left = draw * keys.iter().map(weight).sum::<f64>();
        for key in keys.iter() {
            left -= weight(key);
            if left < 0.0 {
                return Some(*key as u32);
            }
        }
        // Rounding may leave a trace of the sum: it belongs to the last token that has any weight.
        keys.iter().rfind(|&key| weight(key) > 0.0).map(|&key| key as u32)
    }

    /// What the filters keep, the most likely first: each works on what those before it left, in the order of Hugging
    /// Face's `generate`. `Some(None)` if they are off and all is kept; `None` if every logit is [`BANNED`].
    pub fn keep(&mut self, logits: &[f32], sampling: &Sampling) -> Option<Option<(Scale, &mut [u64])>> {
        self.peaks.refill(peaks(logits));
        let scale = self.scale(sampling)?;
        let by_top_k = (1..logits.len()).contains(&sampling.top_k);
        let by_top_p = sampling.top_p < 1.0;
        let peaks = self.peaks.expose();
        let mut keys = if by_top_k {
            most_likely(logits, sampling.top_k, peaks, &mut self.keys)
        } else if by_top_p {
            // Tokens below an equal part of what top-p leaves out cannot, together, be a part of what it keeps. Half of
            // that is lost to rounding and more.
            let total = scale.total(logits);
            let part = (1.0 - f64::from(sampling.top_p)) * total / logits.len() as f64 / 2.0;
            let keys = collect(logits, scale.floor(part.ln()), peaks, &mut self.keys);
            nucleus(keys, f64::from(sampling.top_p) * total, |key| scale.weight(logit(key)))
        } else if sampling.min_p > 0.0 {
            let keys = collect(logits, scale.floor(f64::from(sampling.min_p).ln()), peaks, &mut self.keys);
            keys.sort_unstable();
            keys
        } else if sampling.typical_p < 1.0 {
            collect(logits, f32::MIN, peaks, &mut self.keys)
        } else {
            return Some(None);
        };
        if by_top_k && by_top_p {
            let total: f64 = keys.iter().map(|&key| scale.weight(logit(key))).sum();
            keys = nucleus(keys, f64::from(sampling.top_p) * total, |key| scale.weight(logit(key)));
        }
        if sampling.min_p > 0.0 {
            let likely = |key: &u64| scale.weight(logit(*key)) >= f64::from(sampling.min_p);
            let kept = keys.partition_point(likely);
            keys = &mut keys[..kept];
        }
        if sampling.typical_p < 1.0 {
            keys = typical(keys, f64::from(sampling.typical_p), logits, scale);
        }
        Some(Some((scale, keys)))
    }

    /// The `count` most likely tokens, the most likely first, as id and logit.
    pub fn top<'a>(
        &'a mut self,
        logits: &[f32],
        count: usize,
    ) -> impl ExactSizeIterator<Item = (u32, f32)> + use<'a> {
        self.peaks.refill(peaks(logits));
        let keys = most_likely(logits, count.min(logits.len()), self.peaks.expose(), &mut self.keys);
        keys.iter().map(|&key| (key as u32, logit(key)))
    }

    /// Overwrites the scratch.
    pub fn wipe(&mut self) -> Scrubbed {
        self.peaks.wipe().and(self.keys.wipe())
    }

    fn scale(&self, sampling: &Sampling) -> Option<Scale> {
        let max = super::softmax::largest(self.peaks.expose());
        (max != BANNED).then_some(Scale { max, temperature: f64::from(sampling.temperature) })
    }
}

fn key(logit: f32, id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits(); // 0 for -0: they are equal, and so the lower id comes first
    let rising = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!rising) << 32 | u64::from(id)
}

fn logit(key: u64) -> f32 {
    let rising = !((key >> 32) as u32);
    f32::from_bits(if rising >> 31 == 1 { rising & !(1 << 31) } else { !rising })
}

/// The `count` smallest keys, sorted; fewer where more are banned.
///
/// The most likely tokens. The `count`-th largest of the blocks' largest logits bounds the `count`-th largest of all from below.
fn most_likely<'a>(
    logits: &[f32],
    count: usize,
    peaks: &[f32],
    keys: &'a mut Secret<[u64]>,
) -> &'a mut [u64] {
    let mut floor = f32::MIN;
    if (1..=peaks.len()).contains(&count) {
        let tops = keys.refill(peaks.iter().map(|&peak| key(peak, 0)));
        let (_, bound, _) = tops.select_nth_unstable(count - 1);
        floor = logit(*bound).max(f32::MIN);
    }
    let keys = collect(logits, floor, peaks, keys);
    let count = count.min(keys.len());
    if (1..keys.len()).contains(&count) {
        keys.select_nth_unstable(count - 1);
    }
    let keys = &mut keys[..count];
    keys.sort_unstable();
    keys
}

/// The keys of all logits from `floor` on, by rising id.
fn collect<'a>(logits: &[f32], floor: f32, peaks: &[f32], keys: &'a mut Secret<[u64]>) -> &'a mut [u64] {
    let most = peaks.iter().filter(|&&peak| peak >= floor).count() * BLOCK;
    let keys = keys.refill(std::iter::repeat_n(0, most));
    let mut count = 0;
    for (at, (block, &peak)) in logits.chunks(BLOCK).zip(peaks).enumerate() {
        if peak < floor {
            continue;
        }
        for (within, &logit) in block.iter().enumerate() {
            // without a branch: written always, kept or written over
            keys[count] = key(logit, (at * BLOCK + within) as u32);
            count += usize::from(logit >= floor);
        }
    }
    &mut keys[..count]
}

/// The smallest keys whose weights first sum to `wanted`, sorted.
///
/// The smallest are nearly always enough: they are selected in chunks, so that the rest is never sorted.
fn nucleus(keys: &mut [u64], wanted: f64, weight: impl Fn(u64) -> f64) -> &mut [u64] {
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
                return &mut keys[..=sorted + i];
            }
        }
        sorted += count;
        chunk *= 8;
    }
    keys
}

/// The keys whose surprise is nearest to the expected one, until they are `mass` of all; sorted.
///
/// Surprise is -ln p, the expected one the entropy. Ties go to the lower id.
fn typical<'a>(keys: &'a mut [u64], mass: f64, logits: &[f32], scale: Scale) -> &'a mut [u64] {
    let (mut total, mut moment) = (0.0, 0.0);
    for &key in keys.iter() {
        let (exponent, weight) = (scale.exponent(logit(key)), scale.weight(logit(key)));
        total += weight;
        if weight > 0.0 {
            moment += weight * exponent;
        }
    }
    // -ln p = ln total - exponent, and the entropy is ln total - moment / total
    let expected = moment / total;
    for key in keys.iter_mut() {
        let distance = (scale.exponent(logit(*key)) - expected).abs() as f32;
        *key = u64::from(distance.to_bits()) << 32 | *key & u64::from(u32::MAX);
    }
    let of = |key: u64| logits[key as u32 as usize];
    let kept = nucleus(keys, mass * total, |key| scale.weight(of(key)));
    for kept in kept.iter_mut() {
        *kept = key(of(*kept), *kept as u32);
    }
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::rng::uniform;

    fn keys_of(logits: &[f32]) -> Vec<u64> {
        logits.iter().enumerate().map(|(id, &l)| key(l, id as u32)).collect()
    }

    #[test]
    fn keys_keep_the_logit_and_sort_by_it() {
        let logits = [BANNED, f32::MIN, -3.5, -1e-40, 0.0, 1e-40, 2.0, f32::MAX];
        for pair in logits.windows(2) {
            assert!(key(pair[0], 7) > key(pair[1], 7));
        }
        for value in logits {
            assert_eq!(logit(key(value, 9)).to_bits(), value.to_bits());
        }
        assert!(key(-0.0, 1) < key(0.0, 2) && key(0.0, 1) < key(-0.0, 2), "equal logits sort by id");
    }

    #[test]
    fn a_large_nucleus_equals_a_full_sort() {
        let logits: Vec<f32> = (0..5000).map(|i| (uniform(1, i) * 8.0) as f32).collect();
        let keys = keys_of(&logits);
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
            assert_eq!(nucleus(&mut mine, share * total, weight), &sorted[..expected]);
        }
    }

    #[test]
    fn the_most_likely_equal_a_full_sort() {
        let mut filters = Filters::new(1000);
        for case in 0..300 {
            let len = 1 + (uniform(4, case) * 999.0) as u64;
            let steps = if case % 2 == 0 { 1e6 } else { 6.0 }; // with many ties
            let value = |i| (uniform(case, i) * steps).floor() as f32;
            let logits: Vec<f32> =
                (0..len).map(|i| if uniform(5, i + case) < 0.3 { BANNED } else { value(i) }).collect();
            let mut sorted = keys_of(&logits);
            sorted.sort_unstable();
            sorted.retain(|&key| logit(key) != BANNED);
            for count in [0, 1, 2, 7, 40, 500, 1000] {
                let expected: Vec<_> =
                    sorted.iter().take(count).map(|&key| (key as u32, logit(key))).collect();
                assert_eq!(filters.top(&logits, count).collect::<Vec<_>>(), expected);
            }
        }
    }
}
