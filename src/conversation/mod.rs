//! What may outlive a request: a [`Conversation`], and a [`Public`] prompt.
//!
//! Lives here: the two, what a conversation is in bytes ([`record`]), and how it leaves its session sealed ([`export`]) for
//! one that computes alike ([`crate::identity`]).

mod export;
mod record;

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::chat::Message;
use crate::client::Client;
use crate::engine::mailbox::Mailbox;
use crate::engine::message;
use crate::engine::receipts::About;
use crate::error::{Error, Result, SealedReason};
use crate::lease::PrefixHandle;
use crate::memory::Secret;
use crate::memory::seal::{NONCE_BYTES, SealingKey, TAG_BYTES};
use crate::privacy::Subject;
use crate::request::{Prompt, Request};
use crate::response::{Piece, Reply};
#[cfg(feature = "async")]
use crate::stream::Cancelled;
use crate::stream::Stream;
use record::Record;

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
/// **Between two turns it is sealed**: messages, token ids, and on the CPU its part of the KV cache, are encrypted where they
/// lie, under keys that this process keeps apart; a turn opens them, and its end closes them again. It can leave its session,
/// too, sealed under a key of the application's: [`Conversation::export`].
///
/// Dropping it overwrites all of it, and returns when that is done: a step later at most.
#[derive(Debug)]
pub struct Conversation {
    client: Client,
    /// Its name in receipts.
    number: u64,
    reuse: PrefixHandle,
    /// Empty between turns.
    messages: Arc<Vec<Message>>,
    /// None if the system had no random numbers: then no turn begins.
    key: Option<SealingKey>,
    /// How often it was sealed: no nonce comes twice.
    count: u64,
    /// What it was after its last turn; none before the first one's end.
    resting: Option<Resting>,
    /// The turn whose stream was dropped last, until it is over.
    left: Option<Arc<Mailbox>>,
    /// There is a stream. One that its owner forgot goes on.
    streams: bool,
    began: SystemTime,
}

/// Something of a session's to go on from, of which there is nothing yet.
fn nothing_kept(client: &Client) -> PrefixHandle {
    let lease = client.keep(|_, _| None);
    PrefixHandle { lease, ids: Arc::default(), adapter: Arc::default(), public: false }
}

/// What the end of a turn depends on.
#[derive(Clone, Copy, Debug)]
struct Turn {
    chat: bool,
    /// Whether the reply belongs to the last message.
    continues: bool,
    /// Whether the reply is a literal message of later turns.
    literal: bool,
}

impl Turn {
    fn of(request: &Request) -> Self {
        Self {
            chat: matches!(request.prompt, Prompt::Chat(_)),
            continues: request.chat.continues,
            literal: request.literal,
        }
    }
}

/// A record, sealed.
struct Resting {
    content: Secret<[u8]>,
    tag: [u8; TAG_BYTES],
}

impl std::fmt::Debug for Resting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resting").field("bytes", &self.content.expose().len()).finish_non_exhaustive()
    }
}

/// A conversation's messages, opened: [`Conversation::messages`]. A slice of them; dropping it overwrites them.
#[derive(Debug)]
pub struct Messages(Vec<Message>);

impl std::ops::Deref for Messages {
    type Target = [Message];

    fn deref(&self) -> &[Message] {
        &self.0
    }
}

impl Conversation {
    pub(crate) fn new(client: Client) -> Self {
        let began = client.telemetry.clock.wall();
        let (reuse, key) = (nothing_kept(&client), SealingKey::random());
        let (number, messages) = (reuse.lease.key, Arc::default());
        Self {
            client,
            number,
            reuse,
            messages,
            key,
            count: 0,
            resting: None,
            left: None,
            streams: false,
            began,
        }
    }

    /// The chat's messages so far: a copy, which is opened for the caller and overwritten when he drops it.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("path/to/a/chat/model")?;
    /// let mut conversation = session.conversation();
    /// conversation.generate(amnesic::Request::chat([amnesic::user("What is a slice?")]))?;
    /// assert_eq!(conversation.messages().len(), 2);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn messages(&self) -> Messages {
        Messages(self.opened().map(|record| record.messages).unwrap_or_default())
    }

    /// Seals the conversation under a key of the application's, to be stored and gone on with later, here or in another
    /// session of the same checkpoint: [`Conversation::import`]. It stays as it is, and so does its place in the cache.
    ///
    /// The bytes hold messages and token ids, no keys and values: those are computed again, to the same bits. Their number
    /// tells how long the conversation is, rounded up to 4 KiB; the first 74 tell which model and types it was computed
    /// with, as hashes.
    ///
    /// ```no_run
    /// use amnesic::{Conversation, Request, SealingKey, Session};
    ///
    /// # fn stored_key() -> [u8; 32] { [0; 32] }
    /// let key = SealingKey::new(&mut stored_key());
    /// let session = Session::open("models/default")?;
    /// let mut conversation = session.conversation();
    /// conversation.generate(Request::prompt("Once upon a time"))?;
    /// let sealed: Vec<u8> = conversation.export(&key)?;
    /// drop(conversation);
    ///
    /// let mut conversation = Conversation::import(&session, &sealed, &key)?;
    /// conversation.generate(Request::prompt(" there was"))?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::WrongTask`] if the session does not generate; [`Error::Sealed`] if the system has no random numbers.
    pub fn export(&self, key: &SealingKey) -> Result<Vec<u8>> {
        let identity = self.client.identity()?;
        let content = match &self.resting {
            Some(_) => self.open()?,
            None => record::encode(&[], &[], None),
        };
        export::seal(content, identity, key)
    }

    /// What [`Conversation::import`] does.
    pub(crate) fn open_sealed(client: &Client, sealed: &[u8], key: &SealingKey) -> Result<Self> {
        let Record { messages, ids, adapter } = export::open(sealed, client.identity()?, key)?;
        let mut conversation = Self::new(client.clone());
        conversation.messages = Arc::new(messages);
        *conversation.reuse.ids.lock().unwrap_or_else(PoisonError::into_inner) = ids;
        *conversation.reuse.adapter.lock().unwrap_or_else(PoisonError::into_inner) =
            adapter.map(|(name, _)| name);
        match conversation.rest() {
            true => Ok(conversation),
            false => Err(Error::Sealed(SealedReason::NoRandomNumbers)),
        }
    }

    /// The next turn. [`crate::Session::conversation`] has an example.
    ///
    /// # Errors
    /// Returns the errors of [`crate::Session::generate`]; then the turn has not been.
    pub fn generate(&mut self, request: Request) -> Result<Reply> {
        self.wake(&request)?;
        let reply = self.next_turn(request, false).and_then(|(request, turn)| {
            let readers = self.client.submit(vec![request], false).map_err(|(_, error)| error);
            Ok((readers?.remove(0).reply()?, turn))
        });
        self.finish_turn(reply)
    }

    /// The next turn, as it comes. If the stream is dropped before it is finished, the turn has not been, and the next one
    /// begins when it is over.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let mut conversation = session.conversation();
    /// let mut stream = conversation.stream(amnesic::Request::prompt("A slice is").max_tokens(4))?;
    /// while let Some(piece) = stream.next() {
    ///     print!("{}", piece?.text());
    /// }
    /// stream.finish()?; // now the turn has been
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`crate::Session::stream`].
    pub fn stream(&mut self, request: Request) -> Result<ConversationStream<'_>> {
        self.wake(&request)?;
        let readers = self.next_turn(request, true).and_then(|(request, turn)| {
            Ok((self.client.submit(vec![request], true).map_err(|(_, error)| error)?, turn))
        });
        match readers {
            Ok((mut readers, turn)) => {
                let stream = Some(Stream::new(readers.remove(0)));
                self.streams = true;
                Ok(ConversationStream { stream, conversation: self, turn })
            }
            Err(error) => {
                self.take_back();
                Err(error)
            }
        }
    }

    /// The request with all that was before it.
    fn next_turn(&mut self, mut request: Request, stream: bool) -> Result<(Request, Turn)> {
        let turn = Turn::of(&request);
        let began = self.client.telemetry.clock.wall();
        let named = request.prefix.replace(self.reuse.clone());
        let wrong = match named {
            Some(_) => Err(Error::request("shares", "left out in a conversation")),
            None => request.check(),
        };
        if let Err(error) = wrong {
            self.client.telemetry.trace(&request, stream).refused(error.kind());
            self.client.refused(&[request.nonce], began, 0, &error);
            return Err(error);
        }
        if matches!(request.prompt, Prompt::Chat(_))
            && let Prompt::Chat(new) = std::mem::take(&mut request.prompt)
        {
            let (all, new) = (Arc::get_mut(&mut self.messages), Arc::into_inner(new));
            let (Some(all), Some(new)) = (all, new) else {
                self.client.refused(&[request.nonce], began, 0, &Error::Closed);
                return Err(Error::Closed);
            };
            // what this turn says of its messages holds in later ones, too, and for no message of an earlier one
            let literal = std::mem::take(&mut request.literal);
            all.extend(new.into_iter().map(|message| match literal {
                true => message.literal_text(true),
                false => message,
            }));
            request.prompt = Prompt::Chat(self.messages.clone());
        }
        Ok((request, turn))
    }

    /// After a turn: adds the reply to a chat, or takes back what the turn added.
    fn finish_turn(&mut self, reply: Result<(Reply, Turn)>) -> Result<Reply> {
        self.streams = false;
        match reply {
            Ok((reply, turn)) => {
                if let Some(messages) = Arc::get_mut(&mut self.messages).filter(|_| turn.chat) {
                    let message = reply.choices()[0].message();
                    match messages.last_mut().filter(|_| turn.continues) {
                        Some(last) => last.continue_with(message),
                        None => messages.push(message.literal_text(turn.literal)),
                    }
                }
                self.rest();
                Ok(reply)
            }
            Err(error) => {
                self.take_back();
                Err(error)
            }
        }
    }

    /// A turn that is over has not been: what rests is what it was before.
    fn take_back(&mut self) {
        self.messages = Arc::default();
        let before = self.opened().map(|record| record.ids).unwrap_or_default();
        let mut ids = self.reuse.ids.lock().unwrap_or_else(PoisonError::into_inner);
        // a choice may have ended before another one failed: then the cache is of a turn that has not been
        let goes_on = ids.expose() == before.expose();
        *ids = Secret::default();
        drop(ids);
        if !goes_on {
            self.reuse = nothing_kept(&self.client);
        }
    }

    /// Lets go of a turn that is not over, and waits for nothing, unlike [`Conversation::take_back`]. The turn alone has what it
    /// went on from now, and gives it up with its end.
    fn leave(&mut self, stream: Stream) {
        self.streams = false;
        self.left = stream.leave();
        self.messages = Arc::default();
        self.reuse = nothing_kept(&self.client);
    }

    /// Waits until the turn whose stream was dropped is over: a step at most.
    fn until_left(&mut self) {
        self.left.take().iter().for_each(|mailbox| mailbox.until_ended());
    }

    /// Opens what rests, for a turn.
    fn wake(&mut self, request: &Request) -> Result<()> {
        self.until_left();
        if std::mem::take(&mut self.streams) {
            self.reuse = nothing_kept(&self.client);
        }
        if self.key.is_none() {
            let error = Error::Sealed(SealedReason::NoRandomNumbers);
            self.client.refused(&[request.nonce], self.client.telemetry.clock.wall(), 0, &error);
            return Err(error);
        }
        if let Some(record) = self.opened() {
            self.messages = Arc::new(record.messages);
            *self.reuse.ids.lock().unwrap_or_else(PoisonError::into_inner) = record.ids;
        }
        Ok(())
    }

    /// Seals what a turn leaves; the plain of it is overwritten. False if there is no key.
    fn rest(&mut self) -> bool {
        let Some(key) = &self.key else { return false };
        self.resting = None;
        let mut ids = self.reuse.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = {
            let adapter = self.reuse.adapter.lock().unwrap_or_else(PoisonError::into_inner);
            let hash = |name: &String| self.client.identity.as_ref().and_then(|all| all.adapter(name));
            let adapter = adapter.as_ref().and_then(|name| Some((name.as_str(), hash(name)?)));
            record::encode(&self.messages, ids.expose(), adapter)
        };
        self.count += 1;
        let Some(tag) = key.seal(&nonce(self.count), &[], content.expose_mut()) else { return false };
        *ids = Secret::default();
        drop(ids);
        self.messages = Arc::default();
        self.resting = Some(Resting { content, tag });
        true
    }

    /// The bytes of the record that rests, in the clear.
    fn open(&self) -> Result<Secret<[u8]>> {
        let broken = Error::Sealed(SealedReason::KeyOrContent);
        let (Some(key), Some(Resting { content, tag })) = (&self.key, &self.resting) else {
            return Err(broken);
        };
        let mut content = Secret::<[u8]>::copy(content.expose());
        match key.open(&nonce(self.count), &[], content.expose_mut(), tag) {
            true => Ok(content),
            false => Err(broken),
        }
    }

    /// What rests, in the clear.
    fn opened(&self) -> Option<Record> {
        record::decode(self.open().ok()?.expose())
    }
}

/// The nonce of the `count`-th time.
fn nonce(count: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..8].copy_from_slice(&count.to_le_bytes());
    nonce
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.until_left();
        // all of it is overwritten before its receipt says so
        self.messages = Arc::default();
        self.resting = None;
        self.reuse.ids.lock().unwrap_or_else(PoisonError::into_inner).truncate(0);
        let (session, number, key) = (self.client.telemetry.session, self.number, self.reuse.lease.key);
        let about = About::completed(Subject::Conversation { session, number }, None, self.began);
        let (done, answer) = sync_channel(1);
        if self.client.worker.send(message::WorkerMessage::Forget(key, Some(about), Some(done))).is_ok() {
            let _ = answer.recv(); // a session that closes overwrites it too
        }
    }
}

/// A turn of a conversation as it comes. See [`Conversation::stream`]. With the feature `async` it is a
/// `futures_core::Stream` too.
///
/// Dropping it ends the turn within one step, and returns at once: an executor's thread may do it. The conversation is what it
/// was before the turn; its next turn, and its own drop, wait until this one is scrubbed. `ConversationStream::cancel` is the
/// future that ends then.
#[derive(Debug)]
pub struct ConversationStream<'a> {
    /// None once it was finished.
    stream: Option<Stream>,
    conversation: &'a mut Conversation,
    turn: Turn,
}

impl ConversationStream<'_> {
    /// Ends the turn within one step; [`ConversationStream::finish`] gives what was produced so far.
    /// [`Stream::interrupt`] has an example.
    pub fn interrupt(&self) {
        self.stream.iter().for_each(Stream::interrupt);
    }

    /// Waits for the end, and gives the whole reply. [`Conversation::stream`] has an example.
    ///
    /// # Errors
    /// Returns the errors of [`Stream::finish`].
    pub fn finish(mut self) -> Result<Reply> {
        let reply = self.stream.take().ok_or(Error::Closed)?.finish();
        let turn = self.turn;
        self.conversation.finish_turn(reply.map(|reply| (reply, turn)))
    }
}

#[cfg(feature = "async")]
impl ConversationStream<'_> {
    /// Ends the turn within one step: it has not been. The future is ready when it is scrubbed; whoever drops it sooner waits
    /// for nothing, and the turn is scrubbed all the same. Neither this call nor the future blocks its thread.
    ///
    /// ```no_run
    /// # async fn example(session: &amnesic::Session) -> amnesic::Result<()> {
    /// let mut conversation = session.conversation();
    /// let stream = conversation.stream(amnesic::Request::prompt("Once upon a time"))?;
    /// stream.cancel().await; // nothing of it is left
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(mut self) -> Cancelled {
        self.stream.take().into_iter().for_each(|stream| self.conversation.leave(stream));
        Cancelled(self.conversation.left.clone())
    }
}

#[cfg(feature = "async")]
impl futures_core::Stream for ConversationStream<'_> {
    type Item = Result<Piece>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        match &mut self.get_mut().stream {
            Some(stream) => std::pin::Pin::new(stream).poll_next(context),
            None => std::task::Poll::Ready(None),
        }
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
            self.conversation.leave(stream);
        }
    }
}

/// A prompt that requests may share, because the application declared it public: [`crate::Session::publish`].
///
/// Clones name the same prompt. When neither they nor requests name it any more, its part of the cache is overwritten.
#[derive(Clone, Debug)]
pub struct Public {
    reuse: PrefixHandle,
    tokens: usize,
}

impl Public {
    pub(crate) fn new(client: &Client, ids: Secret<[u32]>, adapter: Option<String>) -> Self {
        let tokens = ids.expose().len();
        let lease = client.keep(|session, number| Some(Subject::Public { session, number }));
        let ids = Arc::new(Mutex::new(ids));
        let reuse = PrefixHandle { lease, ids, adapter: Arc::new(Mutex::new(adapter)), public: true };
        Self { reuse, tokens }
    }

    /// Tokens of the prompt. Whole blocks of 64 of them are shared. [`crate::Session::publish`] has an example of one.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn reuse(&self) -> PrefixHandle {
        self.reuse.clone()
    }
}

impl Request {
    /// Shares what the prompt has in common with a public one with all requests that name it.
    /// [`Session::publish`](crate::Session::publish) has an example.
    pub fn shares(mut self, public: &Public) -> Self {
        self.prefix = Some(public.reuse());
        self
    }
}
