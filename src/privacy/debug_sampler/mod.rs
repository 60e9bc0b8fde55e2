//! The one exception to "content is never kept" (feature `debug-sampler`): a few conversations, drawn at random, of which
//! the first turn is sealed for a key that the application holds elsewhere, so that failures can be looked into. Off unless
//! the application hands a [`DebugSampler`] to its session.
//!
//! Lives here: the caps ([`Fraction`], and captures per hour), the sealing ([`Recipient`], [`Sealed`]) and the ways out
//! ([`Sink`], [`Folder`]). Never lives here: a key that decrypts, a way out for plaintext, content that outlives a call.
//!
//! **Hard caps**, for every sequence of requests, times and random numbers: never more captures than the fraction of
//! the conversations seen so far, at most one in a hundred, and so none among the first 1/fraction; never more than
//! `per_hour` within any 3600 seconds. They hold for one sampler: who restarts a process begins again, with none seen.
//! Which one is captured is drawn before it comes, uniformly, so that no requester can bring it about for another or
//! avoid it, unless he pretends to be in the middle of a chat; only by sending many requests does one get a larger share of
//! the captures.
//!
//! **Conversations, not requests, are counted**, and of each the first turn only: a later one holds all that were before
//! it, so that one in a hundred requests could hold most of what was said. A later turn is one of a
//! [`crate::Conversation`] that had a turn, and a chat with a message of the assistant. Every other request counts as a
//! conversation; what a prompt tells as plain text of turns before it, nobody here can see.
//!
//! **What a capture is**: an age file that decrypts to one JSON object, then newlines to hide its length:
//!
//! | field | |
//! |---|---|
//! | `format` | `amnesic.capture.1` |
//! | `request` | the request's id |
//! | `at` | when it ended, in seconds since 1970 |
//! | `purpose` | the sampler's [`Purpose`] |
//! | `model` | its alias, or null |
//! | `choice` | which of the request's choices this is, from 0 |
//! | `finish_reason` | why the reply ended; null if the request failed |
//! | `prompt_ids`, `reply_ids` | token ids |
//! | `reply_text` | the reply's text; where it is no UTF-8, `reply_bytes` with its bytes as numbers |
//!
//! ```
//! use amnesic::privacy::debug_sampler::{DebugSampler, Fraction, Purpose, Recipient, Sealed, Sink};
//!
//! struct Pipe(std::sync::mpsc::SyncSender<Sealed>);
//! impl Sink for Pipe {
//!     fn store(&mut self, sealed: Sealed) -> std::io::Result<()> {
//!         self.0.try_send(sealed).map_err(|_| std::io::ErrorKind::WouldBlock.into())
//!     }
//! }
//!
//! let (pipe, sealed) = std::sync::mpsc::sync_channel(4);
//! let recipient = Recipient::parse("age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa")?;
//! let sampler =
//!     DebugSampler::new(Purpose::FailureAnalysis, Fraction::new(0.001)?, 10, recipient, Pipe(pipe))?;
//! # Ok::<(), amnesic::Error>(())
//! ```
//!
//! Nobody but the sampler makes a [`Sealed`], so no sink can be handed anything else:
//!
//! ```compile_fail,E0451
//! use amnesic::privacy::debug_sampler::Sealed;
//! fn forge(sealed: Sealed) -> Sealed {
//!     Sealed { bytes: b"plaintext".to_vec(), ..sealed }
//! }
//! ```

mod budget;
mod seal;
mod sink;
#[cfg(feature = "testing")]
mod tap;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Instant, SystemTime};

use serde::Serialize;

pub use budget::Fraction;
pub use seal::{Recipient, Sealed};
pub use sink::{Folder, Sink};

use super::Alias;
use crate::error::{Error, Result};
use crate::outcome::{FinishReason, RequestId};
use budget::Budget;

/// What captures are for. There is no other purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// To find out why requests fail.
    FailureAnalysis,
    /// To judge replies.
    QualityReview,
    /// To look into abuse of the application.
    AbuseInvestigation,
    /// To look into an attack on the application.
    SecurityIncident,
}

impl Purpose {
    /// Its name, in snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FailureAnalysis => "failure_analysis",
            Self::QualityReview => "quality_review",
            Self::AbuseInvestigation => "abuse_investigation",
            Self::SecurityIncident => "security_incident",
        }
    }
}

/// Captures, over a sampler's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Captured {
    /// That the sink took.
    pub captures: u64,
    /// That were drawn and lost: sealing or the sink failed. They count against the caps as well.
    pub failed: u64,
}

/// Why a capture was lost. The request that it was of is not harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// It could not be encrypted.
    #[error("the capture could not be sealed")]
    Seal,
    /// It is larger than 64 MiB.
    #[error("the capture is larger than 64 MiB")]
    TooLarge,
    /// The sink did not take it.
    #[error("the sink: {0}")]
    Sink(std::io::ErrorKind),
    /// The sink panicked: the sampler is off from now on.
    #[error("the sink panicked; the sampler is off")]
    SinkPanicked,
}

/// Draws conversations, seals their first turns, and hands them to a sink. See the [module](self).
pub struct DebugSampler {
    purpose: Purpose,
    fraction: Fraction,
    per_hour: u32,
    recipient: Recipient,
    /// None after it panicked.
    sink: Option<Box<dyn Sink>>,
    rng: Box<dyn FnMut() -> Option<u64> + Send>,
    budget: Budget,
    captured: Captured,
}

impl DebugSampler {
    /// Most captures in an hour that can be asked for.
    pub const MAX_PER_HOUR: u32 = 3600;

    /// Captures at most `fraction` of the conversations, and `per_hour` in any 3600 seconds, for `recipient` to read.
    ///
    /// # Errors
    /// [`Error::DebugSampler`] with the field `per_hour`: it is not 1 to [`DebugSampler::MAX_PER_HOUR`].
    pub fn new(
        purpose: Purpose,
        fraction: Fraction,
        per_hour: u32,
        recipient: Recipient,
        sink: impl Sink + 'static,
    ) -> Result<Self> {
        if !(1..=Self::MAX_PER_HOUR).contains(&per_hour) {
            return Err(Error::DebugSampler { field: "per_hour", expected: "1 to 3600" });
        }
        Ok(Self {
            purpose,
            fraction,
            per_hour,
            recipient,
            sink: Some(Box::new(sink)),
            rng: Box::new(|| getrandom::u64().ok()),
            budget: Budget::new(fraction, per_hour as usize),
            captured: Captured::default(),
        })
    }

    /// Draws with `rng` in place of the system's random numbers. The caps hold under any; but who can foresee its
    /// numbers can foresee which requests are captured.
    pub fn rng(mut self, mut rng: impl FnMut() -> u64 + Send + 'static) -> Self {
        self.rng = Box::new(move || Some(rng()));
        self
    }

    /// What captures are for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// What became of captures so far.
    pub fn captured(&self) -> Captured {
        self.captured
    }
}

impl fmt::Debug for DebugSampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugSampler")
            .field("purpose", &self.purpose)
            .field("fraction", &self.fraction.get())
            .field("per_hour", &self.per_hour)
            .field("on", &self.sink.is_some())
            .field("captured", &self.captured)
            .finish_non_exhaustive()
    }
}

/// Leave to capture one request, within the caps. Only [`DebugSampler::wants`] gives it, and it is used once.
#[must_use = "the caps have counted it"]
#[derive(Debug)]
pub(crate) struct Permit(());

/// One choice of a request that has ended, borrowed from where it lies.
pub(crate) struct Capture<'a> {
    pub request: RequestId,
    /// When it ended.
    pub at: SystemTime,
    pub model: Option<Alias>,
    pub choice: usize,
    /// None if it failed.
    pub finish_reason: Option<FinishReason>,
    pub prompt_ids: &'a [u32],
    pub reply_ids: &'a [u32],
    pub reply_text: &'a [u8],
}

impl fmt::Debug for Capture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("request", &self.request)
            .field("choice", &self.choice)
            .field("prompt_ids", &self.prompt_ids.len())
            .field("reply_ids", &self.reply_ids.len())
            .field("reply_text", &self.reply_text.len())
            .finish_non_exhaustive()
    }
}

impl DebugSampler {
    /// Counts a conversation whose first turn ends at `now`; a permit if it was drawn and the hour has room.
    pub(crate) fn wants(&mut self, now: Instant) -> Option<Permit> {
        let rng = &mut self.rng;
        let drawn = self.budget.spend(now, || contained(rng).flatten());
        (drawn && self.sink.is_some()).then_some(Permit(()))
    }

    /// Seals `capture` and hands it to the sink. Whatever fails, or panics, ends here and is counted.
    ///
    /// Copies nothing that outlives the call, but leaves traces on the calling thread's stack: see [`mod@seal`].
    pub(crate) fn capture(
        &mut self,
        _permit: Permit,
        capture: &Capture<'_>,
    ) -> std::result::Result<Captured, CaptureError> {
        let outcome =
            seal::seal(capture, self.purpose, &self.recipient).and_then(|sealed| self.store(sealed));
        match outcome {
            Ok(()) => self.captured.captures += 1,
            Err(_) => self.captured.failed += 1,
        }
        outcome.map(|()| self.captured)
    }

    fn store(&mut self, sealed: Sealed) -> std::result::Result<(), CaptureError> {
        let Some(sink) = &mut self.sink else { return Err(CaptureError::SinkPanicked) };
        match contained(|| sink.store(sealed)) {
            Some(stored) => stored.map_err(|error| CaptureError::Sink(error.kind())),
            None => {
                self.drop_sink();
                Err(CaptureError::SinkPanicked)
            }
        }
    }

    /// Nothing is known of a sink that panicked: neither may it be called, nor may its end take the caller down.
    fn drop_sink(&mut self) {
        let sink = self.sink.take();
        let _ = contained(|| drop(sink));
    }
}

impl Drop for DebugSampler {
    fn drop(&mut self) {
        self.drop_sink();
    }
}

/// What `act` returns; none if it panicked.
fn contained<T>(act: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(value) => Some(value),
        Err(payload) => {
            std::mem::forget(payload); // its drop might panic
            None
        }
    }
}
