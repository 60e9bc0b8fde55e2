//! What the model thought of its tokens: logarithms of their probabilities.
//!
//! They are those of the raw logits, before bias, mask, penalties and temperature: vLLM's default.

use std::fmt;

use super::Sampler;
use super::softmax::{Scale, finite, largest};
use crate::backend::sample_batch::Answer;
use crate::error::{Error, Result};
use crate::memory::Secret;

/// One record for each token of a reply, in order. Overwritten when it drops; `Debug` prints lengths only.
#[derive(Default)]
pub struct Logprobs {
    /// Most likely tokens in a record, at most.
    top: usize,
    /// Records of `width` words: token, logprob, rank, number of most likely tokens, and `top` pairs of id and logprob.
    words: Secret<[u32]>,
}

/// What is known of one token.
#[derive(Clone, Copy)]
pub struct TokenLogprobs<'a> {
    /// Its id.
    pub token: u32,
    /// ln of its probability: finite, up to 0.
    pub logprob: f32,
    /// Its place among all tokens by falling probability, ties by rising id: 1 for the most likely.
    pub rank: u32,
    top: &'a [u32],
}

impl Logprobs {
    /// Most `top` (OpenAI, vLLM).
    pub const MAX_TOP: usize = 20;

    /// For records with the `top` most likely tokens.
    pub fn new(top: usize) -> Self {
        Self { top, words: Secret::default() }
    }

    /// Checks a request's number.
    ///
    /// # Errors
    /// `top` is above [`Logprobs::MAX_TOP`]; `field` says where it was given.
    pub(crate) fn check(field: &'static str, top: usize) -> Result<()> {
        match top <= Self::MAX_TOP {
            true => Ok(()),
            false => Err(Error::request(field, format!("from 0 to {}", Self::MAX_TOP))),
        }
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.words.expose().len() / self.width()
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record of the `index`-th token.
    pub fn get(&self, index: usize) -> Option<TokenLogprobs<'_>> {
        let record = self.words.expose().chunks_exact(self.width()).nth(index)?;
        let (&[token, logprob, rank, count], pairs) = record.split_first_chunk()?;
        let top = pairs.get(..2 * count as usize)?;
        Some(TokenLogprobs { token, logprob: f32::from_bits(logprob), rank, top })
    }

    /// All records.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = TokenLogprobs<'_>> {
        (0..self.len()).map(|index| self.get(index).expect("the index is below the length"))
    }

    /// A copy of the records from `index` on.
    pub(crate) fn tail(&self, index: usize) -> Self {
        let words = &self.words.expose()[(index * self.width()).min(self.words.expose().len())..];
        Self { top: self.top, words: Secret::copy(words) }
    }

    /// Appends the record of a token that a device was asked for.
    ///
    /// # Errors
    /// A logit is not finite.
    pub(crate) fn take(&mut self, answer: Answer<'_>) -> Result<()> {
        let (token, [max, own]) = (answer.token()?, answer.max_and_own());
        self.push((token, own, answer.rank()), (max, answer.total()), answer.top());
        Ok(())
    }

    /// Appends a record: of a token, its logit and rank; of all, the largest logit and the sum of weights.
    fn push(
        &mut self,
        (token, own, rank): (u32, f32, u32),
        (max, total): (f32, f64),
        top: impl ExactSizeIterator<Item = (u32, f32)>,
    ) {
        let ln_total = total.ln();
        // differences of the largest floats overflow f32: they end at its edge
        let logprob = |logit: f32| {
            let exact = f64::from(logit) - f64::from(max) - ln_total;
            (exact as f32).max(f32::MIN).to_bits()
        };
        let end = self.words.expose().len() + self.width();
        let top = top.take(self.top);
        self.words.extend(&[token, logprob(own), rank, top.len() as u32]);
        for (id, logit) in top {
            self.words.extend(&[id, logprob(logit)]);
        }
        while self.words.expose().len() < end {
            self.words.push(0); // a vocabulary smaller than `top`
        }
    }

    fn width(&self) -> usize {
        4 + 2 * self.top
    }
}

impl<'a> TokenLogprobs<'a> {
    /// The most likely tokens, the most likely first, with their logprobs; ties to the lower id.
    pub fn top(&self) -> impl ExactSizeIterator<Item = (u32, f32)> + use<'a> {
        self.top.as_chunks().0.iter().map(|&[id, logprob]| (id, f32::from_bits(logprob)))
    }
}

impl Sampler {
    /// Appends the record of `token`, of these raw logits, to `out`.
    ///
    /// Costs a pass over the vocabulary with an exponential for each logit, and allocates only what `out` must grow.
    ///
    /// # Errors
    /// A logit is not finite; `token` is outside the vocabulary.
    pub fn logprobs(&mut self, logits: &[f32], token: u32, out: &mut Logprobs) -> Result<()> {
        if !finite(logits) {
            return Err(Error::NotFinite);
        }
        let Some(&own) = logits.get(token as usize) else {
            return Err(Error::request("tokens", format!("token ids below {}", logits.len())));
        };
        let scale = Scale { max: largest(logits), temperature: 1.0 };
        let total = scale.total(logits);
        let before = |ids: &[f32], or_equal| -> u32 {
            ids.iter().map(|&logit| u32::from(logit > own || or_equal && logit == own)).sum()
        };
        let (lower, higher) = logits.split_at(token as usize);
        let rank = 1 + before(lower, true) + before(higher, false);
        let top = self.filters.top(logits, out.top);
        out.push((token, own, rank), (scale.max, total), top);
        Ok(())
    }
}

impl fmt::Debug for Logprobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logprobs").field("top", &self.top).field("len", &self.len()).finish()
    }
}

impl fmt::Debug for TokenLogprobs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenLogprobs").field("top", &self.top().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::rng::uniform;

    fn near(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() < 1e-6
    }

    #[test]
    fn known_probabilities() {
        let logits: Vec<f32> = [0.25_f32, 0.1, 0.5, 0.15].iter().map(|p| p.ln() + 3.0).collect();
        let mut out = Logprobs::new(2);
        let mut sampler = Sampler::new(4);
        for token in [2, 1] {
            sampler.logprobs(&logits, token, &mut out).unwrap();
        }
        assert_eq!((out.len(), out.iter().len()), (2, 2));
        let (best, worst) = (out.get(0).unwrap(), out.get(1).unwrap());
        assert_eq!((best.token, best.rank, worst.token, worst.rank), (2, 1, 1, 4));
        assert!(near(best.logprob, 0.5_f64.ln()) && near(worst.logprob, 0.1_f64.ln()));
        for record in out.iter() {
            let top: Vec<_> = record.top().collect();
            assert_eq!([top[0].0, top[1].0], [2, 0]);
            assert!(near(top[0].1, 0.5_f64.ln()) && near(top[1].1, 0.25_f64.ln()));
        }
        assert!(out.get(2).is_none());
    }

    #[test]
    fn ranks_and_ties_go_to_the_lower_id() {
        let mut out = Logprobs::new(3);
        for token in 0..4 {
            Sampler::new(4).logprobs(&[1.0, 5.0, 1.0, 5.0], token, &mut out).unwrap();
        }
        assert_eq!(out.iter().map(|record| record.rank).collect::<Vec<_>>(), [3, 1, 4, 2]);
        assert!(out.iter().all(|record| record.top().map(|(id, _)| id).eq([1, 3, 0])));
    }

    #[test]
    fn many_records_equal_a_plain_computation() {
        let mut sampler = Sampler::new(700);
        let mut out = Logprobs::new(5);
        for step in 0..40 {
            let logits: Vec<f32> = (0..700).map(|i| (uniform(step, i) * 30.0) as f32 - 50.0).collect();
            let token = (uniform(9, step) * 700.0) as u32;
            sampler.logprobs(&logits, token, &mut out).unwrap();
            let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            let plain = |id: u32| (f64::from(logits[id as usize]).exp() / total).ln();
            let record = out.get(step as usize).unwrap();
            assert_eq!(record.token, token);
            assert!((f64::from(record.logprob) - plain(token)).abs() < 1e-5);
            let above = logits.iter().filter(|&&l| l > logits[token as usize]).count();
            assert_eq!(record.rank as usize, above + 1);
            assert!(record.top().all(|(id, logprob)| (f64::from(logprob) - plain(id)).abs() < 1e-5));
        }
    }

    #[test]
    fn small_vocabularies_hostile_logits_and_bounds() {
        let mut sampler = Sampler::new(2);
        let mut out = Logprobs::new(20);
        sampler.logprobs(&[f32::MAX, f32::MIN], 1, &mut out).unwrap();
        sampler.logprobs(&[-7.0], 0, &mut out).unwrap();
        let (first, second) = (out.get(0).unwrap(), out.get(1).unwrap());
        assert_eq!((first.logprob, first.rank, first.top().len()), (f32::MIN, 2, 2));
        assert_eq!((second.logprob, second.rank, second.top().len()), (0.0, 1, 1));
        assert!(matches!(sampler.logprobs(&[0.0, f32::NAN], 0, &mut out), Err(Error::NotFinite)));
        assert!(matches!(sampler.logprobs(&[0.0], 1, &mut out), Err(Error::Request { field: "tokens", .. })));
        assert_eq!(out.len(), 2);
        assert!(Logprobs::check("top_logprobs", 20).is_ok());
        assert!(matches!(
            Logprobs::check("top_logprobs", 21),
            Err(Error::Request { field: "top_logprobs", .. })
        ));
    }

    #[test]
    fn records_are_copied_from_a_place_on_and_are_not_printed() {
        let mut all = Logprobs::new(1);
        for token in 0..3 {
            Sampler::new(3).logprobs(&[0.0, 1.0, 2.0], token, &mut all).unwrap();
        }
        assert_eq!(all.tail(1).iter().map(|record| record.token).collect::<Vec<_>>(), [1, 2]);
        assert!(all.tail(3).is_empty() && all.tail(9).is_empty());
        assert_eq!(all.iter().map(|record| record.token).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(format!("{all:?} {:?}", all.get(0).unwrap()), {
            "Logprobs { top: 1, len: 3 } TokenLogprobs { top: 1, .. }"
        });
    }
}
