//! What may outlive a request: a [`Conversation`], and a [`Public`] prompt.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::chat::Message;
pub(crate) use crate::engine::job::Reuse;
use crate::engine::receipts::About;
use crate::engine::worker;
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::privacy::Subject;
use crate::request::{Prompt, Request};
use crate::response::{Piece, Reply};
use crate::session::Line;
use crate::stream::Stream;

/// A chat or a text of several turns.
///
/// What a turn has in common with those before it stays in the KV cache and is not computed again
/// ([`crate::Usage::cached_tokens`]); nobody else can use it. When other requests need the memory, an idle
/// conversation's goes first, and is computed again with its next turn: that costs time and changes no token.
///
/// - [`Request::chat`]: its messages are added to those so far; all of them go through the template; the reply's first
///   choice is added as the assistant's.
/// - [`Request::prompt`] and [`Request::tokens`]: go on behind the text or tokens so far.
///
/// Dropping it overwrites all of it, and returns when that is done.
#[derive(Debug)]
pub struct Conversation {
    line: Line,
    reuse: Reuse,
    messages: Arc<Vec<Message>>,
    began: SystemTime,
}

impl Conversation {
    pub(crate) fn new(line: Line) -> Self {
        let kept = line.keep(|_, _| None);
        let began = line.telemetry.clock.wall();
        let reuse = Reuse { kept, ids: Arc::default(), adapter: Arc::default(), public: false };
        Self { line, reuse, messages: Arc::default(), began }
    }

    /// The chat's messages so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The next turn.
    ///
    /// # Errors
    /// As [`crate::Session::generate`]; then the turn has not been.
    pub fn generate(&mut self, request: Request) -> Result<Reply> {
        let before = self.messages.len();
        let request = self.next_turn(request, false)?;
        let chat = matches!(request.prompt, Prompt::Chat(_));
        let readers = self.line.submit(vec![request], false).map_err(|(_, error)| error);
        let reply = readers.and_then(|mut readers| readers.remove(0).reply());
        self.settle(before, chat, &reply);
        reply
    }

    /// The next turn, as it comes. If the stream is dropped before it is finished, the turn has not been.
    ///
    /// # Errors
    /// As [`crate::Session::stream`].
    pub fn stream(&mut self, request: Request) -> Result<ConversationStream<'_>> {
        let before = self.messages.len();
        let request = self.next_turn(request, true)?;
        let chat = matches!(request.prompt, Prompt::Chat(_));
        match self.line.submit(vec![request], true) {
            Ok(mut readers) => {
                let stream = Some(Stream::new(readers.remove(0)));
                Ok(ConversationStream { stream, conversation: self, before, chat })
            }
            Err((_, error)) => {
                self.keep_messages(before);
                Err(error)
            }
        }
    }

    /// The request with all that was before it.
    fn next_turn(&mut self, mut request: Request, stream: bool) -> Result<Request> {
        let began = self.line.telemetry.clock.wall();
        let named = request.prefix.replace(self.reuse.clone());
        let wrong = match named {
            Some(_) => Err(Error::request("shares", "left out in a conversation")),
            None => request.check(),
        };
        if let Err(error) = wrong {
            self.line.telemetry.trace(&request, stream).refused(error.kind());
            self.line.refused(&[request.nonce], began, 0, &error);
            return Err(error);
        }
        if matches!(request.prompt, Prompt::Chat(_))
            && let Prompt::Chat(new) = std::mem::take(&mut request.prompt)
        {
            let (all, new) = (Arc::get_mut(&mut self.messages), Arc::into_inner(new));
            let (Some(all), Some(new)) = (all, new) else {
                self.line.refused(&[request.nonce], began, 0, &Error::Closed);
                return Err(Error::Closed);
            };
            all.extend(new);
            request.prompt = Prompt::Chat(self.messages.clone());
        }
        Ok(request)
    }

    /// After a turn: adds the reply, or takes back what the turn added.
    fn settle(&mut self, before: usize, chat: bool, reply: &Result<Reply>) {
        match reply {
            Ok(reply) if chat => {
                let answer = reply.choices()[0].message();
                if let Some(messages) = Arc::get_mut(&mut self.messages) {
                    messages.push(answer);
                }
            }
            Ok(_) => {}
            Err(_) => self.keep_messages(before),
        }
    }

    fn keep_messages(&mut self, count: usize) {
        if let Some(messages) = Arc::get_mut(&mut self.messages) {
            messages.truncate(count);
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // all of it is overwritten before its receipt says so
        self.messages = Arc::default();
        self.reuse.ids.lock().unwrap_or_else(PoisonError::into_inner).truncate(0);
        let (session, number) = (self.line.telemetry.session, self.reuse.kept.key);
        let about = About::completed(Subject::Conversation { session, number }, None, self.began);
        let (done, answer) = sync_channel(1);
        if self.line.worker.send(worker::Message::Forget(number, Some(about), Some(done))).is_ok() {
            let _ = answer.recv(); // a session that closes overwrites it too
        }
    }
}

/// A turn of a conversation as it comes. See [`Conversation::stream`].
#[derive(Debug)]
pub struct ConversationStream<'a> {
    /// None once it was finished.
    stream: Option<Stream>,
    conversation: &'a mut Conversation,
    before: usize,
    chat: bool,
}

impl ConversationStream<'_> {
    /// Ends the turn within one step; [`ConversationStream::finish`] gives what was produced so far.
    pub fn interrupt(&self) {
        self.stream.iter().for_each(Stream::interrupt);
    }

    /// Waits for the end, and gives the whole reply.
    ///
    /// # Errors
    /// As [`Stream::finish`].
    pub fn finish(mut self) -> Result<Reply> {
        let reply = self.stream.take().ok_or(Error::Closed)?.finish();
        self.conversation.settle(self.before, self.chat, &reply);
        reply
    }
}

impl Iterator for ConversationStream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.stream.as_mut()?.next()
    }
}

impl Drop for ConversationStream<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            drop(stream); // cancels the request, and returns when it is scrubbed
            self.conversation.keep_messages(self.before);
        }
    }
}

/// A prompt that requests may share, because the application declared it public: [`crate::Session::publish`].
///
/// Clones name the same prompt. When neither they nor requests name it any more, its part of the cache is overwritten.
#[derive(Clone, Debug)]
pub struct Public {
    reuse: Reuse,
    tokens: usize,
}

impl Public {
    pub(crate) fn new(line: &Line, ids: Secret<[u32]>, adapter: Option<String>) -> Self {
        let tokens = ids.expose().len();
        let kept = line.keep(|session, number| Some(Subject::Public { session, number }));
        let ids = Arc::new(Mutex::new(ids));
        let reuse = Reuse { kept, ids, adapter: Arc::new(Mutex::new(adapter)), public: true };
        Self { reuse, tokens }
    }

    /// Tokens of the prompt. Whole blocks of 64 of them are shared.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn reuse(&self) -> Reuse {
        self.reuse.clone()
    }
}
