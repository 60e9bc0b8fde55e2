//! A request among others: whose it is, who goes first, how long it may take, and what is guessed.

use std::time::{Duration, Instant};

use super::Request;
use crate::cancel::CancelToken;
use crate::privacy::Nonce;
use crate::tenant::Tenant;

/// Who goes first when requests wait or memory is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Priority {
    /// Before all others that arrive at the same time.
    High,
    /// The default.
    #[default]
    Normal,
    /// After all others, but not for ever: see [`Priority::STEP_TOKENS`].
    Low,
}

impl Priority {
    /// A request of one priority is overtaken by one of the next higher only if that arrives before the session has
    /// computed this many more tokens. So nobody starves.
    pub const STEP_TOKENS: u64 = 32_768;

    pub(crate) fn handicap(self) -> u64 {
        match self {
            Self::High => 0,
            Self::Normal => Self::STEP_TOKENS,
            Self::Low => 2 * Self::STEP_TOKENS,
        }
    }
}

/// Guessing tokens ahead: several are checked in one step, and those that are right save steps of their own. It never
/// changes a token: a guess counts only where it is the token that would have been chosen anyway.
///
/// How many are right depends on what the reply says. So that nobody else can see it, a choice guesses as long as only
/// requests of its own tenant ([`Request::tenant`]) are in the session, and never again once it met another's.
/// [`crate::Usage::drafted_tokens`] says what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Speculation {
    /// Looks the last `ngram` tokens (or fewer, down to one) up in the prompt and the reply, and guesses that what
    /// followed them then follows again. Pays where a reply repeats its prompt: summaries, edits, code.
    PromptLookup {
        /// Tokens to look for: 1 to 16.
        ngram: usize,
        /// Most tokens to guess at once: 1 to 16.
        tokens: usize,
    },
    /// Asks the draft checkpoint of [`crate::Builder::draft`].
    Draft {
        /// Most tokens to guess at once: 1 to 16.
        tokens: usize,
    },
}

impl Speculation {
    /// The most that can be guessed at once, and the longest n-gram.
    pub const MAX: usize = 16;

    /// Most tokens to guess at once.
    pub(crate) fn tokens(self) -> usize {
        match self {
            Self::PromptLookup { tokens, .. } | Self::Draft { tokens } => tokens,
        }
    }
}

impl Request {
    /// Whose request this is. Without this each request is a tenant of its own, but for the turns of a
    /// [`crate::Conversation`], which are one, as the choices of a request are. Requests of one tenant go on guessing
    /// ([`Request::speculate`]) when they run at the same time; those of a batch are one tenant's only if they say so.
    ///
    /// ```no_run
    /// use amnesic::{Request, Session, Speculation};
    ///
    /// let session = Session::open("path/to/checkpoint")?;
    /// let guess = Speculation::PromptLookup { ngram: 3, tokens: 6 };
    /// let files = ["fn a() {}", "fn b() {}"];
    /// let requests = files.map(|file| Request::prompt(file).speculate(guess).tenant("customer 17"));
    /// let replies = session.generate_batch(requests)?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn tenant(mut self, tenant: impl Into<Tenant>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Who goes first.
    ///
    /// ```
    /// use amnesic::{Priority, Request};
    ///
    /// let request = Request::prompt("Once upon a time").priority(Priority::High);
    /// # drop(request);
    /// ```
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Ends the reply at this time, with what was produced so far, and [`crate::FinishReason::Deadline`].
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").deadline(Instant::now() + Duration::from_secs(5));
    /// # drop(request);
    /// ```
    pub fn deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// A deadline, counted from when the session takes the request in.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").timeout(std::time::Duration::from_secs(5));
    /// # drop(request);
    /// ```
    pub fn timeout(mut self, after: Duration) -> Self {
        self.timeout = Some(after);
        self
    }

    /// Ends the reply when the token is cancelled, with what was produced so far.
    ///
    /// ```
    /// # use amnesic::{CancelToken, Request};
    /// let token = CancelToken::new();
    /// let request = Request::prompt("Once upon a time").cancel_token(&token);
    /// token.cancel(); // from any thread
    /// # drop(request);
    /// ```
    pub fn cancel_token(mut self, token: &CancelToken) -> Self {
        self.cancel = Some(token.clone());
        self
    }

    /// Guesses tokens ahead. [`Request::tenant`] has an example.
    pub fn speculate(mut self, speculation: Speculation) -> Self {
        self.speculation = Some(speculation);
        self
    }

    /// Tokens of a stream that may wait for its reader, from 1: with more, the request stands still until the reader
    /// has caught up, and its memory goes to others if they need it.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").stream_buffer(64);
    /// # drop(request);
    /// ```
    pub fn stream_buffer(mut self, tokens: usize) -> Self {
        self.stream_buffer = Some(tokens);
        self
    }

    /// A number of the caller's that the request's receipt will have, whether or not it is accepted. **It stands in logs:
    /// never derive it from content.**
    ///
    /// ```
    /// # use amnesic::{Request, privacy::Nonce};
    /// let request = Request::prompt("Once upon a time").nonce(Nonce::new([7; 32]));
    /// # drop(request);
    /// ```
    pub fn nonce(mut self, nonce: Nonce) -> Self {
        self.nonce = Some(nonce);
        self
    }
}
