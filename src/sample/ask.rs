//! What [`Sampler`] does, as questions for a device that does it where the logits are: ids are counted here.

use super::settings::Sampling;
use super::{Context, Sampler, changes, dry, penalties, rng};
use crate::backend::sample_batch::{List, SampleBatch, SampleQuery};
use crate::memory::Secret;

impl Sampler {
    /// Asks for what [`Sampler::sample`] would choose from a row of logits, and for what [`Sampler::logprobs`] would say
    /// of it.
    pub fn ask(
        &mut self,
        row: usize,
        sampling: &Sampling,
        context: &Context<'_>,
        logprobs: bool,
        queries: &mut SampleBatch,
    ) {
        let mut query = SampleQuery {
            row,
            logprobs,
            top_k: u32::try_from(sampling.top_k).unwrap_or(u32::MAX),
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            temperature: sampling.temperature,
            penalties: [sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty],
            draw: rng::uniform(sampling.seed, context.generated() as u64),
            least: self.least(sampling),
            ..SampleQuery::default()
        };
        if changes(sampling, context) {
            query.changed = true;
            self.ask_changes(sampling, context, &mut query, &mut queries.lists);
        }
        queries.push(&query);
    }

    /// Asks for what [`Sampler::logprobs`] would say of `token`, which is in the vocabulary.
    pub fn ask_logprobs(row: usize, token: u32, queries: &mut SampleBatch) {
        queries.push(&SampleQuery { row, given: Some(token), logprobs: true, ..SampleQuery::default() });
    }

    /// The floor that [`super::filters::Filters::keep`] has, but for the sum of all weights.
    fn least(&self, sampling: &Sampling) -> f64 {
        match sampling.top_p < 1.0 {
            true => ((1.0 - f64::from(sampling.top_p)) / self.vocab as f64 / 2.0).ln(),
            false => f64::from(sampling.min_p).ln(),
        }
    }

    /// Asks for what [`super::change`] does.
    fn ask_changes(
        &mut self,
        sampling: &Sampling,
        context: &Context<'_>,
        query: &mut SampleQuery,
        lists: &mut Secret<[u32]>,
    ) {
        let vocab = self.vocab;
        let known = |id: u32| (id as usize) < vocab;
        if let Some(bias) = context.bias {
            let entries = bias.iter().filter(|&(id, _)| known(id));
            query.bias = list(lists, entries.map(|(id, value)| [id, value.to_bits()]));
        }
        if let Some(mask) = context.mask {
            query.mask = Some((lists.expose().len() as u32, mask.len() as u32));
            lists.extend(mask);
        }
        if penalties::any(sampling) {
            let mut entries = (lists.expose().len() as u32, 0);
            penalties::each_seen(sampling, context, &mut self.tally, vocab, |id, count| {
                lists.extend(&[id, count]);
                entries.1 += 1;
            });
            query.seen = entries;
        }
        if let Some(dry) = &sampling.dry {
            let mut entries = (lists.expose().len() as u32, 0);
            dry::each_repeat(dry, context, &mut self.matches, (&mut self.tally, vocab), |id, penalty| {
                let bits = penalty.to_bits();
                lists.extend(&[id, bits as u32, (bits >> 32) as u32]);
                entries.1 += 1;
            });
            query.repeats = entries;
        }
        if context.generated() < sampling.min_tokens {
            let ids = context.end_tokens.iter().copied().filter(|&id| known(id));
            query.bans = list(lists, ids.map(|id| [id]));
        }
    }
}

/// Appends a list.
fn list<const WORDS: usize>(lists: &mut Secret<[u32]>, entries: impl Iterator<Item = [u32; WORDS]>) -> List {
    let start = lists.expose().len() as u32;
    let mut count = 0;
    for entry in entries {
        lists.extend(&entry);
        count += 1;
    }
    (start, count)
}
