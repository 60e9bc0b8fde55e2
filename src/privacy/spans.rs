//! What `tracing` is told. All fields are declared here, by name; their values are numbers, flags and names of enums.

use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Level, Span, dispatcher, event, span};

use super::OutputType;
use super::event::{
    Accepted, Asked, Ended, Event, Failed, FirstToken, Refused, SessionClosed, SessionOpened,
};
use crate::error::ErrorKind;

/// What `gen_ai.provider.name` says.
const PROVIDER: &str = "amnesic";

/// Who listens on this thread: its own subscriber, or the process's; one load where there is none at all.
///
/// Where there is none for this thread no callsite may be met: with one subscriber in the process, and that another
/// thread's, `tracing` would take down that nobody wants it.
pub fn listener() -> Option<Dispatch> {
    let wanted = Level::INFO <= LevelFilter::current();
    wanted.then(|| dispatcher::get_default(Dispatch::clone)).filter(|dispatch| !dispatch.is::<NoSubscriber>())
}

/// Tells an event, and enters it into its span.
pub fn emit(span: &Span, event: &Event) {
    match event {
        Event::SessionOpened(told) => session_opened(span, told),
        Event::Accepted(told) => accepted(span, told),
        Event::Refused(told) => refused(span, told),
        Event::FirstToken(told) => first_token(span, told),
        Event::Ended(told) => ended(span, told),
        Event::Failed(told) => failed(span, told),
        #[cfg(feature = "debug-sampler")]
        Event::Captured(told) => captured(span, told),
        Event::SessionClosed(told) => session_closed(span, told),
    }
}

/// A request's span, below the caller's current one.
pub fn request(asked: &Asked) -> Span {
    span!(
        target: "amnesic",
        Level::INFO,
        "generate",
        otel.name = %format_args!("{} {}", asked.operation.as_str(), asked.model),
        otel.status_code = Empty,
        gen_ai.operation.name = asked.operation.as_str(),
        gen_ai.provider.name = PROVIDER,
        gen_ai.request.model = asked.model.as_str(),
        gen_ai.request.stream = asked.stream,
        gen_ai.request.max_tokens = asked.max_tokens,
        gen_ai.request.temperature = asked.temperature,
        gen_ai.request.top_p = asked.top_p,
        gen_ai.request.top_k = asked.top_k,
        gen_ai.request.frequency_penalty = asked.frequency_penalty,
        gen_ai.request.presence_penalty = asked.presence_penalty,
        gen_ai.request.choice.count = asked.choices,
        gen_ai.request.stop_sequences = asked.stop_sequences,
        gen_ai.request.seed = Empty,
        gen_ai.output.type = asked.output.map(OutputType::as_str),
        gen_ai.conversation.id = asked.conversation,
        gen_ai.response.id = Empty,
        gen_ai.response.model = Empty,
        gen_ai.response.finish_reasons = Empty,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        gen_ai.usage.cache_read.input_tokens = Empty,
        gen_ai.server.time_to_first_token = Empty,
        amnesic.usage.cost_nano = Empty,
        error.type = Empty,
    )
}

#[cfg(feature = "debug-sampler")]
fn captured(span: &Span, told: &super::event::Captured) {
    event!(
        target: "amnesic",
        parent: span,
        Level::WARN,
        gen_ai.response.id = %told.request,
        amnesic.capture.purpose = told.purpose.as_str(),
        "captured"
    );
}

fn accepted(span: &Span, told: &Accepted) {
    span.record("gen_ai.response.id", tracing::field::display(told.request));
    span.record("gen_ai.request.seed", told.seed);
    span.record("gen_ai.usage.input_tokens", told.input_tokens);
    event!(
        target: "amnesic",
        parent: span,
        Level::INFO,
        gen_ai.response.id = %told.request,
        gen_ai.usage.input_tokens = told.input_tokens,
        "accepted"
    );
}

fn refused(span: &Span, told: &Refused) {
    failure(span, told.error);
    event!(target: "amnesic", parent: span, Level::INFO, error.type = told.error.as_str(), "refused");
    duration(&told.asked, told.duration.as_secs_f64(), told.error);
}

fn first_token(span: &Span, told: &FirstToken) {
    let seconds = told.time_to_first_token.as_secs_f64();
    span.record("gen_ai.server.time_to_first_token", seconds);
    span.record("gen_ai.usage.cache_read.input_tokens", told.cached_tokens);
    event!(
        target: "amnesic",
        parent: span,
        Level::INFO,
        gen_ai.response.id = %told.request,
        gen_ai.server.time_to_first_token = seconds,
        gen_ai.usage.cache_read.input_tokens = told.cached_tokens,
        "first token"
    );
}

fn ended(span: &Span, told: &Ended) {
    span.record("gen_ai.response.model", told.asked.model.as_str());
    span.record("gen_ai.response.finish_reasons", tracing::field::display(told.finish_reasons));
    span.record("gen_ai.usage.output_tokens", told.output_tokens);
    span.record("amnesic.usage.cost_nano", told.cost_nano);
    event!(
        target: "amnesic",
        parent: span,
        Level::INFO,
        gen_ai.response.id = %told.request,
        gen_ai.response.finish_reasons = %told.finish_reasons,
        gen_ai.usage.input_tokens = told.input_tokens,
        gen_ai.usage.output_tokens = told.output_tokens,
        gen_ai.usage.cache_read.input_tokens = told.cached_tokens,
        amnesic.usage.drafted_tokens = told.drafted_tokens,
        amnesic.usage.accepted_tokens = told.accepted_tokens,
        amnesic.usage.cost_nano = told.cost_nano,
        gen_ai.server.request.duration = told.duration.as_secs_f64(),
        "ended"
    );
    metrics(told);
}

fn failed(span: &Span, told: &Failed) {
    failure(span, told.error);
    event!(
        target: "amnesic",
        parent: span,
        Level::INFO,
        gen_ai.response.id = told.request.map(tracing::field::display),
        error.type = told.error.as_str(),
        gen_ai.server.request.duration = told.duration.as_secs_f64(),
        "failed"
    );
    duration(&told.asked, told.duration.as_secs_f64(), told.error);
}

/// An error, in its span.
pub fn failure(span: &Span, error: ErrorKind) {
    span.record("error.type", error.as_str());
    span.record("otel.status_code", "ERROR");
}

/// A session's span, while it is opened.
pub fn opening() -> Span {
    span!(
        target: "amnesic",
        Level::INFO,
        "open_session",
        otel.status_code = Empty,
        gen_ai.provider.name = PROVIDER,
        error.type = Empty,
    )
}

/// A session's span, while it is closed.
pub fn closing(model: &str) -> Span {
    span!(
        target: "amnesic",
        Level::INFO,
        "close_session",
        otel.status_code = Empty,
        gen_ai.provider.name = PROVIDER,
        gen_ai.request.model = model,
        error.type = Empty,
    )
}

fn session_opened(span: &Span, told: &SessionOpened) {
    event!(
        target: "amnesic",
        parent: span,
        Level::INFO,
        amnesic.session.id = %format_args!("{:016x}", told.session),
        gen_ai.request.model = told.model.as_str(),
        amnesic.session.context_tokens = told.context_tokens,
        amnesic.session.kv_tokens = told.kv_tokens,
        amnesic.session.memory_bytes = told.memory_bytes,
        amnesic.session.open_duration = told.duration.as_secs_f64(),
        "session opened"
    );
}

fn session_closed(span: &Span, told: &SessionClosed) {
    if let Some(error) = told.error {
        failure(span, error);
    }
    event!(
        target: "amnesic",
        parent: span,
        Level::INFO,
        amnesic.session.id = %format_args!("{:016x}", told.session),
        gen_ai.request.model = told.model.as_str(),
        amnesic.session.requests = told.requests,
        amnesic.session.scrubbed_bytes = told.scrubbed_bytes,
        amnesic.session.verified_bytes = told.verified_bytes,
        error.type = told.error.map(ErrorKind::as_str),
        "session closed"
    );
}

/// Tells the metrics of a request that ended well. The fields that begin with `histogram.` and `monotonic_counter.` are metrics to
/// `tracing-opentelemetry`, the others their attributes.
fn metrics(told: &Ended) {
    let asked = &told.asked;
    event!(
        target: "amnesic::metrics",
        Level::INFO,
        histogram.gen_ai.server.request.duration = told.duration.as_secs_f64(),
        histogram.gen_ai.server.time_to_first_token = told.time_to_first_token.map(|time| time.as_secs_f64()),
        histogram.gen_ai.server.time_per_output_token = told.time_per_output_token.map(|time| time.as_secs_f64()),
        monotonic_counter.amnesic.usage.cost_nano = told.cost_nano,
        gen_ai.operation.name = asked.operation.as_str(),
        gen_ai.provider.name = PROVIDER,
        gen_ai.request.model = asked.model.as_str(),
        gen_ai.response.model = asked.model.as_str(),
    );
    for (kind, tokens) in [("input", told.input_tokens), ("output", told.output_tokens)] {
        event!(
            target: "amnesic::metrics",
            Level::INFO,
            histogram.gen_ai.client.token.usage = tokens,
            gen_ai.token.type = kind,
            gen_ai.operation.name = asked.operation.as_str(),
            gen_ai.provider.name = PROVIDER,
            gen_ai.request.model = asked.model.as_str(),
            gen_ai.response.model = asked.model.as_str(),
        );
    }
}

/// Tells how long a request took that did not end well.
fn duration(asked: &Asked, seconds: f64, error: ErrorKind) {
    event!(
        target: "amnesic::metrics",
        Level::INFO,
        histogram.gen_ai.server.request.duration = seconds,
        gen_ai.operation.name = asked.operation.as_str(),
        gen_ai.provider.name = PROVIDER,
        gen_ai.request.model = asked.model.as_str(),
        error.type = error.as_str(),
    );
}
