//! The thread that owns the device: packs texts into steps, scrubs, answers.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError};

use super::job::{Finish, Job};
use crate::backend::{Backend, Pooling};
use crate::clock::Clock;
use crate::engine::plan::{Rows, StepPlan};
use crate::engine::receipts::{About, Receipts};
use crate::engine::status::Load;
use crate::engine::worker::{Message, Shared};
use crate::error::{Error, ErrorKind};
use crate::memory::ledger::{self, Accounts, HOST, Ledger, NotCovered};
use crate::memory::poison::PoisonReason;
use crate::memory::{registers, stack, workspace::Dirty};
use crate::model::decoder::{Limits, blocks_for};
use crate::model::encoder::Encoder;
use crate::privacy::receipt::{DeviceReceipt, ScrubReceipt};

/// The model's place in [`Accounts`].
const MODEL: usize = HOST + 1;

/// Everything that the thread owns.
pub struct Worker<B: Backend> {
    backend: B,
    encoder: Encoder<B>,
    pooling: Pooling,
    /// Tokens and texts of a step.
    limits: Limits,
    plan: StepPlan,
    /// Whether it scrubbed since the stack was cleaned.
    scrubbed_steps: bool,
    /// What the step at hand adds to the embedding of each token, the rows of each text, and whose it is.
    rows: Vec<Range<u32>>,
    places: Vec<(usize, usize)>,
    dirty: Dirty,
    /// KV blocks written since the last scrub.
    dirty_blocks: usize,
    /// All blocks, in order: a step takes the first ones.
    table: Vec<u32>,
    /// Requests in the order in which they take texts into the next step.
    jobs: VecDeque<Job>,
    ledger: Ledger,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    receipts: Receipts,
    /// What is not covered of the texts' way to ids.
    pub text_gap: Option<NotCovered>,
    #[cfg(feature = "testing")]
    pub faults: crate::testing::taps::Faults,
}

impl<B: Backend> Worker<B> {
    /// A worker with nothing to do yet.
    pub fn new(
        (backend, encoder, pooling): (B, Encoder<B>, Pooling),
        limits: Limits,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        receipts: Receipts,
    ) -> Self {
        Self {
            backend,
            encoder,
            pooling,
            limits,
            plan: StepPlan::new(limits),
            scrubbed_steps: false,
            rows: Vec::with_capacity(limits.sequences),
            places: Vec::with_capacity(limits.sequences),
            dirty: Dirty::default(),
            dirty_blocks: 0,
            table: (0..limits.blocks as u32).collect(),
            jobs: VecDeque::new(),
            ledger: Ledger::default(),
            shared,
            clock,
            receipts,
            text_gap: None,
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
            if self.shared.poison.reason().is_some_and(PoisonReason::is_unscrubbed) && !self.jobs.is_empty() {
                self.fail_all();
            }
            self.show_load();
            // what the scrub and the receipts leave on the stack holds no content, but it would hide some that is left
            if std::mem::take(&mut self.scrubbed_steps) {
                let _ = stack::scrub_below();
            }
        }
    }

    /// The next message; none when a step is due.
    fn next(&self, messages: &Receiver<Message>) -> Option<Message> {
        if self.jobs.is_empty() {
            return Some(messages.recv().unwrap_or(Message::Close));
        }
        match messages.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Message::Close),
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
        match self.backend.failed() {
            true => PoisonReason::DeviceFailed,
            false => PoisonReason::ScrubFailed,
        }
    }

    fn fail_all(&mut self) {
        if self.backend.failed() {
            self.shared.poison.set(PoisonReason::DeviceFailed);
        }
        let reason = self.shared.poison.reason().unwrap_or(PoisonReason::Panic);
        let before = self.ledger.accounts;
        let proof = self.backend.scrub_all();
        self.ledger.scrubbed(MODEL, 1, proof.as_ref());
        self.scrub_steps();
        let account = self.ledger.since(before);
        for mut job in std::mem::take(&mut self.jobs) {
            ledger::add(&mut job.accounts, &account);
            job.failed = Some(Error::Poisoned(reason));
            self.tell(job);
        }
    }

    /// It is not inlined, since nothing cleans the frame of [`Worker::run`]; nor is it in the worker that generates.
    #[inline(never)]
    fn handle(&mut self, message: Message) {
        match message {
            Message::Texts(mut job, proof) => {
                let before = self.ledger.accounts;
                self.ledger.scrubbed(HOST, 1, &proof);
                job.accounts = self.ledger.since(before);
                if let Some(reason) = self.shared.poison.reason() {
                    job.failed = Some(Error::Poisoned(reason));
                }
                self.jobs.push_back(*job);
            }
            Message::Over(requests, proof) => {
                let before = self.ledger.accounts;
                proof.iter().for_each(|proof| self.ledger.scrubbed(HOST, 1, proof));
                let account = self.ledger.since(before);
                requests.into_iter().for_each(|about| drop(self.receipt(about, &account)));
            }
            // nothing is kept in such a session
            Message::Forget(_, about, _) => {
                about.into_iter().for_each(|about| drop(self.receipt(about, &Accounts::default())));
            }
            Message::Poison => {
                self.shared.poison.set(PoisonReason::Panic);
                self.fail_all();
            }
            // looked at before each step; of grammars and conversations there are none; refused by the reader; `run` ends
            // with the last
            Message::Wake | Message::Looked | Message::Forgotten(..) => {}
            Message::Accept(..) | Message::Close => {}
        }
    }

    /// Computes texts of the requests at hand, and ends those that are over.
    #[inline(never)]
    fn step(&mut self) {
        let now = self.clock.now();
        self.jobs.iter_mut().for_each(|job| job.look(now));
        self.pack();
        if !self.places.is_empty() {
            self.forward();
        }
        self.finish();
        // who came first in this step comes last in the next
        if !self.jobs.is_empty() {
            self.jobs.rotate_left(1);
        }
    }

    /// A text of each request in turn, as long as there is room.
    fn pack(&mut self) {
        self.plan.clear();
        self.rows.clear();
        self.places.clear();
        let (mut tokens, mut block) = (0, 0);
        loop {
            let before = self.places.len();
            for (place, job) in self.jobs.iter_mut().enumerate() {
                if job.is_over() {
                    continue;
                }
                let item = job.items[job.begun];
                if tokens + item.tokens > self.limits.step_tokens
                    || self.places.len() == self.limits.sequences
                {
                    return;
                }
                let ids = &job.ids.expose()[item.start..][..item.tokens];
                let blocks = blocks_for(item.tokens);
                let table = &self.table[block..block + blocks];
                self.plan.add(Rows {
                    id: 0,
                    ids,
                    guesses: 0,
                    position: 0,
                    table,
                    logits_from: usize::MAX,
                    adapter: None,
                    mask: self.encoder.mask(),
                });
                block += blocks;
                self.dirty_blocks = self.dirty_blocks.max(block);
                let part = |position: usize| usize::from(position >= item.second);
                let rows = (0..item.tokens).map(|i| self.encoder.position_type(i, part(i)));
                self.plan.add_position_types(rows);
                self.rows.push((tokens + item.skipped) as u32..(tokens + item.tokens) as u32);
                self.places.push((place, job.begun));
                tokens += item.tokens;
                job.begun += 1;
            }
            if self.places.len() == before {
                return;
            }
        }
    }

    fn forward(&mut self) {
        let batch = self.plan.batch();
        self.dirty.mark(batch.ids.len(), self.rows.len());
        let fence = self.encoder.forward(&mut self.backend, &batch, &self.rows, self.pooling);
        registers::clear(); // small jobs run on this thread alone
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.backend.counters();
        #[cfg(feature = "testing")]
        self.faults.after_forward();
        if self.backend.failed() {
            return self.fail_all();
        }
        for (text, &(place, item)) in self.places.iter().enumerate() {
            let job = &mut self.jobs[place];
            if !matches!(job.finish, Finish::HiddenStates) {
                job.take(item, self.encoder.read(&mut self.backend, &fence, text));
                continue;
            }
            let first = job.items[item].start;
            for (token, row) in self.rows[text].clone().enumerate() {
                job.take(first + token, self.encoder.read_hidden(&mut self.backend, &fence, row as usize));
            }
        }
    }

    /// Overwrites all that the requests which are over left anywhere, and tells their callers.
    fn finish(&mut self) {
        if !self.jobs.iter().any(Job::is_over) {
            return;
        }
        let began = self.clock.now();
        let (mut over, going) =
            std::mem::take(&mut self.jobs).into_iter().partition::<Vec<_>, _>(Job::is_over);
        self.jobs = going.into();
        let before = self.ledger.accounts;
        self.scrub_steps();
        let account = self.ledger.since(before);
        let took = self.clock.now() - began;
        if self.ledger.is_dirty() {
            self.shared.poison.set(self.poison_reason());
        }
        for mut job in over.drain(..) {
            ledger::add(&mut job.accounts, &account);
            let total = began - job.accepted;
            job.timing.first_token = total;
            job.timing.total = total;
            job.timing.scrub = took;
            if let Some(reason) = self.shared.poison.reason().filter(|reason| reason.is_unscrubbed()) {
                job.failed = Some(Error::Poisoned(reason));
            }
            self.tell(job);
        }
    }

    /// Overwrites what steps since the last scrub left. Nothing of a request outlives a step but its results.
    fn scrub_steps(&mut self) {
        self.scrubbed_steps = true;
        let (tokens, texts) = self.dirty.take();
        let blocks = &self.table[..std::mem::take(&mut self.dirty_blocks)];
        let proof = self.backend.scrub_blocks(blocks);
        self.ledger.scrubbed(MODEL, blocks.len() as u64, proof.as_ref());
        // last, since it cleans this thread's stack too
        let (regions, proof) = self.backend.scrub_steps(self.encoder.used(tokens, texts));
        self.ledger.scrubbed(MODEL, regions, &proof);
        self.ledger.scrubbed(HOST, 1, &self.plan.scrub());
    }

    fn devices(&self, accounts: &Accounts) -> Vec<DeviceReceipt> {
        let model = DeviceReceipt {
            locked_bytes: self.backend.protection().0,
            ..DeviceReceipt::new(&self.backend.name(), &accounts[MODEL])
        };
        vec![DeviceReceipt::new("host", &accounts[HOST]), model]
    }

    fn gaps(&self) -> Vec<NotCovered> {
        let of_texts = self.text_gap.iter().cloned().collect();
        [self.backend.protection().1, of_texts, ledger::gaps_of_process()].concat()
    }

    fn receipt(&mut self, about: About, account: &Accounts) -> ScrubReceipt {
        self.ledger.requests += u64::from(about.is_request());
        let mut devices = self.devices(account);
        devices.retain(|device| device.regions > 0);
        let gaps = self.gaps();
        self.receipts.issue(about, devices, gaps)
    }

    fn tell(&mut self, job: Job) {
        let receipt = self.receipt(job.about(), &job.accounts);
        self.shared.requests.fetch_sub(1, Ordering::SeqCst);
        self.show_load();
        job.tell(receipt);
    }

    /// So that whoever is told something sees a load from after it.
    fn show_load(&self) {
        let load = Load { running: self.jobs.len(), kv_blocks: self.limits.blocks, ..Load::default() };
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    fn close(mut self, messages: &Receiver<Message>) -> ScrubReceipt {
        // of conversations that outlive the session's handle
        while let Ok(message) = messages.try_recv() {
            if matches!(message, Message::Over(..) | Message::Forget(..)) {
                self.guarded(|this| this.handle(message));
            }
        }
        for job in &mut self.jobs {
            job.failed.get_or_insert(Error::Closed);
        }
        self.finish();
        self.scrub_steps();
        let (gaps, requests) = (self.gaps(), self.ledger.requests);
        let mut devices = self.devices(&self.ledger.accounts);
        let mut clean = !self.ledger.is_dirty();
        if let Some(closed) = self.backend.close() {
            clean &= closed.verified == closed.scrubbed.bytes() && !closed.scrubbed.is_dirty();
            let device = &mut devices[MODEL];
            device.regions += closed.regions;
            device.bytes += closed.scrubbed.bytes();
            device.samples += closed.scrubbed.samples();
            device.verified_bytes = closed.verified;
        }
        if !clean {
            self.shared.poison.set(PoisonReason::ScrubFailed);
        }
        let error = self.shared.poison.reason().map(|_| ErrorKind::Poisoned);
        self.receipts.close(requests, devices, gaps, error)
    }
}
