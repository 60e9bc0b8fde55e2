//! The closed schema of telemetry: all that is ever told of a session and its requests.
//!
//! Every event is `Copy`: numbers, flags, durations, small enums, and one validated name, the model's [`Alias`]. There is
//! no field into which text, token ids or values of tensors could go, and the compiler holds it to that. What the
//! application writes into a request is counted (stop strings, tokens) or named by an ordinal (conversations). The
//! numbers of a request are told as they were given: `seed`, `max_tokens`, `n` and the settings of sampling.
//!
//! Names are those of OpenTelemetry's semantic conventions for generative AI where there is one; they are the keys of
//! an event as JSON (`serde`), the fields of spans, and the attributes of metrics. Sizes are in tokens or bytes, times
//! in seconds.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{Alias, FinishReasons, Operation, OutputType};
use crate::error::ErrorKind;
use crate::outcome::RequestId;

/// What happened. See [`crate::Builder::on_event`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A session opened.
    SessionOpened(SessionOpened),
    /// A request was read, checked and taken in.
    Accepted(Accepted),
    /// A request was refused: nothing of it ran.
    Refused(Refused),
    /// A request's first token was chosen.
    FirstToken(FirstToken),
    /// A request ended with a reply.
    Ended(Ended),
    /// A request that was accepted ended without a reply.
    Failed(Failed),
    /// The debug sampler kept a sealed copy of a request.
    #[cfg(feature = "debug-sampler")]
    Captured(Captured),
    /// A session closed.
    SessionClosed(SessionClosed),
}

/// What a request asks for, as it stands in the request: none where it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Asked {
    /// `gen_ai.operation.name`.
    #[serde(rename = "gen_ai.operation.name")]
    pub operation: Operation,
    /// `gen_ai.request.model`: [`crate::Builder::model_name`].
    #[serde(rename = "gen_ai.request.model")]
    pub model: Alias,
    /// `gen_ai.output.type`: the form of the reply; none of embeddings and scores.
    #[serde(rename = "gen_ai.output.type")]
    pub output: Option<OutputType>,
    /// `gen_ai.request.stream`: whether it is read as it comes.
    #[serde(rename = "gen_ai.request.stream")]
    pub stream: bool,
    /// `gen_ai.request.max_tokens`.
    #[serde(rename = "gen_ai.request.max_tokens")]
    pub max_tokens: Option<u64>,
    /// `gen_ai.request.temperature`, to six decimals, as all of sampling here.
    #[serde(rename = "gen_ai.request.temperature")]
    pub temperature: Option<f64>,
    /// `gen_ai.request.top_p`.
    #[serde(rename = "gen_ai.request.top_p")]
    pub top_p: Option<f64>,
    /// `gen_ai.request.top_k`.
    #[serde(rename = "gen_ai.request.top_k")]
    pub top_k: Option<u64>,
    /// `gen_ai.request.frequency_penalty`.
    #[serde(rename = "gen_ai.request.frequency_penalty")]
    pub frequency_penalty: Option<f64>,
    /// `gen_ai.request.presence_penalty`.
    #[serde(rename = "gen_ai.request.presence_penalty")]
    pub presence_penalty: Option<f64>,
    /// `gen_ai.request.choice.count`.
    #[serde(rename = "gen_ai.request.choice.count")]
    pub choices: u64,
    /// `gen_ai.request.stop_sequences`: how many, never which.
    #[serde(rename = "gen_ai.request.stop_sequences")]
    pub stop_sequences: u64,
    /// `gen_ai.conversation.id`: a number that the session gave the conversation.
    #[serde(rename = "gen_ai.conversation.id")]
    pub conversation: Option<u64>,
}

/// See [`Event::Accepted`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Accepted {
    /// What was asked for.
    #[serde(flatten)]
    pub asked: Asked,
    /// `gen_ai.response.id`.
    #[serde(rename = "gen_ai.response.id", serialize_with = "display")]
    pub request: RequestId,
    /// `gen_ai.request.seed`: the request's, or the one that was drawn.
    #[serde(rename = "gen_ai.request.seed")]
    pub seed: u64,
    /// `gen_ai.usage.input_tokens`.
    #[serde(rename = "gen_ai.usage.input_tokens")]
    pub input_tokens: u64,
}

/// See [`Event::Refused`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Refused {
    /// What was asked for.
    #[serde(flatten)]
    pub asked: Asked,
    /// `error.type`: what was wrong; [`ErrorKind::InBatch`] if that was another request of its batch.
    #[serde(rename = "error.type", serialize_with = "display")]
    pub error: ErrorKind,
    /// `gen_ai.server.request.duration`: from the call to the refusal.
    #[serde(rename = "gen_ai.server.request.duration", serialize_with = "seconds")]
    pub duration: Duration,
}

/// See [`Event::FirstToken`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FirstToken {
    /// `gen_ai.response.id`.
    #[serde(rename = "gen_ai.response.id", serialize_with = "display")]
    pub request: RequestId,
    /// `gen_ai.usage.cache_read.input_tokens`: of the prompt's tokens, those that were not computed again.
    #[serde(rename = "gen_ai.usage.cache_read.input_tokens")]
    pub cached_tokens: u64,
    /// `gen_ai.server.time_to_first_token`: from the call, so reading the prompt and waiting are in it.
    #[serde(rename = "gen_ai.server.time_to_first_token", serialize_with = "seconds")]
    pub time_to_first_token: Duration,
}

/// See [`Event::Captured`].
#[cfg(feature = "debug-sampler")]
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Captured {
    /// `gen_ai.response.id`.
    #[serde(rename = "gen_ai.response.id", serialize_with = "display")]
    pub request: RequestId,
    /// `amnesic.capture.purpose`: what the application keeps copies for.
    #[serde(rename = "amnesic.capture.purpose")]
    pub purpose: super::debug_sampler::Purpose,
}

/// See [`Event::Ended`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Ended {
    /// What was asked for.
    #[serde(flatten)]
    pub asked: Asked,
    /// `gen_ai.response.id`.
    #[serde(rename = "gen_ai.response.id", serialize_with = "display")]
    pub request: RequestId,
    /// `gen_ai.response.finish_reasons`.
    #[serde(rename = "gen_ai.response.finish_reasons")]
    pub finish_reasons: FinishReasons,
    /// `gen_ai.usage.input_tokens`.
    #[serde(rename = "gen_ai.usage.input_tokens")]
    pub input_tokens: u64,
    /// `gen_ai.usage.output_tokens`, over all choices.
    #[serde(rename = "gen_ai.usage.output_tokens")]
    pub output_tokens: u64,
    /// `gen_ai.usage.cache_read.input_tokens`.
    #[serde(rename = "gen_ai.usage.cache_read.input_tokens")]
    pub cached_tokens: u64,
    /// `amnesic.usage.drafted_tokens`: guessed at by speculation.
    #[serde(rename = "amnesic.usage.drafted_tokens")]
    pub drafted_tokens: u64,
    /// `amnesic.usage.accepted_tokens`: guesses that were right.
    #[serde(rename = "amnesic.usage.accepted_tokens")]
    pub accepted_tokens: u64,
    /// `amnesic.usage.cost_nano`: 10^-9 of the currency of [`crate::privacy::Prices`].
    #[serde(rename = "amnesic.usage.cost_nano")]
    pub cost_nano: Option<u64>,
    /// `gen_ai.server.time_to_first_token`; none if it ended before.
    #[serde(rename = "gen_ai.server.time_to_first_token", serialize_with = "some_seconds")]
    pub time_to_first_token: Option<Duration>,
    /// `gen_ai.server.time_per_output_token`: after the first, of a choice's mean length; none for fewer than two.
    #[serde(rename = "gen_ai.server.time_per_output_token", serialize_with = "some_seconds")]
    pub time_per_output_token: Option<Duration>,
    /// `gen_ai.server.request.duration`: from the call until all of it was overwritten.
    #[serde(rename = "gen_ai.server.request.duration", serialize_with = "seconds")]
    pub duration: Duration,
}

/// See [`Event::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Failed {
    /// What was asked for.
    #[serde(flatten)]
    pub asked: Asked,
    /// `gen_ai.response.id`; none if the session ended before it was accepted.
    #[serde(rename = "gen_ai.response.id", serialize_with = "some_display")]
    pub request: Option<RequestId>,
    /// `error.type`: [`ErrorKind::Closed`] where its reader dropped it, or the session.
    #[serde(rename = "error.type", serialize_with = "display")]
    pub error: ErrorKind,
    /// `gen_ai.usage.input_tokens`.
    #[serde(rename = "gen_ai.usage.input_tokens")]
    pub input_tokens: u64,
    /// `gen_ai.server.time_to_first_token`; none if it failed before.
    #[serde(rename = "gen_ai.server.time_to_first_token", serialize_with = "some_seconds")]
    pub time_to_first_token: Option<Duration>,
    /// `gen_ai.server.request.duration`: from the call until all of it was overwritten.
    #[serde(rename = "gen_ai.server.request.duration", serialize_with = "seconds")]
    pub duration: Duration,
}

/// See [`Event::SessionOpened`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SessionOpened {
    /// `amnesic.session.id`: the number with which the ids of its requests begin.
    #[serde(rename = "amnesic.session.id", serialize_with = "hex")]
    pub session: u64,
    /// `gen_ai.request.model`.
    #[serde(rename = "gen_ai.request.model")]
    pub model: Alias,
    /// `amnesic.session.context_tokens`: what one request may have.
    #[serde(rename = "amnesic.session.context_tokens")]
    pub context_tokens: u64,
    /// `amnesic.session.kv_tokens`: what the cache holds.
    #[serde(rename = "amnesic.session.kv_tokens")]
    pub kv_tokens: u64,
    /// `amnesic.session.memory_bytes`: weights, cache and workspace.
    #[serde(rename = "amnesic.session.memory_bytes")]
    pub memory_bytes: u64,
    /// `amnesic.session.open_duration`.
    #[serde(rename = "amnesic.session.open_duration", serialize_with = "seconds")]
    pub duration: Duration,
}

/// See [`Event::SessionClosed`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SessionClosed {
    /// `amnesic.session.id`.
    #[serde(rename = "amnesic.session.id", serialize_with = "hex")]
    pub session: u64,
    /// `gen_ai.request.model`.
    #[serde(rename = "gen_ai.request.model")]
    pub model: Alias,
    /// `amnesic.session.requests`: how many ended, in whatever way.
    #[serde(rename = "amnesic.session.requests")]
    pub requests: u64,
    /// `amnesic.session.scrubbed_bytes`: overwritten, each time counted.
    #[serde(rename = "amnesic.session.scrubbed_bytes")]
    pub scrubbed_bytes: u64,
    /// `amnesic.session.verified_bytes`: read back as zero.
    #[serde(rename = "amnesic.session.verified_bytes")]
    pub verified_bytes: u64,
    /// `error.type`: [`ErrorKind::Poisoned`], or none.
    #[serde(rename = "error.type", serialize_with = "some_display")]
    pub error: Option<ErrorKind>,
}

/// The proof that the schema is closed: nothing that owns a text is `Copy`.
const _: () = {
    const fn closed<T: Copy + Send + Sync + 'static>() {}
    closed::<Event>();
    closed::<Asked>();
    closed::<Accepted>();
    closed::<Refused>();
    closed::<FirstToken>();
    closed::<Ended>();
    closed::<Failed>();
    closed::<SessionOpened>();
    closed::<SessionClosed>();
    closed::<FinishReasons>();
    closed::<ErrorKind>();
    closed::<Alias>();
};

fn display<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn some_display<S: Serializer>(
    value: &Option<impl std::fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// Numbers of 64 random bits are text in JSON, whose readers may take numbers for doubles.
fn hex<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:016x}"))
}

fn seconds<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.as_secs_f64())
}

fn some_seconds<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => seconds(value, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_conventions() {
        let event = Event::FirstToken(FirstToken {
            request: RequestId { session: 10, count: 3 },
            cached_tokens: 64,
            time_to_first_token: Duration::from_millis(1500),
        });
        let expected = serde_json::json!({
            "event": "first_token",
            "gen_ai.response.id": "000000000000000a-3",
            "gen_ai.usage.cache_read.input_tokens": 64,
            "gen_ai.server.time_to_first_token": 1.5,
        });
        assert_eq!(serde_json::to_value(event).unwrap(), expected);
        let event = Event::SessionClosed(SessionClosed {
            session: u64::MAX,
            model: Alias::new("llama").unwrap(),
            requests: 1,
            scrubbed_bytes: 2,
            verified_bytes: 3,
            error: Some(ErrorKind::Poisoned),
        });
        let json = serde_json::to_value(event).unwrap();
        assert_eq!(json["event"], "session_closed");
        assert_eq!(json["amnesic.session.id"], "ffffffffffffffff");
        assert_eq!(json["error.type"], "poisoned");
    }
}
