//! DRY, "don't repeat yourself": the penalty on tokens that would prolong a repetition.
//!
//! Where the text's end stood before, the token that followed there is penalised by the length of what was repeated
//! (p-e-w, text-generation-webui). Lengths are common prefixes of the reversed ids with themselves, found by the
//! Z-algorithm (Gusfield 1997) as in llama.cpp: O(ids) for each token, whatever the ids.

use super::penalties::{Tally, bounded};
use super::settings::Dry;
use super::{BANNED, Context};
use crate::memory::Secret;

/// Longer repetitions count as this long. With any base above 1.05 the penalty is past every real logit by then, and
/// it bounds the scratch.
pub const MAX_MATCH: usize = 1024;

/// Lowers the logits of tokens that would prolong a repetition.
pub fn apply(
    dry: &Dry,
    context: &Context<'_>,
    matches: &mut Secret<[u32]>,
    tally: &mut Tally,
    logits: &mut [f32],
) {
    each_repeat(dry, context, matches, (tally, logits.len()), |id, penalty| {
        let logit = &mut logits[id as usize];
        if *logit != BANNED {
            *logit = bounded((f64::from(*logit) - penalty) as f32);
        }
    });
}

/// Calls `found` once with each token that would prolong a repetition, of a vocabulary, and what it loses.
/// `context.breakers` are sorted ids over which no repetition reaches, and which are never penalised.
pub fn each_repeat(
    dry: &Dry,
    context: &Context<'_>,
    matches: &mut Secret<[u32]>,
    (tally, vocab): (&mut Tally, usize),
    mut found: impl FnMut(u32, f64),
) {
    let range = if dry.range == 0 { usize::MAX } else { dry.range };
    let ids = &context.ids[context.ids.len().saturating_sub(range)..];
    let breaks = |id: &u32| context.breakers.binary_search(id).is_ok();
    let limit = ids.iter().rev().take(MAX_MATCH).take_while(|id| !breaks(id)).count();
    if dry.multiplier == 0.0 || limit < dry.allowed_length {
        return;
    }
    let longest = tally.slots(vocab);
    each_match(ids, limit, matches, |length, next| {
        if length >= dry.allowed_length
            && !breaks(&next)
            && let Some(slot) = longest.get_mut(next as usize)
        {
            *slot = (*slot).max(length as u32);
        }
    });
    for &id in ids {
        let Some(slot) = longest.get_mut(id as usize) else { continue };
        let length = std::mem::take(slot) as usize;
        if length > 0 {
            found(id, penalty(dry, length));
        }
    }
}

/// Infinite at worst; [`bounded`] ends what comes of it.
fn penalty(dry: &Dry, length: usize) -> f64 {
    f64::from(dry.multiplier) * f64::from(dry.base).powi((length - dry.allowed_length) as i32)
}

/// Calls `found` with the length of each match of the end of `ids`, 0 to `limit`, and the token that followed it.
fn each_match(ids: &[u32], limit: usize, matches: &mut Secret<[u32]>, mut found: impl FnMut(usize, u32)) {
    let back = |i: usize| ids[ids.len() - 1 - i];
    let known = matches.refill(std::iter::repeat_n(0, limit));
    let (mut start, mut end) = (0, 0); // the match that reaches farthest back: at most `limit` long
    for i in 1..ids.len() {
        let mut length = if i < end { (known[i - start] as usize).min(end - i) } else { 0 };
        while length < limit && i + length < ids.len() && back(length) == back(i + length) {
            length += 1;
        }
        if i + length > end {
            (start, end) = (i, i + length);
        }
        if i < limit {
            known[i] = length as u32;
        }
        found(length, back(i - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::rng::uniform;

    const DRY: Dry = Dry { multiplier: 1.0, base: 2.0, allowed_length: 2, range: 0 };

    /// What each of 10 tokens loses.
    fn losses(dry: Dry, ids: &[u32], breakers: &[u32]) -> Vec<f32> {
        let mut logits = [0.0; 10];
        let mut tally = Tally::new(10);
        let context = Context { ids, breakers, ..Context::default() };
        apply(&dry, &context, &mut Secret::default(), &mut tally, &mut logits);
        assert!(tally.slots(10).iter().all(|&slot| slot == 0), "the next call would find lengths");
        logits.map(|logit| -logit).to_vec()
    }

    fn losing(pairs: &[(usize, f32)]) -> Vec<f32> {
        let mut expected = vec![0.0; 10];
        pairs.iter().for_each(|&(id, loss)| expected[id] = loss);
        expected
    }

    #[test]
    fn the_token_after_a_repetition_loses_by_its_length() {
        assert_eq!(losses(DRY, &[1, 2, 3, 4, 1, 2], &[]), losing(&[(3, 1.0)]));
        assert_eq!(losses(DRY, &[1, 2, 3, 4, 1, 2, 3], &[]), losing(&[(4, 2.0)]));
        assert_eq!(losses(DRY, &[9, 2, 3, 4, 1, 2], &[]), losing(&[]), "one token is allowed");
        let short = Dry { allowed_length: 1, ..DRY };
        assert_eq!(losses(short, &[9, 2, 3, 4, 1, 2], &[]), losing(&[(3, 1.0)]));
        // two places: each token loses by its longest
        let two = [1, 2, 3, 0, 5, 1, 2, 3, 7, 2, 3, 0, 5, 1, 2, 3];
        assert_eq!(losses(DRY, &two, &[]), losing(&[(0, 2.0), (7, 32.0)]));
        // a match may overlap the end
        assert_eq!(losses(DRY, &[6, 6, 6, 6, 6], &[]), losing(&[(6, 4.0)]));
    }

    #[test]
    fn breakers_and_the_range_end_a_repetition() {
        let ids = [1, 2, 3, 4, 1, 2, 3];
        assert_eq!(losses(DRY, &ids, &[1]), losing(&[(4, 1.0)]));
        assert_eq!(losses(DRY, &ids, &[2]), losing(&[]));
        assert_eq!(losses(DRY, &ids, &[3]), losing(&[]), "the last token breaks");
        assert_eq!(losses(DRY, &ids, &[4]), losing(&[]), "breakers are never penalised");
        assert_eq!(losses(Dry { range: 6, ..DRY }, &ids, &[]), losing(&[(4, 1.0)]));
        assert_eq!(losses(Dry { range: 5, ..DRY }, &ids, &[]), losing(&[]));
    }

    #[test]
    fn hostile_ids_and_numbers() {
        for ids in [&[][..], &[3], &[u32::MAX; 5], &[1, 2, u32::MAX, 1, 2]] {
            assert_eq!(losses(DRY, ids, &[]), losing(&[]));
        }
        assert_eq!(losses(Dry { multiplier: 0.0, ..DRY }, &[6; 9], &[]), losing(&[]));
        let steep = Dry { multiplier: 100.0, base: 100.0, allowed_length: 1, range: 0 };
        assert_eq!(losses(steep, &[6; 5000], &[]), losing(&[(6, f32::MAX)]));
        let flat = Dry { base: 1.0, ..DRY };
        assert_eq!(losses(flat, &[6; 5000], &[]), losing(&[(6, 1.0)]));
    }

    #[test]
    fn lengths_equal_a_direct_comparison_in_linear_time() {
        let mut scratch = Secret::default();
        for seed in 0..400 {
            let draw = |i| uniform(seed, i);
            let (count, letters, limit) =
                (draw(0) * 60.0, 1.0 + draw(1) * 3.0, 1 + (draw(2) * 20.0) as usize);
            let ids: Vec<u32> = (0..2 + count as u64).map(|i| (draw(3 + i) * letters) as u32).collect();
            let limit = limit.min(ids.len());
            let mut expected = Vec::new();
            for i in (0..ids.len() - 1).rev() {
                let same = (0..=i).take_while(|&k| ids[i - k] == ids[ids.len() - 1 - k]).count();
                expected.push((same.min(limit), ids[i + 1]));
            }
            let mut lengths = Vec::new();
            each_match(&ids, limit, &mut scratch, |length, next| lengths.push((length, next)));
            assert_eq!(lengths, expected, "seed {seed}");
        }
        // one letter, the worst case of a direct comparison: 5e11 steps, here two million
        let mut calls = 0;
        each_match(&vec![7; 1_000_000], MAX_MATCH, &mut scratch, |_, _| calls += 1);
        assert_eq!(calls, 999_999);
    }
}
