//! The worker that generates: which requests it has, how they end, what is overwritten then. `step.rs` has its steps, and `shell.rs`
//! what it shares with the worker that embeds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use super::ask::QueryRanges;
use super::job::Job;
use super::mailbox::CallerState;
use super::masks::{GrammarState, Masks};
use super::message::{Prepared, WorkerMessage};
use super::models::Models;
use super::receipts::About;
use super::scheduler::{Id, Key, ScheduledTokens, Scheduler};
use super::sequence::Sequence;
use super::shell::{Answer, Shell, Work};
use super::status::Load;
use crate::backend::Backend;
use crate::backend::sample_batch::SampleBatch;
use crate::error::{Error, Result};
use crate::memory::ledger::{self, Accounts, HOST, Ledger, NotCovered};
use crate::memory::{Scrubbed, scrub};
use crate::model::decoder::Limits;
use crate::outcome::FinishReason;
use crate::privacy::receipt::{DeviceReceipt, ScrubReceipt};
use crate::sample::Sampler;
use crate::text::Text;

/// A choice that is over, and how it ended.
pub(super) type Ended = (Id, Result<FinishReason>);

/// Everything that the worker's thread owns.
pub struct Worker<B: Backend> {
    pub(super) shell: Shell,
    pub(super) models: Models<B>,
    pub(super) text: Option<Arc<Text>>,
    pub(super) limits: Limits,
    pub(super) scheduler: Scheduler,
    /// In boxes: what is taken out of a map would stay in its slot, and how much was overwritten for a request tells how many
    /// guesses were right.
    pub(super) jobs: HashMap<Id, Box<Job>>,
    pub(super) sequences: HashMap<Id, Sequence>,
    /// Requests that are over, until the threads of grammar masks have forgotten them.
    leaving: HashMap<Id, Box<Job>>,
    /// Whether the last step had nothing to compute: then the next waits for a message.
    pub(super) idle: bool,
    /// Sequences whose reader is behind.
    pub(super) paused: Vec<Id>,
    /// No later than the first deadline of all.
    pub(super) deadline: Option<Instant>,
    pub(super) sampler: Sampler,
    /// For the device, about the rows of the step at hand.
    pub(super) queries: SampleBatch,
    /// Their numbers, for each sequence of the step.
    pub(super) asked: Vec<QueryRanges>,
    /// None once everything had to go.
    pub(super) masks: Option<Masks>,
    pub(super) turns: Vec<ScheduledTokens>,
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
        shell: Shell,
        masks: Masks,
    ) -> Self {
        Self {
            shell,
            models,
            text,
            limits,
            scheduler: Scheduler::new(limits),
            jobs: HashMap::new(),
            sequences: HashMap::new(),
            leaving: HashMap::new(),
            idle: false,
            paused: Vec::new(),
            deadline: None,
            sampler: Sampler::new(vocab),
            queries: SampleBatch::default(),
            asked: Vec::with_capacity(limits.sequences),
            masks: Some(masks),
            turns: Vec::with_capacity(limits.sequences),
            #[cfg(feature = "debug-sampler")]
            debug_sampler: None,
            #[cfg(feature = "testing")]
            faults: crate::testing::taps::Faults::default(),
        }
    }

    fn accept(&mut self, request: Prepared) {
        let Prepared { id, mut job, mut sequence, arrival } = request;
        if let Some(reason) = self.shell.shared.poison.reason() {
            job.failed = Some(Error::Poisoned(reason));
            return self.notify(job);
        }
        sequence.job = id;
        job.members.push(id);
        if let Some(reuse) = &job.reuse {
            self.scheduler.keep(reuse.lease.key, reuse.public);
        }
        self.scheduler.arrive(id, arrival);
        self.deadline = self.deadline.into_iter().chain(job.deadline).min();
        let late = job.deadline.is_some_and(|deadline| deadline <= self.shell.clock.now());
        let over = late || job.outbox.caller_state() != CallerState::Reply;
        self.jobs.insert(id, job);
        self.sequences.insert(id, sequence);
        if over {
            self.check_deadlines(); // its wake came before it did, or its time ended while it was read
        }
    }

    pub(super) fn new_id(&mut self) -> Id {
        self.shell.shared.new_ids(1)
    }

    /// Looks for requests whose callers want an end, whose deadline has passed, or whose readers have caught up.
    pub(super) fn check_deadlines(&mut self) {
        let now = self.shell.clock.now();
        let mut ended = Vec::new();
        self.deadline = None;
        for (id, job) in &mut self.jobs {
            let late = job.deadline.is_some_and(|deadline| deadline <= now);
            let outcome = match job.outbox.caller_state() {
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
        let began = self.shell.clock.now();
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
        let (account, took) = (self.models.ledger.since(before), self.shell.clock.now() - began);
        self.check_scrubs();
        for (id, mut job) in over {
            ledger::add(&mut job.accounts, &account);
            job.timing.scrub = took;
            match self.masks.as_ref().filter(|_| job.guided) {
                Some(masks) => {
                    masks.forget(id);
                    self.leaving.insert(id, job);
                }
                None => self.notify_scrubbed(job),
            }
        }
    }

    /// The threads of grammar masks have nothing of a request any more.
    fn forgotten(&mut self, id: Id, proof: Option<&Scrubbed>) {
        let account = self.enter(proof);
        self.check_scrubs();
        let Some(mut job) = self.leaving.remove(&id) else { return }; // everything had to go
        ledger::add(&mut job.accounts, &account);
        job.timing.scrub = self.shell.clock.now() - (job.accepted + job.timing.total);
        self.notify_scrubbed(job);
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
        let Some(permit) = sampler.wants(self.shell.clock.now()) else { return };
        let (prompt_ids, reply_ids) = sequence.ids().split_at(sequence.common.prompt_tokens);
        let (request, at) = (job.id, self.shell.clock.wall());
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
        let sampler = Scrubbed::sum([self.sampler.scrub()].into_iter().chain(self.queries.scrub()));
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
}

impl<B: Backend> Work for Worker<B> {
    type Request = Box<Job>;

    fn shell(&self) -> &Shell {
        &self.shell
    }

    fn shell_mut(&mut self) -> &mut Shell {
        &mut self.shell
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.models.ledger
    }

    /// Without work it sleeps until the next deadline at most.
    fn next(&mut self, messages: &Receiver<WorkerMessage>) -> Option<WorkerMessage> {
        // a step without turns waits for masks of those that hold the memory: their threads tell
        if self.scheduler.has_work() && !std::mem::take(&mut self.idle) {
            return match messages.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(WorkerMessage::Close),
            };
        }
        let Some(deadline) = self.deadline else {
            return Some(messages.recv().unwrap_or(WorkerMessage::Close));
        };
        match messages.recv_timeout(deadline.saturating_duration_since(self.shell.clock.now())) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => Some(WorkerMessage::Wake),
            Err(RecvTimeoutError::Disconnected) => Some(WorkerMessage::Close),
        }
    }

    fn take(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::Accept(requests, proof) => {
                let account = self.enter(Some(&proof));
                for mut request in requests {
                    ledger::add(&mut request.job.accounts, &account);
                    self.accept(request);
                }
            }
            WorkerMessage::Wake => self.check_deadlines(),
            WorkerMessage::MasksFinished => self.take_masks(),
            WorkerMessage::Forgotten(id, proof) => self.forgotten(id, proof.as_ref()),
            // the intake refuses the one; the others are the shell's
            WorkerMessage::Texts(..) => {}
            WorkerMessage::Over(..)
            | WorkerMessage::Forget(..)
            | WorkerMessage::Poison
            | WorkerMessage::Close => {}
        }
    }

    fn run_step(&mut self) {
        self.step();
    }

    fn forget(&mut self, key: Key) {
        self.scheduler.forget(key, &mut self.models);
    }

    fn has_requests(&self) -> bool {
        !self.jobs.is_empty() || !self.leaving.is_empty()
    }

    fn load(&self) -> Load {
        Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            kv_blocks_used: self.scheduler.blocks_in_use(),
            kv_blocks: self.limits.blocks,
            preemptions: self.scheduler.preemptions(),
        }
    }

    fn failed(&self) -> bool {
        self.models.failed()
    }

    fn devices(&self, accounts: &Accounts) -> Vec<DeviceReceipt> {
        self.models.devices(accounts)
    }

    fn not_covered(&self) -> Vec<NotCovered> {
        let of_texts = self.text.iter().filter_map(|text| text.not_covered()).collect();
        [self.models.not_covered(), of_texts].concat()
    }

    fn give_up(&mut self) -> Vec<Box<Job>> {
        self.models.scrub_all();
        self.scheduler = Scheduler::new(self.limits); // all blocks are zero
        self.paused.clear();
        self.masks = None; // with all grammars that its threads have
        self.sequences.clear();
        let failed = self.jobs.drain().chain(self.leaving.drain()).map(|(_, job)| job).collect();
        self.scrub_steps();
        failed
    }

    fn end_all(&mut self) {
        let left: Vec<Ended> = self.sequences.keys().map(|id| (*id, Err(Error::Closed))).collect();
        self.finish(left);
        self.masks = None; // its threads have cleaned their stacks when they have ended
        self.scrub_steps();
        let leaving: Vec<_> = self.leaving.drain().map(|(_, job)| job).collect();
        leaving.into_iter().for_each(|job| self.notify_scrubbed(job));
    }

    fn give_back(self) -> (Shell, Vec<DeviceReceipt>, bool) {
        let (devices, clean) = self.models.close();
        (self.shell, devices, clean)
    }
}

impl Answer for Box<Job> {
    fn accounts(&mut self) -> &mut Accounts {
        &mut self.accounts
    }

    fn fail(&mut self, error: Error) {
        self.failed = Some(error);
    }

    fn about(&mut self) -> About {
        // what a conversation that has left the turn had before it
        self.reuse = None;
        Job::about(self)
    }

    fn notify(self, receipt: ScrubReceipt) {
        Job::notify(self, receipt);
    }
}
