//! The thread that owns the device: runs steps, scrubs, answers.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::job::Job;
use super::mailbox::Wish;
use super::masks::{Guide, Masks};
use super::models::Models;
use super::scheduler::{Arrival, Id, Key, Scheduler, Turn};
use super::sequence::Sequence;
use super::speculate;
use crate::backend::{Backend, Counters};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::memory::Scrubbed;
use crate::memory::ledger::{NotCovered, ScrubReport};
use crate::memory::poison::{Poison, PoisonReason};
use crate::model::decoder::Limits;
use crate::request::Speculation;
use crate::response::FinishReason;
use crate::sample::{Context, Sampler};
use crate::session::Load;
use crate::text::{Pieces, Text};

/// A choice that is over, and how it ended.
type Ended = (Id, Result<FinishReason>);

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
    /// Requests were refused; as above.
    Refused(u64, Scrubbed),
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
    models: Models<B>,
    text: Option<Arc<Text>>,
    limits: Limits,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    scheduler: Scheduler,
    jobs: HashMap<Id, Job>,
    sequences: HashMap<Id, Sequence>,
    ids: Id,
    /// Sequences whose reader is behind.
    paused: Vec<Id>,
    /// No later than the first deadline of all.
    deadline: Option<Instant>,
    sampler: Sampler,
    masks: Option<Masks>,
    turns: Vec<Turn>,
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
            masks: None,
            turns: Vec::with_capacity(limits.sequences),
            #[cfg(feature = "testing")]
            faults: crate::engine::taps::Faults::default(),
        }
    }

    /// Serves until the session's handle is gone, then overwrites and gives up everything.
    pub fn run(mut self, messages: &Receiver<Message>) -> ScrubReport {
        loop {
            match self.next(messages) {
                Some(Message::Close) => return self.close(),
                Some(message) => self.guarded(|this| this.hear(message)),
                None => self.guarded(Self::step),
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

    fn fail_all(&mut self) {
        self.models.scrub_all();
        self.scheduler = Scheduler::new(self.limits); // all blocks are zero
        self.paused.clear();
        self.masks = None; // its guides drop with it
        self.sequences.clear();
        let failed: Vec<Job> = self.jobs.drain().map(|(_, job)| job).collect();
        self.scrub_steps(Vec::new());
        for mut job in failed {
            job.failed = Some(Error::Poisoned(PoisonReason::Panic));
            self.tell(job);
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Accept(requests, proof) => {
                self.models.ledger.scrubbed(1, &proof);
                requests.into_iter().for_each(|request| self.accept(request));
            }
            Message::Refused(requests, proof) => {
                self.models.ledger.scrubbed(1, &proof);
                (0..requests).for_each(|_| self.models.ledger.request_ended());
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
            Message::Close => {} // `run` ends with it
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

    fn new_id(&mut self) -> Id {
        self.ids += 1;
        self.ids
    }

    /// Looks for requests whose callers want an end, whose deadline has passed, or whose readers have caught up.
    fn look_around(&mut self) {
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

    /// One step: all who can compute, those that are done end.
    fn step(&mut self) {
        if self.deadline.is_some_and(|deadline| deadline <= self.clock.now()) {
            self.look_around();
        }
        self.turns.clear();
        self.turns.extend(self.scheduler.plan(&mut self.models));
        let mut turns = std::mem::take(&mut self.turns);
        self.guess(&mut turns);
        let looking = self.send_guides(&turns);
        self.fill_batch(&turns);
        if !turns.is_empty() {
            self.models.main.forward();
        }
        let mut ended = self.receive_guides(looking);
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.models.main.counters();
        #[cfg(feature = "testing")]
        self.faults.after_forward();
        let mut row = 0;
        for turn in &turns {
            self.read_turn(*turn, &mut row, &mut ended);
        }
        self.turns = turns;
        self.finish(ended);
    }

    /// Guides of those who get a token in this step look while the model computes; returns how many do.
    fn send_guides(&mut self, turns: &[Turn]) -> usize {
        let mut looking = 0;
        for turn in turns {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            let entry = self.scheduler.entry(turn.id);
            if entry.cached + turn.tokens == entry.known
                && let Some(guide) = sequence.guide.take()
            {
                self.masks.as_ref().expect("started with the first guide").look(turn.id, guide);
                looking += 1;
            }
        }
        looking
    }

    fn receive_guides(&mut self, looking: usize) -> Vec<Ended> {
        let mut ended = Vec::new();
        for _ in 0..looking {
            let (id, guide, result) = self.masks.as_ref().expect("it was sent a guide").next();
            self.sequences.get_mut(&id).expect("who has a turn has not ended").guide = Some(guide);
            ended.extend(result.err().map(|error| (id, Err(error))));
        }
        ended
    }

    /// Fills in guesses where the scheduler has room for them.
    fn guess(&mut self, turns: &mut [Turn]) {
        for turn in turns.iter_mut() {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            sequence.reserve();
            sequence.drafts.truncate(0);
            // a guess that can only be the last token saves nothing
            turn.drafts = turn.drafts.min(sequence.common.max_tokens - sequence.generated() - 1);
            if let Some(Speculation::PromptLookup { ngram, .. }) = sequence.common.speculation {
                let Sequence { ids, drafts, .. } = sequence;
                speculate::lookup(ids.expose(), ngram, turn.drafts, &mut |id| drafts.push(id));
            }
        }
        self.ask_draft(turns);
        for turn in turns.iter_mut() {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            if let Some(guide) = sequence.guide.as_mut().filter(|_| !sequence.drafts.expose().is_empty()) {
                sequence.drafts.truncate(guide.allowed(sequence.drafts.expose()));
            }
            turn.drafts = sequence.drafts.expose().len();
        }
    }

    /// Lets the draft model go on from each sequence that asks for it, one token at a time. It draws as the main model
    /// will, with the same random numbers: so the better it is, the more often both choose the same.
    fn ask_draft(&mut self, turns: &[Turn]) {
        let Some(draft) = &mut self.models.draft else { return };
        let mut asked = Vec::new();
        for turn in turns.iter().filter(|turn| turn.drafts > 0) {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            if !matches!(sequence.common.speculation, Some(Speculation::Draft { .. })) {
                continue;
            }
            let entry = self.scheduler.entry(turn.id);
            if sequence.admissions != entry.admissions {
                (sequence.admissions, sequence.draft_cached) = (entry.admissions, 0);
            }
            // the draft's part of a block is filled late: not where others hold the block too
            if !self.scheduler.is_shared(turn.id, sequence.draft_cached) {
                asked.push((*turn, sequence.ids.expose().len()));
            }
        }
        let mut asking = asked.clone();
        while !asking.is_empty() {
            draft.batch.clear();
            let mut room = self.limits.step_tokens;
            for (turn, _) in &asking {
                let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
                let (ids, from) = (sequence.ids.expose(), sequence.draft_cached);
                let end = ids.len().min(from + room);
                room -= end - from;
                if end > from {
                    let table = &self.scheduler.entry(turn.id).table;
                    draft.batch.add(&ids[from..end], &[], from, table, ids.len() - 1);
                }
                sequence.draft_cached = end;
            }
            draft.forward();
            let mut row = 0;
            asking.retain(|(turn, known)| {
                let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
                if sequence.draft_cached < sequence.ids.expose().len() {
                    return false; // a long prompt is caught up with over several steps
                }
                let (logits, context) = (draft.logits(row), Context { mask: None, ..sequence.context() });
                row += 1;
                let Ok(token) = self.sampler.sample(logits, &sequence.sampling, &context) else {
                    return false;
                };
                sequence.ids.push(token);
                sequence.ids.expose().len() < known + turn.drafts
            });
        }
        for (turn, known) in asked {
            let Sequence { ids, drafts, .. } = self.sequences.get_mut(&turn.id).expect("it was asked");
            drafts.extend(&ids.expose()[known..]);
            ids.truncate(known);
        }
    }

    fn fill_batch(&mut self, turns: &[Turn]) {
        let batch = &mut self.models.main.batch;
        batch.clear();
        for turn in turns {
            let (entry, sequence) = (self.scheduler.entry(turn.id), &self.sequences[&turn.id]);
            let ids = &sequence.ids.expose()[entry.cached..entry.cached + turn.tokens];
            batch.add(ids, sequence.drafts.expose(), entry.cached, &entry.table, entry.outputs_from);
        }
    }

    /// Reads what a turn computed: log probabilities of the prompt, the next token, guesses that were right.
    fn read_turn(&mut self, turn: Turn, row: &mut usize, ended: &mut Vec<Ended>) {
        let entry = self.scheduler.entry(turn.id);
        let (cached, outputs_from) = (entry.cached, entry.outputs_from.max(entry.cached));
        let end = cached + turn.tokens;
        let first_row = *row;
        *row += (end + turn.drafts).saturating_sub(outputs_from);
        let sequence = &self.sequences[&turn.id];
        let known = sequence.ids.expose().len();
        if sequence.common.prompt_logprobs {
            let job = &self.jobs[&sequence.job];
            for position in outputs_from..end.min(known - 1) {
                let logits = self.models.main.logits(first_row + position - outputs_from);
                let token = sequence.ids.expose()[position + 1];
                let told = job.outbox.prompt_logprobs(|out| self.sampler.logprobs(logits, token, out));
                if let Err(error) = told {
                    return ended.push((turn.id, Err(error)));
                }
            }
        }
        if end < known {
            self.scheduler.advance(turn.id, end, known, outputs_from.max(end).min(known - 1));
            return;
        }
        if ended.iter().all(|(id, _)| *id != turn.id) {
            self.read_tokens(turn, *row - turn.drafts - 1, ended);
        }
    }

    /// Chooses tokens from the logits of `row`, and, as long as guesses were right, of those behind it.
    fn read_tokens(&mut self, turn: Turn, row: usize, ended: &mut Vec<Ended>) {
        let forks = self.fork(turn.id);
        let mut accepted = 0;
        let outcome = loop {
            let outcome = self.choose(turn.id, row + accepted, accepted > 0);
            let sequence = &self.sequences[&turn.id];
            let right = sequence.drafts.expose().get(accepted) == sequence.ids.expose().last();
            if !matches!(outcome, Ok(None)) || accepted == turn.drafts || !right {
                break outcome;
            }
            accepted += 1;
        };
        let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
        let cached = self.scheduler.entry(turn.id).cached + turn.tokens + accepted;
        sequence.draft_cached = sequence.draft_cached.min(cached);
        let (known, drafts) =
            (sequence.ids.expose().len(), sequence.common.speculation.map_or(0, Speculation::tokens));
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        job.usage.drafted_tokens += turn.drafts;
        job.usage.accepted_tokens += accepted;
        if job.timing.first_token.is_zero() {
            job.timing.first_token = self.clock.now() - job.accepted;
            job.usage.cached_tokens = self.scheduler.entry(turn.id).reused.unwrap_or(0);
        }
        let full = job.outbox.is_full(sequence.choice);
        match outcome {
            Ok(None) => {
                self.scheduler.advance(turn.id, cached, known, known - 1);
                self.scheduler.wish_drafts(turn.id, drafts);
                self.pause_if(turn.id, full);
            }
            Ok(Some(reason)) => {
                self.scheduler.advance(turn.id, cached.min(known), known, known - 1);
                ended.push((turn.id, Ok(reason)));
            }
            Err(error) => ended.push((turn.id, Err(error))),
        }
        for fork in forks {
            self.begin_fork(turn.id, fork, row, ended);
        }
    }

    fn pause_if(&mut self, id: Id, full: bool) {
        if full {
            self.scheduler.pause(id, true);
            self.paused.push(id);
        }
    }

    /// The other choices of a request whose first token is about to be chosen.
    fn fork(&mut self, id: Id) -> Vec<Sequence> {
        let sequence = &self.sequences[&id];
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        let pieces = self.text.as_deref().map(Text::pieces);
        job.unborn.drain(..).map(|(choice, guide)| sequence.fork(choice, guide, pieces)).collect()
    }

    fn begin_fork(&mut self, first: Id, fork: Sequence, row: usize, ended: &mut Vec<Ended>) {
        let id = self.new_id();
        let (job, choice) = (fork.job, fork.choice);
        self.scheduler.fork(first, id);
        self.jobs.get_mut(&job).expect("a member's job").members.push(id);
        self.sequences.insert(id, fork);
        match self.choose(id, row, true) {
            Ok(None) => {
                let known = self.sequences[&id].ids.expose().len();
                let cached = self.scheduler.entry(id).cached;
                self.scheduler.advance(id, cached, known, known - 1);
                let full = self.jobs[&job].outbox.is_full(choice);
                self.pause_if(id, full);
            }
            Ok(Some(reason)) => ended.push((id, Ok(reason))),
            Err(error) => ended.push((id, Err(error))),
        }
    }

    /// Chooses a sequence's next token from a row of logits; says whether it ends with it. `look` where its grammar's
    /// mask was not computed beside the model.
    fn choose(&mut self, id: Id, row: usize, look: bool) -> Result<Option<FinishReason>> {
        let sequence = self.sequences.get_mut(&id).expect("who has a turn has not ended");
        let logits = self.models.main.logits(row);
        #[cfg(feature = "testing")]
        sequence.logits.iter().for_each(|tap| tap.take(logits));
        if let Some(guide) = sequence.guide.as_mut().filter(|_| look) {
            guide.look()?;
        }
        let token = self.sampler.sample(logits, &sequence.sampling, &sequence.context())?;
        if let Some(guide) = &mut sequence.guide {
            guide.accept(token)?;
        }
        let outbox = &self.jobs[&sequence.job].outbox;
        let wanted = sequence.common.logprobs;
        let pieces: Option<&Pieces> = self.text.as_deref().map(Text::pieces);
        let (sampler, mut told) = (&mut self.sampler, Ok(()));
        let ended = sequence.take(token, pieces, outbox, |out| {
            if wanted {
                told = sampler.logprobs(logits, token, out);
            }
        });
        told.map(|()| ended)
    }

    /// Overwrites all that these choices left anywhere; where the last of a request ended, tells its caller.
    fn finish(&mut self, ended: Vec<Ended>) {
        let (mut over, mut guides) = (Vec::new(), Vec::new());
        for (id, outcome) in ended {
            let Some(sequence) = self.sequences.get(&id) else { continue }; // went with a sibling that failed
            let first = sequence.job;
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
                job.timing.total = self.clock.now() - job.accepted;
                over.extend(self.jobs.remove(&first));
            }
        }
        if !over.is_empty() || !guides.is_empty() {
            self.scrub_steps(guides);
        }
        over.into_iter().for_each(|job| self.tell(job));
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
        self.paused.retain(|paused| *paused != id);
        sequence.guide.take()
    }

    fn scrub_steps(&mut self, guides: Vec<Guide>) {
        self.models.scrub_steps();
        self.models.ledger.scrubbed(1, &self.sampler.scrub());
        if let Some(masks) = self.masks.as_ref().filter(|_| !guides.is_empty()) {
            self.models.ledger.scrubbed(1, &masks.forget(guides));
        }
    }

    fn tell(&mut self, job: Job) {
        self.models.ledger.request_ended();
        self.shared.requests.fetch_sub(1, Ordering::SeqCst);
        self.show_load();
        job.tell();
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

    fn close(mut self) -> ScrubReport {
        let left: Vec<Ended> = self.sequences.keys().map(|id| (*id, Err(Error::Closed))).collect();
        self.finish(left);
        self.scrub_steps(Vec::new());
        let (mut ledger, arenas) = self.models.close();
        for closed in arenas {
            let whole = closed.scrubbed.bytes() == closed.verified;
            ledger.arena_closed(closed);
            if !whole {
                self.shared.poison.set(PoisonReason::ScrubFailed);
            }
        }
        if !crate::alloc::is_installed() {
            ledger.not_covered(NotCovered::HeapTemporaries);
        }
        ledger.report()
    }
}
