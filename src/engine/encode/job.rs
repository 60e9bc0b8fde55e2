//! A request for embeddings or scores, from the call to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender};
use std::time::{Instant, SystemTime};

use crate::cancel::Interrupt;
use crate::embed::{Common, EmbedRequest, RerankRequest};
use crate::engine::message::WorkerMessage;
use crate::engine::receipts::About;
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::memory::ledger::Accounts;
use crate::outcome::{FinishReason, RequestId, Timing, Usage};
use crate::privacy::Nonce;
use crate::privacy::receipt::{ScrubReceipt, Subject};
use crate::privacy::trace::Trace;

/// What a caller asks for.
#[derive(Debug)]
pub enum Wanted {
    Embeddings(EmbedRequest),
    Scores(RerankRequest),
}

impl Wanted {
    /// What requests of both kinds have.
    pub fn common(&self) -> &Common {
        match self {
            Self::Embeddings(request) => &request.common,
            Self::Scores(request) => &request.common,
        }
    }

    /// Bytes of text to read.
    pub fn bytes(&self) -> usize {
        let sum = |texts: &[Secret<str>]| texts.iter().map(|text| text.expose().len()).sum::<usize>();
        match self {
            Self::Embeddings(request) => sum(&request.texts),
            // it stands before each document
            Self::Scores(request) => {
                sum(&request.documents) + request.documents.len() * request.query.expose().len()
            }
        }
    }
}

/// What it gets.
#[derive(Debug)]
pub struct Done {
    /// (texts, width), or (tokens of all texts, width) where [`Finish::HiddenStates`] are wanted.
    pub values: Secret<[f32]>,
    /// Tokens of each text.
    pub tokens: Vec<usize>,
    pub width: usize,
    pub truncated: usize,
    pub usage: Usage,
    pub timing: Timing,
    pub request_id: RequestId,
    pub receipt: ScrubReceipt,
}

/// A request on its way in.
#[derive(Debug)]
pub struct EncodeMessage {
    pub wanted: Wanted,
    /// Before `answer`: whoever learns of an end finds it told.
    pub trace: Trace,
    pub ticket: Arc<Ticket>,
    pub answer: SyncSender<Result<Box<Done>>>,
}

/// Where a cancellation arrives.
#[derive(Debug)]
pub struct Ticket {
    cancelled: AtomicBool,
    worker: Sender<WorkerMessage>,
}

impl Ticket {
    /// The ticket of a request to this worker.
    pub fn new(worker: Sender<WorkerMessage>) -> Self {
        Self { cancelled: AtomicBool::new(false), worker }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

impl Interrupt for Ticket {
    fn interrupt(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let _ = self.worker.send(WorkerMessage::Wake); // a closed session has told its callers
    }
}

/// What is made of the rows that come out.
#[derive(Clone, Copy, Debug)]
pub enum Finish {
    /// The first values, perhaps of length one.
    Embedding { normalize: bool },
    /// The score as it is, or its sigmoid.
    Score { sigmoid: bool },
    /// The row of each token, before the rows of a text become one.
    HiddenStates,
}

impl Finish {
    /// How many rows of results `items` have, which together have so many tokens.
    pub fn rows(self, items: usize, tokens: usize) -> usize {
        match self {
            Self::Embedding { .. } | Self::Score { .. } => items,
            Self::HiddenStates => tokens,
        }
    }
}

/// One text, or a pair of them.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Where its ids start.
    pub start: usize,
    pub tokens: usize,
    /// The tokens from here on are of the second part.
    pub second: usize,
    /// Tokens at the start whose rows do not count.
    pub skipped: usize,
}

/// A request whose texts were read.
#[derive(Debug)]
pub struct EncodeJob {
    pub id: RequestId,
    pub trace: Trace,
    pub ticket: Arc<Ticket>,
    pub answer: SyncSender<Result<Box<Done>>>,
    pub ids: Secret<[u32]>,
    pub items: Vec<Item>,
    pub truncated: usize,
    pub finish: Finish,
    /// Values of a result.
    pub width: usize,
    /// The rows that become [`Done::values`].
    pub values: Secret<[f32]>,
    /// Items that were put into a step.
    pub begun: usize,
    pub accepted: Instant,
    pub began: SystemTime,
    /// The caller's.
    pub nonce: Option<Nonce>,
    pub deadline: Option<Instant>,
    pub accounts: Accounts,
    pub timing: Timing,
    pub failed: Option<Error>,
}

impl EncodeJob {
    /// Whether nothing of it is to be computed any more.
    pub fn is_over(&self) -> bool {
        self.failed.is_some() || self.begun == self.items.len()
    }

    /// Notes a cancellation or a deadline that has passed.
    pub fn check_deadlines(&mut self, now: Instant) {
        let late = self.deadline.is_some_and(|deadline| deadline <= now);
        let reason = match self.ticket.is_cancelled() {
            true => FinishReason::Cancelled,
            false if late => FinishReason::Deadline,
            false => return,
        };
        self.failed.get_or_insert(Error::Interrupted { finish_reason: reason });
    }

    /// Takes a row of results in: of an item, or of a token, counted over all items.
    pub fn take(&mut self, row_index: usize, row: &[f32]) {
        let out = &mut self.values.expose_mut()[row_index * self.width..][..self.width];
        out.copy_from_slice(&row[..self.width]);
        if out.iter().any(|value| !value.is_finite()) {
            self.failed.get_or_insert(Error::NotFinite);
            return;
        }
        match self.finish {
            Finish::Embedding { normalize: true } => {
                let squares: f64 = out.iter().map(|value| f64::from(*value).powi(2)).sum();
                let length = (squares.sqrt() as f32).max(1e-12); // as torch's `normalize`
                out.iter_mut().for_each(|value| *value /= length);
            }
            Finish::Score { sigmoid: true } => {
                out.iter_mut().for_each(|value| *value = 1.0 / (1.0 + (-*value).exp()));
            }
            Finish::Embedding { normalize: false }
            | Finish::Score { sigmoid: false }
            | Finish::HiddenStates => {}
        }
    }

    /// What its receipt says beside what was overwritten.
    pub fn about(&self) -> About {
        let Self { id, nonce, began, .. } = *self;
        let about = About::completed(Subject::Request { id }, nonce, began);
        about.failing(self.failed.as_ref().map(Error::kind))
    }

    /// Tells the caller. Only once nothing of the request is left anywhere.
    pub fn notify(self, receipt: ScrubReceipt) {
        let mut usage = Usage { prompt_tokens: self.ids.expose().len(), ..Usage::default() };
        let Self { id, trace, ids, values, items, width, truncated, timing, answer, failed, .. } = self;
        drop(ids);
        let done = match failed {
            Some(error) => {
                drop(values);
                trace.failed(error.kind());
                Err(error)
            }
            None => {
                usage.cost_nano = trace.cost_nano(&usage);
                trace.ended(id, &usage, &timing, Default::default());
                let tokens = items.iter().map(|item| item.tokens).collect();
                // boxed: a large answer would be moved over stacks that were cleaned
                let done = Done { values, tokens, width, truncated, usage, timing, request_id: id, receipt };
                Ok(Box::new(done))
            }
        };
        drop(trace);
        let _ = answer.send(done); // a caller that is gone has dropped what it asked for
    }
}
