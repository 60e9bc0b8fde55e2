//! The whole chain: against transformers' tables, against a dull computation, in frequencies, and under attack.

mod fixtures;
mod frequencies;
mod hostile;
mod reference;

use super::rng::uniform;
use super::*;

/// Temperature 1 and all else off.
fn plain() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

/// Logits of rising steepness, from a seed.
fn logits_of(seed: u64, vocab: usize, width: f64) -> Vec<f32> {
    (0..vocab as u64).map(|i| ((uniform(seed, i) - 0.5) * width) as f32).collect()
}

/// A choice of a new sampler.
fn sample_row(logits: &[f32], sampling: &Sampling, context: &Context<'_>) -> u32 {
    Sampler::new(logits.len()).sample(logits, sampling, context).unwrap()
}

#[test]
fn seeds_draw_what_they_always_drew() {
    let logits: Vec<f32> = (0..500).map(|i| (uniform(3, i) * 8.0) as f32).collect();
    let table: [(f32, usize, f32, f32, [u32; 12]); 5] = [
        (1.0, 0, 1.0, 0.0, [164, 468, 214, 47, 320, 47, 100, 343, 74, 340, 307, 90]),
        (0.7, 20, 1.0, 0.0, [205, 236, 132, 186, 265, 186, 77, 16, 186, 16, 317, 77]),
        (1.5, 0, 0.9, 0.0, [81, 414, 245, 193, 157, 193, 307, 355, 172, 64, 85, 374]),
        (1.0, 0, 1.0, 0.1, [83, 287, 81, 77, 181, 77, 317, 185, 205, 260, 95, 110]),
        (0.8, 40, 0.95, 0.05, [110, 114, 374, 186, 83, 186, 193, 107, 77, 107, 210, 193]),
    ];
    let mut sampler = Sampler::new(500);
    for (temperature, top_k, top_p, min_p, expected) in table {
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed: 42, ..plain() };
        for (index, token) in expected.into_iter().enumerate() {
            let ids = vec![7; 3 + index];
            let context = Context { ids: &ids, prompt: 3, ..Context::default() };
            assert_eq!(sampler.sample(&logits, &sampling, &context).unwrap(), token, "{sampling:?}");
        }
    }
}

#[test]
fn a_choice_depends_on_seed_and_place_and_on_nothing_before_it() {
    let logits = logits_of(3, 100, 4.0);
    let busy = Sampling { repetition_penalty: 1.5, top_p: 0.9, dry: Some(Dry::default()), ..plain() };
    let run = |seed, sampler: &mut Sampler| -> Vec<u32> {
        let mut ids = vec![1, 2, 3];
        for _ in 0..50 {
            let context = Context { ids: &ids, prompt: 3, ..Context::default() };
            let token = sampler.sample(&logits, &Sampling { seed, ..busy }, &context).unwrap();
            // another request in between, of another size, and sometimes a scrub
            let other = logits_of(ids.len() as u64, 30 + ids.len(), 9.0);
            sampler.sample(&other, &Sampling { seed: 1, ..busy }, &context).unwrap();
            ids.push(token);
            if ids.len() % 7 == 0 {
                let _ = sampler.scrub();
            }
        }
        for (index, &token) in ids.iter().enumerate().skip(3) {
            let context = Context { ids: &ids[..index], prompt: 3, ..Context::default() };
            assert_eq!(
                sample_row(&logits, &Sampling { seed, ..busy }, &context),
                token,
                "alone, on a new sampler"
            );
        }
        ids
    };
    let mut sampler = Sampler::new(100);
    assert_eq!(run(5, &mut sampler), run(5, &mut sampler));
    assert_ne!(run(5, &mut sampler), run(6, &mut sampler));
}

#[test]
fn ties_go_to_the_lower_id() {
    let equal = [1.0, 3.0, 3.0, 3.0, -0.0, 0.0];
    let at = Context::default();
    assert_eq!(sample_row(&equal, &Sampling::default(), &at), 1);
    assert_eq!(sample_row(&[-1.0, -0.0, 0.0], &Sampling::default(), &at), 1);
    for seed in 0..200 {
        let sampling = Sampling { seed, ..plain() };
        assert_eq!(sample_row(&equal, &Sampling { top_k: 1, ..sampling }, &at), 1);
        assert_eq!(sample_row(&[-1.0, -0.0, 0.0], &Sampling { top_k: 1, ..sampling }, &at), 1);
        assert_eq!(sample_row(&equal, &Sampling { top_p: 0.1, ..sampling }, &at), 1);
        assert!(sample_row(&equal, &Sampling { top_k: 2, ..sampling }, &at) <= 2);
        assert_eq!(sample_row(&[2.0; 4], &Sampling { typical_p: 0.2, ..sampling }, &at), 0);
    }
}

#[test]
fn greedy_honours_bias_mask_penalties_and_end_tokens() {
    let logits = [1.0, 4.0, 3.0, 2.0];
    let mut bias = LogitBias::default();
    bias.push(3, 2.5);
    let plain = Context::default();
    let greedy = Sampling::default();
    assert_eq!(sample_row(&logits, &greedy, &plain), 1);
    assert_eq!(sample_row(&logits, &greedy, &Context { bias: Some(&bias), ..plain }), 3);
    assert_eq!(sample_row(&logits, &greedy, &Context { mask: Some(&[0b0101]), ..plain }), 2);
    let said = Context { ids: &[1, 1], prompt: 0, ..plain };
    assert_eq!(sample_row(&logits, &Sampling { repetition_penalty: 2.0, ..greedy }, &said), 2);
    assert_eq!(sample_row(&logits, &Sampling { frequency_penalty: 1.0, ..greedy }, &said), 2);
    assert_eq!(sample_row(&logits, &Sampling { presence_penalty: 1.5, ..greedy }, &said), 2);
    assert_eq!(
        sample_row(
            &logits,
            &Sampling { dry: Some(Dry { allowed_length: 1, multiplier: 2.0, ..Dry::default() }), ..greedy },
            &said
        ),
        2
    );
    let ends = Context { end_tokens: &[1, 9], ..said };
    assert_eq!(sample_row(&logits, &Sampling { min_tokens: 3, ..greedy }, &ends), 2);
    assert_eq!(sample_row(&logits, &Sampling { min_tokens: 2, ..greedy }, &ends), 1);
}

#[test]
fn debug_prints_no_content() {
    let context = Context { ids: &[12345], mask: Some(&[54321]), ..Context::default() };
    let printed = format!("{context:?} {:?}", Sampler::new(3));
    assert!(!printed.contains("345") && !printed.contains("321"), "{printed}");
}
