//! Real OpenTelemetry metrics: through `tracing-opentelemetry`'s layer and the SDK, to an exporter in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amnesic::privacy::{Alias, METRICS, Prices};
use amnesic::{Request, Session};
use opentelemetry::KeyValue;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, PeriodicReader, SdkMeterProvider, Stream, Temporality,
};
use tracing_subscriber::layer::SubscriberExt;

amnesic::install_scrubbing_allocator!();

fn default_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models/default")
}

/// One metric with one set of attributes.
#[derive(Clone, Debug, Default)]
struct Point {
    unit: String,
    count: u64,
    sum: f64,
    bounds: usize,
}

/// By name and attributes.
#[derive(Clone, Debug, Default)]
struct InMemory(Arc<Mutex<BTreeMap<(String, String), Point>>>);

fn attributes<'a>(list: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut list: Vec<String> = list.map(|pair| format!("{}={}", pair.key, pair.value)).collect();
    list.sort();
    list.join(" ")
}

impl InMemory {
    fn histogram<T: Copy>(
        points: &mut BTreeMap<(String, String), Point>,
        (name, unit): (&str, &str),
        data: &MetricData<T>,
        to_f64: impl Fn(T) -> f64,
    ) {
        match data {
            MetricData::Histogram(histogram) => {
                for point in histogram.data_points() {
                    let of = Point {
                        unit: unit.into(),
                        count: point.count(),
                        sum: to_f64(point.sum()),
                        bounds: point.bounds().count(),
                    };
                    points.insert((name.into(), attributes(point.attributes())), of);
                }
            }
            MetricData::Sum(sum) => {
                assert!(sum.is_monotonic());
                for point in sum.data_points() {
                    let sum = to_f64(point.value());
                    let of = Point { unit: unit.into(), count: 1, sum, bounds: 0 };
                    points.insert((name.into(), attributes(point.attributes())), of);
                }
            }
            _ => panic!("{name}: of another kind"),
        }
    }
}

impl PushMetricExporter for InMemory {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut points = self.0.lock().unwrap();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let of = (metric.name(), metric.unit());
            match metric.data() {
                AggregatedMetrics::F64(data) => Self::histogram(&mut points, of, data, |value| value),
                AggregatedMetrics::U64(data) => Self::histogram(&mut points, of, data, |value| value as f64),
                AggregatedMetrics::I64(data) => Self::histogram(&mut points, of, data, |value| value as f64),
            }
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

/// What gives instruments their units and buckets: the table that the crate has for it.
fn view(instrument: &Instrument) -> Option<Stream> {
    let metric = METRICS.iter().find(|metric| metric.name == instrument.name())?;
    let stream = Stream::builder().with_unit(metric.unit);
    let stream = match metric.boundaries {
        [] => stream,
        boundaries => stream.with_aggregation(Aggregation::ExplicitBucketHistogram {
            boundaries: boundaries.to_vec(),
            record_min_max: true,
        }),
    };
    Some(stream.build().unwrap())
}

#[test]
fn metrics_arrive_with_their_names_units_and_attributes() {
    let memory = InMemory::default();
    let provider = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(memory.clone()).build())
        .with_view(view)
        .build();
    let layer = tracing_opentelemetry::MetricsLayer::new(provider.clone());
    let subscriber = tracing_subscriber::registry().with(layer);
    let prices = Prices::new()
        .prompt_token_nano(100)
        .cached_token_nano(10)
        .completion_token_nano(1000)
        .request_nano(7);
    let (first, second) = tracing::subscriber::with_default(subscriber, || {
        let builder = Session::builder(default_model()).threads(1).prices(prices);
        let session = builder.model_name(Alias::new("tiny/rust:1").unwrap()).open().unwrap();
        let first = session.generate(Request::prompt("A slice is").max_tokens(8)).unwrap();
        let second = session.generate(Request::prompt("A vector is").max_tokens(5).n(2)).unwrap();
        session.generate(Request::prompt("wrong").max_tokens(0)).unwrap_err();
        (first, second)
    });
    provider.force_flush().unwrap();
    let points = memory.0.lock().unwrap().clone();
    let common = "gen_ai.operation.name=text_completion gen_ai.provider.name=amnesic \
                  gen_ai.request.model=tiny/rust:1";
    let well = format!("{common} gen_ai.response.model=tiny/rust:1");
    let get = |name: &str, attributes: &str| {
        points
            .get(&(name.into(), attributes.into()))
            .unwrap_or_else(|| panic!("{name} {attributes}: {points:#?}"))
    };

    for (name, unit, bounds) in [
        ("gen_ai.server.request.duration", "s", 14),
        ("gen_ai.server.time_to_first_token", "s", 16),
        ("gen_ai.server.time_per_output_token", "s", 13),
    ] {
        let point = get(name, &well);
        assert_eq!((point.unit.as_str(), point.count, point.bounds), (unit, 2, bounds), "{name}");
        assert!(point.sum > 0.0 && point.sum < 60.0, "{name}: {point:?}");
    }
    let (first_token, whole) = (
        get("gen_ai.server.time_to_first_token", &well).sum,
        get("gen_ai.server.request.duration", &well).sum,
    );
    assert!(first_token < whole, "{first_token} of {whole}");
    let used = [first.usage, second.usage];
    for (kind, tokens) in [
        ("input", used.map(|usage| usage.prompt_tokens)),
        ("output", used.map(|usage| usage.completion_tokens)),
    ] {
        let point = get("gen_ai.client.token.usage", &format!("{well} gen_ai.token.type={kind}"));
        assert_eq!((point.unit.as_str(), point.count, point.bounds), ("{token}", 2, 14));
        assert_eq!(point.sum, tokens.iter().sum::<usize>() as f64, "{kind}");
    }
    let cost = get("amnesic.usage.cost_nano", &well);
    assert_eq!(
        (cost.unit.as_str(), cost.sum),
        ("{nano}", used.map(|usage| prices.cost(&usage)).iter().sum::<u64>() as f64)
    );
    assert_eq!(used.map(|usage| usage.cost_nano), used.map(|usage| Some(prices.cost(&usage))));
    let refused = get("gen_ai.server.request.duration", &format!("error.type=request {common}"));
    assert_eq!((refused.unit.as_str(), refused.count), ("s", 1));
    // and no other: each name is in the table
    assert!(points.keys().all(|(name, _)| METRICS.iter().any(|metric| metric.name == name)), "{points:#?}");
    assert_eq!(points.len(), 7);
}
