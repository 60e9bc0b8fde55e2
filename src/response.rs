//! What comes out.

use std::fmt;
use std::time::Duration;

use crate::memory::Secret;

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token, a stop token or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
        })
    }
}

/// Tokens used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, special ones included.
    pub prompt_tokens: usize,
    /// Tokens generated; the one that ended the reply is not counted.
    pub completion_tokens: usize,
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

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.session, self.count)
    }
}

/// A finished reply. It is the caller's: the session holds nothing of it any more. Overwritten when it drops;
/// `Debug` prints lengths only.
pub struct Reply {
    pub(crate) text: Secret<String>,
    pub(crate) tokens: Secret<Vec<u32>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens used.
    pub usage: Usage,
    /// How long it took.
    pub timing: Timing,
    /// The request's name in logs.
    pub request_id: RequestId,
    /// The seed that the draws used.
    pub seed: u64,
}

impl Reply {
    /// The generated text; empty when the checkpoint has no tokenizer.
    pub fn text(&self) -> &str {
        self.text.expose()
    }

    /// The generated token ids, without the one that ended the reply.
    pub fn tokens(&self) -> &[u32] {
        self.tokens.expose()
    }

    /// The text as a plain `String`, which nobody overwrites any more.
    pub fn into_text(self) -> String {
        self.text.into_exposed()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("text_bytes", &self.text().len())
            .field("finish_reason", &self.finish_reason)
            .field("usage", &self.usage)
            .field("timing", &self.timing)
            .field("request_id", &self.request_id)
            .field("seed", &self.seed)
            .finish()
    }
}

/// A piece of a streamed reply: whole characters, no part of a stop string. Overwritten when it drops.
pub struct Piece(pub(crate) Secret<String>);

impl Piece {
    /// The text.
    pub fn text(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece").field("text_bytes", &self.text().len()).finish()
    }
}
