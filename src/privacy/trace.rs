//! A session's telemetry, and a request's from the call to its end.
//!
//! A request's span is made on its caller's thread, so that it stands below the caller's current span. The session's
//! threads then tell to the subscriber of that caller. Neither a subscriber nor a callback can harm a session: a panic
//! of theirs ends there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Dispatch, Span, dispatcher};

use super::event::{
    Accepted, Asked, Ended, Event, Failed, FirstToken, Refused, SessionClosed, SessionOpened,
};
use super::{Alias, FinishReasons, Operation, OutputType, Prices, spans};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::{RequestId, Timing, Usage};
use crate::privacy::ScrubReceipt;
use crate::request::{Prompt, Request};

/// The application's own listener.
pub type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// What all requests of a session have in common.
pub struct Telemetry {
    pub model: Alias,
    /// Begins the ids of its requests.
    pub session: u64,
    pub prices: Option<Prices>,
    pub on_event: Option<OnEvent>,
    pub clock: Arc<dyn Clock>,
}

impl Telemetry {
    /// Begins a request, on its caller's thread.
    pub fn trace(self: &Arc<Self>, request: &Request, stream: bool) -> Trace {
        self.begin(self.asked(request, stream))
    }

    /// Begins a request for embeddings or scores, on its caller's thread.
    pub fn trace_texts(self: &Arc<Self>, operation: Operation) -> Trace {
        self.begin(Asked {
            operation,
            model: self.model,
            output: None,
            stream: false,
            max_tokens: None,
            temperature: None,
            top_p: None,
            top_k: None,
            frequency_penalty: None,
            presence_penalty: None,
            choices: 1,
            stop_sequences: 0,
            conversation: None,
        })
    }

    fn begin(self: &Arc<Self>, asked: Asked) -> Trace {
        let listener = spans::listener();
        let span = begin(listener.as_ref(), || spans::request(&asked));
        let state = State { span, request: None, input_tokens: 0, first_token: None, over: false };
        Trace(Arc::new(Inner {
            asked,
            called: self.clock.now(),
            listener,
            telemetry: self.clone(),
            state: Mutex::new(state),
        }))
    }

    /// Only counts and settings: this is all that telemetry ever reads of a request.
    fn asked(&self, request: &Request, stream: bool) -> Asked {
        let decimals = |value: f32| (f64::from(value) * 1e6).round() / 1e6; // 0.7, not 0.699999988079071
        let sampling = &request.sampling;
        Asked {
            operation: match request.prompt {
                Prompt::Chat(_) => Operation::Chat,
                Prompt::Text(_) | Prompt::Tokens(_) => Operation::TextCompletion,
            },
            model: self.model,
            output: Some(if request.format.is_json() { OutputType::Json } else { OutputType::Text }),
            stream,
            max_tokens: request.max_tokens.map(|count| count as u64),
            temperature: sampling.temperature.map(decimals),
            top_p: sampling.top_p.map(decimals),
            top_k: sampling.top_k.map(|count| count as u64),
            frequency_penalty: sampling.frequency_penalty.map(decimals),
            presence_penalty: sampling.presence_penalty.map(decimals),
            choices: request.choices() as u64,
            stop_sequences: request.stop.len() as u64,
            conversation: request.prefix.as_ref().filter(|reuse| !reuse.public).map(|reuse| reuse.lease.key),
        }
    }

    fn emit(&self, event: &Event) {
        if let Some(call) = &self.on_event {
            quietly(|| call(event));
        }
    }

    /// The session is there.
    fn opened(&self, sizes: Sizes, span: Span, duration: Duration) {
        let Sizes { context_tokens, kv_tokens, memory_bytes } = sizes;
        let told = SessionOpened {
            session: self.session,
            model: self.model,
            context_tokens,
            kv_tokens,
            memory_bytes,
            duration,
        };
        let event = Event::SessionOpened(told);
        emit(spans::listener().as_ref(), span, &event);
        self.emit(&event);
    }

    /// Closes the session with `close`, in a span of its own.
    pub fn closing(&self, close: impl FnOnce() -> Option<(ScrubReceipt, bool)>) -> Option<ScrubReceipt> {
        let listener = spans::listener();
        let span = begin(listener.as_ref(), || spans::closing(self.model.as_str()));
        let (report, poisoned) = close()?;
        let told = SessionClosed {
            session: self.session,
            model: self.model,
            requests: report.requests(),
            scrubbed_bytes: report.bytes(),
            verified_bytes: report.verified_bytes(),
            error: poisoned.then_some(ErrorKind::Poisoned),
        };
        let event = Event::SessionClosed(told);
        emit(listener.as_ref(), span, &event);
        self.emit(&event);
        Some(report)
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("model", &self.model).finish_non_exhaustive()
    }
}

/// How large a session is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub context_tokens: u64,
    pub kv_tokens: u64,
    pub memory_bytes: u64,
}

/// Opens a session with `load`, in a span of its own; `sizes` says what is told of it, and by whom.
pub fn open<S>(
    clock: Arc<dyn Clock>,
    load: impl FnOnce() -> Result<S>,
    sizes: impl FnOnce(&S) -> (&Telemetry, Sizes),
) -> Result<S> {
    let (began, listener) = (clock.now(), spans::listener());
    let span = begin(listener.as_ref(), spans::opening);
    let session = load();
    match &session {
        Ok(session) => {
            let (telemetry, sizes) = sizes(session);
            telemetry.opened(sizes, span, clock.now().saturating_duration_since(began));
        }
        Err(error) => quietly(|| {
            spans::failure(&span, error.kind());
            drop(span);
        }),
    }
    session
}

/// One request. Clones are the same request; it ends once.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asked: Asked,
    /// When the caller called.
    called: Instant,
    /// The caller's.
    listener: Option<Dispatch>,
    telemetry: Arc<Telemetry>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    span: Span,
    request: Option<RequestId>,
    input_tokens: u64,
    first_token: Option<Duration>,
    over: bool,
}

impl Trace {
    /// Ends all requests of a call: `error` is of the one at `place`.
    pub fn refuse(traces: &[Self], place: usize, error: &Error) {
        for (index, trace) in traces.iter().enumerate() {
            trace.refused(Self::refusal_of(index, place, error));
        }
    }

    /// What becomes of the request at `index` of a call that was refused with `error`, which is of the one at `place`.
    pub fn refusal_of(index: usize, place: usize, error: &Error) -> ErrorKind {
        let common = matches!(error, Error::Busy { .. } | Error::Poisoned(_) | Error::Closed);
        if common || index == place { error.kind() } else { ErrorKind::InBatch }
    }

    /// It was refused.
    pub fn refused(&self, error: ErrorKind) {
        let (asked, duration) = (self.0.asked, self.0.elapsed());
        self.0.end(|_| Event::Refused(Refused { asked, error, duration }));
    }

    /// It was read and checked.
    pub fn accepted(&self, request: RequestId, input_tokens: usize, seed: u64) {
        let (asked, input_tokens) = (self.0.asked, input_tokens as u64);
        let span = {
            let mut state = self.0.lock();
            (state.request, state.input_tokens) = (Some(request), input_tokens);
            state.span.clone()
        };
        self.0.emit(span, &Event::Accepted(Accepted { asked, request, seed, input_tokens }));
    }

    /// Its first token was chosen.
    pub fn first_token(&self, request: RequestId, cached_tokens: usize) {
        let time_to_first_token = self.0.elapsed();
        let span = {
            let mut state = self.0.lock();
            state.first_token = Some(time_to_first_token);
            state.span.clone()
        };
        let cached_tokens = cached_tokens as u64;
        let told = FirstToken { request, cached_tokens, time_to_first_token };
        self.0.emit(span, &Event::FirstToken(told));
    }

    /// The debug sampler kept a sealed copy of it.
    #[cfg(feature = "debug-sampler")]
    pub fn captured(&self, request: RequestId, purpose: super::debug_sampler::Purpose) {
        let span = self.0.lock().span.clone();
        self.0.emit(span, &Event::Captured(super::event::Captured { request, purpose }));
    }

    /// What it costs, if there are prices.
    pub fn cost_nano(&self, usage: &Usage) -> Option<u64> {
        self.0.telemetry.prices.map(|prices| prices.cost(usage))
    }

    /// It ended with a reply.
    pub fn ended(&self, request: RequestId, usage: &Usage, timing: &Timing, finish_reasons: FinishReasons) {
        let (asked, duration) = (self.0.asked, self.0.elapsed());
        let tokens = usage.completion_tokens as f64 / asked.choices as f64; // a choice's mean length
        let decoding = timing.total.saturating_sub(timing.first_token);
        self.0.end(|state| {
            Event::Ended(Ended {
                asked,
                request,
                finish_reasons,
                input_tokens: usage.prompt_tokens as u64,
                output_tokens: usage.completion_tokens as u64,
                cached_tokens: usage.cached_tokens as u64,
                drafted_tokens: usage.drafted_tokens as u64,
                accepted_tokens: usage.accepted_tokens as u64,
                cost_nano: usage.cost_nano,
                time_to_first_token: state.first_token,
                time_per_output_token: (tokens > 1.0).then(|| decoding.div_f64(tokens - 1.0)),
                duration,
            })
        });
    }

    /// It ended without a reply.
    pub fn failed(&self, error: ErrorKind) {
        self.0.failed(error);
    }
}

impl Inner {
    fn failed(&self, error: ErrorKind) {
        let (asked, duration) = (self.asked, self.elapsed());
        self.end(|state| {
            let State { request, input_tokens, first_token, .. } = *state;
            let time_to_first_token = first_token;
            Event::Failed(Failed { asked, request, error, input_tokens, time_to_first_token, duration })
        });
    }

    /// The first end counts.
    fn end(&self, event: impl FnOnce(&State) -> Event) {
        let (span, event) = {
            let mut state = self.lock();
            if std::mem::replace(&mut state.over, true) {
                return;
            }
            (std::mem::replace(&mut state.span, Span::none()), event(&state))
        };
        self.emit(span, &event);
    }

    /// Never under the lock: a subscriber may take its time. The span closes here if this was its end.
    fn emit(&self, span: Span, event: &Event) {
        emit(self.listener.as_ref(), span, event);
        self.telemetry.emit(event);
    }

    fn elapsed(&self) -> Duration {
        self.telemetry.clock.now().saturating_duration_since(self.called)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody said how it ended: it went with its session.
impl Drop for Inner {
    fn drop(&mut self) {
        self.failed(ErrorKind::Closed);
    }
}

/// A span for `listener`, if there is one.
fn begin(listener: Option<&Dispatch>, make: impl FnOnce() -> Span) -> Span {
    let mut span = Span::none();
    if listener.is_some() {
        quietly(|| span = make());
    }
    span
}

/// Tells the listener, and lets go of the span.
fn emit(listener: Option<&Dispatch>, span: Span, event: &Event) {
    let Some(listener) = listener else { return };
    quietly(|| {
        dispatcher::with_default(listener, || spans::emit(&span, event));
        drop(span);
    });
}

/// Runs what the application or its subscriber wrote.
fn quietly(act: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(act)); // it is theirs, and the session does not depend on it
}
