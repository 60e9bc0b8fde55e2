//! A team of threads for one backend: fixed parts, no work stealing, so results never depend on timing.
//!
//! Members spin for a moment after a job, since the next one comes within microseconds while a request runs, then
//! park: an idle session burns no CPU.
#![expect(unsafe_code, reason = "lends a borrowed closure to threads that are waited for before it ends")]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use super::detect::Part;
use crate::error::{Error, Result};
use crate::memory::stack::THREAD_STACK_BYTES;

/// Looks at the job counter this often before parking: some tens of microseconds.
const SPINS: usize = 4_000;

type Job = *const (dyn Fn(Part) + Sync);

struct Shared {
    /// The job of the current round; written only while every member waits.
    job: UnsafeCell<Option<Job>>,
    round: AtomicUsize,
    /// Members that have not finished the round.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the owner of the team between rounds only; `round` and `busy` order the accesses.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer itself is never used outside a round.
unsafe impl Send for Shared {}

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
            round: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut team = Self { shared, members: Vec::with_capacity(size) };
        for index in 1..size {
            let shared = team.shared.clone();
            let member = thread::Builder::new()
                .name(format!("amnesic-team-{index}"))
                .stack_size(THREAD_STACK_BYTES)
                .spawn(move || member(&shared, Part { index, count: size }))
                .map_err(Error::Thread)?;
            team.members.push(member);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub fn size(&self) -> usize {
        self.members.len() + 1
    }

    /// Runs every part of `job`, part 0 on the caller's thread; returns when all have ended.
    ///
    /// # Panics
    /// If a part panicked.
    pub fn run(&mut self, job: &(dyn Fn(Part) + Sync)) {
        let count = self.size();
        if count == 1 {
            return job(Part { index: 0, count });
        }
        // SAFETY: no member runs between rounds, so none reads `job` now; the borrow outlives the round because
        // `Round` waits for every member, also when part 0 panics. The transmute only forgets the lifetime.
        unsafe { *self.shared.job.get() = Some(std::mem::transmute::<*const (dyn Fn(Part) + Sync), Job>(job)) };
        self.shared.busy.store(self.members.len(), Ordering::Relaxed);
        self.shared.round.fetch_add(1, Ordering::Release);
        self.members.iter().for_each(|member| member.thread().unpark());
        let round = Round(&self.shared);
        job(Part { index: 0, count });
        drop(round);
        assert!(!self.shared.panicked.swap(false, Ordering::Relaxed), "a thread of the team panicked");
    }
}

/// Waits for the members when it drops.
struct Round<'a>(&'a Shared);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let mut spins = 0;
        while self.0.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

fn member(shared: &Shared, part: Part) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.round.load(Ordering::Acquire) == seen {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::park() }
        }
        seen += 1;
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the job was stored before the round began, and lives until `busy` is zero.
        let job = unsafe { &*(*shared.job.get()).expect("a round has a job") };
        if catch_unwind(AssertUnwindSafe(|| job(part))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.busy.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.round.fetch_add(1, Ordering::Release);
        for member in self.members.drain(..) {
            member.thread().unpark();
            let _ = member.join(); // its panics are caught and reported by `run`
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
    fn every_part_runs_once_per_round() {
        let mut team = Team::new(4).unwrap();
        let counts: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..1000 {
            team.run(&|part| {
                counts[part.index].fetch_add(part.count, Ordering::Relaxed);
            });
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 4000));
    }

    #[test]
    fn a_panic_in_any_part_reaches_the_caller_and_the_team_lives_on() {
        let mut team = Team::new(3).unwrap();
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| team.run(&|part| assert_ne!(part.index, bad))));
            assert!(result.is_err());
        }
        team.run(&|_| ());
    }
}
