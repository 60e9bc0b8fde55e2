//! What the sampler asks of a device that can choose tokens where the logits are, and what it answers.
//!
//! Both are words, in the layout of `kernels/cuda/sample.cu`: ids, counts and numbers of requests are content.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::memory::{Scrubbed, Secret};

/// Words of a question.
pub const QUERY_WORDS: usize = 32;
/// Words of an answer.
pub const ANSWER: usize = 48;
/// Most likely tokens in an answer.
pub const TOP: usize = 20;

/// Entries of a list: where the first word is, and how many there are.
pub type List = (u32, u32);

/// One choice. What is not asked for is zero.
#[derive(Clone, Copy, Default)]
pub struct SampleQuery {
    /// The row of logits.
    pub row: usize,
    /// The token is this one; the numbers below mean nothing.
    pub given: Option<u32>,
    /// Log probabilities are wanted: those of the token, and of [`TOP`] others.
    pub logprobs: bool,
    /// The lists below say what comes before the temperature.
    pub changed: bool,
    /// `Sampling::top_k`.
    pub top_k: u32,
    /// `Sampling::top_p`.
    pub top_p: f32,
    /// `Sampling::min_p`.
    pub min_p: f32,
    /// `Sampling::typical_p`.
    pub typical_p: f32,
    /// `Sampling::temperature`.
    pub temperature: f32,
    /// repetition, frequency and presence penalty.
    pub penalties: [f32; 3],
    /// The random number.
    pub draw: f64,
    /// ln of a weight below which nothing is kept: over the sum of all weights, if top-p is the first filter.
    pub least: f64,
    /// Ids and what is added to their logits; -100 bans. An id may come twice.
    pub bias: List,
    /// Words of bits: what is allowed.
    pub mask: Option<List>,
    /// Ids and how often they are in the reply.
    pub seen: List,
    /// Ids and what they lose, as two words.
    pub repeats: List,
    /// Ids that are banned.
    pub bans: List,
}

/// SampleBatch of a step, and their answers.
#[derive(Debug, Default)]
pub struct SampleBatch {
    heads: Secret<[u32]>,
    /// What the questions' lists are in.
    pub lists: Secret<[u32]>,
    answers: Secret<[u32]>,
}

impl SampleBatch {
    /// Starts over.
    pub fn clear(&mut self) {
        self.heads.truncate(0);
        self.lists.truncate(0);
        self.answers.truncate(0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.heads.expose().len() / QUERY_WORDS
    }

    /// Adds one.
    pub fn push(&mut self, query: &SampleQuery) {
        let SampleQuery { row, given, top_k, penalties, bias, mask, seen, repeats, bans, .. } = *query;
        let flags = [given.is_some(), query.changed, mask.is_some(), query.logprobs];
        let flags = flags.into_iter().rev().fold(0, |flags, flag| flags << 1 | u32::from(flag));
        let shares = [query.top_p, query.min_p, query.typical_p, query.temperature];
        let numbers = [query.draw, 1.0 / f64::from(query.temperature), query.least];
        self.heads.extend(&[row as u32, flags, given.unwrap_or(0), TOP as u32, top_k]);
        shares.into_iter().chain(penalties).for_each(|number| self.heads.push(number.to_bits()));
        for bits in numbers.map(f64::to_bits) {
            self.heads.extend(&[bits as u32, (bits >> 32) as u32]);
        }
        for (start, count) in [bias, mask.unwrap_or_default(), seen, repeats, bans] {
            self.heads.extend(&[start, count]);
        }
        self.heads.extend(&[0; 4]);
    }

    /// What some of them need.
    pub fn needs(&self, of: Range<usize>) -> Needs {
        let heads = self.heads.expose().as_chunks::<QUERY_WORDS>().0[of].iter();
        let any = |flag: u32| heads.clone().any(|head| head[1] >> flag & 1 == 1);
        let (changes, logprobs) = (any(1), any(3));
        let greedy = |head: &[u32; QUERY_WORDS]| head[8] == 0;
        Needs { changes, logprobs, scratch: changes || logprobs || !heads.clone().all(greedy) }
    }

    /// The words of all questions.
    pub fn words(&self) -> &[u32] {
        self.heads.expose()
    }

    /// Room for the answers, which are none at first.
    pub fn answers(&mut self) -> &mut [u32] {
        let count = self.len() * ANSWER;
        if self.answers.expose().len() != count {
            self.answers.refill(std::iter::repeat_n(0, count));
        }
        self.answers.expose_mut()
    }

    /// The answer to a question, by its number.
    pub fn answer(&self, number: usize) -> Answer<'_> {
        Answer(self.answers.expose()[number * ANSWER..].first_chunk().expect("each question has one"))
    }

    /// Overwrites all of it. Where there is none, [`SampleBatch::clear`] did.
    pub fn scrub(&mut self) -> Option<Scrubbed> {
        (self.len() > 0).then(|| self.heads.wipe().and(self.lists.wipe()).and(self.answers.wipe()))
    }
}

/// What questions need besides the choice.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Some change logits.
    pub changes: bool,
    /// Some want log probabilities.
    pub logprobs: bool,
    /// Something is written to the scratch.
    pub scratch: bool,
}

/// What a device made of a row of logits.
#[derive(Clone, Copy)]
pub struct Answer<'a>(&'a [u32; ANSWER]);

impl<'a> Answer<'a> {
    /// The token.
    ///
    /// # Errors
    /// A logit is not finite; or every token is impossible.
    pub fn token(self) -> Result<u32> {
        match self.0[0] {
            1 => Ok(self.0[1]),
            3 => Err(Error::NoToken),
            _ => Err(Error::NotFinite),
        }
    }

    /// The largest of the model's logits, and the token's own.
    pub fn max_and_own(self) -> [f32; 2] {
        [self.0[2], self.0[3]].map(f32::from_bits)
    }

    /// The sum of all weights at temperature 1.
    pub fn total(self) -> f64 {
        f64::from_bits(u64::from(self.0[5]) << 32 | u64::from(self.0[4]))
    }

    /// The token's place among all.
    pub fn rank(self) -> u32 {
        self.0[6]
    }

    /// The most likely tokens and their logits.
    pub fn top(self) -> impl ExactSizeIterator<Item = (u32, f32)> + use<'a> {
        let pairs = self.0[8..].as_chunks().0.iter().take(self.0[7] as usize);
        pairs.map(|&[id, logit]| (id, f32::from_bits(logit)))
    }
}
