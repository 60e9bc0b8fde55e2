//! The metrics, by name: what an application tells its metrics library once.

/// A metric as the `tracing` events of the target [`METRICS_TARGET`] give it.
///
/// `tracing` fields have no units and `tracing-opentelemetry` gives instruments none, so whoever wants them in the
/// exported metrics makes views from this table (`SdkMeterProvider::builder().with_view(...)`); `tests/telemetry.rs`
/// has one.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its unit, in UCUM.
    pub unit: &'static str,
    /// Buckets that the conventions recommend; none for a counter.
    pub boundaries: &'static [f64],
}

/// The target of the events that carry metrics.
pub const METRICS_TARGET: &str = "amnesic::metrics";

const DURATIONS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKENS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const OUTPUT_TOKENS: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
/// 4^0 to 4^13.
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0, 67108864.0,
];

/// All metrics. The first four are histograms of OpenTelemetry's conventions for generative AI, in its spelling.
pub const METRICS: [Metric; 5] = [
    Metric { name: "gen_ai.server.request.duration", unit: "s", boundaries: &DURATIONS },
    Metric { name: "gen_ai.server.time_to_first_token", unit: "s", boundaries: &FIRST_TOKENS },
    Metric { name: "gen_ai.server.time_per_output_token", unit: "s", boundaries: &OUTPUT_TOKENS },
    Metric { name: "gen_ai.client.token.usage", unit: "{token}", boundaries: &TOKENS },
    Metric { name: "amnesic.usage.cost_nano", unit: "{nano}", boundaries: &[] },
];
