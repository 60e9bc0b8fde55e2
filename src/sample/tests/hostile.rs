//! Values that no model gives and no caller should.

use super::*;

/// Every filter alone, all together, and the penalties.
fn settings() -> Vec<Sampling> {
    let plain = plain();
    let filtered = Sampling { top_k: 3, top_p: 0.9, min_p: 0.01, typical_p: 0.9, ..plain };
    let penalised = |repetition_penalty, sign: f32| Sampling {
        repetition_penalty,
        presence_penalty: 2.0 * sign,
        frequency_penalty: 2.0 * sign,
        dry: Some(Dry { multiplier: 100.0, base: 100.0, allowed_length: 1, range: 0 }),
        ..plain
    };
    vec![
        Sampling::default(),
        plain,
        Sampling { temperature: f32::from_bits(1), ..plain },
        Sampling { temperature: f32::from_bits(1), typical_p: 0.5, ..plain },
        Sampling { temperature: 2.0, ..plain },
        Sampling { top_k: 1, ..plain },
        Sampling { top_k: usize::MAX, ..plain },
        Sampling { top_p: f32::from_bits(1), ..plain },
        Sampling { top_p: 1.0_f32.next_down(), ..plain },
        Sampling { min_p: f32::from_bits(1), ..plain },
        Sampling { min_p: 1.0, ..plain },
        Sampling { typical_p: f32::from_bits(1), ..plain },
        Sampling { typical_p: 1.0_f32.next_down(), ..plain },
        filtered,
        penalised(5.0, 1.0),
        penalised(0.01, -1.0),
        Sampling { temperature: 0.0, ..penalised(5.0, 1.0) },
    ]
}

#[test]
fn any_finite_logits_give_a_token_of_the_vocabulary() {
    let huge = [f32::MAX, f32::MIN, 0.0, f32::MAX, -f32::MIN_POSITIVE, f32::MAX / 2.0];
    let rows: Vec<Vec<f32>> = vec![
        vec![0.0],
        vec![f32::MIN],
        vec![f32::MAX],
        vec![f32::MAX; 200],
        vec![f32::MIN; 200],
        vec![-0.0; 65],
        huge.repeat(30),
        huge.repeat(30).into_iter().rev().collect(),
        logits_of(1, 300, f64::from(f32::MAX)),
    ];
    let ids: Vec<u32> = (0..500).map(|i| i % 3).chain([u32::MAX, 5, 0, 1, 2]).collect();
    let mut bias = LogitBias::default();
    for (id, value) in [(0, 100.0), (1, -99.0), (u32::MAX, 100.0), (1 << 20, -100.0)] {
        bias.push(id, value);
    }
    for logits in &rows {
        for sampling in settings() {
            sampling.check().unwrap();
            for (ids, prompt) in [(&[][..], 0), (&ids[..], 0), (&ids[..], 250), (&ids[..], usize::MAX)] {
                let context = Context { ids, prompt, bias: Some(&bias), ..Context::default() };
                let token = sample_row(logits, &sampling, &context);
                assert!((token as usize) < logits.len());
            }
        }
    }
}

#[test]
fn far_below_the_rest_is_never_drawn() {
    for sampling in settings().into_iter().take(13) {
        for seed in 0..50 {
            let token =
                sample_row(&[f32::MIN, f32::MAX, 0.0], &Sampling { seed, ..sampling }, &Context::default());
            assert_eq!(token, 1, "{sampling:?}");
        }
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for sampling in settings() {
            let result = Sampler::new(2).sample(&[1.0, bad], &sampling, &Context::default());
            assert!(matches!(result, Err(Error::NotFinite)));
        }
    }
}

#[test]
fn nothing_left_is_an_error_and_the_last_one_left_is_taken() {
    let logits = logits_of(2, 100, 9.0);
    let mut ban_all = LogitBias::default();
    (0..100).for_each(|id| ban_all.push(id, -100.0));
    let all: Vec<u32> = (0..100).collect();
    let nothing = Context::default();
    let impossible = [
        Context { mask: Some(&[]), ..nothing },
        Context { mask: Some(&[0; 4]), ..nothing },
        Context { mask: Some(&[0, 0, 0, 1 << 4]), ..nothing }, // token 100
        Context { bias: Some(&ban_all), ..nothing },
        Context { end_tokens: &all, ..nothing },
        Context { mask: Some(&[1]), end_tokens: &[0], ..nothing },
    ];
    for sampling in settings().into_iter().map(|sampling| Sampling { min_tokens: 1, ..sampling }) {
        for context in &impossible {
            let result = Sampler::new(100).sample(&logits, &sampling, context);
            assert!(matches!(result, Err(Error::NoToken)), "{sampling:?}: {result:?}");
        }
        assert!(matches!(Sampler::new(0).sample(&[], &sampling, &nothing), Err(Error::NoToken)));
        let one = Context { mask: Some(&[0, 0, 1 << 5]), ..nothing };
        assert_eq!(sample_row(&logits, &sampling, &one), 69);
    }
}

#[test]
fn the_scratch_is_planned_once_and_scrubbed_whole() {
    const VOCAB: usize = 1000;
    let mut sampler = Sampler::new(VOCAB);
    let planned = |sampler: &Sampler| (sampler.logits.expose().as_ptr(), sampler.matches.expose().as_ptr());
    let before = planned(&sampler);
    let blocks = VOCAB.div_ceil(softmax::BLOCK);
    let bytes = 4 * VOCAB + 4 * VOCAB + 4 * dry::MAX_MATCH + 4 * blocks + 8 * blocks * softmax::BLOCK;
    let ids: Vec<u32> = (0..3000).map(|i| i % 5).collect();
    for round in 0..3 {
        for sampling in settings() {
            let context = Context { ids: &ids, mask: Some(&[u32::MAX; 32]), ..Context::default() };
            sampler.sample(&logits_of(round, VOCAB, 20.0), &sampling, &context).unwrap();
        }
        assert_eq!(sampler.scrub().bytes(), bytes as u64);
        assert_eq!(planned(&sampler), before);
    }
}
