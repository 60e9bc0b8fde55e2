//! How callers reach the threads of a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::time::SystemTime;

use crate::cancel::CancelToken;
use crate::engine::encode::job::{Done, EncodeMessage, Ticket, Wanted};
use crate::engine::inspect::{self, Inspection};
use crate::engine::intake::IntakeMessage;
use crate::engine::mailbox::Outbox;
use crate::engine::message::WorkerMessage;
use crate::engine::readers::Readers;
use crate::engine::receipts::About;
use crate::engine::status::Shared;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::lease::PrefixLease;
use crate::memory::Secret;
use crate::outcome::RequestId;
use crate::privacy::trace::{Telemetry, Trace};
use crate::privacy::{Nonce, Subject};
use crate::request::{Prompt, Request};
use crate::stream::ReplyReader;
use crate::tokens::SecretText;

/// How callers reach the threads of a session, and stay reachable when it has gone.
#[derive(Clone, Debug)]
pub struct Client {
    pub readers: Arc<Readers>,
    pub worker: Sender<WorkerMessage>,
    pub shared: Arc<Shared>,
    /// Names what is kept between requests.
    pub keys: Arc<AtomicU64>,
    pub telemetry: Arc<Telemetry>,
    /// What conversations depend on; none where a session has none.
    pub identity: Option<Arc<Identity>>,
}

/// Why requests were not taken in: the place of one, and what is wrong with it.
enum Refusal {
    /// There are receipts of them.
    Known(usize, Error),
    /// There are none yet.
    New(usize, Error),
}

impl Client {
    /// Sends requests in; returns once all are accepted.
    pub fn submit(
        &self,
        requests: Vec<Request>,
        streams: bool,
    ) -> std::result::Result<Vec<ReplyReader>, (usize, Error)> {
        let traces: Vec<Trace> =
            requests.iter().map(|request| self.telemetry.trace(request, streams)).collect();
        let began = self.telemetry.clock.wall();
        let nonces: Vec<_> = requests.iter().map(|request| request.nonce).collect();
        let readers = self.send(requests, &traces, streams).map_err(|refusal| match refusal {
            Refusal::Known(place, error) => (place, error),
            Refusal::New(place, error) => {
                self.refused(&nonces, began, place, &error);
                (place, error)
            }
        });
        if let Err((index, error)) = &readers {
            Trace::refuse(&traces, *index, error);
        }
        readers
    }

    fn send(
        &self,
        requests: Vec<Request>,
        traces: &[Trace],
        streams: bool,
    ) -> std::result::Result<Vec<ReplyReader>, Refusal> {
        for (index, request) in requests.iter().enumerate() {
            request.check().map_err(|error| Refusal::New(index, error))?;
        }
        let mut readers = Vec::with_capacity(requests.len());
        let mut jobs = Vec::with_capacity(requests.len());
        for (request, trace) in requests.into_iter().zip(traces) {
            let room = request.stream_buffer.unwrap_or(Request::DEFAULT_STREAM_BUFFER);
            let (outbox, mailbox) =
                Outbox::pair(request.choices(), streams.then_some(room), self.worker.clone());
            if let Some(token) = &request.cancel {
                token.watch(&mailbox);
            }
            readers.push((mailbox, request.choices()));
            jobs.push((request, outbox, trace.clone()));
        }
        let (answer, answered) = sync_channel(1);
        let closed = || Refusal::New(0, self.closed());
        self.readers.take(IntakeMessage::Submit(jobs, answer)).map_err(|_| closed())?;
        let answer = answered.recv().map_err(|_| closed())?;
        answer.map_err(|(place, error)| Refusal::Known(place, error))?;
        Ok(readers.into_iter().map(|(mailbox, choices)| ReplyReader::new(mailbox, choices)).collect())
    }

    /// Sends texts in, and waits for what becomes of them.
    pub fn read(&self, wanted: Wanted, trace: Trace, cancel: Option<CancelToken>) -> Result<Box<Done>> {
        let (began, nonce) = (self.telemetry.clock.wall(), wanted.common().nonce);
        let ticket = Arc::new(Ticket::new(self.worker.clone()));
        if let Some(token) = cancel {
            token.watch(&ticket);
        }
        let (answer, answered) = sync_channel(1);
        let ask = EncodeMessage { wanted, trace: trace.clone(), ticket, answer };
        let sent = self.readers.take(IntakeMessage::Texts(Box::new(ask))).map_err(|_| self.closed());
        let done = sent.and_then(|()| answered.recv().map_err(|_| self.closed()));
        let done = done.inspect_err(|error| self.refused(&[nonce], began, 0, error)).flatten();
        // of one that was accepted the worker told
        done.inspect_err(|error| trace.refused(error.kind()))
    }

    /// Asks the tokenizer or the chat templates, and waits for the answer.
    pub fn inspect(&self, question: inspect::Question) -> Result<inspect::Answer> {
        let (answer, answered) = sync_channel(1);
        let inspection = Box::new(Inspection { question, answer });
        self.readers.take(IntakeMessage::Inspect(inspection)).map_err(|_| self.closed())?;
        answered.recv().map_err(|_| self.closed())?
    }

    /// The ids of a request's prompt.
    pub fn ids(&self, request: Request) -> Result<Secret<[u32]>> {
        // a text without anything in it has ids, or none, though no reply
        if matches!(request.prompt, Prompt::Chat(_)) || !request.is_empty() {
            request.check()?;
        }
        match self.inspect(inspect::Question::Ids(Box::new(request)))? {
            inspect::Answer::Ids(ids) => Ok(ids),
            inspect::Answer::Text(_) => Err(self.closed()), // which is no answer to that
        }
    }

    /// The text of an answer.
    pub fn text(&self, question: inspect::Question) -> Result<SecretText> {
        match self.inspect(question)? {
            inspect::Answer::Text(text) => Ok(SecretText(text)),
            inspect::Answer::Ids(_) => Err(self.closed()), // which is no answer to that
        }
    }

    /// What its conversations depend on.
    ///
    /// # Errors
    /// It has none: it does not generate.
    pub fn identity(&self) -> Result<&Identity> {
        self.identity.as_deref().ok_or(Error::WrongTask { asked: "generate", can: "embed or rerank" })
    }

    /// Why nobody answers.
    pub fn closed(&self) -> Error {
        self.shared.poison.reason().map_or(Error::Closed, Error::Poisoned)
    }

    /// Has receipts issued of requests that were refused before the session's threads saw them: with `error`, which is of
    /// the one at `place`. A session that is gone has issued its last receipt.
    pub fn refused(&self, nonces: &[Option<Nonce>], began: SystemTime, place: usize, error: &Error) {
        let abouts = nonces.iter().enumerate().map(|(index, nonce)| {
            let subject = Subject::Request { id: self.new_id() };
            About::refused(subject, *nonce, began, Trace::refusal_of(index, place, error))
        });
        let _ = self.worker.send(WorkerMessage::Over(abouts.collect(), None));
    }

    /// Has a receipt issued of a prompt that was to be public and was refused, like [`Client::refused`].
    pub fn publish_refused(&self, nonce: Option<Nonce>, began: SystemTime, error: &Error) {
        let subject = Subject::Publish { id: self.new_id() };
        let about = About::refused(subject, nonce, began, error.kind());
        let _ = self.worker.send(WorkerMessage::Over(vec![about], None));
    }

    fn new_id(&self) -> RequestId {
        RequestId { session: self.telemetry.session, count: self.shared.next_ids(1) }
    }

    /// A name for something to keep: `subject` says what a receipt is to be about when nobody names it any more.
    pub fn keep(&self, subject: impl FnOnce(u64, u64) -> Option<Subject>) -> Arc<PrefixLease> {
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        let began = self.telemetry.clock.wall();
        let about =
            subject(self.telemetry.session, key).map(|subject| About::completed(subject, None, began));
        let worker = self.worker.clone();
        Arc::new(PrefixLease::new(key, move |key| {
            let _ = worker.send(WorkerMessage::Forget(key, about, None)); // a closed session has nothing left
        }))
    }
}
