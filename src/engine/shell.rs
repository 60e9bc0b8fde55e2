//! What the thread of a worker does whatever its work is: it waits, catches panics, poisons the session, issues receipts, shows
//! the load, fails everything where everything must go, and keeps its stack clean while it waits.
//!
//! A worker owns the device of a session and all that becomes of requests there. One generates ([`worker`](super::worker)), one
//! embeds and scores ([`encode::worker`](super::encode::worker)). What a message means to it and what it does in a step is its
//! own ([`Work`]); everything else is here, once. Never will be here: what a request is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError, atomic::Ordering};
use std::thread::JoinHandle;

use super::message::WorkerMessage;
use super::receipts::{About, Receipts};
use super::scheduler::Key;
use super::status::{Load, Shared};
use crate::backend::{Backend, Counters};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::ledger::{self, Accounts, HOST, Ledger, NotCovered};
use crate::memory::poison::PoisonReason;
use crate::memory::thread::{Depth, spawn};
use crate::memory::{Scrubbed, stack};
use crate::privacy::receipt::{DeviceReceipt, ScrubReceipt};

/// Starts the thread of a worker, which serves until the session's handle is gone. Then it overwrites and gives up everything.
///
/// # Errors
/// The system has no thread to give.
pub fn start<W: Work + Send + 'static>(
    worker: W,
    messages: Receiver<WorkerMessage>,
) -> Result<JoinHandle<ScrubReceipt>> {
    spawn("amnesic-worker", Depth::Kernels, move || worker.run(&messages)).map_err(Error::Thread)
}

/// What every worker holds.
pub struct Shell {
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    receipts: Receipts,
    /// Whether a scrub or a receipt left something on this thread's stack since that was cleaned.
    stained: bool,
}

impl Shell {
    /// The shell of a worker that has had nothing to do yet.
    pub fn new(shared: Arc<Shared>, clock: Arc<dyn Clock>, receipts: Receipts) -> Self {
        Self { shared, clock, receipts, stained: false }
    }

    /// Shows what was computed so far.
    pub fn show_counters(&self, counters: Counters) {
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// A request of a worker, as far as it has to be told its end.
pub trait Answer {
    /// What was overwritten on its account.
    fn accounts(&mut self) -> &mut Accounts;

    /// It ends with this error.
    fn fail(&mut self, error: Error);

    /// What its receipt says beside what was overwritten. It lets go of all that others hold with it.
    fn about(&mut self) -> About;

    /// Tells its caller. Only once nothing of the request is left anywhere.
    fn notify(self, receipt: ScrubReceipt);
}

/// What a worker does, and what it holds.
pub trait Work: Sized {
    /// A request that was accepted and whose caller waits.
    type Request: Answer;

    fn shell(&self) -> &Shell;

    fn shell_mut(&mut self) -> &mut Shell;

    /// Where all that is overwritten is entered.
    fn ledger(&mut self) -> &mut Ledger;

    /// The next message; none when a step is due. Without work it sleeps.
    fn next(&mut self, messages: &Receiver<WorkerMessage>) -> Option<WorkerMessage>;

    /// Takes in a message that is not for every worker alike.
    fn take(&mut self, message: WorkerMessage);

    /// Computes, and ends who is done. Implementations are not inlined: the frame of [`Work::run`] stays while the worker waits,
    /// and nothing cleans it.
    fn run_step(&mut self);

    /// What is kept under a key is of no use any more.
    fn forget(&mut self, key: Key);

    /// Whether a caller waits for the end of a request.
    fn has_requests(&self) -> bool;

    fn load(&self) -> Load;

    /// Whether the device failed.
    fn failed(&self) -> bool;

    /// What accounts say of each device, in their order.
    fn devices(&self, accounts: &Accounts) -> Vec<DeviceReceipt>;

    /// What is not covered of its memory and of its requests' way to it.
    fn not_covered(&self) -> Vec<NotCovered>;

    /// Overwrites all memory at once and lets all requests go, whose callers are still to be told.
    fn give_up(&mut self) -> Vec<Self::Request>;

    /// Ends all requests, since the session closes, and overwrites what was written since the last scrub.
    fn end_all(&mut self);

    /// Overwrites everything, reads it back, and gives it up; says for each device what was ever done, and whether all was zero.
    fn give_back(self) -> (Shell, Vec<DeviceReceipt>, bool);

    /// Serves until the session's handle is gone, then overwrites and gives up everything.
    fn run(mut self, messages: &Receiver<WorkerMessage>) -> ScrubReceipt {
        loop {
            match self.next(messages) {
                Some(WorkerMessage::Close) => return self.close(messages),
                Some(message) => self.guarded(|this| this.handle(message)),
                None => self.guarded(Self::run_step),
            }
            let unscrubbed = self.shell().shared.poison.reason().is_some_and(PoisonReason::is_unscrubbed);
            if unscrubbed && self.has_requests() {
                self.fail_all();
            }
            self.show_load();
            // what scrubs and receipts leave on the stack holds no content, but it would hide some that is left
            if std::mem::take(&mut self.shell_mut().stained) {
                let _ = stack::scrub_below();
            }
        }
    }

    /// Runs `act`; a panic in it scrubs everything, fails every request and poisons the session.
    fn guarded(&mut self, act: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_err() {
            self.shell().shared.poison.set(PoisonReason::Panic);
            self.fail_all();
        }
    }

    /// It is not inlined, like [`Work::run_step`].
    #[inline(never)]
    fn handle(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::Over(requests, proof) => {
                let account = self.enter(proof.as_ref());
                requests.into_iter().for_each(|about| drop(self.receipt(about, &account)));
            }
            WorkerMessage::Forget(key, about, done) => {
                let before = self.ledger().accounts;
                self.forget(key);
                let account = self.ledger().since(before);
                about.into_iter().for_each(|about| drop(self.receipt(about, &account)));
                self.show_load();
                let _ = done.map(|done| done.send(())); // one who does not wait any more knows why
            }
            WorkerMessage::Poison => {
                self.shell().shared.poison.set(PoisonReason::Panic);
                self.fail_all();
            }
            WorkerMessage::Close => {} // `run` ends with it
            message => self.take(message),
        }
    }

    /// Enters what another thread overwrote of the host's memory; an account of that alone.
    fn enter(&mut self, proof: Option<&Scrubbed>) -> Accounts {
        let before = self.ledger().accounts;
        self.ledger().scrubbed(HOST, 1, proof);
        self.ledger().since(before)
    }

    /// Poisons the session if something that was read back was not zero.
    fn check_scrubs(&mut self) {
        if self.ledger().is_dirty() {
            self.shell().shared.poison.set(self.poison_reason());
        }
    }

    /// Reason to poison the session after a failed scrub check.
    fn poison_reason(&self) -> PoisonReason {
        match self.failed() {
            true => PoisonReason::DeviceFailed,
            false => PoisonReason::ScrubFailed,
        }
    }

    /// Overwrites all memory at once, and fails every request.
    fn fail_all(&mut self) {
        if self.failed() {
            self.shell().shared.poison.set(PoisonReason::DeviceFailed);
        }
        let reason = self.shell().shared.poison.reason().unwrap_or(PoisonReason::Panic);
        let before = self.ledger().accounts;
        let requests = self.give_up();
        let account = self.ledger().since(before);
        self.shell_mut().stained = true;
        for mut request in requests {
            ledger::add(request.accounts(), &account);
            request.fail(Error::Poisoned(reason));
            self.notify(request);
        }
    }

    /// Tells a caller once all of a request was overwritten: an error, where not all of that was seen to be zero.
    fn notify_scrubbed(&mut self, mut request: Self::Request) {
        let reason = self.shell().shared.poison.reason().filter(|reason| reason.is_unscrubbed());
        reason.into_iter().for_each(|reason| request.fail(Error::Poisoned(reason)));
        self.notify(request);
    }

    /// Issues a request's receipt and tells its caller.
    fn notify(&mut self, mut request: Self::Request) {
        let (about, account) = (request.about(), *request.accounts());
        let receipt = self.receipt(about, &account);
        self.shell().shared.requests.fetch_sub(1, Ordering::SeqCst);
        self.show_load();
        request.notify(receipt);
    }

    fn receipt(&mut self, about: About, account: &Accounts) -> ScrubReceipt {
        self.ledger().requests += u64::from(about.is_request());
        let mut devices = self.devices(account);
        devices.retain(|device| device.regions > 0);
        let gaps = [self.not_covered(), ledger::gaps_of_process()].concat();
        let shell = self.shell_mut();
        shell.stained = true;
        shell.receipts.issue(about, devices, gaps)
    }

    /// So that whoever is told something sees a load from after it.
    fn show_load(&self) {
        *self.shell().shared.load.lock().unwrap_or_else(PoisonError::into_inner) = self.load();
    }

    fn close(mut self, messages: &Receiver<WorkerMessage>) -> ScrubReceipt {
        // of conversations that outlive the session's handle
        while let Ok(message) = messages.try_recv() {
            if matches!(message, WorkerMessage::Over(..) | WorkerMessage::Forget(..)) {
                self.guarded(|this| this.handle(message));
            }
        }
        self.end_all();
        let (gaps, requests, reason) = (self.not_covered(), self.ledger().requests, self.poison_reason());
        let (Shell { shared, receipts, .. }, devices, clean) = self.give_back();
        if !clean {
            shared.poison.set(reason);
        }
        let error = shared.poison.reason().map(|_| ErrorKind::Poisoned);
        receipts.close(requests, devices, [gaps, ledger::gaps_of_process()].concat(), error)
    }
}

/// Gives a backend's memory back, and adds to `device` what that overwrote; whether all of it was zero afterwards.
pub fn give_back<B: Backend>(backend: B, device: &mut DeviceReceipt) -> bool {
    let Some(closed) = backend.close() else { return true };
    device.regions += closed.regions;
    device.bytes += closed.scrubbed.bytes();
    device.samples += closed.scrubbed.samples();
    device.verified_bytes = closed.verified;
    closed.verified == closed.scrubbed.bytes() && !closed.scrubbed.is_dirty()
}
