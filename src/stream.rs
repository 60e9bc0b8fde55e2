//! A reply as it comes.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cancel::Interrupt;
use crate::chat::{Event, PieceKind, Splitter, Style};
use crate::engine::mailbox::{Delta, End, Finished, Mailbox, Output};
use crate::error::Result;
use crate::memory::Secret;
use crate::outcome::FinishReason;
use crate::response::{Choice, Piece, Reply, ToolCallDelta};

/// Reads a mailbox, and a chat model's format.
#[derive(Debug)]
pub(crate) struct ReplyReader {
    mailbox: Arc<Mailbox>,
    /// How the model writes reasoning and calls of tools, if the request is a chat.
    style: Option<Style>,
    /// One for each choice of a chat.
    splitters: Vec<Splitter>,
    /// Pieces that one read gave too many of.
    ready: VecDeque<Piece>,
}

impl ReplyReader {
    /// For a request that was accepted.
    pub fn new(mailbox: Arc<Mailbox>, choices: usize) -> Self {
        let style = mailbox.style();
        let splitters = style.iter().flat_map(|style| (0..choices).map(|_| style.splitter())).collect();
        Self { mailbox, style, splitters, ready: VecDeque::new() }
    }

    /// Waits for the end.
    pub fn reply(self) -> Result<Reply> {
        let Finished { choices, prompt_logprobs, not_enforced, end } = self.mailbox.finished()?;
        let choices = choices.into_iter().map(|output| self.choice(output)).collect();
        let End { usage, timing, request_id, receipt } = end;
        Ok(Reply { choices, prompt_logprobs, not_enforced, usage, timing, request_id, receipt })
    }

    fn choice(&self, mut output: Output) -> Choice {
        let text = output.take_text();
        let (text, reasoning, tool_calls) = match &self.style {
            None => (text, None, Vec::new()),
            Some(style) => {
                let parsed = style.parse(text.expose());
                (parsed.content, parsed.reasoning, parsed.tool_calls)
            }
        };
        let finish_reason = match output.finish {
            Some(FinishReason::Stop) if !tool_calls.is_empty() => FinishReason::ToolCalls,
            reason => reason.unwrap_or(FinishReason::Cancelled),
        };
        Choice {
            text,
            reasoning,
            tool_calls,
            tokens: output.tokens,
            logprobs: output.logprobs,
            channels: self.style.as_ref().is_some_and(Style::is_harmony),
            finish_reason,
            seed: output.seed,
        }
    }

    fn next(&mut self) -> Option<Result<Piece>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(Ok(piece));
            }
            match self.mailbox.next() {
                Some(Ok(delta)) => self.split(delta),
                Some(Err(error)) => {
                    self.splitters.clear();
                    return Some(Err(error));
                }
                None if self.flush() => {}
                None => return None,
            }
        }
    }

    /// Makes pieces of what splitters hold back when a choice ended without anything fresh: its last text may have been
    /// taken before that was known. Whether there was any.
    fn flush(&mut self) -> bool {
        for choice in 0..self.splitters.len() {
            let (text, tokens, logprobs) = (Secret::default(), Secret::default(), Default::default());
            self.split(Delta { choice, text, tokens, logprobs, last: true });
            // what gives nothing is no piece here
            if self.ready.back().is_some_and(|piece| piece.text().is_empty() && piece.tool_call().is_none()) {
                self.ready.pop_back();
            }
        }
        !self.ready.is_empty()
    }

    /// Makes pieces of what is fresh: more than one where reasoning ends in it, perhaps none where text is held back.
    fn split(&mut self, delta: Delta) {
        let Delta { choice, text, tokens, logprobs, last } = delta;
        let piece = |text, kind, call| Piece {
            text,
            call,
            tokens: Secret::default(),
            logprobs: Default::default(),
            choice,
            kind,
        };
        let first = self.ready.len();
        let Self { splitters, ready, .. } = self;
        match splitters.get_mut(choice) {
            None => ready.push_back(piece(text, PieceKind::Content, None)),
            Some(splitter) => {
                let mut take = |event: Event<'_>| match event {
                    Event::Piece(kind, text) => ready.push_back(piece(Secret::copy(text), kind, None)),
                    // parts of a call that come at once are one piece
                    Event::Call(index, part) => match ready.range_mut(first..).next_back() {
                        Some(Piece { call: Some(delta), .. }) if delta.index() == index => delta.add(part),
                        _ => {
                            let delta = Some(ToolCallDelta::new(index, part));
                            ready.push_back(piece(Secret::default(), PieceKind::ToolCall, delta));
                        }
                    },
                };
                splitter.push(text.expose(), &mut take);
                if last {
                    splitter.finish(&mut take);
                }
            }
        }
        if self.ready.len() == first {
            self.ready.push_back(piece(Secret::default(), PieceKind::Content, None));
        }
        let piece = &mut self.ready[first];
        (piece.tokens, piece.logprobs) = (tokens, logprobs);
    }
}

/// The text of one reply as it comes. See [`crate::Session::stream`]. With the feature `async` it is a
/// `futures_core::Stream` too.
///
/// Dropping it ends the request within one step. A stream that was read as an iterator is dropped once the request is
/// scrubbed: for as long as a step takes, the drop waits. One that was polled, or not read at all, may belong to an executor,
/// whose thread must not wait, so its drop does not: `Stream::cancel` is the future that ends when the request is scrubbed, and
/// [`Stream::discard`] waits for that.
///
/// It outlives its session: then it ends with [`crate::Error::Closed`].
#[derive(Debug)]
pub struct Stream {
    /// None once it was finished.
    reader: Option<ReplyReader>,
    /// It was read as an iterator: its thread may wait.
    waits: bool,
}

impl Stream {
    pub(crate) fn new(reader: ReplyReader) -> Self {
        Self { reader: Some(reader), waits: false }
    }

    /// Asks for the end, and waits for nothing: the request is scrubbed when its mailbox has ended. None once it was finished.
    pub(crate) fn leave(mut self) -> Option<Arc<Mailbox>> {
        let mailbox = self.reader.take()?.mailbox;
        mailbox.leave();
        Some(mailbox)
    }

    /// Ends the request within one step; [`Stream::finish`] gives what was produced so far.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let mut stream = session.stream(amnesic::Request::prompt("A slice is").max_tokens(50))?;
    /// while let Some(piece) = stream.next() {
    ///     if piece?.text().contains('.') {
    ///         stream.interrupt();
    ///         break;
    ///     }
    /// }
    /// println!("{}", stream.finish()?.text());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn interrupt(&self) {
        self.reader.iter().for_each(|reader| reader.mailbox.interrupt());
    }

    /// Keywords of the response format's schema that are not enforced: see [`Reply::not_enforced`].
    ///
    /// ```
    /// # use amnesic::{Request, ResponseFormat};
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let schema = serde_json::json!({ "type": "array", "uniqueItems": true });
    /// let format = ResponseFormat::json_schema(schema).lenient();
    /// let stream = session.stream(Request::prompt("[").response_format(format).max_tokens(4))?;
    /// assert_eq!(stream.not_enforced(), ["uniqueItems"]);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn not_enforced(&self) -> Vec<&'static str> {
        self.reader.as_ref().map_or_else(Vec::new, |reader| reader.mailbox.not_enforced())
    }

    /// Ends the request within one step, and returns when it is scrubbed. Nothing of its reply is kept.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// let stream = session.stream(amnesic::Request::prompt("Once upon a time"))?;
    /// stream.discard(); // nothing of it is left
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn discard(self) {
        self.leave().iter().for_each(|mailbox| mailbox.until_ended());
    }

    /// Waits for the end, and gives the whole reply: also the text that was streamed.
    /// [`Stream::interrupt`] has an example.
    ///
    /// # Errors
    /// The session is closed or poisoned, or the error was already given by the iterator.
    pub fn finish(mut self) -> Result<Reply> {
        self.reader.take().ok_or(crate::Error::Closed)?.reply()
    }
}

impl Iterator for Stream {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.waits = true;
        self.reader.as_mut()?.next()
    }
}

#[cfg(feature = "async")]
impl futures_core::Stream for Stream {
    type Item = Result<Piece>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll;
        let this = self.get_mut();
        this.waits = false;
        let Some(reader) = &mut this.reader else { return Poll::Ready(None) };
        loop {
            if let Some(piece) = reader.ready.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            match reader.mailbox.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) if reader.flush() => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => {
                    reader.splitters.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Some(Ok(delta))) => reader.split(delta),
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        match &self.reader {
            Some(reader) if self.waits => reader.mailbox.abandon(),
            Some(reader) => reader.mailbox.leave(),
            None => {}
        }
    }
}

#[cfg(feature = "async")]
impl Stream {
    /// Ends the request within one step. The future is ready when it is scrubbed; whoever drops it sooner waits for nothing,
    /// and the request is scrubbed all the same. Neither this call nor the future blocks its thread.
    ///
    /// ```no_run
    /// # async fn example(session: &amnesic::Session) -> amnesic::Result<()> {
    /// let stream = session.stream(amnesic::Request::prompt("Once upon a time"))?;
    /// stream.cancel().await; // nothing of it is left
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(self) -> Cancelled {
        Cancelled(self.leave())
    }
}

/// The end of a request that was cancelled: see [`Stream::cancel`].
#[cfg(feature = "async")]
#[derive(Debug)]
#[must_use = "a future does nothing unless it is awaited; the request ends without it too"]
pub struct Cancelled(pub(crate) Option<Arc<Mailbox>>);

#[cfg(feature = "async")]
impl std::future::Future for Cancelled {
    type Output = ();

    fn poll(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        self.0.as_ref().map_or(std::task::Poll::Ready(()), |mailbox| mailbox.poll_end(context))
    }
}
