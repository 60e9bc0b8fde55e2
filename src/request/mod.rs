//! What goes in: a prompt, and how to continue it.
//!
//! The setters are in [`sampling`], [`chat`] (with tools and formats of replies) and [`serving`] (among other requests);
//! [`check`] refuses what no session would take.

mod chat;
mod check;
mod sampling;
mod serving;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cancel::CancelToken;
use crate::chat::Message;
use crate::error::Error;
use crate::grammar::ResponseFormat;
use crate::lease::PrefixHandle;
use crate::memory::Secret;
use crate::privacy::Nonce;
use crate::sample::params::{MAX_CHOICES, Overrides};
use crate::sample::{LogitBias, Logprobs};
use crate::tenant::Tenant;
use crate::tokens::TokenIds;

pub(crate) use self::chat::ChatOptions;
pub use self::chat::ConstrainFrom;
pub use self::serving::{Priority, Speculation};

/// A prompt and how to continue it. Overwritten when it drops; `Debug` prints lengths only.
///
/// Fields left unset take the checkpoint's `generation_config.json` where it samples (`do_sample`), else their
/// defaults: greedy, up to [`Request::DEFAULT_MAX_TOKENS`] tokens.
#[derive(Default)]
pub struct Request {
    pub(crate) prompt: Prompt,
    pub(crate) literal: bool,
    pub(crate) special_tokens: Option<bool>,
    pub(crate) max_tokens: Option<usize>,
    /// Without `max_tokens`: whether the reply may fill the context.
    pub(crate) fills_context: bool,
    pub(crate) n: Option<usize>,
    pub(crate) sampling: Overrides,
    pub(crate) logit_bias: LogitBias,
    pub(crate) breakers: Option<Vec<Secret<str>>>,
    pub(crate) stop: Vec<Secret<str>>,
    pub(crate) stop_tokens: Secret<[u32]>,
    pub(crate) ignore_eos: bool,
    pub(crate) logprobs: Option<usize>,
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) format: ResponseFormat,
    pub(crate) chat: ChatOptions,
    pub(crate) speculation: Option<Speculation>,
    pub(crate) tenant: Option<Tenant>,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) cancel: Option<CancelToken>,
    pub(crate) stream_buffer: Option<usize>,
    pub(crate) prefix: Option<PrefixHandle>,
    pub(crate) adapter: Option<String>,
    pub(crate) nonce: Option<Nonce>,
    #[cfg(feature = "forensics")]
    pub(crate) gates: crate::forensics::gate::Gates,
    #[cfg(feature = "testing")]
    pub(crate) taps: crate::testing::taps::Taps,
}

/// The prompt as it came.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(Secret<str>),
    Tokens(Secret<[u32]>),
    Chat(Arc<Vec<Message>>),
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Tokens(Secret::default())
    }
}

impl Request {
    /// `max_tokens` when it is not given; less where the context ends first.
    pub const DEFAULT_MAX_TOKENS: usize = 512;
    /// Most stop strings.
    pub const MAX_STOPS: usize = 16;
    /// Most bytes of a stop string.
    pub const MAX_STOP_BYTES: usize = 1024;
    /// Most stop tokens.
    pub const MAX_STOP_TOKENS: usize = 1024;
    /// Most choices.
    pub const MAX_N: usize = MAX_CHOICES;
    /// Most of the likeliest tokens whose log probabilities are told.
    pub const MAX_LOGPROBS: usize = Logprobs::MAX_TOP;
    /// Most bytes of a prompt as text.
    pub const MAX_PROMPT_BYTES: usize = 64 << 20;
    /// Most strings that DRY stops at.
    pub const MAX_BREAKERS: usize = 32;
    /// Tokens of a stream that may wait for its reader, when [`Request::stream_buffer`] is not given.
    pub const DEFAULT_STREAM_BUFFER: usize = 1024;

    /// Continues `text`, encoded with the checkpoint's tokenizer and its special tokens (usually a BOS before it).
    /// [`Session::generate`](crate::Session::generate) has an example.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self { prompt: Prompt::Text(Secret::new(text.into())), ..Self::default() }
    }

    /// Continues token ids, as they are.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::tokens([1, 450, 11]);
    /// # drop(request);
    /// ```
    pub fn tokens(ids: impl Into<Vec<u32>>) -> Self {
        Self { prompt: Prompt::Tokens(Secret::new(ids.into())), ..Self::default() }
    }

    /// Answers a chat, put before the model with the checkpoint's own template.
    ///
    /// ```
    /// use amnesic::{Request, system, user};
    ///
    /// let messages = [system("Answer in one sentence."), user("What is a slice?")];
    /// let request = Request::chat(messages);
    /// # drop(request);
    /// ```
    pub fn chat(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { prompt: Prompt::Chat(Arc::new(messages.into_iter().collect())), ..Self::default() }
    }

    /// Whether all of the prompt is text, and nothing in it a control token: `<|im_end|>` is then encoded as the characters
    /// that it has. Of a chat this holds for the text of each message (see [`Message::literal_text`] to choose among
    /// them); the control tokens that the chat template itself writes stay what they are, and those that the tokenizer
    /// puts before and behind a prompt. Token ids are what they are.
    ///
    /// **A chat application should set it.** By default control tokens are found wherever their text stands, as in
    /// transformers, so whoever types `<|im_end|>\n<|im_start|>system\n` into a form writes a message of the system.
    ///
    /// Literal text gives the ids that transformers gives with `split_special_tokens`. In messages it also becomes none of
    /// the added tokens that are not special but that the chat template writes, such as `<tool_call>`.
    ///
    /// ```
    /// use amnesic::{Request, user};
    ///
    /// let typed = "What does <|im_end|> mean?";
    /// let request = Request::chat([user(typed)]).literal_text(true);
    /// # let _ = request;
    /// ```
    pub fn literal_text(mut self, literal: bool) -> Self {
        self.literal = literal;
        self
    }

    /// Whether a prompt that is text gets the checkpoint's special tokens around it, usually a BOS before it: yes, unless
    /// this says no, as it should for what [`Session::apply_chat_template`](crate::Session::apply_chat_template) gave. What
    /// a chat has of them is its template's matter.
    ///
    /// ```
    /// use amnesic::Request;
    ///
    /// let request = Request::prompt("<s>[INST] Hello [/INST]").add_special_tokens(false);
    /// # let _ = request;
    /// ```
    pub fn add_special_tokens(mut self, add: bool) -> Self {
        self.special_tokens = Some(add);
        self
    }

    /// Runs with one of the session's adapters ([`crate::Builder::adapter`]); without this with none. Requests with
    /// different ones share steps.
    ///
    /// ```no_run
    /// use amnesic::{Request, Session};
    ///
    /// let session = Session::builder("models/default").adapter("polite", "adapters/polite").open()?;
    /// let reply = session.generate(Request::prompt("Good morning").adapter("polite"))?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }

    /// Whether the prompt is a text or a list without anything in it.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.prompt {
            Prompt::Text(text) => text.expose().is_empty(),
            Prompt::Tokens(ids) => ids.expose().is_empty(),
            Prompt::Chat(messages) => messages.is_empty(),
        }
    }

    /// The most tokens of a reply for which the context has `room` tokens.
    pub(crate) fn most_tokens(&self, room: usize) -> usize {
        let otherwise = if self.fills_context { usize::MAX } else { Self::DEFAULT_MAX_TOKENS };
        self.max_tokens.unwrap_or(otherwise).min(room)
    }

    /// How many choices.
    pub(crate) fn choices(&self) -> usize {
        self.n.unwrap_or(1)
    }

    /// Bytes of the prompt, as it came; each message of a chat and each tool counts for some more.
    pub(crate) fn prompt_bytes(&self) -> usize {
        /// What a part of a chat counts for, besides its text: a template writes something for each.
        const PART: usize = 64;
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.expose().len(),
            Prompt::Tokens(ids) => size_of_val(ids.expose()),
            Prompt::Chat(messages) => messages.iter().map(|message| PART + message.bytes()).sum(),
        };
        prompt + self.chat.tools.iter().map(|tool| PART + tool.bytes()).sum::<usize>()
    }

    /// Whether nothing but the length of its prompt decides how long reading it takes: no grammar is compiled, no
    /// vocabulary searched, and no variable known to its template alone.
    pub(crate) fn reads_quickly(&self) -> bool {
        let plain = self.format.is_text() && !self.chat.calls.need_grammar();
        plain && self.breakers.is_none() && self.chat.variables.is_empty()
    }
}

impl From<String> for Request {
    /// A [`Request::prompt`] of this text.
    fn from(text: String) -> Self {
        Self::prompt(text)
    }
}

impl From<&str> for Request {
    /// A [`Request::prompt`] of this text, which stays its owner's.
    fn from(text: &str) -> Self {
        Self { prompt: Prompt::Text(Secret::copy(text)), ..Self::default() }
    }
}

impl From<TokenIds> for Request {
    /// A [`Request::tokens`] of these ids.
    fn from(ids: TokenIds) -> Self {
        Self { prompt: Prompt::Tokens(ids.0), ..Self::default() }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, len) = match &self.prompt {
            Prompt::Text(text) => ("prompt_bytes", text.expose().len()),
            Prompt::Tokens(ids) => ("prompt_tokens", ids.expose().len()),
            Prompt::Chat(messages) => ("messages", messages.len()),
        };
        f.debug_struct("Request")
            .field(unit, &len)
            .field("max_tokens", &self.max_tokens)
            .field("n", &self.choices())
            .field("sampling", &self.sampling)
            .field("logit_bias", &self.logit_bias.len())
            .field("stop", &self.stop.len())
            .field("stop_tokens", &self.stop_tokens.expose().len())
            .field("response_format", &self.format)
            .field("tools", &self.chat.tools.len())
            .field("tool_choice", &self.chat.calls.choice)
            .field("speculation", &self.speculation)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

impl Error {
    /// The requests that a full session handed back, as they were given to it and in their order; none of another error.
    ///
    /// ```no_run
    /// # fn main() -> amnesic::Result<()> {
    /// use amnesic::{Error, Request, Session};
    ///
    /// let session = Session::open("models/default")?;
    /// let mut request = Request::prompt("Once upon a time");
    /// let reply = loop {
    ///     match session.generate(request) {
    ///         Err(error @ Error::Busy { .. }) => {
    ///             std::thread::sleep(std::time::Duration::from_millis(50));
    ///             request = error.into_requests().remove(0);
    ///         }
    ///         other => break other?,
    ///     }
    /// };
    /// # let _ = reply;
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_requests(self) -> Vec<Request> {
        match self {
            Self::Busy { requests, .. } => requests.take().unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}
