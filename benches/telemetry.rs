//! What telemetry costs a request: a span, three events, metrics; with nobody who listens, with a callback, and with
//! `tracing-subscriber`'s registry and the layer that makes OpenTelemetry's metrics of it (without an exporter).
//!
//! `cargo bench -p amnesic-benches --features testing --bench telemetry`

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use amnesic::Request;
use amnesic::testing::Telling;
use criterion::{Criterion, criterion_group, criterion_main};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tracing_subscriber::layer::SubscriberExt;

amnesic::install_scrubbing_allocator!();

fn telemetry(criterion: &mut Criterion) {
    let request = Request::prompt("A slice is").max_tokens(5).temperature(0.7).seed(7);
    let mut group = criterion.benchmark_group("a request's telemetry");
    group.bench_function("a bare span that nobody wants", |bench| {
        bench.iter(|| tracing::info_span!("generate", gen_ai.usage.input_tokens = black_box(9)))
    });
    let silent = Telling::new(None);
    group.bench_function("nobody listens", |bench| bench.iter(|| silent.emit(black_box(&request))));

    let heard = Arc::new(AtomicU64::new(0));
    let count = heard.clone();
    let called = Telling::new(Some(Box::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    })));
    called.emit(&request);
    assert_eq!(heard.load(Ordering::Relaxed), 3, "accepted, first token, ended");
    group.bench_function("a callback", |bench| bench.iter(|| called.emit(black_box(&request))));

    let provider = SdkMeterProvider::builder().build();
    let metrics = tracing_opentelemetry::MetricsLayer::new(provider);
    let subscriber = tracing_subscriber::registry().with(AllSpans).with(metrics);
    tracing::subscriber::with_default(subscriber, || {
        group.bench_function("spans and metrics", |bench| bench.iter(|| silent.emit(black_box(&request))));
    });
}

/// Wants everything and keeps nothing, so that the registry makes its spans.
struct AllSpans;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for AllSpans {}

criterion_group!(benches, telemetry);
criterion_main!(benches);
