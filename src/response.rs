//! What comes out.

use std::fmt;

use crate::chat::{CallPart, Message, PieceKind, Role, ToolCall};
use crate::memory::Secret;
use crate::outcome::{FinishReason, RequestId, Timing, Usage};
use crate::privacy::ScrubReceipt;
use crate::sample::Logprobs;

/// A finished reply. It is the caller's: the session holds nothing of it any more. Overwritten when it drops;
/// `Debug` prints lengths only.
pub struct Reply {
    /// One for each of the request's `n`, in order; at least one.
    pub(crate) choices: Vec<Choice>,
    pub(crate) prompt_logprobs: Logprobs,
    pub(crate) not_enforced: Vec<&'static str>,
    /// Tokens used, over all choices.
    pub usage: Usage,
    /// How long it took.
    pub timing: Timing,
    /// The request's name in logs.
    pub request_id: RequestId,
    /// What was overwritten before this reply was handed over.
    pub receipt: ScrubReceipt,
}

impl Reply {
    /// The choices: as many as the request's `n`.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// The choices, to keep.
    pub fn into_choices(self) -> Vec<Choice> {
        self.choices
    }

    fn first(&self) -> &Choice {
        self.choices.first().expect("a request has one choice at least")
    }

    /// The first choice's [`Choice::text`].
    pub fn text(&self) -> &str {
        self.first().text()
    }

    /// The first choice's [`Choice::tokens`].
    pub fn tokens(&self) -> &[u32] {
        self.first().tokens()
    }

    /// Why the first choice ended.
    pub fn finish_reason(&self) -> FinishReason {
        self.first().finish_reason
    }

    /// The seed of the first choice's draws; the others' follow it.
    pub fn seed(&self) -> u64 {
        self.first().seed
    }

    /// Log probabilities of the prompt's tokens from the second on, if [`crate::Request::prompt_logprobs`] asked for
    /// them: entry i is of token i + 1.
    pub fn prompt_logprobs(&self) -> &Logprobs {
        &self.prompt_logprobs
    }

    /// The keywords of the JSON Schema that the reply need not keep to, by their names: those that a format which is
    /// [`lenient`](crate::ResponseFormat::lenient) left out, and `format` where it names one that is an annotation. Empty
    /// for a schema that is enforced as a whole.
    ///
    /// ```no_run
    /// # fn main() -> amnesic::Result<()> {
    /// use amnesic::{Request, ResponseFormat, Session};
    /// use serde_json::json;
    ///
    /// let session = Session::open("models/default")?;
    /// let schema = json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true });
    /// let format = ResponseFormat::json_schema(schema).lenient();
    /// let reply = session.generate(Request::prompt("Some names:").response_format(format))?;
    /// assert_eq!(reply.not_enforced(), ["uniqueItems"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn not_enforced(&self) -> &[&'static str] {
        &self.not_enforced
    }

    /// The first choice's text as a plain `String`, which nobody overwrites any more.
    pub fn into_text(self) -> String {
        self.choices.into_iter().next().map_or(String::new(), |choice| choice.text.into_exposed())
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("choices", &self.choices)
            .field("usage", &self.usage)
            .field("timing", &self.timing)
            .field("request_id", &self.request_id)
            .field("receipt", &self.receipt)
            .finish()
    }
}

/// One of a request's replies. Overwritten when it drops; `Debug` prints lengths only.
pub struct Choice {
    pub(crate) text: Secret<str>,
    pub(crate) reasoning: Option<Secret<str>>,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) tokens: Secret<[u32]>,
    pub(crate) logprobs: Logprobs,
    /// Whether the model writes messages with channels: then what it says before a call is a thought in a chat that goes
    /// on, since the template of gpt-oss takes one of the two beside calls.
    pub(crate) channels: bool,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The seed that its draws used: [`crate::Request::seed`] with it gives this choice again, as the first.
    pub seed: u64,
}

impl Choice {
    /// The generated text; empty when the checkpoint has no tokenizer. Of a chat, the message's content: without
    /// its reasoning and without its tool calls.
    pub fn text(&self) -> &str {
        self.text.expose()
    }

    /// What a chat model thought before it answered, where its format marks that.
    pub fn reasoning(&self) -> Option<&str> {
        self.reasoning.as_ref().map(|reasoning| reasoning.expose())
    }

    /// The calls of the request's tools.
    pub fn tool_calls(&self) -> &[ToolCall] {
        &self.tool_calls
    }

    /// All generated token ids, without the one that ended the reply.
    pub fn tokens(&self) -> &[u32] {
        self.tokens.expose()
    }

    /// Log probabilities of the tokens, one entry for each, if [`crate::Request::logprobs`] asked for them.
    pub fn logprobs(&self) -> &Logprobs {
        &self.logprobs
    }

    /// A copy of the choice as a message, to go on with the chat.
    pub fn message(&self) -> Message {
        let thinks_aloud = self.channels && !self.tool_calls.is_empty() && !self.text().is_empty();
        let message = match (thinks_aloud, self.reasoning()) {
            (true, Some(reasoning)) => {
                let both = Secret::<str>::copy(reasoning).followed_by("\n").followed_by(self.text());
                Message::new(Role::Assistant, "").with_reasoning(both.into_exposed())
            }
            (_, None) => Message::new(Role::Assistant, self.text()),
            (_, Some(reasoning)) => Message::new(Role::Assistant, self.text()).with_reasoning(reasoning),
        };
        message.with_tool_calls(self.tool_calls.iter().map(ToolCall::copy).collect())
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice")
            .field("text_bytes", &self.text().len())
            .field("tokens", &self.tokens().len())
            .field("tool_calls", &self.tool_calls.len())
            .field("finish_reason", &self.finish_reason)
            .field("seed", &self.seed)
            .finish()
    }
}

/// A piece of a streamed reply: whole characters, no part of a stop string. Overwritten when it drops; `Debug` prints
/// lengths only, and there is no `Display`: what prints content says so, with [`Piece::text`].
pub struct Piece {
    pub(crate) text: Secret<str>,
    pub(crate) call: Option<ToolCallDelta>,
    pub(crate) tokens: Secret<[u32]>,
    pub(crate) logprobs: Logprobs,
    /// The choice that it belongs to, from 0.
    pub choice: usize,
    /// What the text is.
    pub kind: PieceKind,
}

impl Piece {
    /// The text. Empty only where tokens gave none: special ones, tool calls, or the end of text that is held back.
    pub fn text(&self) -> &str {
        self.text.expose()
    }

    /// The part of a tool call that this is, where [`Piece::kind`] is [`PieceKind::ToolCall`].
    ///
    /// ```no_run
    /// use amnesic::{Request, Session, Tool, user};
    ///
    /// let session = Session::open("path/to/checkpoint")?;
    /// let weather = Tool::new("weather", "the weather", serde_json::json!({ "type": "object", "properties": {} }));
    /// for piece in session.stream(Request::chat([user("Rain?")]).tools([weather]))? {
    ///     let piece = piece?;
    ///     if let Some(delta) = piece.tool_call() {
    ///         if let Some(name) = delta.name() {
    ///             println!("call {} of {name}", delta.index());
    ///         }
    ///         print!("{}", delta.arguments());
    ///     }
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn tool_call(&self) -> Option<&ToolCallDelta> {
        self.call.as_ref()
    }

    /// The tokens that came since the choice's last piece; their text may reach into the next one.
    pub fn tokens(&self) -> &[u32] {
        self.tokens.expose()
    }

    /// Log probabilities of these tokens, if they were asked for.
    pub fn logprobs(&self) -> &Logprobs {
        &self.logprobs
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece")
            .field("choice", &self.choice)
            .field("kind", &self.kind)
            .field("text_bytes", &self.text().len())
            .field("tool_call", &self.call)
            .field("tokens", &self.tokens().len())
            .finish()
    }
}

/// A part of a tool call while it arrives: OpenAI's delta. The first part of a call has its id and its name; the
/// arguments of all its parts, joined, are what [`ToolCall::arguments`] is in the end. Overwritten when it drops;
/// `Debug` prints lengths only.
pub struct ToolCallDelta {
    index: usize,
    begun: Option<(Secret<str>, Secret<str>)>,
    /// UTF-8, whole characters.
    arguments: Secret<[u8]>,
    complete: bool,
    retracted: bool,
}

impl ToolCallDelta {
    pub(crate) fn new(index: usize, part: CallPart<'_>) -> Self {
        let (begun, arguments) = (None, Secret::default());
        let mut delta = Self { index, begun, arguments, complete: false, retracted: false };
        delta.add(part);
        delta
    }

    /// Takes in the next part of the same call.
    pub(crate) fn add(&mut self, part: CallPart<'_>) {
        match part {
            CallPart::Begin { id, name } => {
                self.begun = Some((Secret::<str>::copy(id), Secret::<str>::copy(name)));
            }
            CallPart::Arguments(text) => self.arguments.extend(text.as_bytes()),
            CallPart::End => self.complete = true,
            CallPart::Retracted => self.retracted = true,
        }
    }

    /// Which call of the choice it is a part of, from 0. A call that was retracted keeps its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The call's id, in its first part.
    pub fn id(&self) -> Option<&str> {
        self.begun.as_ref().map(|(id, _)| id.expose())
    }

    /// The function's name, in the call's first part.
    pub fn name(&self) -> Option<&str> {
        self.begun.as_ref().map(|(_, name)| name.expose())
    }

    /// More of the arguments' text; perhaps empty.
    pub fn arguments(&self) -> &str {
        std::str::from_utf8(self.arguments.expose()).expect("parts of calls are whole characters")
    }

    /// Whether the call is complete with this part.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether what seemed to be a call turned out to be none, or the reply ended within it: what was given of it does
    /// not count, it is no part of [`Choice::tool_calls`], and its text follows as content.
    pub fn is_retracted(&self) -> bool {
        self.retracted
    }
}

impl fmt::Debug for ToolCallDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolCallDelta")
            .field("index", &self.index)
            .field("name_bytes", &self.name().map(str::len))
            .field("arguments_bytes", &self.arguments().len())
            .field("complete", &self.complete)
            .field("retracted", &self.retracted)
            .finish_non_exhaustive()
    }
}
