//! What changes logits before a token is chosen: grammar mask, end tokens that come too early, penalties.
//!
//! Nothing is remembered from token to token: what was said before is counted anew from the ids, O(ids), in a scratch
//! of one number per token of the vocabulary that is all 0 between calls.

use super::settings::Sampling;
use super::{BANNED, Context};
use crate::memory::{Scrubbed, Secret};

/// One number per token of the vocabulary: what was set is taken out again before a call ends.
#[derive(Debug)]
pub struct Tally(Secret<[u32]>);

impl Tally {
    pub fn new(vocab: usize) -> Self {
        Self(Secret::with_capacity(vocab))
    }

    /// The numbers, all 0, for logits of `vocab` tokens.
    pub fn slots(&mut self, vocab: usize) -> &mut [u32] {
        if self.0.expose().len() != vocab {
            self.0.refill(std::iter::repeat_n(0, vocab)); // after a scrub
        }
        self.0.expose_mut()
    }

    /// Overwrites it, though it is all 0.
    pub fn wipe(&mut self) -> Scrubbed {
        self.0.wipe()
    }
}

/// Bans what the grammar does not allow: ids whose bit is not set, or that lie behind the mask's end.
pub fn apply_mask(mask: &[u32], logits: &mut [f32]) {
    let words = mask.iter().copied().chain(std::iter::repeat(0));
    for (block, word) in logits.chunks_mut(32).zip(words) {
        if word == u32::MAX {
            continue;
        }
        for (bit, logit) in block.iter_mut().enumerate() {
            *logit = if word >> bit & 1 == 1 { *logit } else { BANNED };
        }
    }
}

/// Bans `ids`; those outside the vocabulary are passed over.
pub fn ban(ids: &[u32], logits: &mut [f32]) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = BANNED;
        }
    }
}

/// Whether [`apply`] would do anything.
pub fn any(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0 || of_reply(sampling)
}

fn of_reply(sampling: &Sampling) -> bool {
    sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0
}

/// Calls `found` once with each token that is penalised, of `vocab`, and how often it is in the reply.
pub fn each_seen(
    sampling: &Sampling,
    context: &Context<'_>,
    tally: &mut Tally,
    vocab: usize,
    mut found: impl FnMut(u32, u32),
) {
    let slots = tally.slots(vocab);
    let prompt = context.prompt.min(context.ids.len());
    let first = if sampling.repetition_penalty == 1.0 { prompt } else { 0 };
    // bit 0: seen; above: how often in the reply
    for (place, &id) in context.ids.iter().enumerate().skip(first) {
        if let Some(slot) = slots.get_mut(id as usize) {
            *slot = (*slot | 1) + 2 * u32::from(place >= prompt);
        }
    }
    for &id in &context.ids[first..] {
        let Some(slot) = slots.get_mut(id as usize) else { continue };
        let seen = std::mem::take(slot);
        if seen > 0 {
            found(id, seen >> 1);
        }
    }
}

/// Repetition penalty over prompt and reply, then frequency and presence penalties over the reply.
pub fn apply(sampling: &Sampling, context: &Context<'_>, tally: &mut Tally, logits: &mut [f32]) {
    each_seen(sampling, context, tally, logits.len(), |id, count| {
        let logit = &mut logits[id as usize];
        if *logit == BANNED {
            return;
        }
        let penalty = sampling.repetition_penalty;
        let mut value = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        if count > 0 {
            value -= sampling.frequency_penalty * count as f32;
            value -= sampling.presence_penalty;
        }
        *logit = bounded(value);
    });
}

/// A penalty never bans, nor makes a logit infinite.
pub fn bounded(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalised(sampling: Sampling, ids: &[u32], prompt: usize, logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        let mut tally = Tally::new(logits.len());
        apply(&sampling, &Context { ids, prompt, ..Context::default() }, &mut tally, &mut logits);
        assert!(tally.0.expose().iter().all(|&slot| slot == 0), "the next call would find counts");
        logits
    }

    const OFF: fn() -> Sampling = Sampling::default;

    #[test]
    fn repetition_counts_prompt_and_reply_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..OFF() };
        let logits = [4.0, -4.0, 4.0, -4.0, 0.0];
        assert_eq!(penalised(sampling, &[0, 1, 0, 3], 2, &logits), [2.0, -8.0, 4.0, -8.0, 0.0]);
    }

    #[test]
    fn presence_and_frequency_count_the_reply_only() {
        let sampling = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..OFF() };
        let logits = [1.0; 4];
        assert_eq!(penalised(sampling, &[0, 0, 1, 2, 2, 2], 2, &logits), [1.0, 0.25, -0.25, 1.0]);
        let praise = Sampling { presence_penalty: -2.0, ..OFF() };
        assert_eq!(penalised(praise, &[3, 3], 0, &logits), [1.0, 1.0, 1.0, 3.0]);
    }

    #[test]
    fn repetition_comes_before_presence_and_frequency() {
        let all =
            Sampling { repetition_penalty: 2.0, presence_penalty: 1.0, frequency_penalty: 0.5, ..OFF() };
        assert_eq!(penalised(all, &[0, 0], 1, &[4.0, 4.0]), [0.5, 4.0]);
    }

    #[test]
    fn foreign_ids_banned_tokens_and_huge_logits_are_harmless() {
        let sampling = Sampling { repetition_penalty: 0.01, presence_penalty: -2.0, ..OFF() };
        let logits = [f32::MAX, f32::MIN, BANNED];
        assert_eq!(
            penalised(sampling, &[0, 1, 2, 3, u32::MAX], 9, &logits),
            [f32::MAX, f32::MIN * 0.01, BANNED]
        );
        let harsh = Sampling { repetition_penalty: 5.0, ..OFF() };
        assert_eq!(penalised(harsh, &[1], 0, &logits), [f32::MAX, f32::MIN, BANNED]);
    }

    #[test]
    fn the_mask_and_what_lies_behind_it() {
        let mut logits = [1.0; 70];
        apply_mask(&[u32::MAX, 1 << 31 | 1], &mut logits);
        for (id, &logit) in logits.iter().enumerate() {
            assert_eq!(logit, if id <= 32 || id == 63 { 1.0 } else { BANNED }, "{id}");
        }
        let mut few = [1.0, 2.0];
        apply_mask(&[2, 0, 7], &mut few);
        assert_eq!(few, [BANNED, 2.0]);
    }
}
