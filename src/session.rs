//! The handle: a session on a checkpoint.

use std::path::Path;
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use crate::backend::Counters;
use crate::builder::{Builder, MemoryPlan};
use crate::engine::mailbox::{Mailbox, Outbox};
use crate::engine::worker::{Shared, Submission};
use crate::error::{Error, Result};
use crate::memory::ledger::ScrubReport;
use crate::memory::poison::PoisonReason;
use crate::request::Request;
use crate::response::{Piece, Reply};

/// A loaded model that serves requests and forgets them.
///
/// `Send + Sync`: any thread may call it; requests that run at the same time share steps. One thread of its own
/// computes (with its team), and all that is derived from a request lives in memory that is overwritten before a
/// call returns: on success, error, cancellation and panic. [`Session::close`] reports it; dropping does the same
/// silently, and returns when all is scrubbed.
#[derive(Debug)]
pub struct Session {
    pub(crate) submissions: Option<Sender<Submission>>,
    pub(crate) thread: Option<JoinHandle<ScrubReport>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) memory: MemoryPlan,
    pub(crate) context: usize,
    pub(crate) vocab: usize,
    pub(crate) device: String,
}

impl Session {
    /// Opens the checkpoint in `folder` with default settings.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::builder(folder).open()
    }

    /// Settings for a session on the checkpoint in `folder`.
    pub fn builder(folder: impl AsRef<Path>) -> Builder {
        Builder::new(folder.as_ref())
    }

    /// Runs one request to its end.
    ///
    /// # Errors
    /// The request is wrong, or the session is poisoned.
    pub fn generate(&self, request: Request) -> Result<Reply> {
        self.submit(vec![request]).map_err(|(_, error)| error)?.remove(0).reply()
    }

    /// Runs requests together; replies come in the same order. Each reply is the one that its request gets alone.
    ///
    /// # Errors
    /// [`Error::InBatch`] if a request is wrong, before any has run; or the session is poisoned.
    pub fn generate_batch(&self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Reply>> {
        let requests: Vec<Request> = requests.into_iter().collect();
        let mailboxes = self.submit(requests).map_err(|(index, error)| match error {
            Error::Poisoned(_) | Error::Closed => error,
            error => Error::InBatch { index, source: Box::new(error) },
        })?;
        mailboxes.iter().map(|mailbox| mailbox.reply()).collect()
    }

    /// Runs one request and gives its text as it comes. Dropping the stream cancels the request: it ends within one
    /// step, and the drop returns when it is scrubbed.
    ///
    /// # Errors
    /// As [`Session::generate`], at once for a wrong request.
    pub fn stream(&self, request: Request) -> Result<Stream<'_>> {
        let mailbox = self.submit(vec![request]).map_err(|(_, error)| error)?.remove(0);
        Ok(Stream { mailbox, taken: 0, _session: self })
    }

    /// Ends the session: overwrites all its memory, reads it back, and reports. Holds no content.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if memory was not zero when read back.
    pub fn close(mut self) -> Result<ScrubReport> {
        let report = self.join()?;
        match self.shared.poison.reason() {
            Some(reason @ PoisonReason::ScrubFailed) => Err(Error::Poisoned(reason)),
            _ => Ok(report),
        }
    }

    /// Where it computes, for people.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Tokens, prompt and reply together, that one request may have.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// Tokens in the model's vocabulary: the ids of [`Request::tokens`] are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// What its memory goes to.
    pub fn memory(&self) -> MemoryPlan {
        self.memory
    }

    /// What it has computed so far. Metadata: no content.
    pub fn counters(&self) -> Counters {
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, requests: Vec<Request>) -> std::result::Result<Vec<Arc<Mailbox>>, (usize, Error)> {
        for (index, request) in requests.iter().enumerate() {
            request.check().map_err(|error| (index, error))?;
        }
        let (outboxes, mailboxes): (Vec<Outbox>, Vec<_>) = requests.iter().map(|_| Outbox::pair()).unzip();
        let (answer, answered) = sync_channel(1);
        let submission = Submission { jobs: requests.into_iter().zip(outboxes).collect(), answer };
        let closed = || (0, self.shared.poison.reason().map_or(Error::Closed, Error::Poisoned));
        let submissions = self.submissions.as_ref().ok_or_else(closed)?;
        submissions.send(submission).map_err(|_| closed())?;
        answered.recv().map_err(|_| closed())??;
        Ok(mailboxes)
    }

    fn join(&mut self) -> Result<ScrubReport> {
        drop(self.submissions.take());
        self.thread.take().and_then(|thread| thread.join().ok()).ok_or(Error::Closed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.join(); // after `close` there is nothing left to join
    }
}

/// The text of one reply as it comes. See [`Session::stream`].
#[derive(Debug)]
pub struct Stream<'a> {
    mailbox: Arc<Mailbox>,
    taken: usize,
    /// Keeps the session open.
    _session: &'a Session,
}

impl Stream<'_> {
    /// Waits for the end, and gives the whole reply: also the text that was streamed.
    ///
    /// # Errors
    /// The session is poisoned, or the error was already given by the iterator.
    pub fn finish(self) -> Result<Reply> {
        self.mailbox.reply()
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.mailbox.next_piece(&mut self.taken)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.mailbox.cancel();
    }
}
