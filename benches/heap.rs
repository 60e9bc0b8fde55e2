//! What a block of the heap for secrets costs: taken, written a little, and given back, in the sizes that requests use. And
//! what it costs to seal a block of the KV cache, which a conversation pays once after a turn and once before the next.
//!
//! `cargo bench -p amnesic-benches --features testing --bench heap`. What it costs whole generations: `benches/generate.rs`, with and without.

use std::hint::black_box;

use amnesic::SealingKey;
use amnesic::testing::{SecretBytes, seal_block};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SIZES: [(&str, usize); 6] = [
    ("24 B", 24),
    ("200 B", 200),
    ("2 KiB", 2 << 10),
    ("16 KiB", 16 << 10),
    ("100 KiB", 100 << 10),
    ("4 MiB", 4 << 20),
];

fn blocks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("heap");
    for (name, len) in SIZES {
        let mut first = SecretBytes::new(len);
        first.touch();
        assert_eq!(first.len(), len);
        group.bench_function(format!("one/{name}"), |bench| {
            bench.iter(|| black_box(SecretBytes::new(len)).touch());
        });
    }
    // many at once, so that blocks come from many slabs and are cold when they are used again
    for (name, len) in &SIZES[..4] {
        group.bench_function(format!("a thousand/{name}"), |bench| {
            bench.iter(|| {
                let mut all: Vec<_> = (0..1000).map(|_| SecretBytes::new(*len)).collect();
                all.iter_mut().for_each(SecretBytes::touch);
                black_box(all);
            });
        });
    }
    group.finish();
}

fn seals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    let (key, mut bytes) = (SealingKey::new(&mut [7; SealingKey::BYTES]), vec![0_u8; 2 << 20]);
    seal_block(&key, 1, &mut bytes);
    assert!(bytes[..64].iter().any(|&byte| byte != 0));
    seal_block(&key, 1, &mut bytes);
    assert!(bytes.iter().all(|&byte| byte == 0), "sealed and opened it is what it was");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("2 MiB", |bench| bench.iter(|| seal_block(&key, 1, black_box(&mut bytes))));
    group.finish();
}

criterion_group!(benches, blocks, seals);
criterion_main!(benches);
