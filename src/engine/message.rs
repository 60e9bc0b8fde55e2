//! What a worker is told between steps.

use std::sync::mpsc::SyncSender;

use super::encode;
use super::job::Job;
use super::receipts::About;
use super::scheduler::{Arrival, Id, Key};
use super::sequence::Sequence;
use crate::memory::Scrubbed;

/// A request that was encoded and checked.
#[derive(Debug)]
pub struct Prepared {
    /// From [`Shared::new_ids`](super::status::Shared::new_ids), when it came.
    pub id: Id,
    pub job: Box<Job>,
    pub sequence: Sequence,
    pub arrival: Arrival,
}

/// What a worker is told between steps.
#[derive(Debug)]
pub enum WorkerMessage {
    /// Requests that come in together, and the proof that the place where they were encoded is clean.
    Accept(Vec<Prepared>, Scrubbed),
    /// Requests are over, of which nothing was to be computed: they were refused, or only read. The proof is none where
    /// they were not read either.
    Over(Vec<About>, Option<Scrubbed>),
    /// Texts to embed or to score; as above.
    Texts(Box<encode::job::EncodeJob>, Scrubbed),
    /// Somebody wants his request to end, or has read of a stream that was full.
    Wake,
    /// Grammars have looked: [`Masks::looked`](super::masks::Masks::looked).
    MasksFinished,
    /// Nothing of a request that ended is with the threads of grammar masks any more.
    Forgotten(Id, Option<Scrubbed>),
    /// What is kept under a key is of no use any more: there may be a receipt to issue, and somebody who waits until it is
    /// overwritten.
    Forget(Key, Option<About>, Option<SyncSender<()>>),
    /// The guarantee is in doubt: everything must go.
    Poison,
    /// The session's handle is gone.
    Close,
}
