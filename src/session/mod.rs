//! The handle: a session on a checkpoint.
//!
//! It generates and closes here; [`embeddings`] reads texts without a reply, [`tokens`] goes between texts and ids, and
//! [`about`] says what the session is and does.

mod about;
mod embeddings;
mod tokens;

#[cfg(feature = "schema")]
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use crate::client::Client;
use crate::conversation::{Conversation, Public};
use crate::engine::intake::IntakeMessage;
use crate::engine::message::WorkerMessage;
use crate::error::{Error, Result};
use crate::memory::seal::SealingKey;
#[cfg(feature = "schema")]
use crate::memory::thread::{self, Depth, confined};
use crate::memory_plan::MemoryPlan;
use crate::model_info::ModelInfo;
use crate::note::Note;
use crate::privacy::{Evidence, ScrubReceipt};
use crate::request::Request;
use crate::response::Reply;
use crate::stream::{ReplyReader, Stream};
use crate::text::Text;

/// A loaded model that serves requests and forgets them.
///
/// `Send + Sync`: any thread may call it; requests that run at the same time share steps, and join and leave between
/// them. Threads of its own read requests and compute, and all that is derived from a request lives in memory that is
/// overwritten before a call returns: on success, error, cancellation and panic. [`Session::close`] reports it;
/// dropping does the same silently, and returns when all is scrubbed.
#[derive(Debug)]
pub struct Session {
    pub(crate) client: Client,
    pub(crate) worker: Option<JoinHandle<ScrubReceipt>>,
    pub(crate) memory: MemoryPlan,
    pub(crate) context: usize,
    pub(crate) vocab: usize,
    pub(crate) text: Option<Arc<Text>>,
    pub(crate) device: String,
    pub(crate) fell_back: Option<Error>,
    pub(crate) notes: Vec<Note>,
    pub(crate) evidence: Arc<Evidence>,
    pub(crate) model: ModelInfo,
    pub(crate) adapters: Vec<String>,
}

impl Session {
    /// Runs one request to its end.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let reply = session.generate(Request::prompt("A slice is").max_tokens(4))?;
    /// println!("{} ({})", reply.text(), reply.finish_reason());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The request is wrong, the session is full ([`Error::Busy`]), or it is poisoned.
    pub fn generate(&self, request: Request) -> Result<Reply> {
        self.client.submit(vec![request], false).map_err(|(_, error)| error)?.remove(0).reply()
    }

    /// Runs one request, and hands its pieces to `take` as they come, on the caller's thread. [`ControlFlow::Break`]
    /// ends it, with what was produced so far.
    ///
    /// [`ControlFlow::Break`]: std::ops::ControlFlow::Break
    ///
    /// ```
    /// # use amnesic::Request;
    /// use std::ops::ControlFlow;
    ///
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let reply = session.generate_with(Request::prompt("A slice is").max_tokens(4), |piece| {
    ///     print!("{}", piece.text());
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert!(reply.usage.completion_tokens <= 4);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::generate`].
    pub fn generate_with(
        &self,
        request: Request,
        mut take: impl FnMut(&crate::Piece) -> std::ops::ControlFlow<()>,
    ) -> Result<Reply> {
        let mut stream = self.stream(request)?;
        while let Some(piece) = stream.next() {
            if take(&piece?).is_break() {
                stream.interrupt();
                break;
            }
        }
        stream.finish()
    }

    /// Runs one request whose reply is a JSON text for `T`, and parses it on a thread of its own, whose stack is
    /// overwritten before this returns, as are, by the scrubbing allocator, the parts and messages that parsing made and
    /// dropped. What is in the value is the caller's.
    ///
    /// ```no_run
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct City {
    ///     name: String,
    ///     people: u32,
    /// }
    ///
    /// let session = amnesic::Session::open("models/default")?;
    /// let city: City = session.generate_as(amnesic::Request::prompt("Oslo as JSON: ").max_tokens(100))?;
    /// println!("{}: {}", city.name, city.people);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::generate`]; [`Error::Incomplete`] if the reply ended before the JSON text did;
    /// [`Error::Thread`].
    ///
    /// # Panics
    /// If `T` panics while it is parsed.
    #[cfg(feature = "schema")]
    pub fn generate_as<T>(&self, request: Request) -> Result<T>
    where
        T: serde::de::DeserializeOwned + schemars::JsonSchema + Send,
    {
        let reply = self.generate(request.response_format(crate::ResponseFormat::schema_of::<T>()))?;
        let finish_reason = reply.finish_reason();
        let parse = || confined(Depth::Parsers, || serde_json::from_str(reply.text()).ok());
        let parsed = std::thread::scope(|scope| {
            let thread = thread::builder("amnesic-parse", Depth::Parsers).spawn_scoped(scope, parse);
            thread
                .map_err(Error::Thread)
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        parsed?.ok_or(Error::Incomplete { finish_reason })
    }

    /// Runs requests together; replies come in the same order. Each reply is the one that its request gets alone.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let requests = ["A trait", "A crate"].map(|text| Request::prompt(text).max_tokens(4));
    /// let replies = session.generate_batch(requests)?;
    /// assert_eq!(replies.len(), 2);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InBatch`] if a request is wrong, before any has run; or the session is full or poisoned.
    pub fn generate_batch(&self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Reply>> {
        let requests: Vec<Request> = requests.into_iter().collect();
        let readers = self.client.submit(requests, false).map_err(|(index, error)| match error {
            Error::Poisoned(_) | Error::Closed | Error::Busy { .. } => error,
            error => Error::InBatch { index, source: Box::new(error) },
        })?;
        readers.into_iter().map(ReplyReader::reply).collect()
    }

    /// Runs one request and gives its text as it comes. Dropping the stream cancels the request: it ends within one
    /// step, and the drop returns when it is scrubbed where the stream was read as an iterator, and at once where it was not. A
    /// stream whose reader is slow stands still, and no other.
    ///
    /// Returns once the request is accepted: encoded and checked, on a thread of its own.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// for piece in session.stream(Request::prompt("A slice is").max_tokens(4))? {
    ///     print!("{}", piece?.text());
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::generate`], at once for a wrong request.
    pub fn stream(&self, request: Request) -> Result<Stream> {
        let mut readers = self.client.submit(vec![request], true).map_err(|(_, error)| error)?;
        Ok(Stream::new(readers.remove(0)))
    }

    /// A chat or a text of several turns, whose keys and values stay in the cache between them.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let mut conversation = session.conversation();
    /// conversation.generate(Request::prompt("A string is").max_tokens(4))?;
    /// let reply = conversation.generate(Request::prompt(" A vector is").max_tokens(4))?;
    /// assert!(reply.usage.cached_tokens > 0);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn conversation(&self) -> Conversation {
        Conversation::new(self.client.clone())
    }

    /// Declares the request's prompt public: what others that name it ([`Request::shares`]) have in common with it is
    /// computed once and shared. Who is first, and how soon others follow, can be told from how long a request takes;
    /// so nothing private belongs into it. Only the prompt of `request`, its tools, template and adapter count; a
    /// request with another adapter shares nothing.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let rules = "Answer in one sentence, and in words that a child knows. ";
    /// let public = session.publish(Request::prompt(rules))?;
    /// let request = Request::prompt(format!("{rules}What is a slice?")).shares(&public);
    /// let reply = session.generate(request.max_tokens(4))?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The prompt is wrong.
    pub fn publish(&self, request: Request) -> Result<Public> {
        let (began, nonce) = (self.client.telemetry.clock.wall(), request.nonce);
        let adapter = request.adapter.clone();
        let (answer, answered) = sync_channel(1);
        let closed = || self.client.closed();
        let sent = request.check().and_then(|()| {
            self.client
                .readers
                .take(IntakeMessage::Encode(Box::new(request), answer))
                .map_err(|_| closed())?;
            answered.recv().map_err(|_| closed())
        });
        let ids = sent.inspect_err(|error| self.client.publish_refused(nonce, began, error)).flatten()?;
        Ok(Public::new(&self.client, ids, adapter))
    }

    /// Ends the session: overwrites all its memory, reads it back, and reports. Holds no content. Requests that still
    /// run end with [`Error::Closed`].
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// session.generate(amnesic::Request::prompt("A slice is").max_tokens(4))?;
    /// println!("{}", session.close()?); // what was overwritten, what was read back as zero, what is not covered
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Poisoned`] if memory was not zero when read back.
    pub fn close(mut self) -> Result<ScrubReceipt> {
        let report = self.join()?;
        match self.client.shared.poison.reason() {
            Some(reason) if reason.is_unscrubbed() => Err(Error::Poisoned(reason)),
            _ => Ok(report),
        }
    }

    fn join(&mut self) -> Result<ScrubReceipt> {
        let worker = self.worker.take().ok_or(Error::Closed)?;
        let Client { readers, worker: to_worker, shared, telemetry, .. } = &self.client;
        let close = || {
            readers.close();
            let _ = to_worker.send(WorkerMessage::Close); // one that has ended with a panic is joined all the same
            worker.join().ok().map(|report| (report, shared.poison.reason().is_some()))
        };
        telemetry.closing(close).ok_or(Error::Closed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.join(); // after `close` there is nothing left to join
    }
}

impl Conversation {
    /// Goes on with a conversation that [`Conversation::export`] sealed. Its next turn computes what is in no cache any more,
    /// and gives the tokens that it would have given, bit for bit. [`Conversation::export`] has an example.
    ///
    /// # Errors
    /// [`Error::Sealed`] with the reason: another key, changed bytes, another checkpoint, types or device, an adapter that
    /// this session lacks. Nothing says more of the content.
    pub fn import(session: &Session, sealed: &[u8], key: &SealingKey) -> Result<Self> {
        Self::open_sealed(&session.client, sealed, key)
    }
}
