//! The thread that owns the device: takes requests in, runs steps, scrubs, answers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};

use super::batch::Builder;
use super::mailbox::{End, Outbox};
use super::scheduler;
use super::sequence::{Defaults, Sequence};
use crate::backend::{Backend, Counters};
use crate::error::{Error, Result};
use crate::memory::blocks::BlockPool;
use crate::memory::ledger::{Ledger, NotCovered, ScrubReport};
use crate::memory::poison::{Poison, PoisonReason};
use crate::memory::workspace::Dirty;
use crate::model::decoder::{Decoder, Limits, blocks_for};
use crate::request::Request;
use crate::response::{FinishReason, RequestId};
use crate::sample::{Context, Sampler};
use crate::text::Text;

/// A request that is over, and how it ended.
type Ended = (Sequence, Result<End>);

/// Requests that come in together: all are accepted, or none.
#[derive(Debug)]
pub struct Submission {
    pub jobs: Vec<(Request, Outbox)>,
    /// Told once, after all were encoded and checked; an error comes with its place.
    pub answer: SyncSender<std::result::Result<(), (usize, Error)>>,
}

/// What the session's handle can see while the worker runs.
#[derive(Debug, Default)]
pub struct Shared {
    pub poison: Poison,
    pub counters: Mutex<Counters>,
}

/// Everything that the worker's thread owns.
pub struct Worker<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    text: Option<Text>,
    defaults: Defaults,
    limits: Limits,
    shared: Arc<Shared>,
    session: u64,
    accepted: u64,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    turns: Vec<usize>,
    batch: Builder,
    sampler: Sampler,
    pool: BlockPool,
    dirty: Dirty,
    ledger: Ledger,
    #[cfg(feature = "testing")]
    pub faults: crate::engine::taps::Faults,
}

impl<B: Backend> Worker<B> {
    /// A worker with nothing to do yet.
    pub fn new(
        backend: B,
        decoder: Decoder<B>,
        text: Option<Text>,
        defaults: Defaults,
        limits: Limits,
        shared: Arc<Shared>,
    ) -> Self {
        let vocab = defaults.vocab;
        Self {
            backend,
            decoder,
            text,
            defaults,
            limits,
            shared,
            session: getrandom::u64().unwrap_or(0),
            accepted: 0,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(limits.sequences),
            turns: Vec::with_capacity(limits.sequences),
            batch: Builder::new(limits),
            sampler: Sampler::new(vocab),
            pool: BlockPool::new(limits.blocks),
            dirty: Dirty::default(),
            ledger: Ledger::default(),
            #[cfg(feature = "testing")]
            faults: crate::engine::taps::Faults::default(),
        }
    }

    /// Serves until the session's handle is gone, then overwrites and gives up everything.
    pub fn run(mut self, submissions: &Receiver<Submission>) -> ScrubReport {
        loop {
            let idle = self.running.is_empty() && self.waiting.is_empty();
            let next = match idle {
                true => submissions.recv().map_err(|_| TryRecvError::Disconnected),
                false => submissions.try_recv(),
            };
            match next {
                Ok(submission) => self.guarded(|this| this.accept(submission)),
                Err(TryRecvError::Disconnected) => return self.close(),
                Err(TryRecvError::Empty) => self.guarded(Self::step),
            }
        }
    }

    /// Runs `act`; a panic in it scrubs everything, fails every request and poisons the session.
    fn guarded(&mut self, act: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_ok() {
            return;
        }
        self.shared.poison.set(PoisonReason::Panic);
        let failed: Vec<_> = self.running.drain(..).chain(self.waiting.drain(..)).collect();
        self.ledger.scrubbed(1, self.backend.scrub_all());
        self.finish(
            failed
                .into_iter()
                .map(|sequence| (sequence, Err(Error::Poisoned(PoisonReason::Panic))))
                .collect(),
        );
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { jobs, answer } = submission;
        if let Some(reason) = self.shared.poison.reason() {
            let _ = answer.send(Err((0, Error::Poisoned(reason))));
            return;
        }
        let mut sequences = Vec::with_capacity(jobs.len());
        let mut refused = None;
        for (index, (request, outbox)) in jobs.into_iter().enumerate() {
            self.accepted += 1;
            let id = RequestId { session: self.session, count: self.accepted };
            match Sequence::new(request, id, self.text.as_ref(), &self.defaults, outbox) {
                Ok(sequence) => sequences.push(sequence),
                Err(error) => {
                    refused = Some((index, error));
                    break;
                }
            }
        }
        match refused {
            None => {
                self.waiting.extend(sequences);
                let _ = answer.send(Ok(())); // a caller that is gone has cancelled
            }
            Some(refusal) => {
                self.ledger.request_ended();
                self.finish(sequences.into_iter().map(|sequence| (sequence, Err(Error::Closed))).collect());
                let _ = answer.send(Err(refusal));
            }
        }
    }

    /// One step: who has gone leaves, who fits joins, all compute, those that are done end.
    fn step(&mut self) {
        let mut ended = self.remove_cancelled();
        self.admit();
        if !self.running.is_empty() {
            let done = self.forward();
            // from the last on, so that the places of the others stay
            for (place, outcome) in done.into_iter().rev() {
                let sequence = self.running.remove(place);
                let outcome = outcome.map(|reason| sequence.end(reason));
                ended.push((sequence, outcome));
            }
        }
        if !ended.is_empty() {
            self.finish(ended);
        }
    }

    fn remove_cancelled(&mut self) -> Vec<Ended> {
        let running = self.running.extract_if(.., |sequence| sequence.outbox.is_cancelled());
        let mut gone: Vec<_> = running.collect();
        let (cancelled, waiting): (VecDeque<_>, _) =
            self.waiting.drain(..).partition(|sequence| sequence.outbox.is_cancelled());
        self.waiting = waiting;
        gone.extend(cancelled);
        gone.into_iter().map(|sequence| (sequence, Err(Error::Closed))).collect()
    }

    /// In order of arrival, each with all the blocks that it may come to need: so none has to give way later.
    fn admit(&mut self) {
        while self.running.len() < self.limits.sequences
            && let Some(next) = self.waiting.front_mut()
            && self.pool.take(blocks_for(next.most_tokens()), &mut next.table)
        {
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Runs the model over everyone's next tokens; returns the places of those that are done.
    fn forward(&mut self) -> Vec<(usize, Result<FinishReason>)> {
        scheduler::share(self.running.iter().map(Sequence::left), self.limits.step_tokens, &mut self.turns);
        let batch = self.batch.build(&self.running, &self.turns);
        self.dirty.mark(batch.ids.len(), batch.outputs.len());
        self.decoder.forward(&mut self.backend, &batch);
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.backend.counters();
        #[cfg(feature = "testing")]
        self.faults.after_forward();

        let mut done = Vec::new();
        let mut output = 0;
        for (place, (sequence, &turn)) in self.running.iter_mut().zip(&self.turns).enumerate() {
            sequence.cached += turn;
            if turn == 0 || sequence.left() > 0 {
                continue;
            }
            let logits = self.decoder.logits(&mut self.backend, output);
            output += 1;
            #[cfg(feature = "testing")]
            sequence.logits.iter().for_each(|tap| tap.take(logits));
            let ids = sequence.ids.expose();
            let prompt = ids.len() - sequence.generated();
            let context = Context { ids, prompt, ..Context::default() };
            match self.sampler.sample(logits, &sequence.sampling, &context) {
                Err(error) => done.push((place, Err(error))),
                Ok(token) => {
                    let reason = sequence.take(token, self.text.as_ref());
                    done.extend(reason.map(|reason| (place, Ok(reason))));
                }
            }
        }
        done
    }

    /// Overwrites all that these requests left anywhere, then tells their callers.
    fn finish(&mut self, ended: Vec<Ended>) {
        let mut answers = Vec::with_capacity(ended.len());
        for (mut sequence, outcome) in ended {
            let proof = self.backend.scrub_blocks(&sequence.table);
            let blocks = sequence.table.len() as u64;
            self.pool.release(&mut sequence.table, &proof);
            self.ledger.scrubbed(blocks, proof);
            self.ledger.request_ended();
            answers.push((sequence.wipe(), outcome));
        }
        let (tokens, outputs) = self.dirty.take();
        let (regions, proof) = self.decoder.scrub(&mut self.backend, tokens, outputs);
        self.ledger.scrubbed(regions, proof);
        self.ledger.scrubbed(2, self.batch.scrub().and(self.sampler.scrub()));
        self.ledger.scrubbed(1, self.backend.scrub_threads());
        for (outbox, outcome) in answers {
            outbox.end(outcome);
        }
    }

    fn close(mut self) -> ScrubReport {
        let left: Vec<_> = self.running.drain(..).chain(self.waiting.drain(..)).collect();
        self.finish(left.into_iter().map(|sequence| (sequence, Err(Error::Closed))).collect());
        if let Some(closed) = self.backend.close() {
            let whole = closed.scrubbed.bytes() == closed.verified;
            self.ledger.arena_closed(closed);
            if !whole {
                self.shared.poison.set(PoisonReason::ScrubFailed);
            }
        }
        if !crate::alloc::is_installed() {
            self.ledger.not_covered(NotCovered::HeapTemporaries);
        }
        self.ledger.report()
    }
}
