//! The worker that embeds and scores: packs texts into steps, overwrites what they leave, ends requests. `engine/shell.rs` has what it
//! shares with the worker that generates.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::job::{EncodeJob, Finish};
use crate::backend::{Backend, Pooling};
use crate::engine::message::WorkerMessage;
use crate::engine::plan::{Rows, StepPlan};
use crate::engine::receipts::About;
use crate::engine::scheduler::Key;
use crate::engine::shell::{self, Answer, Shell, Work};
use crate::engine::status::Load;
use crate::error::Error;
use crate::memory::ledger::{self, Accounts, HOST, Ledger, NotCovered};
use crate::memory::{registers, workspace::Dirty};
use crate::model::decoder::{Limits, blocks_for};
use crate::model::encoder::Encoder;
use crate::privacy::receipt::{DeviceReceipt, ScrubReceipt};

/// The model's place in [`Accounts`].
const MODEL: usize = HOST + 1;

/// Everything that the thread owns.
pub struct EncodeWorker<B: Backend> {
    shell: Shell,
    backend: B,
    encoder: Encoder<B>,
    pooling: Pooling,
    /// Tokens and texts of a step.
    limits: Limits,
    plan: StepPlan,
    /// What the step at hand adds to the embedding of each token, the rows of each text, and whose it is.
    rows: Vec<Range<u32>>,
    places: Vec<(usize, usize)>,
    dirty: Dirty,
    /// KV blocks written since the last scrub.
    dirty_blocks: usize,
    /// All blocks, in order: a step takes the first ones.
    table: Vec<u32>,
    /// Requests in the order in which they take texts into the next step.
    jobs: VecDeque<EncodeJob>,
    ledger: Ledger,
    /// What is not covered of the texts' way to ids.
    pub text_gap: Option<NotCovered>,
    #[cfg(feature = "testing")]
    pub faults: crate::testing::taps::Faults,
}

impl<B: Backend> EncodeWorker<B> {
    /// A worker with nothing to do yet.
    pub fn new((backend, encoder, pooling): (B, Encoder<B>, Pooling), limits: Limits, shell: Shell) -> Self {
        Self {
            shell,
            backend,
            encoder,
            pooling,
            limits,
            plan: StepPlan::new(limits),
            rows: Vec::with_capacity(limits.sequences),
            places: Vec::with_capacity(limits.sequences),
            dirty: Dirty::default(),
            dirty_blocks: 0,
            table: (0..limits.blocks as u32).collect(),
            jobs: VecDeque::new(),
            ledger: Ledger::default(),
            text_gap: None,
            #[cfg(feature = "testing")]
            faults: crate::testing::taps::Faults::default(),
        }
    }

    /// Computes texts of the requests at hand, and ends those that are over.
    #[inline(never)]
    fn step(&mut self) {
        let now = self.shell.clock.now();
        self.jobs.iter_mut().for_each(|job| job.check_deadlines(now));
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
        self.shell.show_counters(self.backend.counters());
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
        if !self.jobs.iter().any(EncodeJob::is_over) {
            return;
        }
        let began = self.shell.clock.now();
        let (mut over, going) =
            std::mem::take(&mut self.jobs).into_iter().partition::<Vec<_>, _>(EncodeJob::is_over);
        self.jobs = going.into();
        let before = self.ledger.accounts;
        self.scrub_steps();
        let account = self.ledger.since(before);
        let took = self.shell.clock.now() - began;
        self.check_scrubs();
        for mut job in over.drain(..) {
            ledger::add(&mut job.accounts, &account);
            let total = began - job.accepted;
            job.timing.first_token = total;
            job.timing.total = total;
            job.timing.scrub = took;
            self.notify_scrubbed(job);
        }
    }

    /// Overwrites what steps since the last scrub left. Nothing of a request outlives a step but its results.
    fn scrub_steps(&mut self) {
        let (tokens, texts) = self.dirty.take();
        let blocks = &self.table[..std::mem::take(&mut self.dirty_blocks)];
        let proof = self.backend.scrub_blocks(blocks);
        self.ledger.scrubbed(MODEL, blocks.len() as u64, proof.as_ref());
        // last, since it cleans this thread's stack too
        let (regions, proof) = self.backend.scrub_steps(self.encoder.used(tokens, texts));
        self.ledger.scrubbed(MODEL, regions, &proof);
        self.ledger.scrubbed(HOST, 1, &self.plan.scrub());
    }
}

impl<B: Backend> Work for EncodeWorker<B> {
    type Request = EncodeJob;

    fn shell(&self) -> &Shell {
        &self.shell
    }

    fn shell_mut(&mut self) -> &mut Shell {
        &mut self.shell
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn next(&mut self, messages: &Receiver<WorkerMessage>) -> Option<WorkerMessage> {
        if self.jobs.is_empty() {
            return Some(messages.recv().unwrap_or(WorkerMessage::Close));
        }
        match messages.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(WorkerMessage::Close),
        }
    }

    fn take(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::Texts(mut job, proof) => {
                job.accounts = self.enter(Some(&proof));
                if let Some(reason) = self.shell.shared.poison.reason() {
                    job.failed = Some(Error::Poisoned(reason));
                }
                self.jobs.push_back(*job);
            }
            // looked at before each step; of grammars and conversations there are none
            WorkerMessage::Wake | WorkerMessage::MasksFinished | WorkerMessage::Forgotten(..) => {}
            // the reader refuses the one; the others are the shell's
            WorkerMessage::Accept(..) => {}
            WorkerMessage::Over(..)
            | WorkerMessage::Forget(..)
            | WorkerMessage::Poison
            | WorkerMessage::Close => {}
        }
    }

    fn run_step(&mut self) {
        self.step();
    }

    /// Nothing is kept in such a session.
    fn forget(&mut self, _: Key) {}

    fn has_requests(&self) -> bool {
        !self.jobs.is_empty()
    }

    fn load(&self) -> Load {
        Load { running: self.jobs.len(), kv_blocks: self.limits.blocks, ..Load::default() }
    }

    fn failed(&self) -> bool {
        self.backend.failed()
    }

    fn devices(&self, accounts: &Accounts) -> Vec<DeviceReceipt> {
        let model = DeviceReceipt {
            locked_bytes: self.backend.protection().0,
            ..DeviceReceipt::new(&self.backend.name(), &accounts[MODEL])
        };
        vec![DeviceReceipt::new("host", &accounts[HOST]), model]
    }

    fn not_covered(&self) -> Vec<NotCovered> {
        self.backend.protection().1.into_iter().chain(self.text_gap.clone()).collect()
    }

    fn give_up(&mut self) -> Vec<EncodeJob> {
        let proof = self.backend.scrub_all();
        self.ledger.scrubbed(MODEL, 1, proof.as_ref());
        self.scrub_steps();
        std::mem::take(&mut self.jobs).into()
    }

    fn end_all(&mut self) {
        for job in &mut self.jobs {
            job.failed.get_or_insert(Error::Closed);
        }
        self.finish();
        self.scrub_steps();
    }

    fn give_back(self) -> (Shell, Vec<DeviceReceipt>, bool) {
        let mut devices = self.devices(&self.ledger.accounts);
        let clean = !self.ledger.is_dirty();
        let clean = shell::give_back(self.backend, &mut devices[MODEL]) && clean;
        (self.shell, devices, clean)
    }
}

impl Answer for EncodeJob {
    fn accounts(&mut self) -> &mut Accounts {
        &mut self.accounts
    }

    fn fail(&mut self, error: Error) {
        self.failed = Some(error);
    }

    fn about(&mut self) -> About {
        EncodeJob::about(self)
    }

    fn notify(self, receipt: ScrubReceipt) {
        EncodeJob::notify(self, receipt);
    }
}
