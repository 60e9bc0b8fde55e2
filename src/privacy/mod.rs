//! What an application sets, is told, and can prove about privacy.
//!
//! Never lives here: content. Nothing in this module has a field that could hold text, token ids or tensor values, but
//! for what the debug sampler seals for the application's own key.
//!
//! # Telemetry
//!
//! A session tells what it does in two ways, in the same words: through `tracing` (spans and events of the target
//! `amnesic`, metrics as events of the target `amnesic::metrics`), and to [`crate::Builder::on_event`] as [`Event`]s.
//! The words are the whole schema, and it is closed: see [`Event`]. Without a subscriber and a callback nothing is made.
//!
//! Spans: `generate` for each request, below the caller's current span, from the call until all of the request is
//! overwritten; `open_session` and `close_session`. What the session's threads tell goes to the subscriber that was the
//! caller's.
//!
//! | field | unit | of | meaning |
//! |---|---|---|---|
//! | `otel.name` | | span | `{gen_ai.operation.name} {gen_ai.request.model}` |
//! | `otel.status_code` | | span | `ERROR` after an error |
//! | `gen_ai.operation.name` | | span, metrics | [`Operation`]: `chat`, `text_completion`, `embeddings`, `rerank` |
//! | `gen_ai.provider.name` | | span, metrics | `amnesic` |
//! | `gen_ai.request.model`, `gen_ai.response.model` | | span, events, metrics | the [`Alias`] of [`crate::Builder::model_name`] |
//! | `gen_ai.request.stream` | bool | span | whether the reply is read as it comes |
//! | `gen_ai.request.max_tokens` | tokens | span | as in the request |
//! | `gen_ai.request.temperature`, `.top_p`, `.top_k`, `.frequency_penalty`, `.presence_penalty` | 1 | span | as in the request |
//! | `gen_ai.request.choice.count` | choices | span | as in the request |
//! | `gen_ai.request.stop_sequences` | strings | span | **how many** |
//! | `gen_ai.request.seed` | | span | the request's, or the one that was drawn |
//! | `gen_ai.output.type` | | span | [`OutputType`]: `text`, `json`; not of embeddings and scores |
//! | `gen_ai.conversation.id` | | span | **a number** that the session gave it |
//! | `gen_ai.response.id` | | span, events | [`crate::RequestId`] |
//! | `gen_ai.response.finish_reasons` | | span, events | [`FinishReasons`]: `["stop"]` |
//! | `gen_ai.usage.input_tokens`, `.output_tokens` | tokens | span, events | [`crate::Usage`] |
//! | `gen_ai.usage.cache_read.input_tokens` | tokens | span, events | [`crate::Usage::cached_tokens`] |
//! | `amnesic.usage.drafted_tokens`, `.accepted_tokens` | tokens | events | guesses of speculation, and those that were right |
//! | `amnesic.usage.cost_nano` | 10^-9 of a currency | span, events, counter | [`Prices::cost`] |
//! | `gen_ai.server.time_to_first_token` | s | span, events, histogram | from the call |
//! | `gen_ai.server.time_per_output_token` | s | histogram | after the first |
//! | `gen_ai.server.request.duration` | s | events, histogram | from the call until all is overwritten |
//! | `gen_ai.client.token.usage` | tokens | histogram | of prompt and reply |
//! | `gen_ai.token.type` | | metrics | which: `input`, `output` |
//! | `error.type` | | span, events, metrics | [`crate::ErrorKind`] |
//! | `amnesic.capture.purpose` | | events | what the debug sampler kept a sealed copy for (feature `debug-sampler`) |
//! | `amnesic.session.id` | | events | 64 random bits, which begin its requests' ids |
//! | `amnesic.session.context_tokens`, `.kv_tokens` | tokens | events | what a request may have; what the cache holds |
//! | `amnesic.session.memory_bytes`, `.scrubbed_bytes`, `.verified_bytes` | bytes | events | planned; overwritten; read back as zero |
//! | `amnesic.session.open_duration` | s | events | until it could serve |
//! | `amnesic.session.requests` | requests | events | that ended, in whatever way |
//!
//! The names are those of OpenTelemetry's semantic conventions for generative AI (2026, in development). Two of them
//! are told otherwise than there: stop sequences, which are content, and the id of a conversation, which would be a
//! text. Metrics are what `tracing-opentelemetry`'s `MetricsLayer` reads; units and buckets: [`METRICS`].

mod alias;
#[cfg(feature = "debug-sampler")]
pub mod debug_sampler;
mod disclosure;
mod doctor;
mod event;
pub(crate) mod lockdown;
mod metrics;
mod models;
mod policy;
mod prices;
pub mod process;
mod protected;
pub(crate) mod receipt;
mod registry;
mod spans;
pub(crate) mod trace;
mod words;

pub use crate::memory::ledger::{Memory, NotCovered};
pub use alias::Alias;
pub use disclosure::{Disclosure, DisclosureReason, ThirdPartyRequest};
pub use doctor::{Diagnosis, Finding, Severity, SwapKind, doctor, doctor_for};
#[cfg(feature = "debug-sampler")]
pub use event::Captured;
pub use event::{Accepted, Asked, Ended, Event, Failed, FirstToken, Refused, SessionClosed, SessionOpened};
pub use lockdown::{Enforced, Lockdown, LockdownError, Requirement, Restriction};
pub use metrics::{METRICS, METRICS_TARGET, Metric};
pub use models::{Local, Model, PolicyClass, ThirdParty};
pub use policy::{Anthropic, Google, Policy, Provider, Retention, Trains};
pub use prices::Prices;
pub use protected::{clean_stack, protected};
pub use receipt::attest::{AttestError, Attester, Quote, report_data};
pub use receipt::chain::{Link, ReceiptHash};
#[cfg(feature = "signed-receipts")]
pub use receipt::ed25519::Ed25519Signer;
pub use receipt::environment::{Allocator, Environment, Evidence, FileHash, FileRole, LockdownState, Nonce};
pub use receipt::signature::{PublicKey, SignError, Signature, Signer};
pub use receipt::text::{Hex, Malformed};
pub use receipt::verify::{BrokenChain, Verifier, verify_receipts};
pub use receipt::{DeviceReceipt, Outcome, ScrubReceipt, Subject};
pub use registry::{AliasReason, ModelAliases};
pub use words::{FinishReasons, Operation, OutputType};
