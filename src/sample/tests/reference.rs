//! The chain once more, dull: copies, full sorts, direct comparisons. It shares the numbers of `rng` and nothing else.

use super::*;

/// What is asked of both.
struct SampleQuery {
    logits: Vec<f32>,
    sampling: Sampling,
    ids: Vec<u32>,
    prompt: usize,
    end_tokens: Vec<u32>,
    bias: Vec<(u32, f32)>,
    mask: Option<Vec<u32>>,
    breakers: Vec<u32>,
}

/// The token, or none if all are banned.
fn answer(query: &SampleQuery) -> Option<u32> {
    let sampling = &query.sampling;
    let logits = changed(query);
    let mut tokens: Vec<(u32, f32)> =
        (0..).zip(logits).filter(|&(_, logit)| logit != f32::NEG_INFINITY).collect();
    let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0));
    let best = tokens.iter().copied().min_by(by_logit)?;
    if sampling.temperature == 0.0 {
        return Some(best.0);
    }
    let exponent = |logit: f32| f64::from(logit - best.1) / f64::from(sampling.temperature);
    let weight = |&(_, logit): &(u32, f32)| exponent(logit).exp();
    let total = |tokens: &[(u32, f32)]| tokens.iter().map(weight).sum::<f64>();
    // the first tokens of the list that sum to a share of all of it
    let share = |tokens: &mut Vec<(u32, f32)>, share: f32| {
        let (mut sum, wanted) = (0.0, f64::from(share) * total(tokens));
        tokens.retain(|token| {
            let more = sum < wanted;
            sum += weight(token);
            more
        });
    };
    let filters = sampling.top_p < 1.0 || sampling.min_p > 0.0 || sampling.typical_p < 1.0;
    if filters || (1..query.logits.len()).contains(&sampling.top_k) {
        tokens.sort_by(by_logit);
    }
    if sampling.top_k > 0 {
        tokens.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        share(&mut tokens, sampling.top_p);
    }
    tokens.retain(|token| weight(token) >= f64::from(sampling.min_p));
    if sampling.typical_p < 1.0 {
        let all = total(&tokens);
        let surprise = |&(_, logit): &(u32, f32)| all.ln() - exponent(logit);
        let entropy: f64 = tokens
            .iter()
            .filter(|token| weight(token) > 0.0)
            .map(|token| weight(token) / all * surprise(token))
            .sum();
        let distance = |token: &(u32, f32)| (surprise(token) - entropy).abs() as f32;
        tokens.sort_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap().then(a.0.cmp(&b.0)));
        share(&mut tokens, sampling.typical_p);
        tokens.sort_by(by_logit);
    }
    let index = query.ids.len() - query.prompt;
    let mut left = uniform(sampling.seed, index as u64) * total(&tokens);
    for token in &tokens {
        left -= weight(token);
        if left < 0.0 {
            return Some(token.0);
        }
    }
    panic!("a draw at the very end of the sum");
}

/// The logits before the temperature.
fn changed(query: &SampleQuery) -> Vec<f32> {
    let SampleQuery { logits, sampling, ids, prompt, .. } = query;
    let reply = &ids[*prompt..];
    let dry = lost_to_dry(query);
    let mut changed = Vec::new();
    for (id, &logit) in (0..).zip(logits) {
        let mut logit = logit;
        let mut banned = sampling.min_tokens > reply.len() && query.end_tokens.contains(&id);
        for &(_, value) in query.bias.iter().filter(|(biased, _)| *biased == id) {
            banned |= value == -100.0;
            logit += value;
        }
        if let Some(mask) = &query.mask {
            banned |= mask.get(id as usize / 32).is_none_or(|word| word >> (id % 32) & 1 == 0);
        }
        if ids.contains(&id) {
            let penalty = sampling.repetition_penalty;
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        let count = reply.iter().filter(|&&other| other == id).count();
        if count > 0 {
            logit -= count as f32 * sampling.frequency_penalty;
            logit -= sampling.presence_penalty;
        }
        logit = (f64::from(logit) - dry[id as usize]) as f32;
        changed.push(if banned { f32::NEG_INFINITY } else { logit });
    }
    changed
}

/// What each token loses to DRY: every place compared with the end, one token after another.
fn lost_to_dry(query: &SampleQuery) -> Vec<f64> {
    let mut lost = vec![0.0; query.logits.len()];
    let Some(dry) = query.sampling.dry else { return lost };
    let range = if dry.range == 0 { query.ids.len() } else { dry.range };
    let ids: Vec<u32> = query.ids.iter().rev().take(range).rev().copied().collect();
    for end in 1..ids.len() {
        let (before, next) = (&ids[..end], ids[end]);
        let pairs = before.iter().rev().zip(ids.iter().rev());
        let same = pairs.take_while(|(a, b)| a == b && !query.breakers.contains(a)).count();
        if same >= dry.allowed_length && !query.breakers.contains(&next) && (next as usize) < lost.len() {
            let exponent = (same - dry.allowed_length) as f64;
            let loss = f64::from(dry.multiplier) * f64::from(dry.base).powf(exponent);
            lost[next as usize] = loss.max(lost[next as usize]);
        }
    }
    lost
}

/// Everything at random, from nothing set to all of it.
fn query(case: u64) -> SampleQuery {
    let mut draws = (0..).map(|i| uniform(case, i));
    let mut draw = move || draws.next().unwrap();
    let vocab = [1_usize, 2, 7, 33, 200, 1000, 4000][(draw() * 7.0) as usize];
    let width = [0.5, 8.0, 40.0][(draw() * 3.0) as usize];
    let steps = if draw() < 0.3 { 2.0 } else { 1e6 }; // many ties, or none
    let logits = (0..vocab).map(|_| ((draw() - 0.5) * width * steps).round() as f32 / steps as f32).collect();
    let letters = (vocab as f64 * draw().powi(3)).max(2.0) + 1.0;
    let ids: Vec<u32> = (0..(draw() * 60.0) as usize).map(|_| (draw() * letters) as u32).collect();
    let prompt = (draw() * (ids.len() + 1) as f64) as usize;
    let mut some = |at: &mut dyn FnMut(f64) -> f32, off: f32| if draw() < 0.4 { at(draw()) } else { off };
    let sampling = Sampling {
        temperature: some(&mut |x| (0.2 + 1.8 * x) as f32, if case.is_multiple_of(5) { 0.0 } else { 1.0 }),
        top_k: some(&mut |x| (x * x * vocab as f64) as f32, 0.0) as usize,
        top_p: some(&mut |x| (0.001 + 0.999 * x) as f32, 1.0),
        min_p: some(&mut |x| (x * x) as f32, 0.0),
        typical_p: some(&mut |x| (0.001 + 0.999 * x) as f32, 1.0),
        repetition_penalty: some(&mut |x| (0.5 + 2.0 * x) as f32, 1.0),
        presence_penalty: some(&mut |x| (4.0 * x - 2.0) as f32, 0.0),
        frequency_penalty: some(&mut |x| (4.0 * x - 2.0) as f32, 0.0),
        dry: (case.is_multiple_of(3)).then(|| Dry {
            multiplier: 0.5 + (case % 4) as f32,
            base: 1.0 + (case % 7) as f32 / 8.0,
            allowed_length: 1 + (case % 4) as usize,
            range: if case.is_multiple_of(2) { 0 } else { (case % 40) as usize },
        }),
        min_tokens: some(&mut |x| (x * 60.0) as f32, 0.0) as usize,
        seed: case,
    };
    let mut few = |most: usize| -> Vec<u32> {
        (0..(draw() * (most + 1) as f64) as usize).map(|_| (draw() * letters) as u32).collect()
    };
    let (mut breakers, end_tokens, biased) = (few(2), few(3), few(4));
    breakers.sort_unstable();
    let values = [-100.0, -1.5, 0.5, 100.0];
    let bias = biased.iter().enumerate().map(|(i, &id)| (id, values[i])).collect();
    let words = if case % 8 == 4 { vocab / 40 } else { vocab.div_ceil(32) };
    let mask = (case.is_multiple_of(4))
        .then(|| (0..words).map(|_| (uniform(case, 77) * 4e9) as u32 | 1 << 7).collect());
    SampleQuery { logits, sampling, ids, prompt, end_tokens, bias, mask, breakers }
}

#[test]
fn random_chains_equal_the_dull_computation() {
    let mut sampler = Sampler::new(4000);
    let (mut chosen, mut none) = (0, 0);
    for case in 0..6000 {
        let query = query(case);
        query.sampling.check().unwrap();
        let mut bias = LogitBias::default();
        query.bias.iter().for_each(|&(id, value)| bias.push(id, value));
        bias.check().unwrap();
        let context = Context {
            ids: &query.ids,
            prompt: query.prompt,
            end_tokens: &query.end_tokens,
            bias: Some(&bias),
            mask: query.mask.as_deref(),
            breakers: &query.breakers,
        };
        match (sampler.sample(&query.logits, &query.sampling, &context), answer(&query)) {
            (Ok(mine), Some(expected)) => {
                assert_eq!(mine, expected, "case {case}");
                chosen += 1;
            }
            (Err(Error::NoToken), None) => none += 1,
            (mine, expected) => panic!("case {case}: {mine:?} for {expected:?}"),
        }
    }
    assert!(chosen > 4000 && none > 50, "{chosen} tokens, {none} times none");
}
