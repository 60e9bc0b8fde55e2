//! The model that a session serves, and the draft model that guesses for it, each with the memory of its steps.

use super::plan::StepPlan;
use super::scheduler::{Id, Store};
use super::shell::give_back;
use crate::backend::sample_batch::SampleBatch;
use crate::backend::{Backend, Counters, Fence, Mask};
use crate::memory::ledger::{Accounts, HOST, Ledger, NotCovered};
use crate::memory::seal::SealingKey;
use crate::memory::{Scrubbed, registers, scrub, workspace::Dirty};
use crate::model::decoder::{Decoder, Limits};
use crate::privacy::receipt::DeviceReceipt;

/// A decoder on its backend.
pub struct Model<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    /// The step at hand.
    pub plan: StepPlan,
    /// The fence of that step, once it is submitted.
    fence: Option<Fence>,
    dirty: Dirty,
}

impl<B: Backend> Model<B> {
    /// Ready for its first step.
    pub fn new(backend: B, decoder: Decoder<B>, limits: Limits) -> Self {
        Self { backend, decoder, plan: StepPlan::new(limits), fence: None, dirty: Dirty::default() }
    }

    /// Which positions the rows of a sequence see.
    pub fn mask(&self) -> Mask {
        self.decoder.mask()
    }

    /// Submits the step.
    pub fn forward(&mut self) {
        self.plan.pad(|rows| self.backend.padded_rows(rows));
        let batch = self.plan.batch();
        self.dirty.mark(batch.ids.len(), batch.outputs.len());
        self.fence = Some(self.decoder.forward(&mut self.backend, &batch));
        registers::clear(); // small jobs run on this thread alone
    }

    /// The logits of output `row` of the last step: (vocab).
    ///
    /// # Panics
    /// If there was none.
    pub fn logits(&mut self, row: usize) -> &[f32] {
        let fence = self.fence.as_ref().expect("a step was submitted");
        self.decoder.logits(&mut self.backend, fence, row)
    }

    /// Whether [`Model::sample_on_device`] does anything.
    pub fn samples_on_device(&self) -> bool {
        self.backend.samples_on_device()
    }

    /// Has the device answer questions about the logits of the last step.
    ///
    /// # Panics
    /// If there was none.
    pub fn sample_on_device(&mut self, queries: &mut SampleBatch) {
        let fence = self.fence.as_ref().expect("a step was submitted");
        self.decoder.sample_on_device(&mut self.backend, fence, queries);
    }

    /// What was computed so far.
    pub fn counters(&self) -> Counters {
        self.backend.counters()
    }

    /// Overwrites all that steps since the last scrub left outside the cache.
    fn scrub_steps(&mut self, place: usize, ledger: &mut Ledger) {
        let (tokens, outputs) = self.dirty.take();
        let (regions, proof) = self.backend.scrub_steps(self.decoder.used(tokens, outputs));
        ledger.scrubbed(place, regions, &proof);
        ledger.scrubbed(HOST, 1, &self.plan.scrub());
    }
}

/// Both models. They share block numbers: block i of the one's cache and of the other's hold the same positions.
pub struct Models<B: Backend> {
    pub main: Model<B>,
    pub draft: Option<Model<B>>,
    pub ledger: Ledger,
    /// What was overwritten for sequences when they let blocks go, to be entered in their requests' accounts.
    pending_accounts: Vec<(Id, Accounts)>,
    /// None if the system had no random numbers: then blocks stay as they are.
    key: Option<SealingKey>,
    /// How often blocks were sealed.
    seals: u64,
    /// Which of those times sealed each block last; 0 where it is not sealed.
    sealed: Vec<u64>,
}

impl<B: Backend> Models<B> {
    /// With nothing entered yet.
    pub fn new(main: Model<B>, draft: Option<Model<B>>) -> Self {
        let (key, ledger) = (SealingKey::random(), Ledger::default());
        Self { main, draft, ledger, pending_accounts: Vec::new(), key, seals: 0, sealed: Vec::new() }
    }

    /// Hands out what is to be entered in accounts of requests. How much was overwritten tells how many guesses were right, so
    /// the entries are overwritten, too.
    pub fn take_pending_accounts(&mut self, mut enter: impl FnMut(Id, &Accounts)) {
        self.pending_accounts.iter().for_each(|(id, account)| enter(*id, account));
        scrub::empty(&mut self.pending_accounts);
    }

    /// Each with its place in [`Accounts`].
    fn each(&mut self) -> impl Iterator<Item = (usize, &mut Model<B>)> {
        (HOST + 1..).zip([&mut self.main].into_iter().chain(&mut self.draft))
    }

    /// Overwrites all that steps since the last scrub left outside the caches.
    pub fn scrub_steps(&mut self) {
        let Self { main, draft, ledger, .. } = self;
        let models = [main].into_iter().chain(draft);
        (HOST + 1..).zip(models).for_each(|(place, model)| model.scrub_steps(place, ledger));
    }

    /// Overwrites all memory of both.
    pub fn scrub_all(&mut self) {
        self.sealed.clear();
        let proofs: Vec<_> = self.each().map(|(place, model)| (place, model.backend.scrub_all())).collect();
        proofs.iter().for_each(|(place, proof)| self.ledger.scrubbed(*place, 1, proof.as_ref()));
    }

    /// Encrypts a block, or decrypts it, in the caches of both.
    #[inline(never)]
    fn mask(&mut self, block: u32, count: u64) {
        let Self { main, draft, key, .. } = self;
        let Some(key) = key else { return };
        for (place, model) in (0..).zip([main].into_iter().chain(draft)) {
            model.backend.with_block(block, &mut |bytes| key.mask(count, place, bytes));
        }
    }

    /// Whether the device of one failed.
    pub fn failed(&self) -> bool {
        [&self.main].into_iter().chain(&self.draft).any(|model| model.backend.failed())
    }

    /// What the platform refused of their memory.
    pub fn not_covered(&self) -> Vec<NotCovered> {
        let models = [&self.main].into_iter().chain(&self.draft);
        models.flat_map(|model| model.backend.protection().1).collect()
    }

    /// What accounts say, in their order.
    pub fn devices(&self, accounts: &Accounts) -> Vec<DeviceReceipt> {
        let [host, accounts @ ..] = accounts;
        let models = [&self.main].into_iter().chain(&self.draft);
        let devices = models.zip(accounts).map(|(model, account)| DeviceReceipt {
            locked_bytes: model.backend.protection().0,
            ..DeviceReceipt::new(&model.backend.name(), account)
        });
        [DeviceReceipt::new("host", host)].into_iter().chain(devices).collect()
    }

    /// Overwrites everything, reads it back, and gives it up; says for each device what was ever done, and whether all
    /// was zero.
    pub fn close(self) -> (Vec<DeviceReceipt>, bool) {
        let mut devices = self.devices(&self.ledger.accounts);
        let mut clean = !self.ledger.is_dirty();
        let models = [Some(self.main), self.draft].into_iter().flatten();
        for (model, device) in models.zip(&mut devices[HOST + 1..]) {
            clean &= give_back(model.backend, device);
        }
        (devices, clean)
    }
}

impl<B: Backend> Store for Models<B> {
    fn scrub(&mut self, blocks: &[u32], whose: Option<Id>) -> Option<Scrubbed> {
        let before = self.ledger.accounts;
        for &block in blocks {
            self.sealed.get_mut(block as usize).into_iter().for_each(|count| *count = 0);
        }
        let proofs: Vec<_> =
            self.each().map(|(place, model)| (place, model.backend.scrub_blocks(blocks))).collect();
        for (place, proof) in &proofs {
            self.ledger.scrubbed(*place, blocks.len() as u64, proof.as_ref());
        }
        let sum = Scrubbed::sum(proofs.into_iter().filter_map(|(_, proof)| proof));
        self.pending_accounts.extend(whose.map(|id| (id, self.ledger.since(before))));
        sum
    }

    fn copy(&mut self, from: u32, to: u32) {
        self.each().for_each(|(_, model)| model.backend.copy_block(from, to));
    }

    fn seal(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let place = block as usize;
            if place >= self.sealed.len() {
                self.sealed.resize(place + 1, 0);
            }
            if self.sealed[place] == 0 {
                self.seals += 1;
                self.sealed[place] = self.seals;
                self.mask(block, self.seals);
            }
        }
    }

    fn open(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let count = self.sealed.get_mut(block as usize).map_or(0, std::mem::take);
            if count > 0 {
                self.mask(block, count);
            }
        }
    }
}
