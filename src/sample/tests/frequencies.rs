//! How often tokens are drawn.

use super::*;

const DRAWS: usize = 20_000;

/// Chi-square of the draws against these probabilities; a token of probability 0 must never come.
fn chi_square(logits: &[f32], sampling: &Sampling, context: &Context<'_>, probabilities: &[f64]) -> f64 {
    let mut sampler = Sampler::new(logits.len());
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..DRAWS as u64 {
        let token = sampler.sample(logits, &Sampling { seed, ..*sampling }, context).unwrap();
        counts[token as usize] += 1.0;
    }
    let total: f64 = probabilities.iter().sum();
    let mut sum = 0.0;
    for (id, (&count, &probability)) in counts.iter().zip(probabilities).enumerate() {
        let expected = probability / total * DRAWS as f64;
        match expected > 0.0 {
            true => sum += (count - expected) * (count - expected) / expected,
            false => assert_eq!(count, 0.0, "token {id} is impossible"),
        }
    }
    sum
}

/// Above this, chance has less than 0.1 %, for 1 to 5 degrees of freedom.
const CRITICAL: [f64; 6] = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52];

#[test]
fn frequencies_follow_the_probabilities() {
    let shares = [0.25_f64, 0.1, 0.4, 0.05, 0.15, 0.05];
    let logits = shares.map(|p| p.ln() as f32 + 2.0);
    let power = |exponent: f64| shares.map(|p| p.powf(exponent)).to_vec();
    let only = |ids: &[usize]| -> Vec<f64> {
        (0..6).map(|id| if ids.contains(&id) { shares[id] } else { 0.0 }).collect()
    };
    let plain = plain();
    let cases = [
        (plain, power(1.0)),
        (Sampling { temperature: 0.5, ..plain }, power(2.0)),
        (Sampling { temperature: 2.0, ..plain }, power(0.5)),
        (Sampling { top_k: 3, ..plain }, only(&[0, 2, 4])),
        (Sampling { top_p: 0.79, ..plain }, only(&[0, 2, 4])),
        (Sampling { min_p: 0.24, ..plain }, only(&[0, 1, 2, 4])),
        // surprises 1.39 2.30 0.92 3.00 1.90 3.00, entropy 1.53: nearest are 0, 4, 2
        (Sampling { typical_p: 0.3, ..plain }, only(&[0, 4])),
        (Sampling { typical_p: 0.75, ..plain }, only(&[0, 2, 4])),
        (Sampling { top_k: 5, top_p: 0.93, min_p: 0.3, ..plain }, only(&[0, 2, 4])),
    ];
    for (sampling, probabilities) in cases {
        let freedom = probabilities.iter().filter(|&&p| p > 0.0).count() - 1;
        let sum = chi_square(&logits, &sampling, &Context::default(), &probabilities);
        assert!(sum < CRITICAL[freedom], "chi-square {sum} of {freedom} for {sampling:?}");
    }
}

#[test]
fn frequencies_follow_bias_penalties_and_mask() {
    let shares = [0.25_f64, 0.1, 0.4, 0.05, 0.15, 0.05];
    let logits = shares.map(|p| p.ln() as f32);
    let mut bias = LogitBias::default();
    bias.push(1, 2.0_f32.ln());
    let context = Context {
        ids: &[0, 2, 0, 0],
        prompt: 2,
        bias: Some(&bias),
        mask: Some(&[0b10111]),
        ..Context::default()
    };
    // 0 was said twice in the reply, 2 only in the prompt; all logits are negative
    let sampling =
        Sampling { repetition_penalty: 2.0, frequency_penalty: -0.5, presence_penalty: 0.25, ..plain() };
    let expected = [0.25_f64.powi(2) * 0.75_f64.exp(), 0.2, 0.4_f64.powi(2), 0.0, 0.15, 0.0];
    let sum = chi_square(&logits, &sampling, &context, &expected);
    assert!(sum < CRITICAL[3], "chi-square {sum}");
}

#[test]
fn draws_along_a_reply_are_as_even_as_draws_over_seeds() {
    let logits = [0.0; 4];
    let mut counts = [0.0_f64; 4];
    let ids = vec![0; DRAWS];
    for index in 0..DRAWS {
        let context = Context { ids: &ids[..index], ..Context::default() };
        counts[sample_row(&logits, &plain(), &context) as usize] += 1.0;
    }
    let expected = DRAWS as f64 / 4.0;
    let sum: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
    assert!(sum < CRITICAL[3], "chi-square {sum}");
}
