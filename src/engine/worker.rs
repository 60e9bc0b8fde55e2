//! The thread that owns the device: runs steps, scrubs, answers.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::ask::Asked;
use super::job::Job;
use super::mailbox::CallerState;
use super::masks::{GrammarState, Masks};
use super::models::Models;
use super::receipts::{About, Receipts};
use super::scheduler::{Arrival, Id, Key, ScheduledTokens, Scheduler};
use super::sequence::Sequence;
use crate::backend::sample_batch::SampleBatch;
use crate::backend::{Backend, Counters};
use crate::clock::Clock;
use crate::engine::status::Load;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::ledger::{self, Accounts, HOST, NotCovered};
use crate::memory::poison::{Poison, PoisonReason};
use crate::memory::{Scrubbed, scrub, stack};
use crate::model::decoder::Limits;
use crate::outcome::FinishReason;
use crate::privacy::receipt::ScrubReceipt;
use crate::sample::Sampler;
use crate::text::Text;

/// A choice that is over, and how it ended.
pub(super) type Ended = (Id, Result<FinishReason>);

/// A request that was encoded and checked.
#[derive(Debug)]
pub struct Prepared {
    /// From [`Shared::new_ids`], when it came.
    pub id: Id,
    pub job: Box<Job>,
    pub sequence: Sequence,
    pub arrival: Arrival,
}

/// What the worker is told between steps.
#[derive(Debug)]
pub enum Message {
    /// Requests that come in together, and the proof that the place where they were encoded is clean.
    Accept(Vec<Prepared>, Scrubbed),
    /// Requests are over, of which nothing was to be computed: they were refused, or only read. The proof is none where
    /// they were not read either.
    Over(Vec<About>, Option<Scrubbed>),
    /// Texts to embed or to score; as above.
    Texts(Box<super::encode::job::Job>, Scrubbed),
    /// Somebody wants his request to end, or has read of a stream that was full.
    Wake,
    /// Grammars have looked: [`Masks::looked`].
    Looked,
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

/// What the session's handle can see while the worker runs.
#[derive(Debug, Default)]
pub struct Shared {
    pub poison: Poison,
    pub counters: Mutex<Counters>,
    pub load: Mutex<Load>,
    /// Requests that came, were not refused, and have not ended.
    pub requests: AtomicUsize,
    /// Tokens computed: where the scheduler's order begins for those that come now.
    pub tokens: AtomicU64,
    /// Grammars compiled.
    #[cfg(feature = "testing")]
    pub compiled: Arc<AtomicU64>,
    /// Requests that were given an id, in whatever way they ended.
    ids: AtomicU64,
    /// Sequences that were given a name.
    sequences: AtomicU64,
}

impl Shared {
    /// Counts for the ids of the next `count` requests, of which this is the first: from 1 on.
    pub fn next_ids(&self, count: usize) -> u64 {
        self.ids.fetch_add(count as u64, Ordering::SeqCst) + 1
    }

    /// Names for `count` sequences, of which this is the first. They rise.
    pub fn new_ids(&self, count: usize) -> Id {
        self.sequences.fetch_add(count as u64, Ordering::SeqCst) + 1
    }
}

/// Everything that the worker's thread owns.
pub struct Worker<B: Backend> {
    pub(super) models: Models<B>,
    pub(super) text: Option<Arc<Text>>,
    pub(super) limits: Limits,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) scheduler: Scheduler,
    /// In boxes: what is taken out of a map would stay in its slot, and how much was overwritten for a request tells how many
    /// guesses were right.
    pub(super) jobs: HashMap<Id, Box<Job>>,
    pub(super) sequences: HashMap<Id, Sequence>,
    /// Requests that are over, until the threads of grammar masks have forgotten them.
    leaving: HashMap<Id, Box<Job>>,
    /// Whether the last step had nothing to compute: then the next waits for a message.
    pub(super) idle: bool,
    /// Whether receipts were written since the stack was cleaned.
    wrote_receipts: bool,
    /// Sequences whose reader is behind.
    pub(super) paused: Vec<Id>,
    /// No later than the first deadline of all.
    pub(super) deadline: Option<Instant>,
    pub(super) sampler: Sampler,
    /// For the device, about the rows of the step at hand.
    pub(super) questions: SampleBatch,
    /// Their numbers, for each sequence of the step.
    pub(super) asked: Vec<Asked>,
    /// None once everything had to go.
    pub(super) masks: Option<Masks>,
    pub(super) turns: Vec<ScheduledTokens>,
    receipts: Receipts,
    #[cfg(feature = "debug-sampler")]
    pub debug_sampler: Option<crate::privacy::debug_sampler::DebugSampler>,
    #[cfg(feature = "testing")]
    pub faults: crate::testing::taps::Faults,
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
        (receipts, masks): (Receipts, Masks),
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
            leaving: HashMap::new(),
            idle: false,
            wrote_receipts: false,
            paused: Vec::new(),
            deadline: None,
            sampler: Sampler::new(vocab),
            questions: SampleBatch::default(),
            asked: Vec::with_capacity(limits.sequences),
            masks: Some(masks),
            turns: Vec::with_capacity(limits.sequences),
            receipts,
            #[cfg(feature = "debug-sampler")]
            debug_sampler: None,
            #[cfg(feature = "testing")]
            faults: crate::testing::taps::Faults::default(),
        }
    }

    /// Serves until the session's handle is gone, then overwrites and gives up everything.
    pub fn run(mut self, messages: &Receiver<Message>) -> ScrubReceipt {
        loop {
            match self.next(messages) {
                Some(Message::Close) => return self.close(messages),
                Some(message) => self.guarded(|this| this.handle(message)),
                None => self.guarded(Self::step),
            }
            let any = !self.jobs.is_empty() || !self.leaving.is_empty();
            if self.shared.poison.reason().is_some_and(PoisonReason::is_unscrubbed) && any {
                self.fail_all();
            }
            self.show_load();
            // what receipts leave on the stack holds no content, but it would hide some that is left
            if std::mem::take(&mut self.wrote_receipts) {
                let _ = stack::scrub_below();
            }
        }
    }

    /// The next message; none when a step is due. Without work it sleeps, until the next deadline at most.
    fn next(&mut self, messages: &Receiver<Message>) -> Option<Message> {
        // a step without turns waits for masks of those that hold the memory: their threads tell
        if self.scheduler.has_work() && !std::mem::take(&mut self.idle) {
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
    fn poison_reason(&self) -> PoisonReason {
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
        self.masks = None; // with all grammars that its threads have
        self.sequences.clear();
        let failed: Vec<_> = self.jobs.drain().chain(self.leaving.drain()).map(|(_, job)| job).collect();
        self.scrub_steps();
        let account = self.models.ledger.since(before);
        for mut job in failed {
            ledger::add(&mut job.accounts, &account);
            job.failed = Some(Error::Poisoned(reason));
            self.tell(job);
        }
    }

    /// It is not inlined, like [`Worker::step`]: nothing cleans the frame of [`Worker::run`], in which it would leave what it
    /// moves.
    #[inline(never)]
    fn handle(&mut self, message: Message) {
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
            Message::Over(requests, proof) => {
                let before = self.models.ledger.accounts;
                proof.iter().for_each(|proof| self.models.ledger.scrubbed(HOST, 1, proof));
                let account = self.models.ledger.since(before);
                requests.into_iter().for_each(|about| drop(self.receipt(about, &account)));
            }
            Message::Wake => self.check_deadlines(),
            Message::Looked => self.take_looked(),
            Message::Forgotten(id, proof) => self.forgotten(id, proof.as_ref()),
            Message::Forget(key, about, done) => {
                let before = self.models.ledger.accounts;
                self.scheduler.forget(key, &mut self.models);
                let account = self.models.ledger.since(before);
                about.into_iter().for_each(|about| drop(self.receipt(about, &account)));
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
        let Prepared { id, mut job, mut sequence, arrival } = request;
        if let Some(reason) = self.shared.poison.reason() {
            job.failed = Some(Error::Poisoned(reason));
            return self.tell(job);
        }
        sequence.job = id;
        job.members.push(id);
        if let Some(reuse) = &job.reuse {
            self.scheduler.keep(reuse.lease.key, reuse.public);
        }
        self.scheduler.arrive(id, arrival);
        self.deadline = self.deadline.into_iter().chain(job.deadline).min();
        let late = job.deadline.is_some_and(|deadline| deadline <= self.clock.now());
        let over = late || job.outbox.wish() != CallerState::Reply;
        self.jobs.insert(id, job);
        self.sequences.insert(id, sequence);
        if over {
            self.check_deadlines(); // its wake came before it did, or its time ended while it was read
        }
    }

    pub(super) fn new_id(&mut self) -> Id {
        self.shared.new_ids(1)
    }

    /// Looks for requests whose callers want an end, whose deadline has passed, or whose readers have caught up.
    pub(super) fn check_deadlines(&mut self) {
        let now = self.clock.now();
        let mut ended = Vec::new();
        self.deadline = None;
        for (id, job) in &mut self.jobs {
            let late = job.deadline.is_some_and(|deadline| deadline <= now);
            let outcome = match job.outbox.wish() {
                CallerState::Abandon => Err(Error::Closed),
                CallerState::Interrupt => Ok(FinishReason::Cancelled),
                CallerState::Reply if late => Ok(FinishReason::Deadline),
                CallerState::Reply => {
                    self.deadline = self.deadline.into_iter().chain(job.deadline).min();
                    continue;
                }
            };
            for (choice, _) in &job.unborn {
                job.outbox.output(*choice, |output| output.finish = outcome.as_ref().ok().copied());
            }
            let unborn = job.unborn.drain(..).filter_map(|(_, guide)| guide);
            Self::release(self.masks.as_ref(), *id, unborn);
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
        let mut over = Vec::new();
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
                    let unborn = job.unborn.drain(..).filter_map(|(_, guide)| guide);
                    Self::release(self.masks.as_ref(), first, unborn);
                    job.members.clone()
                }
            };
            for id in leaving {
                let guide = self.remove(id);
                Self::release(self.masks.as_ref(), first, guide);
            }
            let job = self.jobs.get_mut(&first).expect("a member's job");
            if job.is_over() {
                job.timing.total = began - job.accepted;
                over.extend(self.jobs.remove(&first).map(|job| (first, job)));
            }
        }
        if over.is_empty() {
            return;
        }
        self.rest(&over);
        let before = self.models.ledger.accounts;
        self.scrub_steps(); // with what the cipher left on the stack
        let (account, took) = (self.models.ledger.since(before), self.clock.now() - began);
        if self.models.ledger.is_dirty() {
            self.shared.poison.set(self.poison_reason());
        }
        for (id, mut job) in over {
            ledger::add(&mut job.accounts, &account);
            job.timing.scrub = took;
            match self.masks.as_ref().filter(|_| job.guided) {
                Some(masks) => {
                    masks.forget(id);
                    self.leaving.insert(id, job);
                }
                None => self.tell_scrubbed(job),
            }
        }
    }

    /// The threads of grammar masks have nothing of a request any more.
    fn forgotten(&mut self, id: Id, proof: Option<&Scrubbed>) {
        let before = self.models.ledger.accounts;
        self.models.ledger.scrubbed(HOST, 1, proof);
        let account = self.models.ledger.since(before);
        if self.models.ledger.is_dirty() {
            self.shared.poison.set(self.poison_reason());
        }
        let Some(mut job) = self.leaving.remove(&id) else { return }; // everything had to go
        ledger::add(&mut job.accounts, &account);
        job.timing.scrub = self.clock.now() - (job.accepted + job.timing.total);
        self.tell_scrubbed(job);
    }

    fn tell_scrubbed(&mut self, mut job: Box<Job>) {
        if let Some(reason) = self.shared.poison.reason().filter(|reason| reason.is_unscrubbed()) {
            job.failed = Some(Error::Poisoned(reason));
        }
        self.tell(job);
    }

    /// Grammars of a request are not needed any more. Dropping one may take long, so it is not done here.
    fn release(masks: Option<&Masks>, request: Id, guides: impl IntoIterator<Item = Box<GrammarState>>) {
        let mut guides = guides.into_iter().peekable();
        if let Some(masks) = masks.filter(|_| guides.peek().is_some()) {
            masks.release(request, guides);
        }
    }

    /// Seals what conversations keep of requests that are over. Not inlined: what `finish` has on the stack is not overwritten.
    #[inline(never)]
    fn rest(&mut self, over: &[(Id, Box<Job>)]) {
        for reuse in over.iter().filter_map(|(_, job)| job.reuse.as_ref()).filter(|reuse| !reuse.public) {
            self.scheduler.rest(reuse.lease.key, &mut self.models);
        }
    }

    /// Lets the debug sampler draw, once for each conversation: when the first choice of its first turn ends. A later
    /// turn holds all that were before it, so one that is drawn among turns would hold more of long conversations.
    #[cfg(feature = "debug-sampler")]
    fn sample(&mut self, id: Id, finish_reason: Option<FinishReason>) {
        use crate::privacy::debug_sampler::Capture;
        let Some(sampler) = &mut self.debug_sampler else { return };
        let sequence = &self.sequences[&id];
        if sequence.choice != 0 {
            return;
        }
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        if !job.begins {
            return;
        }
        let Some(permit) = sampler.wants(self.clock.now()) else { return };
        let (prompt_ids, reply_ids) = sequence.ids().split_at(sequence.common.prompt_tokens);
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
    fn remove(&mut self, id: Id) -> Option<Box<GrammarState>> {
        let mut sequence = self.sequences.remove(&id)?;
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        job.members.retain(|member| *member != id);
        let keep = sequence.choice == 0 && job.failed.is_none();
        if keep {
            job.remember(sequence.ids());
        }
        self.scheduler.end(id, keep, &mut self.models);
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        self.models.take_pending_accounts(|_, account| ledger::add(&mut job.accounts, account));
        self.paused.retain(|paused| *paused != id);
        sequence.guide.take()
    }

    fn scrub_steps(&mut self) {
        self.models.scrub_steps();
        scrub::empty(&mut self.asked);
        let sampler = Scrubbed::sum([self.sampler.scrub()].into_iter().chain(self.questions.scrub()));
        self.models.ledger.scrubbed(HOST, 1, sampler.as_ref());
    }

    /// Enters what sequences that gave way let go.
    pub(super) fn enter_pending_accounts(&mut self) {
        let Self { models, sequences, jobs, .. } = self;
        models.take_pending_accounts(|id, account| {
            let job = sequences.get(&id).and_then(|sequence| jobs.get_mut(&sequence.job));
            job.into_iter().for_each(|job| ledger::add(&mut job.accounts, account));
        });
    }

    fn receipt(&mut self, about: About, account: &Accounts) -> ScrubReceipt {
        self.wrote_receipts = true;
        self.models.ledger.requests += u64::from(about.is_request());
        let mut devices = self.models.devices(account);
        devices.retain(|device| device.regions > 0);
        let gaps = [self.models.not_covered(), self.text_gaps(), ledger::gaps_of_process()].concat();
        self.receipts.issue(about, devices, gaps)
    }

    fn text_gaps(&self) -> Vec<NotCovered> {
        self.text.iter().filter_map(|text| text.not_covered()).collect()
    }

    fn tell(&mut self, mut job: Box<Job>) {
        // what a conversation that has left the turn had before it
        job.reuse = None;
        let receipt = self.receipt(job.about(), &job.accounts);
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

    fn close(mut self, messages: &Receiver<Message>) -> ScrubReceipt {
        // of conversations that outlive the session's handle
        while let Ok(message) = messages.try_recv() {
            if matches!(message, Message::Over(..) | Message::Forget(..)) {
                self.guarded(|this| this.handle(message));
            }
        }
        let left: Vec<Ended> = self.sequences.keys().map(|id| (*id, Err(Error::Closed))).collect();
        self.finish(left);
        self.masks = None; // its threads have cleaned their stacks when they have ended
        self.scrub_steps();
        let leaving: Vec<_> = self.leaving.drain().map(|(_, job)| job).collect();
        leaving.into_iter().for_each(|job| self.tell_scrubbed(job));
        let gaps = [self.models.not_covered(), self.text_gaps()].concat();
        let requests = self.models.ledger.requests;
        let doubt = self.poison_reason();
        let (devices, clean) = self.models.close();
        if !clean {
            self.shared.poison.set(doubt);
        }
        let error = self.shared.poison.reason().map(|_| ErrorKind::Poisoned);
        self.receipts.close(requests, devices, [gaps, ledger::gaps_of_process()].concat(), error)
    }
}
