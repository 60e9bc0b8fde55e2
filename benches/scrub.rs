//! How fast memory is overwritten: the library's scrub against a plain `fill(0)`.
//!
//! `cargo bench -p amnesic-benches --features testing --bench scrub`

use std::hint::black_box;

use amnesic::testing::scrub;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SIZES: [(&str, usize); 3] = [("64 KiB", 64 << 10), ("4 MiB", 4 << 20), ("256 MiB", 256 << 20)];

fn scrubbing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scrub");
    group.sample_size(20);
    for (name, len) in SIZES {
        let mut bytes = vec![0xa5_u8; len];
        assert_eq!(scrub(&mut bytes), len as u64);
        assert!(bytes.iter().all(|&byte| byte == 0), "scrub left something");

        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("scrub/{name}"), |bench| bench.iter(|| scrub(black_box(&mut bytes))));
        // black_box behind it as well: the compiler may drop stores that nobody reads
        group.bench_function(format!("fill/{name}"), |bench| {
            bench.iter(|| {
                black_box(&mut bytes).fill(0);
                black_box(&mut bytes);
            })
        });
    }
    group.finish();
}

criterion_group!(benches, scrubbing);
criterion_main!(benches);
