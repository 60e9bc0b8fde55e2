//! The thread that owns the device: runs steps, scrubs, answers.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use super::job::Job;
use super::mailbox::Wish;
use super::masks::{Guide, Masks};
use super::models::Models;
use super::receipts::Receipts;
use super::scheduler::{Arrival, Id, Key, Scheduler, Turn};
use super::sequence::Sequence;
use crate::backend::questions::Questions;
use crate::backend::{Backend, Counters};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::memory::Scrubbed;
use crate::memory::ledger::{self, Accounts, HOST};
use crate::memory::poison::{Poison, PoisonReason};
use crate::model::decoder::Limits;
use crate::privacy::receipt::{ScrubReceipt, Subject};
use crate::response::{FinishReason, RequestId};
use crate::sample::Sampler;
use crate::session::Load;
use crate::text::Text;

/// A choice that is over, and how it ended.
pub(super) type Ended = (Id, Result<FinishReason>);

/// A request that was encoded and checked.
#[derive(Debug)]
pub struct Prepared {
    pub job: Job,
    pub sequence: Sequence,
    pub arrival: Arrival,
}

/// What the worker is told between steps.
#[derive(Debug)]
pub enum Message {
    /// Requests that come in together, and the proof that the place where they were encoded is clean.
    Accept(Vec<Prepared>, Scrubbed),
    /// Requests were refused, which came in at that time; as above.
    Refused(Vec<RequestId>, SystemTime, Scrubbed),
    /// Texts to embed or to score; as above.
    Texts(Box<super::encode::job::Job>, Scrubbed),
    /// Somebody wants his request to end, or has read of a stream that was full.
    Wake,
    /// What is kept under a key is of no use any more; tells when it is overwritten.
    Forget(Key, Option<SyncSender<()>>),
    /// The guarantee is in doubt: everything must go.
    Poison,
    /// The session's handle is gone.
    Close,
}

/// What the session's handle can see while the worker runs.
#[derive(Debug, Default)]
pub struct Shared {
    pub poison: Poison,
    pub counters: Mutex<Counters>,
    pub load: Mutex<Load>,
    /// Requests that were accepted and have not ended.
    pub requests: AtomicUsize,
}

/// Everything that the worker's thread owns.
pub struct Worker<B: Backend> {
    pub(super) models: Models<B>,
    pub(super) text: Option<Arc<Text>>,
    pub(super) limits: Limits,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) scheduler: Scheduler,
    pub(super) jobs: HashMap<Id, Job>,
    pub(super) sequences: HashMap<Id, Sequence>,
    ids: Id,
    /// Sequences whose reader is behind.
    pub(super) paused: Vec<Id>,
    /// No later than the first deadline of all.
    pub(super) deadline: Option<Instant>,
    pub(super) sampler: Sampler,
    /// For the device, about the rows of the step at hand.
    pub(super) questions: Questions,
    /// Their numbers, by row and choice.
    pub(super) asked: HashMap<(usize, usize), usize>,
    pub(super) masks: Option<Masks>,
    pub(super) turns: Vec<Turn>,
    receipts: Receipts,
    #[cfg(feature = "debug-sampler")]
    pub debug_sampler: Option<crate::privacy::debug_sampler::DebugSampler>,
    #[cfg(feature = "testing")]
    pub faults: crate::engine::taps::Faults,
}

impl<B: Backend> Worker<B> {
    /// A worker with nothing to do yet.
    pub fn new(
        models: Models<B>,
        text: Option<Arc<Text>>,
        vocab: usize,
        limits: Limits,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        receipts: Receipts,
    ) -> Self {
        Self {
            models,
            text,
            limits,
            shared,
            clock,
            scheduler: Scheduler::new(limits),
            jobs: HashMap::new(),
            sequences: HashMap::new(),
            ids: 0,
            paused: Vec::new(),
            deadline: None,
            sampler: Sampler::new(vocab),
            questions: Questions::default(),
            asked: HashMap::new(),
            masks: None,
            turns: Vec::with_capacity(limits.sequences),
            receipts,
            #[cfg(feature = "debug-sampler")]
            debug_sampler: None,
            #[cfg(feature = "testing")]
            faults: crate::engine::taps::Faults::default(),
        }
    }

    /// Serves until the session's handle is gone, then overwrites and gives up everything.
    pub fn run(mut self, messages: &Receiver<Message>) -> ScrubReceipt {
        loop {
            match self.next(messages) {
                Some(Message::Close) => return self.close(),
                Some(message) => self.guarded(|this| this.hear(message)),
                None => self.guarded(Self::step),
            }
            if self.shared.poison.reason().is_some_and(PoisonReason::is_unscrubbed) && !self.jobs.is_empty() {
                self.fail_all();
            }
            self.show_load();
        }
    }

    /// The next message; none when a step is due. Without work it sleeps, until the next deadline at most.
    fn next(&self, messages: &Receiver<Message>) -> Option<Message> {
        if self.scheduler.has_work() {
            return match messages.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Message::Close),
            };
        }
        let Some(deadline) = self.deadline else {
            return Some(messages.recv().unwrap_or(Message::Close));
        };
        match messages.recv_timeout(deadline.saturating_duration_since(self.clock.now())) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => Some(Message::Wake),
            Err(RecvTimeoutError::Disconnected) => Some(Message::Close),
        }
    }

    /// Runs `act`; a panic in it scrubs everything, fails every request and poisons the session.
    fn guarded(&mut self, act: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_err() {
            self.shared.poison.set(PoisonReason::Panic);
            self.fail_all();
        }
    }

    /// What it means that something was not zero.
    fn doubt(&self) -> PoisonReason {
        match self.models.failed() {
            true => PoisonReason::DeviceFailed,
            false => PoisonReason::ScrubFailed,
        }
    }

    pub(super) fn fail_all(&mut self) {
        if self.models.failed() {
            self.shared.poison.set(PoisonReason::DeviceFailed);
        }
        let reason = self.shared.poison.reason().unwrap_or(PoisonReason::Panic);
        let before = self.models.ledger.accounts;
        self.models.scrub_all();
        self.scheduler = Scheduler::new(self.limits); // all blocks are zero
        self.paused.clear();
        self.masks = None; // its guides drop with it
        self.sequences.clear();
        let failed: Vec<Job> = self.jobs.drain().map(|(_, job)| job).collect();
        self.scrub_steps(Vec::new());
        let account = self.models.ledger.since(before);
        for mut job in failed {
            ledger::add(&mut job.accounts, &account);
            job.failed = Some(Error::Poisoned(reason));
            self.tell(job);
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Accept(requests, proof) => {
                let before = self.models.ledger.accounts;
                self.models.ledger.scrubbed(HOST, 1, &proof);
                let account = self.models.ledger.since(before);
                for mut request in requests {
                    ledger::add(&mut request.job.accounts, &account);
                    self.accept(request);
                }
            }
            Message::Refused(requests, began, proof) => {
                let before = self.models.ledger.accounts;
                self.models.ledger.scrubbed(HOST, 1, &proof);
                let account = self.models.ledger.since(before);
                requests.into_iter().for_each(|id| drop(self.receipt(id, began, 0, &account)));
            }
            Message::Wake => self.look_around(),
            Message::Forget(key, done) => {
                self.scheduler.forget(key, &mut self.models);
                self.show_load();
                let _ = done.map(|done| done.send(())); // one who does not wait any more knows why
            }
            Message::Poison => {
                self.shared.poison.set(PoisonReason::Panic);
                self.fail_all();
            }
            // `run` ends with the one; the intake refuses the other
            Message::Close | Message::Texts(..) => {}
        }
    }

    fn accept(&mut self, request: Prepared) {
        let Prepared { mut job, mut sequence, arrival } = request;
        if let Some(reason) = self.shared.poison.reason() {
            job.failed = Some(Error::Poisoned(reason));
            return self.tell(job);
        }
        if self.masks.is_none() && sequence.guide.is_some() {
            match Masks::start() {
                Ok(masks) => self.masks = Some(masks),
                Err(error) => {
                    job.failed = Some(error);
                    return self.tell(job);
                }
            }
        }
        let id = self.new_id();
        sequence.job = id;
        job.members.push(id);
        if let Some(reuse) = &job.reuse {
            self.scheduler.keep(reuse.kept.key, reuse.public);
        }
        self.scheduler.arrive(id, arrival);
        self.deadline = self.deadline.into_iter().chain(job.deadline).min();
        let wish = job.outbox.wish();
        self.jobs.insert(id, job);
        self.sequences.insert(id, sequence);
        if wish != Wish::Reply {
            self.look_around(); // its wake came before it did
        }
    }

    pub(super) fn new_id(&mut self) -> Id {
        self.ids += 1;
        self.ids
    }

    /// Looks for requests whose callers want an end, whose deadline has passed, or whose readers have caught up.
    pub(super) fn look_around(&mut self) {
        let now = self.clock.now();
        let mut ended = Vec::new();
        self.deadline = None;
        for job in self.jobs.values_mut() {
            let late = job.deadline.is_some_and(|deadline| deadline <= now);
            let outcome = match job.outbox.wish() {
                Wish::Abandon => Err(Error::Closed),
                Wish::Interrupt => Ok(FinishReason::Cancelled),
                Wish::Reply if late => Ok(FinishReason::Deadline),
                Wish::Reply => {
                    self.deadline = self.deadline.into_iter().chain(job.deadline).min();
                    continue;
                }
            };
            for (choice, guide) in job.unborn.drain(..) {
                drop(guide);
                job.outbox.output(choice, |output| output.finish = outcome.as_ref().ok().copied());
            }
            match outcome {
                Ok(reason) => ended.extend(job.members.iter().map(|id| (*id, Ok(reason)))),
                Err(error) => ended.extend(job.members.first().map(|id| (*id, Err(error)))),
            }
        }
        for (id, _) in &ended {
            let sequence = self.sequences.get_mut(id).expect("a member of a job");
            sequence.flush(&self.jobs[&sequence.job].outbox);
        }
        self.finish(ended);
        let (sequences, jobs, scheduler) = (&self.sequences, &self.jobs, &mut self.scheduler);
        self.paused.retain(|id| {
            let sequence = &sequences[id];
            let full = jobs[&sequence.job].outbox.is_full(sequence.choice);
            scheduler.pause(*id, full);
            full
        });
    }

    /// Overwrites all that these choices left anywhere; where the last of a request ended, tells its caller.
    pub(super) fn finish(&mut self, ended: Vec<Ended>) {
        let began = self.clock.now();
        let (mut over, mut guides) = (Vec::new(), Vec::new());
        for (id, outcome) in ended {
            let Some(sequence) = self.sequences.get(&id) else { continue }; // went with a sibling that failed
            let first = sequence.job;
            #[cfg(feature = "debug-sampler")]
            self.sample(id, outcome.as_ref().ok().copied());
            let Some(sequence) = self.sequences.get(&id) else { continue };
            let job = self.jobs.get_mut(&first).expect("a member's job");
            let leaving = match outcome {
                Ok(reason) => {
                    job.ended(sequence.choice, sequence.generated(), reason);
                    vec![id]
                }
                Err(error) => {
                    job.failed = Some(error);
                    guides.extend(job.unborn.drain(..).filter_map(|(_, guide)| guide.map(|guide| *guide)));
                    job.members.clone()
                }
            };
            for id in leaving {
                guides.extend(self.remove(id).map(|guide| *guide));
            }
            let job = self.jobs.get_mut(&first).expect("a member's job");
            if job.is_over() {
                job.timing.total = began - job.accepted;
                over.extend(self.jobs.remove(&first));
            }
        }
        if over.is_empty() && guides.is_empty() {
            return;
        }
        self.rest(&over);
        let before = self.models.ledger.accounts;
        self.scrub_steps(guides); // with what the cipher left on the stack
        let (account, took) = (self.models.ledger.since(before), self.clock.now() - began);
        if self.models.ledger.is_dirty() {
            self.shared.poison.set(self.doubt());
        }
        for mut job in over {
            ledger::add(&mut job.accounts, &account);
            job.timing.scrub = took;
            if let Some(reason) = self.shared.poison.reason().filter(|reason| reason.is_unscrubbed()) {
                job.failed = Some(Error::Poisoned(reason));
            }
            self.tell(job);
        }
    }

    /// Seals what conversations keep of requests that are over. Not inlined: what `finish` has on the stack is not overwritten.
    #[inline(never)]
    fn rest(&mut self, over: &[Job]) {
        for reuse in over.iter().filter_map(|job| job.reuse.as_ref()).filter(|reuse| !reuse.public) {
            self.scheduler.rest(reuse.kept.key, &mut self.models);
        }
    }

    /// Lets the debug sampler draw, once for each request: when its first choice ends.
    #[cfg(feature = "debug-sampler")]
    fn sample(&mut self, id: Id, finish_reason: Option<FinishReason>) {
        use crate::privacy::debug_sampler::Capture;
        let Some(sampler) = &mut self.debug_sampler else { return };
        let sequence = &self.sequences[&id];
        if sequence.choice != 0 {
            return;
        }
        let Some(permit) = sampler.wants(self.clock.now()) else { return };
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        let (prompt_ids, reply_ids) = sequence.ids.expose().split_at(sequence.common.prompt_tokens);
        let (request, at) = (job.id, self.clock.wall());
        let captured = job.outbox.output(0, |output| {
            let reply_text = output.text.expose();
            let capture = Capture {
                request,
                at,
                model: None,
                choice: 0,
                finish_reason,
                prompt_ids,
                reply_ids,
                reply_text,
            };
            sampler.capture(permit, &capture).is_ok()
        });
        if captured {
            job.captures += 1;
            job.trace.captured(request, sampler.purpose());
        }
    }

    /// Takes a choice out; what it leaves in the cache is overwritten, or kept for its conversation.
    fn remove(&mut self, id: Id) -> Option<Box<Guide>> {
        let mut sequence = self.sequences.remove(&id)?;
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        job.members.retain(|member| *member != id);
        let keep = sequence.choice == 0 && job.failed.is_none();
        if keep {
            job.remember(sequence.ids.expose());
        }
        self.scheduler.end(id, keep, &mut self.models);
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        self.models.owed.drain(..).for_each(|(_, account)| ledger::add(&mut job.accounts, &account));
        self.paused.retain(|paused| *paused != id);
        sequence.guide.take()
    }

    fn scrub_steps(&mut self, guides: Vec<Guide>) {
        self.models.scrub_steps();
        self.models.ledger.scrubbed(HOST, 1, &self.sampler.scrub().and(self.questions.scrub()));
        if let Some(masks) = self.masks.as_ref().filter(|_| !guides.is_empty()) {
            self.models.ledger.scrubbed(HOST, 1, &masks.forget(guides));
        }
    }

    /// Enters what sequences that gave way let go.
    pub(super) fn settle_owed(&mut self) {
        for (id, account) in self.models.owed.drain(..) {
            let job = self.sequences.get(&id).and_then(|sequence| self.jobs.get_mut(&sequence.job));
            job.into_iter().for_each(|job| ledger::add(&mut job.accounts, &account));
        }
    }

    fn receipt(
        &mut self,
        id: RequestId,
        began: SystemTime,
        captures: u64,
        account: &Accounts,
    ) -> ScrubReceipt {
        self.models.ledger.requests += 1;
        let mut devices = self.models.devices(account);
        devices.retain(|device| device.regions > 0);
        let gaps = [self.models.not_covered(), ledger::gaps_of_process()].concat();
        self.receipts.issue(Subject::Request { id }, began, captures, devices, gaps)
    }

    fn tell(&mut self, job: Job) {
        let receipt = self.receipt(job.id, job.began, job.captures, &job.accounts);
        self.shared.requests.fetch_sub(1, Ordering::SeqCst);
        self.show_load();
        job.tell(receipt);
    }

    /// So that whoever is told something sees a load from after it.
    fn show_load(&self) {
        let load = Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            kv_blocks_used: self.scheduler.blocks_in_use(),
            kv_blocks: self.limits.blocks,
            preemptions: self.scheduler.preemptions(),
        };
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    fn close(mut self) -> ScrubReceipt {
        let left: Vec<Ended> = self.sequences.keys().map(|id| (*id, Err(Error::Closed))).collect();
        self.finish(left);
        self.scrub_steps(Vec::new());
        let gaps = self.models.not_covered();
        let requests = self.models.ledger.requests;
        let doubt = self.doubt();
        let (devices, clean) = self.models.close();
        if !clean {
            self.shared.poison.set(doubt);
        }
        self.receipts.close(requests, devices, [gaps, ledger::gaps_of_process()].concat())
    }
}
