//! Grammar masks, computed on threads of their own while the model runs.
//!
//! **No step waits for a grammar**, but for a small share of its own time ([`Masks::wait`]): a sequence whose mask is late
//! is not sampled, and comes again when its mask is there. A grammar whose masks take long is moved to the slow lane, whose
//! thread gives way to those that compute; then it also takes in the tokens that were drawn there, so that the worker does
//! nothing with it at all. In each lane requests take turns, however many choices they have.
//!
//! **Nothing of it is left**: a request is forgotten once none of its grammars is anywhere, and the stack of each thread
//! that had one is overwritten. The worker goes on meanwhile, and the caller is told after that.
//!
//! [`state`] has a reply's grammar, [`queue`] what the threads do.

mod queue;
mod state;

use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::queue::{MaskJob, Queue};
use super::message::WorkerMessage;
use super::readers::Lane;
use super::scheduler::Id;
use crate::error::{Error, Result};
use crate::memory::thread::{self, Depth};

pub use self::state::GrammarState;

/// Threads: two of the quick lane and one of the slow one.
const THREADS: [Lane; 3] = [Lane::Quick, Lane::Quick, Lane::Slow];

/// A guide that has looked.
#[derive(Debug)]
pub struct FinishedMask {
    pub id: Id,
    pub guide: Box<GrammarState>,
    pub result: Result<()>,
}

/// The threads. They end when this drops.
#[derive(Debug)]
pub struct Masks {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Masks {
    /// Starts them. They tell `worker` when there is something for it.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(worker: Sender<WorkerMessage>) -> Result<Self> {
        let (work, there) = (Condvar::new(), Condvar::new());
        let queue = Arc::new(Queue { state: Mutex::default(), work, there, worker });
        let mut this = Self { queue, threads: Vec::new() };
        for (place, lane) in THREADS.into_iter().enumerate() {
            let queue = this.queue.clone();
            let run = move || queue.serve(place, lane);
            this.threads.push(thread::spawn("amnesic-masks", Depth::Kernels, run).map_err(Error::Thread)?);
        }
        Ok(this)
    }

    /// A step begins: [`Masks::wait`] waits for what is awaited from now on.
    pub fn begin_step(&self) {
        let mut state = self.queue.lock();
        state.step += 1;
        state.missing = 0;
        state.told = true; // the step ends with `finished`
    }

    /// Has guides of sequences look, each with its request and its sequence. `awaited` where the step at hand could do with
    /// their masks.
    pub fn start_masks(&self, guides: impl IntoIterator<Item = (Id, Id, Box<GrammarState>)>, awaited: bool) {
        let mut state = self.queue.lock();
        let step = awaited.then_some(state.step);
        for (request, id, guide) in guides {
            state.missing += usize::from(awaited);
            let lane = guide.lane();
            state.ticket(request).waiting[lane as usize].push_back(MaskJob { id, guide, step });
            state.take_place(request, lane);
        }
        drop(state);
        self.queue.work.notify_all();
    }

    /// Waits until what the step awaits is there, but no longer than `most`.
    pub fn wait(&self, most: Duration) {
        let state = self.queue.lock();
        let waited = self.queue.there.wait_timeout_while(state, most, |state| state.missing > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The guides that have looked.
    pub fn finished(&self) -> Vec<FinishedMask> {
        let mut state = self.queue.lock();
        state.told = false;
        state.requests.values_mut().flat_map(|ticket| std::mem::take(&mut ticket.finished)).collect()
    }

    /// The number of the step at hand.
    pub fn step(&self) -> u64 {
        self.queue.lock().step
    }

    /// Guides of `request` are not needed any more.
    pub fn release(&self, request: Id, guides: impl IntoIterator<Item = Box<GrammarState>>) {
        let mut state = self.queue.lock();
        for guide in guides {
            state.give_up(request, guide);
        }
        drop(state);
        self.queue.work.notify_all();
    }

    /// Ends whatever is done for `request`. When nothing of it is left here, the worker is told: [`WorkerMessage::Forgotten`].
    pub fn forget(&self, request: Id) {
        let mut state = self.queue.lock();
        let ticket = state.ticket(request);
        ticket.ending = true;
        ticket.cancel.iter().for_each(|(_, look)| look.cancel());
        let waiting = ticket.waiting.iter_mut().flat_map(std::mem::take).map(|look| look.guide);
        let finished = std::mem::take(&mut ticket.finished).into_iter().map(|finished| finished.guide);
        for guide in waiting.collect::<Vec<_>>().into_iter().chain(finished) {
            state.give_up(request, guide);
        }
        if state.gone() == Some(request) {
            self.queue.notify(&mut state, request);
        }
        drop(state);
        self.queue.work.notify_all();
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.closed = true;
        let running = state.requests.values().flat_map(|ticket| &ticket.cancel);
        running.for_each(|(_, look)| look.cancel());
        drop(state);
        self.queue.work.notify_all();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        self.queue.lock().requests.clear();
    }
}
