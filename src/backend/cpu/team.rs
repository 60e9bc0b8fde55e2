//! A team of threads for one backend.
//!
//! A job is cut into parts in a fixed way, each part computes outputs of its own, and whoever is free takes the next
//! part: so results never depend on timing, and a member that the system has put aside holds nobody up. (With one
//! part for each member and a busy machine, every job waited for the member that was not running: decoding a
//! small model with two threads was 26 times slower than with one.)
//!
//! Members spin for a moment after a job, since the next one comes within microseconds while a request runs, then
//! park: an idle session burns no CPU.
#![expect(unsafe_code, reason = "lends a borrowed closure to threads that are waited for before it ends")]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::memory::registers;
use crate::memory::thread::{Depth, spawn};

/// Looks at the ticket this often before parking: some tens of microseconds.
const SPINS: usize = 4_000;

/// This thread's share of a job: part `index` of `count`.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub index: usize,
    pub count: usize,
}

impl Part {
    /// The contiguous range of `0..total` that falls to this part, in whole units.
    pub fn range(self, total: usize, unit: usize) -> std::ops::Range<usize> {
        let units = total.div_ceil(unit);
        let edge = |index: usize| (units * index / self.count * unit).min(total);
        edge(self.index)..edge(self.index + 1)
    }

    /// The part that this one takes of piece `turn` of a job of several: what does not divide evenly falls on all threads.
    pub fn turned(self, turn: usize) -> Self {
        Self { index: (self.index + turn) % self.count, ..self }
    }
}

/// What a thread must know of a round, in one word, so that it is read and taken from at once.
///
/// From the low bits: the next part to take (15), how many there are (15), whether each thread must take the part with
/// its own number (1, then an unused one), the round (32).
#[derive(Clone, Copy)]
struct Ticket(u64);

impl Ticket {
    const MAX_PARTS: usize = (1 << 15) - 1;

    fn new(round: u32, count: usize, each: bool) -> Self {
        assert!(count <= Self::MAX_PARTS, "too many parts");
        Self(u64::from(round) << 32 | u64::from(each) << 30 | (count as u64) << 15)
    }

    fn round(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn each(self) -> bool {
        self.0 >> 30 & 1 == 1
    }

    fn count(self) -> usize {
        (self.0 >> 15) as usize & Self::MAX_PARTS
    }

    fn next(self) -> usize {
        self.0 as usize & Self::MAX_PARTS
    }
}

type Job = *const (dyn Fn(Part) + Sync);

struct Shared {
    /// The job of the round; written only between rounds.
    job: UnsafeCell<Option<Job>>,
    /// The current [`Ticket`]. Taking a part counts it up, in the very round that the taker saw: a member that wakes
    /// late finds another word and takes nothing.
    ticket: AtomicU64,
    /// Parts that have ended.
    ended: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the owner of the team between rounds only; `ticket` and `ended` order the accesses.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer itself is never used outside a round.
unsafe impl Send for Shared {}

impl Shared {
    fn ticket(&self) -> Ticket {
        Ticket(self.ticket.load(Ordering::Acquire))
    }

    /// Runs parts of the round of `seen` until none is left to take. `own` is this thread's number.
    fn work(&self, seen: Ticket, own: usize) {
        if seen.each() {
            // The round cannot end before this part has, so it is still the one that was seen.
            return self.run(Part { index: own, count: seen.count() });
        }
        let mut ticket = self.ticket();
        while ticket.round() == seen.round() && ticket.next() < ticket.count() {
            let taken = Ticket(ticket.0 + 1);
            match self.ticket.compare_exchange_weak(ticket.0, taken.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.run(Part { index: ticket.next(), count: ticket.count() });
                    ticket = self.ticket();
                }
                Err(now) => ticket = Ticket(now),
            }
        }
    }

    /// Runs one part that was taken.
    fn run(&self, part: Part) {
        // SAFETY: the job was stored before the round began, and lives until every part has ended; this one has not.
        let job = unsafe { &*(*self.job.get()).expect("a round has a job") };
        if catch_unwind(AssertUnwindSafe(|| job(part))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        // A thread that waits for its next part, or for the next request, is in core dumps with its registers.
        registers::clear();
        self.ended.fetch_add(1, Ordering::Release);
    }
}

/// The threads. The caller of [`Team::run`] is one more.
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts `size - 1` threads.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(size: usize) -> Result<Self> {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            ticket: AtomicU64::new(0),
            ended: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut team = Self { shared, members: Vec::with_capacity(size) };
        for own in 1..size {
            let shared = team.shared.clone();
            let name = format!("amnesic-team-{own}");
            let member = spawn(&name, Depth::Kernels, move || member(&shared, own)).map_err(Error::Thread)?;
            team.members.push(member);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub fn size(&self) -> usize {
        self.members.len() + 1
    }

    /// Runs `job` once for each of `count` parts; returns when all have ended.
    ///
    /// # Panics
    /// If a part panicked.
    pub fn run(&mut self, count: usize, job: &(dyn Fn(Part) + Sync)) {
        self.round(count, false, job);
    }

    /// Runs `job` once on each thread.
    ///
    /// # Panics
    /// Panics where [`Team::run`] does.
    pub fn run_on_each(&mut self, job: &(dyn Fn(Part) + Sync)) {
        self.round(self.size(), true, job);
    }

    fn round(&mut self, count: usize, each: bool, job: &(dyn Fn(Part) + Sync)) {
        let shared = &*self.shared;
        let ticket = Ticket::new(shared.ticket().round().wrapping_add(1), count, each);
        // SAFETY: between rounds nobody reads `job`: a part must be taken first, and the last round has none left.
        // The borrow outlives the round, since this function returns only when every part has ended (`Shared::run`
        // catches their panics). The transmute only forgets the lifetime.
        unsafe { *shared.job.get() = Some(std::mem::transmute::<*const (dyn Fn(Part) + Sync), Job>(job)) };
        shared.ended.store(0, Ordering::Relaxed);
        shared.ticket.store(ticket.0, Ordering::Release);
        self.members.iter().for_each(|member| member.thread().unpark());
        shared.work(ticket, 0);
        let mut spins = 0;
        while shared.ended.load(Ordering::Acquire) < count {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a thread of the team panicked");
    }
}

fn member(shared: &Shared, own: usize) {
    let mut seen = 0;
    loop {
        let (mut spins, mut ticket) = (0, shared.ticket());
        while ticket.round() == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop()
            } else {
                thread::park()
            }
            ticket = shared.ticket();
        }
        seen = ticket.round();
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        shared.work(ticket, own);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let round = self.shared.ticket().round().wrapping_add(1);
        self.shared.ticket.store(Ticket::new(round, 0, false).0, Ordering::Release);
        for member in self.members.drain(..) {
            member.thread().unpark();
            let _ = member.join(); // panics of jobs are caught in `Shared::run`
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("size", &self.size()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once() {
        let mut team = Team::new(4).unwrap();
        for count in [1, 3, 4, 9] {
            let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..1000 {
                team.run(count, &|part| {
                    assert_eq!(part.count, count);
                    runs[part.index].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1000), "{count}: {runs:?}");
        }
    }

    #[test]
    fn a_round_on_each_thread_reaches_every_thread_once() {
        let mut team = Team::new(4).unwrap();
        for _ in 0..200 {
            team.run(7, &|_| ());
            let names = std::sync::Mutex::new(std::collections::HashSet::new());
            team.run_on_each(&|_| assert!(names.lock().unwrap().insert(thread::current().id())));
            assert_eq!(names.into_inner().unwrap().len(), 4);
        }
    }

    #[test]
    fn a_panic_in_any_part_reaches_the_caller_and_the_team_lives_on() {
        let mut team = Team::new(3).unwrap();
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| team.run(3, &|part| assert_ne!(part.index, bad))));
            assert!(result.is_err());
        }
        team.run(3, &|_| ());
    }

    #[test]
    fn parts_cover_everything_once() {
        for total in [0, 1, 7, 16, 100, 129] {
            for count in [1, 2, 3, 8] {
                let all: Vec<usize> =
                    (0..count).flat_map(|index| Part { index, count }.range(total, 4)).collect();
                assert_eq!(all, (0..total).collect::<Vec<_>>());
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn registers_are_clear_after_a_part() {
        extern "C" fn work() {
            Team::new(1).unwrap().run(1, &|_| ());
        }
        let registers = crate::memory::registers::tests::registers_after(work);
        assert!(registers.is_none_or(|(_, high)| high == [0; 8]), "{registers:x?}");
    }
}
