//! How requests are read: chat templates, tokenizer, grammars. On threads of their own ([`super::readers`]), so a long
//! prompt delays no step, and nobody else's.
//!
//! [`prompt`] reads prompts, [`format`] says what form replies have, [`prepare`] puts together what the worker gets, and
//! [`vocabulary`] has what is worked out once for all requests.

mod format;
mod prepare;
mod prompt;
mod vocabulary;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, SyncSender};

use self::prepare::Place;
use super::inspect::Inspection;
use super::mailbox::Outbox;
use super::message::{Prepared, WorkerMessage};
use super::readers::{Arrived, Lane, Notify};
use super::receipts::About;
use super::status::Shared;
use crate::chat::{self, Templates, ToolCallParser};
use crate::clock::Clock;
use crate::error::{Error, Result, Returned};
use crate::grammar::ResponseFormat;
use crate::memory::Secret;
use crate::model::decoder::Limits;
use crate::outcome::RequestId;
use crate::privacy::receipt::Subject;
use crate::privacy::trace::Trace;
use crate::request::Request;
use crate::sample::Sampling;
use crate::text::Text;

pub use self::vocabulary::Vocabulary;

/// What the checkpoint and the session say where a request is silent.
#[derive(Debug)]
pub struct Defaults {
    /// From generation_config.json, if that samples; else greedy.
    pub sampling: Sampling,
    /// End tokens from both config files.
    pub eos: Vec<u32>,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Where a tokenizer was looked for.
    pub tokenizer_file: PathBuf,
    /// How calls of tools are written, if not as the chat template teaches.
    pub parser: Option<ToolCallParser>,
    /// Whether there is a draft model.
    pub draft: bool,
    /// Names of adapters, in their order.
    pub adapters: Vec<String>,
    /// Requests that may be in the session at once.
    pub max_requests: usize,
    pub limits: Limits,
}

/// What callers ask for.
#[derive(Debug)]
pub enum IntakeMessage {
    /// Requests that come in together: all are accepted, or none; told once, an error with its place.
    Submit(Vec<(Request, Outbox, Trace)>, SyncSender<std::result::Result<(), (usize, Error)>>),
    /// The ids of a prompt that is to be public.
    Encode(Box<Request>, SyncSender<Result<Secret<[u32]>>>),
    /// Ids or text, of which nothing is computed.
    Inspect(Box<Inspection>),
    /// Texts to embed or to score.
    Texts(Box<super::encode::job::EncodeMessage>),
    /// Nothing: what requests of this lane are made of is read once, and dropped. See [`super::readers::Readers::rehearse`].
    Rehearse(Lane, SyncSender<()>),
}

/// Bytes of prompts up to which they are read in the quick lane: a millisecond or two.
const QUICK_BYTES: usize = 16 << 10;

impl IntakeMessage {
    /// Where it is read. Decided by sizes alone.
    pub fn lane(&self) -> Lane {
        let quick = match self {
            Self::Submit(requests, _) => {
                let bytes: usize = requests.iter().map(|(request, ..)| request.prompt_bytes()).sum();
                bytes <= QUICK_BYTES && requests.iter().all(|(request, ..)| request.reads_quickly())
            }
            Self::Encode(request, _) => request.prompt_bytes() <= QUICK_BYTES,
            Self::Inspect(inspection) => inspection.bytes() <= QUICK_BYTES,
            Self::Texts(ask) => ask.wanted.bytes() <= QUICK_BYTES,
            Self::Rehearse(lane, _) => return *lane,
        };
        if quick { Lane::Quick } else { Lane::Slow }
    }

    /// How many requests it is.
    pub fn requests(&self) -> usize {
        match self {
            Self::Submit(requests, _) => requests.len(),
            Self::Encode(..) | Self::Inspect(_) | Self::Rehearse(..) => 0,
            Self::Texts(_) => 1,
        }
    }
}

/// What reads requests, on several threads at once.
pub struct Intake {
    pub text: Option<Arc<Text>>,
    pub templates: Option<Templates>,
    /// Characters with which control tokens begin or end: see [`chat::edges`].
    pub edges: Vec<char>,
    pub vocabulary: Option<Vocabulary>,
    pub defaults: Defaults,
    /// Bytes of the longest token.
    pub longest_token: usize,
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    pub worker: Sender<WorkerMessage>,
    /// Names the session in request ids.
    pub session: u64,
}

impl Intake {
    /// Reads what a caller asks. A caller that is gone has dropped what it asked for, and hears nothing.
    pub fn read(&self, ask: IntakeMessage, arrived: Arrived) -> Notify {
        let worker = self.worker.clone();
        match ask {
            IntakeMessage::Submit(requests, answer) => self.submit(requests, arrived, answer),
            IntakeMessage::Encode(request, answer) => {
                let nonce = request.nonce;
                let subject = Subject::Publish { id: self.id(self.shared.next_ids(1)) };
                let ids = self.guarded(|| self.encode(&request).map(|encoded| encoded.ids));
                drop(request);
                let about = match &ids {
                    Ok(_) => About::completed(subject, nonce, arrived.began),
                    Err(error) => About::refused(subject, nonce, arrived.began, error.kind()),
                };
                Box::new(move |proof| {
                    let _ = worker.send(WorkerMessage::Over(vec![about], Some(proof)));
                    let _ = answer.send(ids);
                })
            }
            IntakeMessage::Inspect(inspection) => self.inspect(*inspection),
            IntakeMessage::Texts(ask) => {
                let asked = match ask.wanted {
                    super::encode::job::Wanted::Embeddings(_) => "embed",
                    super::encode::job::Wanted::Scores(_) => "rerank",
                };
                if arrived.room.is_ok() {
                    self.shared.requests.fetch_sub(1, Ordering::SeqCst);
                }
                let error = Error::WrongTask { asked, can: "generate" };
                let (nonce, subject) =
                    (ask.wanted.common().nonce, Subject::Request { id: self.id(arrived.first) });
                let answer = ask.answer;
                drop(ask.wanted);
                let about = About::refused(subject, nonce, arrived.began, error.kind());
                Box::new(move |proof| {
                    let _ = worker.send(WorkerMessage::Over(vec![about], Some(proof)));
                    let _ = answer.send(Err(error));
                })
            }
            IntakeMessage::Rehearse(lane, done) => {
                // a panic, too, is for the request that meets it
                let _ = catch_unwind(AssertUnwindSafe(|| self.rehearse(lane)));
                Box::new(move |_| {
                    let _ = done.send(());
                })
            }
        }
    }

    /// Reads a text and a chat, and in the slow lane a grammar. Whatever this checkpoint refuses of that, a request that asks
    /// for it is told.
    fn rehearse(&self, lane: Lane) {
        drop(self.encode(&Request::prompt("a")));
        drop(self.encode(&Request::chat([chat::user("a")])));
        if let (Lane::Slow, Some(vocabulary)) = (lane, &self.vocabulary) {
            drop(vocabulary.grammars.compile(&ResponseFormat::json_object(), 1));
        }
    }

    fn submit(
        &self,
        requests: Vec<(Request, Outbox, Trace)>,
        arrived: Arrived,
        answer: SyncSender<std::result::Result<(), (usize, Error)>>,
    ) -> Notify {
        let (count, worker) = (requests.len(), self.worker.clone());
        let mut prepared = Vec::with_capacity(count);
        let (began, has_room) = (arrived.began, arrived.room.is_ok());
        let mut refused = arrived.room.err().map(|error| (0, error));
        // Requests for which there is no room were not read: they go back to their caller.
        let mut returned = Vec::new();
        let named: Vec<_> = (arrived.first..)
            .zip(&requests)
            .map(|(count, (request, ..))| (self.id(count), request.nonce))
            .collect();
        for (index, (request, outbox, trace)) in requests.into_iter().enumerate() {
            if refused.is_none() {
                let until = request.timeout.and_then(|timeout| arrived.at.checked_add(timeout));
                let place = Place {
                    request: named[index].0,
                    id: arrived.first_id + index as u64,
                    clock: arrived.clock,
                    accepted: arrived.at,
                    began,
                    deadline: request.deadline.into_iter().chain(until).min(),
                };
                match self.guarded(|| self.prepare(request, outbox, trace, &place)) {
                    Ok(request) => prepared.push(request),
                    Err(error) => refused = Some((index, error)),
                }
            } else if !has_room {
                returned.push(request);
            }
        }
        if let Some((_, Error::Busy { requests, .. })) = &mut refused {
            let count = returned.len();
            *requests = Returned::new(returned, count);
        }
        let Some(refusal) = refused else {
            for Prepared { job, sequence, .. } in &prepared {
                job.trace.accepted(job.id, job.usage.prompt_tokens, sequence.sampling.seed);
            }
            return Box::new(move |proof| {
                let _ = worker.send(WorkerMessage::Accept(prepared, proof));
                let _ = answer.send(Ok(()));
            });
        };
        drop(prepared);
        let abouts = named.into_iter().enumerate().map(|(index, (id, nonce))| {
            let error = Trace::refusal_of(index, refusal.0, &refusal.1);
            About::refused(Subject::Request { id }, nonce, began, error)
        });
        let abouts = abouts.collect();
        if has_room {
            self.shared.requests.fetch_sub(count, Ordering::SeqCst);
        }
        Box::new(move |proof| {
            let _ = worker.send(WorkerMessage::Over(abouts, Some(proof)));
            let _ = answer.send(Err(refusal));
        })
    }

    /// Runs `act`; a panic in it poisons the session.
    pub(super) fn guarded<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(reason) = self.shared.poison.reason() {
            return Err(Error::Poisoned(reason));
        }
        catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
            let reason = crate::PoisonReason::Panic;
            self.shared.poison.set(reason);
            let _ = self.worker.send(WorkerMessage::Poison);
            Err(Error::Poisoned(reason))
        })
    }

    fn id(&self, count: u64) -> RequestId {
        RequestId { session: self.session, count }
    }
}
