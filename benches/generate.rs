//! Prefill, decode and opening, end to end through a session.
//!
//! `cargo bench -p amnesic-benches --bench generate`; `AMNESIC_BENCH_MODEL=DIR` takes that checkpoint. Prompts are token ids, so
//! it needs no tokenizer.

use std::path::{Path, PathBuf};

use amnesic::{FinishReason, Request, Session};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

amnesic::install_scrubbing_allocator!();

const PREFILL_TOKENS: usize = 256;
const DECODE_TOKENS: usize = 64;
const BATCHES: [usize; 3] = [1, 8, 32];

fn generation(criterion: &mut Criterion) {
    let (name, folder) = model();
    let session = Session::open(&folder).expect("the checkpoint opens");
    let vocab = session.vocab_size() as u32;
    println!("{}: {}", folder.display(), session.device());
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);

    let len = PREFILL_TOKENS.min(session.context_length() - 1);
    let prompt: Vec<u32> = (0..len as u32).map(|i| i.wrapping_mul(7919) % vocab).collect();
    let prefill = || session.generate(Request::tokens(prompt.clone()).max_tokens(1).temperature(0.0));
    assert_eq!(prefill().expect("the prompt is valid").usage.prompt_tokens, len);
    group.throughput(Throughput::Elements(len as u64));
    group.bench_function(format!("prefill/{len} tokens"), |bench| bench.iter(prefill));

    let prompts = long_winded(&session, vocab, BATCHES[BATCHES.len() - 1]);
    for batch in BATCHES {
        let prompts = &prompts[..batch];
        check_batch(&session, prompts);
        group.throughput(Throughput::Elements((batch * DECODE_TOKENS) as u64));
        group.bench_function(format!("decode/batch {batch}"), |bench| {
            bench.iter(|| session.generate_batch(prompts.iter().map(|&id| decode(id))))
        });
    }
    drop(session);

    group.throughput(Throughput::Elements(1));
    group.bench_function("open_to_first_token", |bench| {
        bench.iter(|| {
            let session = Session::open(&folder).expect("it opened before");
            session.generate(decode(prompts[0]).max_tokens(1)).expect("it ran before")
        })
    });
    group.finish();
}

/// The benchmark group's name and the checkpoint.
fn model() -> (&'static str, PathBuf) {
    match std::env::var_os("AMNESIC_BENCH_MODEL") {
        Some(folder) => ("bench_model", folder.into()),
        None => ("default_model", Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/default")),
    }
}

/// Decoding and nothing else: a prompt of one token makes its prefill a decode step.
fn decode(id: u32) -> Request {
    Request::tokens([id]).max_tokens(DECODE_TOKENS).temperature(0.0)
}

/// One-token prompts whose replies no end token cuts short, so that every step of a batch is full.
fn long_winded(session: &Session, vocab: u32, count: usize) -> Vec<u32> {
    let mut found = Vec::new();
    let ids: Vec<u32> = (0..vocab).collect();
    for ids in ids.chunks(count) {
        let replies = session.generate_batch(ids.iter().map(|&id| decode(id))).expect("the ids are valid");
        let full = ids.iter().zip(replies).filter(|(_, reply)| reply.finish_reason() == FinishReason::Length);
        found.extend(full.map(|(&id, _)| id));
        if found.len() >= count {
            return found;
        }
    }
    panic!("only {} prompts have replies of {DECODE_TOKENS} tokens", found.len());
}

/// The batch's replies are whole, and its first and last are what they are alone.
fn check_batch(session: &Session, prompts: &[u32]) {
    let replies = session.generate_batch(prompts.iter().map(|&id| decode(id))).expect("it ran before");
    assert!(replies.iter().all(|reply| reply.tokens().len() == DECODE_TOKENS));
    for place in [0, prompts.len() - 1] {
        let alone = session.generate(decode(prompts[place])).expect("it ran before");
        assert_eq!(
            replies[place].tokens(),
            alone.tokens(),
            "request {place} differs in a batch of {}",
            prompts.len()
        );
    }
}

criterion_group!(benches, generation);
criterion_main!(benches);
