//! Grammar masks, computed on threads of their own while the model runs.
//!
//! **No step waits for a grammar**, but for a small share of its own time ([`Masks::wait`]): a sequence whose mask is late
//! is not sampled, and comes again when its mask is there. A grammar whose masks take long is moved to the slow lane, whose
//! thread gives way to those that compute; then it also takes in the tokens that were drawn there, so that the worker does
//! nothing with it at all. In each lane requests take turns, however many choices they have.
//!
//! **Nothing of it is left**: a request is forgotten once none of its grammars is anywhere, and the stack of each thread
//! that had one is overwritten. The worker goes on meanwhile, and the caller is told after that.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::message::Message;
use super::readers::Lane;
use super::scheduler::Id;
use super::thinking::Thinking;
use crate::error::{Error, Result};
use crate::grammar::{Begun, CancellationHandle, GrammarReason, Matcher};
use crate::memory::thread::{self, Depth};
use crate::memory::{Scrubbed, Secret, registers, stack};

/// Time of a processor that a mask may take in the quick lane. JSON's slowest mask in a hundred takes a third of it.
const QUICK: Duration = Duration::from_millis(1);

/// Time of a processor that the masks of all choices of a request may take there in one step: the threads of the quick lane
/// have the priority of those that compute the step.
const QUICK_STEP: Duration = Duration::from_millis(2);

/// What taking in a token may take where the worker does it, by the clock: a hundred times what it takes as a rule. A step
/// may have to do that for all choices of a request.
const QUICK_TOKEN: Duration = Duration::from_micros(250);

/// After one that took longer, so many must be quick in a row before a request is in the quick lane again.
const PENANCE: u32 = 8;

/// Threads: two of the quick lane and one of the slow one.
const THREADS: [Lane; 3] = [Lane::Quick, Lane::Quick, Lane::Slow];

/// How long grammars of a request take; all its choices have one.
#[derive(Debug, Default)]
struct Pace {
    /// Masks that must be quick in a row before it is quick again.
    penance: AtomicU32,
    /// Nanoseconds that its masks took in a step.
    spent: AtomicU64,
    /// Which step that is.
    step: AtomicU64,
}

impl Pace {
    fn note(&self, took: Duration) {
        if took > QUICK {
            self.penance.store(PENANCE, Ordering::Relaxed);
        } else {
            let less = |left: u32| left.checked_sub(1);
            let _ = self.penance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less); // it was quick before
        }
    }

    /// Notes a mask of `step`. Two threads that begin a step at once may lose what one of them adds: it is counted again with
    /// the next mask.
    fn note_mask(&self, took: Duration, step: u64) {
        if self.step.swap(step, Ordering::Relaxed) != step {
            self.spent.store(0, Ordering::Relaxed);
        }
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.spent.fetch_add(took_ns, Ordering::Relaxed);
        let too_much = u128::from(before) + u128::from(took_ns) > QUICK_STEP.as_nanos();
        self.note(if too_much { Duration::MAX } else { took });
    }

    fn is_slow(&self) -> bool {
        self.penance.load(Ordering::Relaxed) > 0
    }
}

/// A reply's grammar, with the mask for its next token.
#[derive(Debug)]
pub struct GrammarState {
    matcher: Matcher,
    mask: Secret<[u32]>,
    /// Whether `mask` is that of the next token.
    fresh: bool,
    /// A token that was drawn, and that the grammar has not taken in.
    pending: Secret<[u32]>,
    pace: Arc<Pace>,
    /// What comes before the grammar.
    before: Option<Before>,
    #[cfg(feature = "testing")]
    tap: Option<(usize, crate::forensics::Gate)>,
}

/// Reasoning that comes before the grammar, whose first mask is there meanwhile.
#[derive(Debug)]
struct Before {
    thinking: Thinking,
    /// The mask of a first token that may begin reasoning or the value; then of the tokens of reasoning. Empty where
    /// every token may follow.
    mask: Secret<[u32]>,
    /// Whether the reply may not end within reasoning.
    holds: bool,
}

impl Before {
    fn fork(&self) -> Self {
        let Self { thinking, mask, holds } = self;
        Self { thinking: thinking.clone(), mask: Secret::copy(mask.expose()), holds: *holds }
    }
}

impl GrammarState {
    /// At the start of a reply.
    pub fn new(begun: Begun) -> Self {
        let Begun { matcher, mask, took, not_enforced: _ } = begun;
        let pace = Arc::new(Pace::default());
        pace.note(took);
        Self {
            matcher,
            mask,
            fresh: true,
            pending: Secret::<[u32]>::with_capacity(1),
            pace,
            before: None,
            #[cfg(feature = "testing")]
            tap: None,
        }
    }

    /// Lets the reply think before it follows the grammar. It `holds` where it may not end before it has.
    pub fn think_before(&mut self, thinking: Thinking, holds: bool) {
        let mut mask = Secret::<[u32]>::default();
        if thinking.is_inside() {
            if holds {
                mask = self.matcher.no_ends();
            }
        } else {
            mask.extend(self.mask.expose());
            let words = mask.expose_mut();
            for &id in thinking.opens() {
                words.get_mut(id as usize / 32).into_iter().for_each(|word| *word |= 1 << (id % 32));
            }
        }
        self.before = Some(Before { thinking, mask, holds });
    }

    /// Another choice's of the same request, at the same place.
    pub fn fork(&self) -> Self {
        Self {
            matcher: self.matcher.fork(),
            mask: Secret::copy(self.mask.expose()),
            fresh: self.fresh,
            pending: Secret::<[u32]>::with_capacity(1),
            pace: self.pace.clone(),
            before: self.before.as_ref().map(Before::fork),
            #[cfg(feature = "testing")]
            tap: None,
        }
    }

    /// What a test asks for: that it stands still at a mask, that it is taken for slow.
    #[cfg(feature = "testing")]
    pub fn tap(&mut self, taps: &crate::testing::taps::Taps) {
        self.tap = taps.mask.clone();
        if taps.slow_grammar {
            self.pace.penance.store(u32::MAX, Ordering::Relaxed); // more penance than there are tokens
        }
    }

    /// Takes in a token that is pending, and computes the mask for the next one; nothing where both are done. `step` counts
    /// steps: what masks of one step take is added up.
    ///
    /// # Errors
    /// Returns the errors of [`Matcher::accept`] and [`Matcher::mask`].
    pub fn look(&mut self, step: u64) -> Result<()> {
        if self.fresh {
            return Ok(());
        }
        #[cfg(feature = "testing")]
        self.pass();
        let began = thread::cpu_time();
        let looked = self.take_pending().and_then(|()| match self.is_over() {
            true => Ok(()),
            false => self.matcher.mask(&mut self.mask),
        });
        self.fresh = looked.is_ok();
        self.pace.note_mask(thread::cpu_time().saturating_sub(began), step);
        looked
    }

    #[cfg(feature = "testing")]
    fn pass(&mut self) {
        match &mut self.tap {
            Some((0, gate)) => {
                gate.pass();
                self.tap = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    fn take_pending(&mut self) -> Result<()> {
        let taken = self.pending.expose().first().map_or(Ok(()), |&token| self.matcher.accept(token));
        self.pending.truncate(0);
        taken
    }

    /// What the last look saw; none where every token may follow.
    pub fn mask(&self) -> Option<&[u32]> {
        match &self.before {
            None => Some(self.mask.expose()),
            Some(before) => Some(before.mask.expose()).filter(|mask| !mask.is_empty()),
        }
    }

    /// Whether the mask for the next token is there.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Takes the token that was drawn: now, or, where that may take long, with the next look.
    ///
    /// # Errors
    /// Returns the errors of [`Matcher::accept`].
    pub fn accept(&mut self, token: u32) -> Result<()> {
        if self.is_thought(token) {
            return Ok(()); // the mask for what follows is there
        }
        self.fresh = false;
        if self.is_slow() {
            self.pending.push(token);
            return Ok(());
        }
        let began = Instant::now();
        let accepted = self.matcher.accept(token);
        if began.elapsed() > QUICK_TOKEN {
            self.pace.note(Duration::MAX);
        }
        accepted
    }

    /// Whether a token that was drawn is of what comes before the grammar. It is taken in.
    fn is_thought(&mut self, token: u32) -> bool {
        let Some(before) = &mut self.before else { return false };
        let was_inside = before.thinking.is_inside();
        let thought = before.thinking.take(token);
        if before.thinking.is_over() {
            self.before = None;
        } else if !was_inside {
            before.mask = if before.holds { self.matcher.no_ends() } else { Secret::default() };
        }
        thought
    }

    /// Whether a token was drawn and not taken in: until then nobody knows whether the reply is over.
    pub fn is_pending(&self) -> bool {
        !self.pending.expose().is_empty()
    }

    /// Whether it takes long: then the worker leaves it to the slow lane.
    pub fn is_slow(&self) -> bool {
        self.pace.is_slow()
    }

    /// How many of these guesses could follow. Where the grammar cannot say, none.
    pub fn allowed(&mut self, guesses: &[u32]) -> usize {
        let mut thinking = self.before.as_ref().map(|before| before.thinking.clone());
        let thought = |token: &&u32| thinking.as_mut().is_some_and(|thinking| thinking.take(**token));
        let before = guesses.iter().take_while(thought).count();
        if before == guesses.len() {
            return before; // to validate nothing would be a look at the grammar, too
        }
        before + self.matcher.validate(&guesses[before..]).unwrap_or(0)
    }

    /// Whether nothing but an end token can follow.
    pub fn is_over(&self) -> bool {
        self.before.is_none() && self.matcher.is_stopped()
    }

    fn lane(&self) -> Lane {
        if self.is_slow() { Lane::Slow } else { Lane::Quick }
    }
}

/// A guide that has looked.
#[derive(Debug)]
pub struct Looked {
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

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// There is work, for one thread or another.
    work: Condvar,
    /// All that the step waits for is there.
    there: Condvar,
    worker: Sender<Message>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that have work in a lane, each once, in the order of their turns.
    turns: [VecDeque<Id>; 2],
    requests: BTreeMap<Id, Ticket>,
    /// The step at hand, and how many of its masks are missing.
    step: u64,
    missing: usize,
    /// Whether the worker knows that it has to look, or will in any case.
    told: bool,
    closed: bool,
}

/// What the threads have of a request.
#[derive(Debug, Default)]
struct Ticket {
    waiting: [VecDeque<Look>; 2],
    /// Guides that nobody needs any more.
    #[expect(clippy::vec_box, reason = "they come as boxes, and go without being copied")]
    spent: [Vec<Box<GrammarState>>; 2],
    looked: Vec<Looked>,
    /// What ends the looks in progress; and how many there are, drops included.
    cancel: Vec<(Id, CancellationHandle)>,
    running: usize,
    /// Threads whose stacks it was on since they were last overwritten, as bits.
    touched: u8,
    /// The worker is to be told once nothing of it is left.
    ending: bool,
    proof: Option<Scrubbed>,
}

/// A guide that is to look.
#[derive(Debug)]
struct Look {
    id: Id,
    guide: Box<GrammarState>,
    /// The step that could do with its mask.
    step: Option<u64>,
}

/// What a thread does next.
enum Work {
    /// With the number of the step at hand.
    Look(Id, Look, u64),
    #[expect(clippy::vec_box, reason = "as above")]
    Drop(Id, Vec<Box<GrammarState>>),
    /// Overwrite its stack: a request ends that was on it.
    Clean,
}

impl Masks {
    /// Starts them. They tell `worker` when there is something for it.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(worker: Sender<Message>) -> Result<Self> {
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
        state.told = true; // the step ends with `looked`
    }

    /// Has guides of sequences look, each with its request and its sequence. `awaited` where the step at hand could do with
    /// their masks.
    pub fn look(&self, guides: impl IntoIterator<Item = (Id, Id, Box<GrammarState>)>, awaited: bool) {
        let mut state = self.queue.lock();
        let step = awaited.then_some(state.step);
        for (request, id, guide) in guides {
            state.missing += usize::from(awaited);
            let lane = guide.lane();
            state.ticket(request).waiting[lane as usize].push_back(Look { id, guide, step });
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
    pub fn looked(&self) -> Vec<Looked> {
        let mut state = self.queue.lock();
        state.told = false;
        state.requests.values_mut().flat_map(|ticket| std::mem::take(&mut ticket.looked)).collect()
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

    /// Ends whatever is done for `request`. When nothing of it is left here, the worker is told: [`Message::Forgotten`].
    pub fn forget(&self, request: Id) {
        let mut state = self.queue.lock();
        let ticket = state.ticket(request);
        ticket.ending = true;
        ticket.cancel.iter().for_each(|(_, look)| look.cancel());
        let waiting = ticket.waiting.iter_mut().flat_map(std::mem::take).map(|look| look.guide);
        let looked = std::mem::take(&mut ticket.looked).into_iter().map(|looked| looked.guide);
        for guide in waiting.collect::<Vec<_>>().into_iter().chain(looked) {
            state.give_up(request, guide);
        }
        if state.gone() == Some(request) {
            self.queue.tell(&mut state, request);
        }
        drop(state);
        self.queue.work.notify_all();
    }
}

impl State {
    fn ticket(&mut self, request: Id) -> &mut Ticket {
        self.requests.entry(request).or_default()
    }

    /// A request has work in a lane.
    fn take_place(&mut self, request: Id, lane: Lane) {
        let turns = &mut self.turns[lane as usize];
        if !turns.contains(&request) {
            turns.push_back(request);
        }
    }

    fn give_up(&mut self, request: Id, guide: Box<GrammarState>) {
        let lane = guide.lane();
        self.ticket(request).spent[lane as usize].push(guide);
        self.take_place(request, lane);
    }

    /// A request that ends and of which nothing is left, on stacks neither.
    fn gone(&self) -> Option<Id> {
        self.requests.iter().find(|(_, ticket)| ticket.is_gone() && ticket.touched == 0).map(|(id, _)| *id)
    }

    /// A thread's stack was overwritten. The proof goes into one account: that of a request that ends, if there is one.
    fn cleaned(&mut self, bit: u8, mut proof: Option<Scrubbed>) {
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
            return Some(Work::Look(request, look, self.step));
        }
        None
    }
}

impl Ticket {
    /// Whether it ends, and nothing of it is left but on stacks.
    fn is_gone(&self) -> bool {
        let idle = self.waiting.iter().all(VecDeque::is_empty) && self.spent.iter().all(Vec::is_empty);
        self.ending && idle && self.running == 0
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn serve(&self, place: usize, lane: Lane) {
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
            Work::Look(request, Look { id, mut guide, step }, now) => {
                let result = catch_unwind(AssertUnwindSafe(|| guide.look(now))).unwrap_or_else(|_| {
                    let _ = self.worker.send(Message::Poison); // a worker that is gone has nothing left
                    Err(GrammarReason::Failed.into())
                });
                self.put_back(request, Looked { id, guide, result }, step);
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
            self.tell(state, request);
        }
        if state.requests.values().any(Ticket::is_gone) {
            self.work.notify_all(); // threads that have it on their stacks
        }
    }

    fn put_back(&self, request: Id, looked: Looked, step: Option<u64>) {
        let mut state = self.lock();
        let ticket = state.ticket(request);
        ticket.cancel.retain(|(id, _)| *id != looked.id);
        if ticket.ending {
            state.give_up(request, looked.guide);
            return self.work.notify_all();
        }
        ticket.looked.push(looked);
        if step == Some(state.step) {
            state.missing = state.missing.saturating_sub(1);
            if state.missing == 0 {
                self.there.notify_all();
            }
        }
        if !std::mem::replace(&mut state.told, true) {
            let _ = self.worker.send(Message::Looked); // as above
        }
    }

    /// Tells the worker that nothing of a request is left.
    fn tell(&self, state: &mut State, request: Id) {
        let proof = state.requests.remove(&request).and_then(|ticket| ticket.proof);
        let _ = self.worker.send(Message::Forgotten(request, proof)); // as above
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
