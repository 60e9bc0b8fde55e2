//! The threads on which requests are read, and the door through which requests come to them.
//!
//! **Order.** What depends on when a request came is decided under one lock, on the caller's thread, before anything of
//! the request is read: its number, its place in the scheduler's order, whether there is room, when its time began. So it
//! does not matter how long reading takes, or who is read first.
//!
//! **Nobody waits for another's reading.** A request that finds all threads busy gets a new one, up to [`MOST`] in each
//! lane. What may take long (grammars, large prompts) is read in a lane of its own, by threads that give way to those
//! that compute: see [`thread::give_way`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use super::intake::IntakeMessage;
use super::scheduler::Id;
use super::status::Shared;
use crate::clock::Clock;
use crate::error::{Error, Result, Returned};
use crate::memory::registers;
use crate::memory::thread::{self, Depth};
use crate::memory::{Scrubbed, stack};

/// Threads of a lane.
const MOST: usize = 16;

/// When requests came that come in together, and in which places.
#[derive(Debug)]
pub struct Arrived {
    /// Since then their time runs.
    pub at: Instant,
    /// When that was, on the calendar.
    pub began: SystemTime,
    /// Tokens that the session had computed: where the scheduler's order begins for them.
    pub clock: u64,
    /// The count in the id of the first of them, whatever becomes of it.
    pub first: u64,
    /// The scheduler's name for the first of them; the others follow.
    pub first_id: Id,
    /// Whether there is room for them. Then it is reserved until they end or are refused.
    pub room: Result<()>,
}

/// Hands on what was read, or refuses it, once nothing of it is on the stack any more.
pub type Notify = Box<dyn FnOnce(Scrubbed)>;

/// Reads what callers ask for.
pub type Read = dyn Fn(IntakeMessage, Arrived) -> Notify + Send + Sync;

/// What callers ask, on its way to the threads that read it.
pub struct Readers {
    state: Arc<(Mutex<State>, [Condvar; 2])>,
    read: Arc<Read>,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    max_requests: usize,
}

/// Which threads read a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What is short.
    Quick,
    /// What may take long.
    Slow,
}

#[derive(Default)]
struct State {
    lanes: [Places; 2],
    closed: bool,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Places {
    waiting: VecDeque<(IntakeMessage, Arrived)>,
    threads: usize,
    /// How many of them read.
    busy: usize,
}

impl Readers {
    /// Starts a thread of each lane, so that a first request of either kind takes no longer than later ones.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(
        read: impl Fn(IntakeMessage, Arrived) -> Notify + Send + Sync + 'static,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        max_requests: usize,
    ) -> Result<Self> {
        let this = Self { state: Arc::default(), read: Arc::new(read), shared, clock, max_requests };
        let mut state = this.lock();
        this.spawn(Lane::Quick, &mut state)?;
        this.spawn(Lane::Slow, &mut state)?;
        drop(state);
        Ok(this)
    }

    /// Has a thread of each lane read what requests are made of, and waits for it. Memory that a thread has used, and code that
    /// has run, are faster the second time: without this a request would tell from its own time whether somebody else had
    /// used the lane before.
    ///
    /// # Errors
    /// Returns the errors of [`Readers::take`].
    pub fn rehearse(&self) -> Result<()> {
        for lane in [Lane::Quick, Lane::Slow] {
            let (done, wait) = sync_channel(1);
            self.take(IntakeMessage::Rehearse(lane, done))?;
            wait.recv().map_err(|_| Error::Closed)?;
        }
        Ok(())
    }

    /// Takes in what a caller asks, and returns before it is read.
    ///
    /// # Errors
    /// [`Error::Closed`]: the session's handle is gone.
    pub fn take(&self, ask: IntakeMessage) -> Result<()> {
        let lane = ask.lane();
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let arrived = self.arrived(ask.requests());
        let places = &mut state.lanes[lane as usize];
        places.waiting.push_back((ask, arrived));
        if places.waiting.len() > places.threads - places.busy && places.threads < MOST {
            // one that the system refuses is done without: there is one, and it comes to all
            let _ = self.spawn(lane, &mut state);
        }
        drop(state);
        self.state.1[lane as usize].notify_one();
        // the caller's thread waits from here on, perhaps with what it moved last: a core dump has its registers, too
        registers::clear();
        Ok(())
    }

    /// Reads what has come, and takes no more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.state.1.iter().for_each(Condvar::notify_all);
        // a panic was caught where the request was read
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }

    /// Notes the place of `count` requests, and reserves room for them. Called while the state is locked.
    fn arrived(&self, count: usize) -> Arrived {
        let waiting = self.shared.requests.load(Ordering::SeqCst);
        let room = match waiting + count <= self.max_requests {
            true => Ok(()),
            false => Err(Error::Busy { waiting, limit: self.max_requests, requests: Returned::default() }),
        };
        if room.is_ok() {
            // others only take away, so there is still room
            self.shared.requests.fetch_add(count, Ordering::SeqCst);
        }
        Arrived {
            at: self.clock.now(),
            began: self.clock.wall(),
            clock: self.shared.tokens.load(Ordering::SeqCst),
            first: self.shared.next_ids(count),
            first_id: self.shared.new_ids(count),
            room,
        }
    }

    fn spawn(&self, lane: Lane, state: &mut State) -> Result<()> {
        let (shared, read) = (self.state.clone(), self.read.clone());
        let run = move || serve(lane, &shared, &*read);
        let thread = thread::spawn("amnesic-reader", Depth::Parsers, run).map_err(Error::Thread)?;
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        state.lanes[lane as usize].threads += 1;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread of a lane: reads one request after another, until the door is closed and nobody waits. Of those that were
/// started for a crowd one stays.
fn serve(lane: Lane, (state, changed): &(Mutex<State>, [Condvar; 2]), read: &Read) {
    if lane == Lane::Slow {
        thread::give_way();
    }
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut held = lock();
    loop {
        let places = &mut held.lanes[lane as usize];
        if let Some((ask, arrived)) = places.waiting.pop_front() {
            places.busy += 1;
            drop(held);
            let notify = read(ask, arrived);
            // from here, so that the frames of reading are below
            notify(stack::scrub_deep());
            stack::tidy(); // it may wait for the lock, too
            registers::clear(); // a thread that waits keeps them, and a core dump has them
            held = lock();
            held.lanes[lane as usize].busy -= 1;
        } else if places.threads - places.busy > 1 || held.closed {
            held.lanes[lane as usize].threads -= 1;
            return;
        } else {
            stack::tidy();
            held = changed[lane as usize].wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.close(); // a session that failed to open leaves no thread
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").field("threads", &self.lock().threads.len()).finish_non_exhaustive()
    }
}
