//! What goes in.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cancel::CancelToken;
use crate::chat::{Message, Tool, ToolCallParser};
use crate::error::{Error, Result};
use crate::grammar::{Calls, ResponseFormat, ToolChoice};
use crate::lease::PrefixHandle;
use crate::memory::{Secret, json};
use crate::privacy::Nonce;
use crate::sample::params::{MAX_CHOICES, Overrides};
use crate::sample::{Dry, LogitBias, Logprobs, SamplingParams};
use crate::tenant::Tenant;
use crate::tokens::TokenIds;

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

/// How a chat is put before the model. No `Debug`: variables would print.
#[derive(Default)]
pub(crate) struct ChatOptions {
    pub tools: Vec<Tool>,
    /// The name of one of the checkpoint's templates.
    pub template: Option<Secret<str>>,
    /// How its tools are called.
    pub calls: Calls,
    /// Variables for the template.
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// Whether the prompt ends where the assistant begins to speak; yes, unless the reply goes on with a message.
    pub generation_prompt: Option<bool>,
    /// Whether the reply goes on with the last message.
    pub continues: bool,
    /// How the model writes calls, if not as its template teaches.
    pub parser: Option<ToolCallParser>,
    /// Where the reply begins to follow its format.
    pub constrain: Option<ConstrainFrom>,
}

impl ChatOptions {
    /// Sets a variable; the one that it replaces is overwritten.
    fn set(&mut self, name: String, value: serde_json::Value) {
        match self.variables.get_mut(&name) {
            Some(known) => {
                json::wipe(std::mem::replace(known, value));
                drop(Secret::new(name));
            }
            None => drop(self.variables.insert(name, value)), // there is none to replace
        }
    }
}

impl Drop for ChatOptions {
    fn drop(&mut self) {
        json::wipe(std::mem::take(&mut self.variables).into());
    }
}

/// Where the reply to a chat begins to follow [`Request::response_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConstrainFrom {
    /// At its first token: the model does not think, and [`crate::Choice::text`] is the value. Sane where thinking is
    /// switched off in the prompt, or the model has not learned to think.
    FirstToken,
    /// Behind its reasoning, which is free: [`crate::Choice::reasoning`] is what the model thought, and
    /// [`crate::Choice::text`] the value. The model may think as long as `max_tokens` lasts, so leave room for both.
    EndOfReasoning,
    /// At its first token, reasoning and its marks included: the format says what these look like, too.
    WholeReply,
}

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

    /// Whether a chat's prompt ends with what its template writes before an answer: yes by default, and no where the reply
    /// goes on with a message ([`Request::continue_final_message`]).
    ///
    /// ```
    /// use amnesic::{Request, assistant, user};
    ///
    /// let whole = Request::chat([user("Hello"), assistant("Hello!")]).add_generation_prompt(false);
    /// # let _ = whole;
    /// ```
    pub fn add_generation_prompt(mut self, add: bool) -> Self {
        self.chat.generation_prompt = Some(add);
        self
    }

    /// Goes on with the chat's last message, which must be the assistant's: the prompt ends where that message's text ends,
    /// without what the template writes behind it, as with transformers' `continue_final_message`. The reply is what comes
    /// behind it; in a [`Conversation`](crate::Conversation) the two become one message.
    ///
    /// ```
    /// use amnesic::{Request, assistant, user};
    ///
    /// let request = Request::chat([user("List three colours as JSON."), assistant("[\"red\",")]);
    /// let request = request.continue_final_message(true);
    /// # let _ = request;
    /// ```
    pub fn continue_final_message(mut self, go_on: bool) -> Self {
        self.chat.continues = go_on;
        self
    }

    /// At most this many tokens, from 1. [`Request::temperature`] has an example.
    pub fn max_tokens(mut self, count: usize) -> Self {
        (self.max_tokens, self.fills_context) = (Some(count), false);
        self
    }

    /// As many tokens as the context has room for behind the prompt.
    ///
    /// ```
    /// use amnesic::Request;
    ///
    /// let request = Request::prompt("Once upon a time").fill_context();
    /// # let _ = request;
    /// ```
    pub fn fill_context(mut self) -> Self {
        (self.max_tokens, self.fills_context) = (None, true);
        self
    }

    /// Sets what `params` sets.
    ///
    /// ```
    /// use amnesic::{Request, SamplingParams};
    ///
    /// let params = SamplingParams::new().temperature(0.7).seed(3);
    /// let request = Request::prompt("Once upon a time").sampling(&params);
    /// # let _ = request;
    /// ```
    pub fn sampling(mut self, params: &SamplingParams) -> Self {
        self.sampling = self.sampling.or(params.sampling);
        if let Some(count) = params.max_tokens {
            self = self.max_tokens(count);
        }
        self.n = params.n.or(self.n);
        self.logprobs = params.logprobs.or(self.logprobs);
        self.ignore_eos = params.ignore_eos.unwrap_or(self.ignore_eos);
        self
    }

    /// No end token before this many tokens. Stop strings are not held up.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").min_tokens(20).max_tokens(100);
    /// # drop(request);
    /// ```
    pub fn min_tokens(mut self, count: usize) -> Self {
        self.sampling.min_tokens = Some(count);
        self
    }

    /// This many choices, 1 to [`Request::MAX_N`]. The prompt is computed once. Choice i draws with the seed plus i.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").n(3).temperature(0.9); // three stories
    /// # drop(request);
    /// ```
    pub fn n(mut self, count: usize) -> Self {
        self.n = Some(count);
        self
    }

    /// 0 takes the most likely token each time; up to 2.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").max_tokens(100).seed(7);
    /// let request = request.temperature(0.8).top_k(40).top_p(0.95).min_p(0.05).typical_p(0.9);
    /// # drop(request);
    /// ```
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.sampling.temperature = Some(temperature);
        self
    }

    /// Draws among this many most likely tokens; 0 for all. [`Request::temperature`] has an example.
    pub fn top_k(mut self, count: usize) -> Self {
        self.sampling.top_k = Some(count);
        self
    }

    /// Draws among the most likely tokens whose probabilities first sum to `share`: above 0, up to 1.
    /// [`Request::temperature`] has an example.
    pub fn top_p(mut self, share: f32) -> Self {
        self.sampling.top_p = Some(share);
        self
    }

    /// Draws among tokens at least `share` times as likely as the most likely one: 0 to 1.
    /// [`Request::temperature`] has an example.
    pub fn min_p(mut self, share: f32) -> Self {
        self.sampling.min_p = Some(share);
        self
    }

    /// Draws among the tokens whose surprise is nearest to the mean, until their probabilities sum to `share`: above
    /// 0, up to 1 for all. [`Request::temperature`] has an example.
    pub fn typical_p(mut self, share: f32) -> Self {
        self.sampling.typical_p = Some(share);
        self
    }

    /// Divides the positive logits of tokens of the prompt and the reply by this, and multiplies the negative ones:
    /// 0.01 to 5, 1 for none.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").repetition_penalty(1.1);
    /// let request = request.presence_penalty(0.5).frequency_penalty(0.2);
    /// # drop(request);
    /// ```
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.sampling.repetition_penalty = Some(penalty);
        self
    }

    /// Takes this off the logits of tokens that the reply has: -2 to 2. [`Request::repetition_penalty`] has an example.
    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.sampling.presence_penalty = Some(penalty);
        self
    }

    /// Takes this off the logits of tokens, as often as the reply has them: -2 to 2.
    /// [`Request::repetition_penalty`] has an example.
    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.sampling.frequency_penalty = Some(penalty);
        self
    }

    /// Makes tokens less likely that would go on with a sequence that was there before. [`Dry::new`] has an example.
    pub fn dry(mut self, dry: Dry) -> Self {
        self.sampling.dry = Some(dry);
        self
    }

    /// Text at which repeated sequences begin anew for [`Request::dry`]: by default a line's end, a colon, a double
    /// quote and an asterisk. Up to [`Request::MAX_BREAKERS`].
    ///
    /// ```
    /// # use amnesic::{Dry, Request};
    /// let request = Request::prompt("Once upon a time").dry(Dry::new()).dry_breakers(["\n", "\n\n"]);
    /// # drop(request);
    /// ```
    pub fn dry_breakers<S: Into<String>>(mut self, texts: impl IntoIterator<Item = S>) -> Self {
        self.breakers = Some(texts.into_iter().map(|text| Secret::new(text.into())).collect());
        self
    }

    /// Adds `value` to the logit of a token: -100 makes it impossible, 100 nearly certain.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").logit_bias(450, -100.0).logit_bias(11, 2.5);
    /// # drop(request);
    /// ```
    pub fn logit_bias(mut self, id: u32, value: f32) -> Self {
        self.logit_bias.push(id, value);
        self
    }

    /// Draws with this seed: the same seed gives the same reply, alone or in any batch. Without one a fresh seed is drawn, and
    /// the reply tells it. [`Request::temperature`] has an example.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling.seed = Some(seed);
        self
    }

    /// Ends the reply before this text. Up to [`Request::MAX_STOPS`] of them.
    ///
    /// ```
    /// # use amnesic::Request;
    /// let request = Request::prompt("Once upon a time").stop("\n\n").stop_token(13).ignore_eos(true);
    /// # drop(request);
    /// ```
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(Secret::new(text.into()));
        self
    }

    /// Ends the reply before this token, as the checkpoint's own end tokens do. [`Request::stop`] has an example.
    pub fn stop_token(mut self, id: u32) -> Self {
        self.stop_tokens.push(id);
        self
    }

    /// Goes on behind the checkpoint's end tokens. [`Request::stop`] has an example.
    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    /// Tells the log probability of each token of the reply, and of the `top` likeliest ones in its place: 0 to
    /// [`Request::MAX_LOGPROBS`]. They are the model's own: before penalties, bias, grammar and temperature.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let request = Request::prompt("A slice is").max_tokens(4).logprobs(2).prompt_logprobs(0);
    /// let reply = session.generate(request)?;
    /// assert_eq!(reply.choices()[0].logprobs().len(), reply.tokens().len());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn logprobs(mut self, top: usize) -> Self {
        self.logprobs = Some(top);
        self
    }

    /// Log probabilities of the tokens of the prompt, from the second on. [`Request::logprobs`] has an example.
    pub fn prompt_logprobs(mut self, top: usize) -> Self {
        self.prompt_logprobs = Some(top);
        self
    }

    /// What the reply must look like.
    ///
    /// ```
    /// # use amnesic::{Request, ResponseFormat};
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let form = ResponseFormat::regex("(safe|unsafe) (code|block)");
    /// let reply = session.generate(Request::prompt("It is").response_format(form))?;
    /// assert!(reply.text().contains("safe"));
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn response_format(mut self, format: ResponseFormat) -> Self {
        self.format = format;
        self
    }

    /// Where the reply to a chat begins to follow its [`Request::response_format`]. Without this,
    /// [`ConstrainFrom::EndOfReasoning`] where the chat template has marks of reasoning that are tokens of the vocabulary and
    /// has not closed reasoning in the prompt, as it does where thinking is switched off; else [`ConstrainFrom::FirstToken`]. A
    /// call that is demanded may also stand behind reasoning that the prompt has opened with marks that are no tokens.
    /// Either way the value is the text.
    ///
    /// ```no_run
    /// use amnesic::{ConstrainFrom, Request, ResponseFormat, Session, user};
    ///
    /// let session = Session::open("path/to/a/reasoning/model")?;
    /// let ask = || {
    ///     Request::chat([user("Which of 7 and 9 is prime?")])
    ///         .response_format(ResponseFormat::regex("7|9"))
    ///         .max_tokens(2000)
    /// };
    /// let thought = session.generate(ask())?;
    /// println!("{} because {:?}", thought.text(), thought.choices()[0].reasoning());
    /// let quick = session.generate(ask().constrain_from(ConstrainFrom::FirstToken))?;
    /// assert_eq!(quick.choices()[0].reasoning(), None);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn constrain_from(mut self, from: ConstrainFrom) -> Self {
        self.chat.constrain = Some(from);
        self
    }

    /// Reads calls of tools in the reply in this format, rather than in the one that the chat template teaches or the
    /// added tokens are for.
    ///
    /// ```
    /// use amnesic::{Request, Tool, ToolCallParser, user};
    ///
    /// let tool = Tool::new("now", "the time", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("What time is it?")]).tools([tool]);
    /// let request = request.tool_call_parser(ToolCallParser::Hermes);
    /// ```
    pub fn tool_call_parser(mut self, parser: ToolCallParser) -> Self {
        self.chat.parser = Some(parser);
        self
    }

    /// Tools that a chat model may call. [`Request::tool_choice`] has an example.
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.chat.tools = tools.into_iter().collect();
        self
    }

    /// Whether the reply calls one of the tools, and which: by default the model decides. A grammar holds it, in the format
    /// of calls that the checkpoint writes ([`ToolCallParser`](crate::ToolCallParser)); behind reasoning, as
    /// [`Request::constrain_from`] says. Arguments of calls that must be made keep to the tool's schema, but for what
    /// [`crate::Reply::not_enforced`] names, and have no properties but those that it names, unless it speaks of others.
    /// Not beside a [`Request::response_format`].
    ///
    /// Refused by name: names of functions and parameters that a format cannot spell where it does not quote them, and
    /// lists and objects as parameters of MiniMax M3. A reply of gpt-oss has one call.
    ///
    /// ```
    /// use amnesic::{Request, Tool, ToolChoice, user};
    ///
    /// let clock = Tool::new("clock", "Tells the time.", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("How late is it?")]).tools([clock]).tool_choice(ToolChoice::Required);
    /// # let _ = request;
    /// ```
    pub fn tool_choice(mut self, choice: ToolChoice) -> Self {
        self.chat.calls.choice = choice;
        self
    }

    /// Whether the arguments of every call keep to their tool's schema, also where the model decides whether it calls; what
    /// cannot be enforced of a schema is then refused, as [`ResponseFormat::json_schema`] does.
    ///
    /// In formats that do not write JSON some keywords hold nowhere: those that speak of all parameters together
    /// (`minProperties`, `anyOf` beside `properties` and the like) and, for parameters that are text between tags, the
    /// formats `duration`, `hostname`, `ipv4`, `ipv6` and `uri`. In lists and objects of FunctionGemma nothing does. Within
    /// a list or an object that is JSON between tags, a text that spells the tag which ends it ends it too soon. Where calls
    /// have no mark (Llama, Python's form) a reply that says something does not begin with their bracket.
    ///
    /// ```
    /// use amnesic::{Request, Tool, user};
    ///
    /// let clock = Tool::new("clock", "Tells the time.", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("How late is it?")]).tools([clock]).strict_tools(true);
    /// # let _ = request;
    /// ```
    pub fn strict_tools(mut self, strict: bool) -> Self {
        self.chat.calls.strict = strict;
        self
    }

    /// Whether a reply may have more calls than one: yes by default.
    ///
    /// ```
    /// use amnesic::{Request, Tool, user};
    ///
    /// let clock = Tool::new("clock", "Tells the time.", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("How late is it?")]).tools([clock]).parallel_tool_calls(false);
    /// # let _ = request;
    /// ```
    pub fn parallel_tool_calls(mut self, parallel: bool) -> Self {
        self.chat.calls.single = !parallel;
        self
    }

    /// The name of one of the checkpoint's chat templates; without it, the one that transformers takes.
    ///
    /// ```
    /// use amnesic::{Request, user};
    ///
    /// let request = Request::chat([user("What is a slice?")]).chat_template("rag");
    /// let request = request.template_variable("enable_thinking", false);
    /// # drop(request);
    /// ```
    pub fn chat_template(mut self, name: impl Into<String>) -> Self {
        self.chat.template = Some(Secret::new(name.into()));
        self
    }

    /// A variable for the chat template, such as `enable_thinking`. Overwritten with the request; but what a template
    /// makes of it is held by the `minijinja` crate meanwhile, as its messages are.
    /// [`Request::chat_template`] has an example.
    pub fn template_variable(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.chat.set(name.into(), value.into());
        self
    }

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

    /// Guesses tokens ahead. [`Request::tenant`] has an example.
    pub fn speculate(mut self, speculation: Speculation) -> Self {
        self.speculation = Some(speculation);
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

    /// Checks every field that does not depend on the checkpoint.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field, expected: String| Err(Error::request(field, expected));
        let (empty, bytes) = match &self.prompt {
            Prompt::Text(text) => (text.expose().is_empty(), text.expose().len()),
            Prompt::Tokens(ids) => (ids.expose().is_empty(), ids.expose().len()),
            Prompt::Chat(messages) => (messages.is_empty(), 0),
        };
        if empty {
            let field = if matches!(self.prompt, Prompt::Chat(_)) { "messages" } else { "prompt" };
            return wrong(field, "not empty".into());
        }
        if bytes > Self::MAX_PROMPT_BYTES {
            return wrong("prompt", format!("at most {} bytes or tokens", Self::MAX_PROMPT_BYTES));
        }
        if self.max_tokens == Some(0) {
            return wrong("max_tokens", "at least 1".into());
        }
        if !(1..=Self::MAX_N).contains(&self.choices()) {
            return wrong("n", format!("from 1 to {}", Self::MAX_N));
        }
        self.sampling.over(&crate::sample::Sampling::default(), 0).check()?;
        if let (Some(min), Some(max)) = (self.sampling.min_tokens, self.max_tokens)
            && min > max
        {
            return wrong("min_tokens", format!("at most max_tokens, {max}"));
        }
        self.logit_bias.check()?;
        for (field, top) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            Logprobs::check(field, top.unwrap_or(0))?;
        }
        let within = |value: usize| (1..=Speculation::MAX).contains(&value);
        if let Some(speculation) = self.speculation {
            let ngram = match speculation {
                Speculation::PromptLookup { ngram, .. } => ngram,
                Speculation::Draft { .. } => 1,
            };
            if !within(ngram) || !within(speculation.tokens()) {
                return wrong("speculate", format!("from 1 to {} tokens", Speculation::MAX));
            }
        }
        if self.stream_buffer == Some(0) {
            return wrong("stream_buffer", "at least 1".into());
        }
        if !matches!(self.prompt, Prompt::Chat(_)) {
            for (field, set) in [
                ("tools", !self.chat.tools.is_empty()),
                ("add_generation_prompt", self.chat.generation_prompt == Some(true)),
                ("continue_final_message", self.chat.continues),
            ] {
                if set {
                    return wrong(field, "part of a chat".into());
                }
            }
        }
        if self.chat.continues && self.chat.generation_prompt == Some(true) {
            return wrong("add_generation_prompt", "left out with continue_final_message".into());
        }
        if !matches!(self.prompt, Prompt::Chat(_)) && self.chat.constrain.is_some() {
            return wrong("constrain_from", "part of a chat".into());
        }
        if self.chat.calls.need_grammar() {
            let forced = !matches!(self.chat.calls.choice, ToolChoice::Auto);
            if forced && self.chat.tools.is_empty() {
                return wrong("tool_choice", "left to the model unless there are tools".into());
            }
            if !self.chat.tools.is_empty() && !self.format.is_text() {
                return wrong("response_format", "left out where calls of tools have a form".into());
            }
        }
        self.check_stops()
    }

    fn check_stops(&self) -> Result<()> {
        let texts = |field, texts: &[Secret<str>], most: usize| {
            let bytes = 1..=Self::MAX_STOP_BYTES;
            if texts.len() > most {
                return Err(Error::request(field, format!("at most {most} strings")));
            }
            if texts.iter().any(|text| !bytes.contains(&text.expose().len())) {
                return Err(Error::request(field, format!("strings of 1 to {} bytes", Self::MAX_STOP_BYTES)));
            }
            Ok(())
        };
        texts("stop", &self.stop, Self::MAX_STOPS)?;
        texts("dry_breakers", self.breakers.as_deref().unwrap_or(&[]), Self::MAX_BREAKERS)?;
        if self.stop_tokens.expose().len() > Self::MAX_STOP_TOKENS {
            return Err(Error::request("stop_token", format!("at most {} tokens", Self::MAX_STOP_TOKENS)));
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_out_of_bounds_are_named() {
        let cases = [
            ("prompt", Request::prompt("")),
            ("prompt", Request::tokens([])),
            ("max_tokens", Request::prompt("x").max_tokens(0)),
            ("temperature", Request::prompt("x").temperature(-0.1)),
            ("temperature", Request::prompt("x").temperature(2.1)),
            ("temperature", Request::prompt("x").temperature(f32::NAN)),
            ("top_p", Request::prompt("x").top_p(0.0)),
            ("top_p", Request::prompt("x").top_p(1.1)),
            ("top_p", Request::prompt("x").top_p(f32::INFINITY)),
            ("min_p", Request::prompt("x").min_p(-1.0)),
            ("messages", Request::chat([])),
            ("n", Request::prompt("x").n(0)),
            ("n", Request::prompt("x").n(129)),
            ("typical_p", Request::prompt("x").typical_p(0.0)),
            ("repetition_penalty", Request::prompt("x").repetition_penalty(0.0)),
            ("presence_penalty", Request::prompt("x").presence_penalty(2.5)),
            ("frequency_penalty", Request::prompt("x").frequency_penalty(f32::NAN)),
            ("min_tokens", Request::prompt("x").max_tokens(3).min_tokens(4)),
            ("logit_bias", Request::prompt("x").logit_bias(1, 101.0)),
            ("logprobs", Request::prompt("x").logprobs(21)),
            ("prompt_logprobs", Request::prompt("x").prompt_logprobs(21)),
            ("speculate", Request::prompt("x").speculate(Speculation::Draft { tokens: 0 })),
            ("speculate", Request::prompt("x").speculate(Speculation::PromptLookup { ngram: 17, tokens: 1 })),
            ("stream_buffer", Request::prompt("x").stream_buffer(0)),
            ("tools", Request::prompt("x").tools([Tool::new("f", "", serde_json::json!({}))])),
            ("add_generation_prompt", Request::prompt("x").add_generation_prompt(true)),
            ("continue_final_message", Request::prompt("x").continue_final_message(true)),
            (
                "add_generation_prompt",
                Request::chat([crate::assistant("x")])
                    .continue_final_message(true)
                    .add_generation_prompt(true),
            ),
            ("constrain_from", Request::prompt("x").constrain_from(ConstrainFrom::FirstToken)),
            ("stop", Request::prompt("x").stop("")),
            ("stop", Request::prompt("x").stop("y".repeat(1025))),
            ("dry_breakers", Request::prompt("x").dry_breakers([""])),
            ("stop_token", (0..1025).fold(Request::prompt("x"), Request::stop_token)),
            ("stop", (0..17).fold(Request::prompt("x"), |request, i| request.stop(i.to_string()))),
        ];
        for (expected, request) in cases {
            match request.check() {
                Err(Error::Request { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        let all =
            Request::prompt("x").max_tokens(1).temperature(2.0).top_p(1.0).min_p(0.0).top_k(9).stop("y");
        assert!(all.check().is_ok());
    }

    #[test]
    fn debug_prints_lengths_only() {
        let printed = format!("{:?}", Request::prompt("my secret prompt").stop("canary"));
        assert!(!printed.contains("secret") && !printed.contains("canary"), "{printed}");
        assert!(printed.contains("prompt_bytes: 16"), "{printed}");
    }
}
