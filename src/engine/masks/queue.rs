//! The queue of the threads: requests that have work in a lane, and what becomes of them.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{FinishedMask, GrammarState};
use crate::engine::message::WorkerMessage;
use crate::engine::readers::Lane;
use crate::engine::scheduler::Id;
use crate::grammar::{CancellationHandle, GrammarReason};
use crate::memory::{Scrubbed, registers, stack, thread};

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) state: Mutex<State>,
    /// There is work, for one thread or another.
    pub(super) work: Condvar,
    /// All that the step waits for is there.
    pub(super) there: Condvar,
    pub(super) worker: Sender<WorkerMessage>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Those that have work in a lane, each once, in the order of their turns.
    turns: [VecDeque<Id>; 2],
    pub(super) requests: BTreeMap<Id, Ticket>,
    /// The step at hand, and how many of its masks are missing.
    pub(super) step: u64,
    pub(super) missing: usize,
    /// Whether the worker knows that it has to look, or will in any case.
    pub(super) told: bool,
    pub(super) closed: bool,
}

/// What the threads have of a request.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    pub(super) waiting: [VecDeque<MaskJob>; 2],
    /// Guides that nobody needs any more.
    #[expect(clippy::vec_box, reason = "they come as boxes, and go without being copied")]
    spent: [Vec<Box<GrammarState>>; 2],
    pub(super) finished: Vec<FinishedMask>,
    /// What ends the looks in progress; and how many there are, drops included.
    pub(super) cancel: Vec<(Id, CancellationHandle)>,
    running: usize,
    /// Threads whose stacks it was on since they were last overwritten, as bits.
    touched: u8,
    /// The worker is to be told once nothing of it is left.
    pub(super) ending: bool,
    proof: Option<Scrubbed>,
}

/// A guide that is to look.
#[derive(Debug)]
pub(super) struct MaskJob {
    pub(super) id: Id,
    pub(super) guide: Box<GrammarState>,
    /// The step that could do with its mask.
    pub(super) step: Option<u64>,
}

/// What a thread does next.
enum Work {
    /// With the number of the step at hand.
    Mask(Id, MaskJob, u64),
    #[expect(clippy::vec_box, reason = "as above")]
    Drop(Id, Vec<Box<GrammarState>>),
    /// Overwrite its stack: a request ends that was on it.
    Clean,
}

impl State {
    pub(super) fn ticket(&mut self, request: Id) -> &mut Ticket {
        self.requests.entry(request).or_default()
    }

    /// A request has work in a lane.
    pub(super) fn take_place(&mut self, request: Id, lane: Lane) {
        let turns = &mut self.turns[lane as usize];
        if !turns.contains(&request) {
            turns.push_back(request);
        }
    }

    pub(super) fn give_up(&mut self, request: Id, guide: Box<GrammarState>) {
        let lane = guide.lane();
        self.ticket(request).spent[lane as usize].push(guide);
        self.take_place(request, lane);
    }

    /// A request that ends and of which nothing is left, on stacks neither.
    pub(super) fn gone(&self) -> Option<Id> {
        self.requests.iter().find(|(_, ticket)| ticket.is_gone() && ticket.touched == 0).map(|(id, _)| *id)
    }

    /// A thread's stack was overwritten. The proof goes into one account: that of a request that ends, if there is one.
    pub(super) fn cleaned(&mut self, bit: u8, mut proof: Option<Scrubbed>) {
        for ending in [true, false] {
            let touched = |ticket: &&mut Ticket| ticket.ending == ending && ticket.touched & bit != 0;
            for ticket in self.requests.values_mut().filter(touched) {
                ticket.touched &= !bit;
                if let Some(proof) = proof.take() {
                    ticket.proof = Scrubbed::sum(ticket.proof.take().into_iter().chain([proof]));
                }
            }
        }
    }

    /// What a thread does next: what others wait for, then a piece of work of each request in turn.
    fn next(&mut self, place: usize, lane: Lane) -> Option<Work> {
        let bit = 1 << place;
        if self.requests.values().any(|ticket| ticket.is_gone() && ticket.touched & bit != 0) {
            return Some(Work::Clean);
        }
        let turns = &mut self.turns[lane as usize];
        while let Some(request) = turns.pop_front() {
            let Some(ticket) = self.requests.get_mut(&request) else { continue };
            let spent = std::mem::take(&mut ticket.spent[lane as usize]);
            let look = if spent.is_empty() { ticket.waiting[lane as usize].pop_front() } else { None };
            if !ticket.waiting[lane as usize].is_empty() {
                turns.push_back(request);
            }
            if spent.is_empty() && look.is_none() {
                continue; // it was given up in the meantime
            }
            ticket.running += 1;
            ticket.touched |= bit;
            let Some(look) = look else { return Some(Work::Drop(request, spent)) };
            ticket.cancel.extend(look.guide.matcher.canceller().map(|cancel| (look.id, cancel)));
            return Some(Work::Mask(request, look, self.step));
        }
        None
    }
}

impl Ticket {
    /// Whether it ends, and nothing of it is left but on stacks.
    pub(super) fn is_gone(&self) -> bool {
        let idle = self.waiting.iter().all(VecDeque::is_empty) && self.spent.iter().all(Vec::is_empty);
        self.ending && idle && self.running == 0
    }
}

impl Queue {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    pub(super) fn serve(&self, place: usize, lane: Lane) {
        if lane == Lane::Slow {
            thread::give_way();
        }
        let _ = stack::scrub_below(); // of how the thread began: it would hide what is left
        let mut state = self.lock();
        loop {
            match state.next(place, lane) {
                _ if state.closed => return,
                Some(work) => {
                    drop(state);
                    let clean = matches!(work, Work::Clean);
                    let request = self.work(work);
                    // from here, so that the frames of the work are below; a slow thread is clean after each piece: who
                    // ends does not wait for what it does for others
                    // not `then(stack::scrub_below)`: it must be seen where it is called
                    let proof = if clean || lane == Lane::Slow { Some(stack::scrub_below()) } else { None };
                    // a thread that waits keeps its registers, and a core dump has them
                    registers::clear();
                    state = self.lock();
                    self.done(&mut state, place, request, proof);
                }
                None => {
                    stack::tidy();
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Does a piece of work; says for which request, if for one.
    #[inline(never)]
    fn work(&self, work: Work) -> Option<Id> {
        match work {
            Work::Mask(request, MaskJob { id, mut guide, step }, now) => {
                let result =
                    catch_unwind(AssertUnwindSafe(|| guide.compute_mask(now))).unwrap_or_else(|_| {
                        let _ = self.worker.send(WorkerMessage::Poison); // a worker that is gone has nothing left
                        Err(GrammarReason::Failed.into())
                    });
                self.put_back(request, FinishedMask { id, guide, result }, step);
                Some(request)
            }
            Work::Drop(request, guides) => {
                drop(guides);
                Some(request)
            }
            Work::Clean => None,
        }
    }

    fn done(&self, state: &mut State, place: usize, request: Option<Id>, proof: Option<Scrubbed>) {
        if let Some(ticket) = request.and_then(|request| state.requests.get_mut(&request)) {
            ticket.running -= 1;
        }
        if proof.is_some() {
            state.cleaned(1 << place, proof);
        }
        while let Some(request) = state.gone() {
            self.notify(state, request);
        }
        if state.requests.values().any(Ticket::is_gone) {
            self.work.notify_all(); // threads that have it on their stacks
        }
    }

    fn put_back(&self, request: Id, finished: FinishedMask, step: Option<u64>) {
        let mut state = self.lock();
        let ticket = state.ticket(request);
        ticket.cancel.retain(|(id, _)| *id != finished.id);
        if ticket.ending {
            state.give_up(request, finished.guide);
            return self.work.notify_all();
        }
        ticket.finished.push(finished);
        if step == Some(state.step) {
            state.missing = state.missing.saturating_sub(1);
            if state.missing == 0 {
                self.there.notify_all();
            }
        }
        if !std::mem::replace(&mut state.told, true) {
            let _ = self.worker.send(WorkerMessage::MasksFinished); // as above
        }
    }

    /// Tells the worker that nothing of a request is left.
    pub(super) fn notify(&self, state: &mut State, request: Id) {
        let proof = state.requests.remove(&request).and_then(|ticket| ticket.proof);
        let _ = self.worker.send(WorkerMessage::Forgotten(request, proof)); // as above
    }
}
