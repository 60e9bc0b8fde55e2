//! How a request went, in numbers: its name in logs, why its reply ended, tokens and times. No content.

use std::fmt;
use std::time::Duration;

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token, a stop token or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// It ended like [`FinishReason::Stop`], and the text holds calls of the request's tools: [`crate::Choice::tool_calls`].
    ToolCalls,
    /// The request's [`crate::CancelToken`].
    Cancelled,
    /// The request's deadline.
    Deadline,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        })
    }
}

/// Tokens used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, special ones included.
    pub prompt_tokens: usize,
    /// Tokens generated, over all choices; those that ended a reply are not counted.
    pub completion_tokens: usize,
    /// Tokens of the prompt whose keys and values were there already: from earlier turns of the same
    /// [`crate::Conversation`], or from a [`crate::Public`] prompt that the request names. Zero for any other request.
    pub cached_tokens: usize,
    /// Tokens guessed at by speculation.
    pub drafted_tokens: usize,
    /// How many of those were right: each saved a step.
    pub accepted_tokens: usize,
    /// What it cost, in nano-units (10^-9) of the application's currency, if [`crate::Builder::prices`] says.
    pub cost_nano: Option<u64>,
}

impl Usage {
    /// The sum.
    pub fn total_tokens(&self) -> usize {
        self.prompt_tokens + self.completion_tokens
    }
}

/// How long a request took, from when the session took it in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// Until its first token was chosen: waiting and prefill.
    pub first_token: Duration,
    /// Until its last token was chosen.
    pub total: Duration,
    /// From then on until all that it left was overwritten, and that of others that ended in the same step.
    pub scrub: Duration,
}

impl Timing {
    /// Tokens a second after the first, of `tokens` in all; none for fewer than two.
    pub fn decode_rate(&self, tokens: usize) -> Option<f64> {
        let decoding = self.total.checked_sub(self.first_token)?.as_secs_f64();
        (tokens > 1 && decoding > 0.0).then(|| (tokens - 1) as f64 / decoding)
    }
}

/// Names a request in logs: a number drawn when the session opened, and a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    pub(crate) session: u64,
    pub(crate) count: u64,
}

impl RequestId {
    /// The number of its session, which begins all ids of it.
    pub fn session(&self) -> u64 {
        self.session
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.session, self.count)
    }
}
